"""Find objects on whole images with a detector of ultralytics, by the pyramid.

Run it as: python examples/search_ultralytics.py IMAGES/ [MODEL] (best.pt of a training on exported chips, say)
Without a model the network is as it was born, and finds nothing worth having.
"""

import sys
from pathlib import Path

import numpy as np
from ultralytics import YOLO

from sniper_chips import load_settings, search

network = YOLO(sys.argv[2] if len(sys.argv) > 2 else "yolo11n.yaml")


def detector(views):
    """Boxes, scores and labels of each view, uint8 [height, width, 3]."""
    side = max(max(view.shape[:2]) for view in views)  # the network pads to a multiple of 32, and enlarges nothing
    images = [np.ascontiguousarray(view[:, :, ::-1]) for view in views]  # BGR, as OpenCV has it
    found = network.predict(images, imgsz=side + -side % 32, conf=0.001, verbose=False)
    return [(one.boxes.xyxy.cpu(), one.boxes.conf.cpu(), one.boxes.cls.cpu()) for one in found]


settings = load_settings(None, ("chips.scales=[1.0, {long_side: 256}]", "chips.ranges=[[0, 150], [120, null]]"))
files = sorted(file for file in Path(sys.argv[1]).iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
for file, found in zip(files, search(files, detector, settings), strict=True):
    print(f"{file.name}: {len(found.boxes)} detections, best score {found.scores.max(initial=0):.2f}")
