"""The checks of an annotation file's records, and the columns that are made of the sound ones.

In: decoded records. Out: columns for `Source`, and what was refused. They import `pipeline.coco.source`, `storage`
and `schemas`.
"""
