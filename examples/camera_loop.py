"""Detect on frames as they come, with a detector that stays loaded.

Run it as: python examples/camera_loop.py RUN/ [FRAMES/] (a folder that `sniper train` wrote, and one of frames)
Without frames it makes some. A camera gives them the same way: with OpenCV, `VideoCapture(0).read()[1][:, :, ::-1]`.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from sniper_chips import Predictor, load_settings


def frames() -> Iterator[np.ndarray]:
    """Yield frames, uint8 [height, width, 3], RGB."""
    if len(sys.argv) > 2:
        for file in sorted(Path(sys.argv[2]).iterdir()):
            if file.suffix.lower() in (".jpg", ".jpeg", ".png"):
                yield np.asarray(Image.open(file).convert("RGB"))
    else:
        rng = np.random.default_rng(0)
        for _ in range(3):
            yield rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)


predictor = Predictor(sys.argv[1], load_settings(None, ("detect.min_score=0.3",)))
for number, frame in enumerate(frames()):
    started = time.perf_counter()
    found = predictor(frame)
    names = [predictor.categories[label - 1][1] for label in found.labels]
    milliseconds = (time.perf_counter() - started) * 1000
    print(f"frame {number}: {len(names)} detections in {milliseconds:.0f} ms {names[:3]}")
