"""Detect on an image that is an array in memory.

Run it as: python examples/detect_array.py RUN/ (a folder that `sniper train` wrote)
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from sniper_chips import detect

pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)  # yours: uint8, RGB

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "image.png"
    Image.fromarray(pixels).save(file)
    (result,) = detect(Path(sys.argv[1]), file)

for found in result["detections"][:5]:
    x, y, width, height = found["bbox"]
    print(f"{found['category']} {found['score']:.2f} at {x:.0f}, {y:.0f}, {width:.0f} x {height:.0f}")
print(f"{len(result['detections'])} detections")
