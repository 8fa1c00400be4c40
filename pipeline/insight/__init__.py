"""What a chip data set holds, made visible, and which settings would suit it.

In: annotation files, manifests, ledgers and shards. Out: pictures, reports, lazy frames and proposed settings. It may
import every room of the package but `commands`, `exchange` and `cli`, and writes nothing into a data set.
"""
