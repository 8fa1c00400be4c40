"""Find objects on whole images with an RT-DETR of Hugging Face's transformers, by the pyramid.

Run it as: python examples/search_transformers.py IMAGES/ [MODEL] (a folder or name for from_pretrained)
Without a model the network is a small one as it was born, and finds nothing worth having.
"""

import sys
from pathlib import Path

import torch
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, RTDetrResNetConfig

from sniper_chips import load_settings, search

torch.manual_seed(0)
if len(sys.argv) > 2:
    network = RTDetrForObjectDetection.from_pretrained(sys.argv[2]).eval()
else:
    widths = [16, 32, 64, 128]
    backbone = RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=widths, depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"]
    )
    config = RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=widths[1:], d_model=32, encoder_hidden_dim=32,
        decoder_in_channels=[32, 32, 32], decoder_layers=1, num_queries=30, num_labels=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
    )  # fmt: skip
    network = RTDetrForObjectDetection(config).eval()
processor = RTDetrImageProcessor(do_resize=False)  # the pyramid has resized already


def detector(views):
    """Boxes, scores and labels of each view, uint8 [height, width, 3]."""
    results = []
    for view in views:
        height, width = (side + -side % 32 for side in view.shape[:2])  # the network wants multiples of 32
        inputs = processor(view, return_tensors="pt")["pixel_values"]
        padded = torch.zeros(1, 3, height, width)
        padded[:, :, : view.shape[0], : view.shape[1]] = inputs
        with torch.inference_mode():
            output = network(padded)
        (found,) = processor.post_process_object_detection(output, 0.01, target_sizes=[(height, width)])
        results.append((found["boxes"], found["scores"], found["labels"]))
    return results


settings = load_settings(None, ("chips.scales=[1.0, {long_side: 256}]", "chips.ranges=[[0, 150], [120, null]]"))
files = sorted(file for file in Path(sys.argv[1]).iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
for file, found in zip(files, search(files, detector, settings), strict=True):
    print(f"{file.name}: {len(found.boxes)} detections, best score {found.scores.max(initial=0):.2f}")
