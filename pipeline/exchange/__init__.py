"""Doors to other programs: their annotations in, chips and views out, their detections back.

In: the files of other formats, or a data set. Out: COCO files, other formats, views of whole images. It may import
every room of the package but `commands`, `insight` and `cli`.
"""
