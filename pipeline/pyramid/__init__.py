"""Whole images searched at every scale by any detector, whose detections become one list.

In: images, and a callable that finds boxes, scores and labels in views. Out: boxes per image. There is no torch here,
so that any detector can be used. It imports `images`, `planning`, `coco`, `engines`, `kernels`, `storage` and
`schemas`.
"""
