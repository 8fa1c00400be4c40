"""Detect on an image that is an array in memory.

Run it as: python examples/detect_array.py RUN/ (a folder that `sniper train` wrote)
"""

import sys

import numpy as np

from sniper_chips import Predictor

predictor = Predictor(sys.argv[1])
pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)  # yours: uint8, RGB
found = predictor(pixels)

for (x1, y1, x2, y2), score, label in zip(*(column.tolist() for column in found), strict=True):
    category_id, name = predictor.categories[label - 1]
    print(f"{name} {score:.2f} at {x1:.0f}, {y1:.0f}, {x2 - x1:.0f} x {y2 - y1:.0f}")
print(f"{len(found.boxes)} detections")
