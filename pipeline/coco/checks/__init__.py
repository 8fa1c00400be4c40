"""The checks of an annotation file's records, and the columns that are made of the sound ones.

In: parsed records, list by list. Out: columns for `Source`, what was refused, and remarks on the whole. They import
`pipeline.coco.source`, `pipeline.coco.rows`, `pipeline.coco.records` and `schemas`.
"""
