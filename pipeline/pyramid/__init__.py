"""Whole images searched at every scale: which views there are, and how their detections become one list.

In: sizes of images; boxes, scores and labels per view. Out: views to be searched; boxes per image. NumPy only, so that
any detector can be used. It imports `planning`, `coco` and `schemas`.
"""
