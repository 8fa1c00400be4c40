"""What is worth knowing about the data before a training starts."""

from collections import Counter

import numpy as np
import torch

from schemas.codes import Status
from schemas.settings import Settings
from trainer.loading.dataset import ChipDataset
from trainer.model.anchors import best_anchor_iou

RECALL_WANTED, RECALL_IOU, RECALL_BOXES = 0.9, 0.5, 50_000


def anchor_report(dataset: ChipDataset, settings: Settings) -> str:
    """Say per scale what share of the valid boxes some anchor meets at IoU 0.5, and warn where it is below 0.9."""
    m = dataset.manifest
    offsets = m.box_offsets[: m.num_positives + 1]
    chip = np.repeat(np.arange(m.num_positives), np.diff(offsets))
    rows = np.flatnonzero(m.status[: offsets[-1]] == Status.VALID)
    rows = rows[:: max(1, len(rows) // RECALL_BOXES)]
    chip = chip[rows]
    boxes = torch.tensor(m.corners[rows])
    best = best_anchor_iou(boxes, torch.tensor(m.contents[chip], dtype=torch.int64), settings.model)
    lines = []
    scales = torch.tensor(m.ranges[chip, 0])  # the range tells scales apart, factors vary
    for low in sorted(set(scales.tolist())):
        here = scales == low
        recall = (best[here] >= RECALL_IOU).float().mean().item()
        lines.append(f"anchors meet {recall:.1%} of the valid boxes of the scale for sizes from {low:g} px")
        if recall < RECALL_WANTED:
            missed = boxes[here & (best < RECALL_IOU)]
            sizes = Counter(map(tuple, (missed[:, 2:] - missed[:, :2]).round().int().tolist()))
            worst = ", ".join(f"{w}x{h}" for (w, h), _ in sizes.most_common(5))
            lines.append(
                f"  WARNING: below {RECALL_WANTED:.0%}; missed most in chip pixels: {worst}; see model.anchor_scales"
            )
    return "\n".join(lines)
