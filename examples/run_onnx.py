"""Find objects on whole images with an exported network, by the pyramid and without torch.

Run it as: python examples/run_onnx.py NETWORK.onnx IMAGES/ (NETWORK.onnx from `sniper export-model`)
It needs onnxruntime beside this package, and neither torch nor the extra `train`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from sniper_chips import load_settings, search

session = onnxruntime.InferenceSession(sys.argv[1], providers=onnxruntime.get_available_providers())
about = json.loads(session.get_modelmeta().custom_metadata_map["sniper"])
height, width = about["size"]
names = [name for _, name in about["classes"]]  # by label from 1


def detector(views):
    """Boxes, scores and labels of each view, uint8 [height, width, 3]."""
    images = np.zeros((len(views), height, width, 3), np.uint8)
    for image, view in zip(images, views, strict=True):
        image[: view.shape[0], : view.shape[1]] = view
    sizes = np.array([view.shape[:2] for view in views], np.int64)
    found = zip(*session.run(None, {"images": images, "sizes": sizes}), strict=True)
    return [(boxes[scores > 0], scores[scores > 0], labels[scores > 0]) for boxes, scores, labels in found]


chips = [f"chips.{name}={json.dumps(value)}" for name, value in about["chips"].items()]
settings = load_settings(None, (*chips, f"detect.max_side={min(height, width)}"))
files = sorted(file for file in Path(sys.argv[2]).iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
refused = {}  # takes what is wrong with images that cannot be read, by their positions
for position, found in enumerate(search(files, detector, settings, refused=refused)):
    if position in refused:
        print(f"WARNING: {refused[position]}", file=sys.stderr)
        continue
    best = f", best {names[found.labels[0] - 1]} {found.scores[0]:.2f}" if len(found.scores) else ""
    print(f"{files[position].name}: {len(found.boxes)} detections{best}")
