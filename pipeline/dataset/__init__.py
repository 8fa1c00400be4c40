"""The files of a chip data set: shards, manifests, ledger, plan files, proposals and run.json.

In: planned rows and decoded images. Out: files under OUT, and the same files read back. It imports `images`,
`planning`, `coco`, `engines`, `storage` and `schemas`.
"""
