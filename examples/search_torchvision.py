"""Find objects on whole images with a detector of torchvision, by the pyramid.

Run it as: python examples/search_torchvision.py IMAGES/ [WEIGHTS.pth]
Without weights the network is as it was born, and finds nothing worth having.
"""

import sys
from pathlib import Path

import torch
from torchvision.models.detection import retinanet_resnet50_fpn

from sniper_chips import load_settings, search

torch.manual_seed(0)
network = retinanet_resnet50_fpn(weights=None, weights_backbone=None).eval()
# torchvision brings its input to 800 px; the pyramid has resized it already (`_skip_resize` acts in training alone)
network.transform.resize = lambda image, target=None: (image, target)
if len(sys.argv) > 2:
    network.load_state_dict(torch.load(sys.argv[2], weights_only=True))


def detector(views):
    """Boxes, scores and labels of each view, uint8 [height, width, 3]."""
    tensors = [torch.from_numpy(view).permute(2, 0, 1).float() / 255 for view in views]
    with torch.inference_mode():
        return [(found["boxes"], found["scores"], found["labels"]) for found in network(tensors)]


settings = load_settings(None, ("chips.scales=[1.0, {long_side: 256}]", "chips.ranges=[[0, 150], [120, null]]"))
files = sorted(file for file in Path(sys.argv[1]).iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
for file, found in zip(files, search(files, detector, settings), strict=True):
    print(f"{file.name}: {len(found.boxes)} detections, best score {found.scores.max(initial=0):.2f}")
