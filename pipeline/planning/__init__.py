"""From boxes to windows to manifest rows; no pixel is read.

In: columns of images and boxes, or pooled proposals. Out: the windows that cover them, and what each box is in each
window. Pure functions; the room imports `coco`, `kernels` and `schemas`.
"""
