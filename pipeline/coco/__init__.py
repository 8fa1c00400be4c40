"""The annotation file: read, checked, and turned into columns.

In: a COCO JSON file (`pipeline.coco.read`). Out: a `Source` (columns of images, boxes and categories) and a row for
each record that was refused. It imports `storage` and `schemas`.
"""

from pipeline.coco.source import RefusedBox, RefusedImage, Reject, Source, SourceImage, describe_rejects, find_ids

__all__ = [
    "RefusedBox",
    "RefusedImage",
    "Reject",
    "Source",
    "SourceImage",
    "describe_rejects",
    "find_ids",
]
