"""Compile the kernels into numba's cache, so that the first `sniper chips` and `sniper detect` do not wait for it."""

import tempfile
from pathlib import Path

import msgspec
import numpy as np

from pipeline.coco.read import read_coco
from pipeline.planning.geometry import Windows
from pipeline.planning.mine import PooledProposals, merge_scales, mine_span
from pipeline.planning.plan import plan_span, span_columns
from pipeline.pyramid.nms import nms, soft_nms
from schemas.settings import ChipSettings

COCO = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 640, "height": 480}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 40]}],
    "categories": [{"id": 1, "name": "thing"}],
}

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "coco.json"
    path.write_bytes(msgspec.json.encode(COCO))
    source = read_coco(path)
plan_span(source, 0, 1, ChipSettings())
proposals = np.array([[100, 100, 150, 150]] * 30, np.float32)
pool = merge_scales(PooledProposals(np.array([0, 30]), proposals, np.linspace(0, 1, 30, dtype=np.float32)), 1.0)
nothing = Windows(np.empty(0, np.int64), np.empty(0, np.int8), np.empty((0, 4)))
mine_span(span_columns(source, 0, 1, ChipSettings()), pool, nothing, np.array([25, 10, 10]), 512, 32)
soft_nms(proposals, np.linspace(0, 1, 30, dtype=np.float32), np.ones(30, np.int64))
nms(proposals, 0.5)
