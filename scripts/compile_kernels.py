"""Compile the planning kernels into numba's cache, so that the first `sniper chips` does not wait for it."""

import tempfile
from pathlib import Path

import msgspec

from pipeline.coco import read_coco
from pipeline.plan import plan_run
from schemas.settings import ChipSettings

COCO = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 640, "height": 480}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 40]}],
    "categories": [{"id": 1, "name": "thing"}],
}

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "coco.json"
    path.write_bytes(msgspec.json.encode(COCO))
    plan_run(read_coco(path), 0, 1, ChipSettings())
