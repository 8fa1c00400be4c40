"""Small random chips, and the obvious geometry that references are written in."""

import random

import torch
from torch import Tensor

from schemas.codes import Status
from schemas.settings import ModelSettings
from trainer.loading.batch import Batch
from trainer.model import Detector

SLIM = ModelSettings(
    backbone="resnet18", levels=(3, 5), width=16, anchor_scales=[4], pooled=3, head_width=32, pre_nms=200, proposals=40
)
CLASSES = 4


def slim_detector(side: int = 96, seed: int = 0, settings: ModelSettings = SLIM) -> Detector:
    torch.manual_seed(seed)
    return Detector(settings, CLASSES, side)


def make_batch(counts: list[int], side: int = 96, seed: int = 0, statuses: list[Status] | None = None) -> Batch:
    """One chip per count, with that many boxes; contents of any size; quarter-pixel coordinates, so ties are exact."""
    draw = random.Random(seed)
    sizes, boxes, offsets = [], [], [0]
    for count in counts:
        height, width = (side if draw.random() < 0.5 else draw.randint(side // 2, side) for _ in range(2))
        sizes.append([height, width])
        for _ in range(count):
            w, h = (min(4 * 2 ** draw.uniform(0, 4.5), limit) for limit in (width, height))
            x, y = draw.uniform(0, width - w), draw.uniform(0, height - h)
            boxes.append([round(4 * v) / 4 for v in (x, y, x + w, y + h)])
        offsets.append(len(boxes))
    kinds = statuses or list(Status)
    total = len(boxes)
    pixels = torch.randint(0, 256, (len(counts), side, side, 3), generator=torch.Generator().manual_seed(seed))
    return Batch(
        keys=[f"{seed}-{i}" for i in range(len(counts))],
        images=pixels.to(torch.uint8).permute(0, 3, 1, 2),
        sizes=torch.tensor(sizes, dtype=torch.int64).view(-1, 2),
        scales=torch.tensor([draw.choice([3.0, 1.667, 0.8]) for _ in counts], dtype=torch.float32),
        scale_indices=torch.tensor([seed + i for i in range(len(counts))], dtype=torch.int64) % 3,
        ranges=torch.tensor([draw.choice([[0.0, 16.0], [8.0, 40.0], [20.0, torch.inf]]) for _ in counts]).view(-1, 2),
        boxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        labels=torch.tensor([draw.randint(1, CLASSES) for _ in range(total)], dtype=torch.int64),
        status=torch.tensor([draw.choice(kinds) for _ in range(total)], dtype=torch.uint8),
        visible=torch.tensor([draw.choice([1.0, 1.0, 0.5, 0.25]) for _ in range(total)], dtype=torch.float32),
        offsets=torch.tensor(offsets),
    )


def take(batch: Batch, order: list[int]) -> Batch:
    """The chips in this order."""
    ends = batch.offsets.tolist()
    rows = [row for chip in order for row in range(ends[chip], ends[chip + 1])]
    counts = torch.tensor([ends[chip + 1] - ends[chip] for chip in order], dtype=torch.int64)
    return Batch(
        keys=[batch.keys[chip] for chip in order],
        images=batch.images[order],
        sizes=batch.sizes[order],
        scales=batch.scales[order],
        scale_indices=batch.scale_indices[order],
        ranges=batch.ranges[order],
        boxes=batch.boxes[rows],
        labels=batch.labels[rows],
        status=batch.status[rows],
        visible=batch.visible[rows],
        offsets=torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
    )


def chip_boxes(batch: Batch, chip: int) -> list[tuple[list[float], int, Status]]:
    """Box, label, status of each box of a chip."""
    rows = slice(int(batch.offsets[chip]), int(batch.offsets[chip + 1]))
    status = [Status(value) for value in batch.status[rows].tolist()]
    return list(zip(batch.boxes[rows].tolist(), batch.labels[rows].tolist(), status, strict=True))


def area(box: list[float]) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def inter(a: list[float], b: list[float]) -> float:
    return area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])


def iou(a: list[float], b: list[float]) -> float:
    shared = inter(a, b)
    return shared / (area(a) + area(b) - shared)


def random_boxes(num: int, side: float, seed: int) -> Tensor:
    """float32 [num, 4], sides 4 and up, within [0, side]; quarter pixels."""
    generator = torch.Generator().manual_seed(seed)
    wh = 4 * 2 ** (torch.rand(num, 2, generator=generator) * 4)
    corner = torch.rand(num, 2, generator=generator) * (side - wh)
    return (torch.cat([corner, corner + wh], 1) * 4).round() / 4
