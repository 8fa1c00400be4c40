"""Annotation files: what of them the rest of the program sees, and how they are read.

source.py has the columns and `read.py` the way to them: file.py finds the lists (records.py, a byte scanner) and
decodes runs of records; categories.py, images.py and boxes.py check them (ids.py) and make columns (grouping.py).
"""

from pipeline.coco.read import read_coco
from pipeline.coco.source import RefusedBox, RefusedImage, Reject, Source, SourceImage, describe_rejects

__all__ = ["RefusedBox", "RefusedImage", "Reject", "Source", "SourceImage", "describe_rejects", "read_coco"]
