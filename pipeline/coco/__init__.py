"""Annotation files: read, checked, and turned into columns.

In: COCO JSON files (`pipeline.coco.read`). Out: a `Source` (columns of images, boxes and categories) and a row for
each record that was refused. It imports `storage` and `schemas`.
"""

from pipeline.coco.records import Reject, SourceImage

__all__ = ["Reject", "SourceImage"]
