"""Box geometry on the device. Boxes are [..., 4], x1 y1 x2 y2, float32; x2 and y2 exclusive; no "+1" anywhere."""

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
import torchvision
from torch import Tensor

ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # (docs/method.md, 7.3)


MAX_LOG_RATIO = math.log(1000 / 16)
"""Largest decoded log size ratio; exp() of anything an untrained net says stays finite (docs/method.md, 7.3)."""

CHUNK = 2**24
"""Pairs compared at once; bounds memory at about 64 MB per temporary whatever the number of boxes."""


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A small float32 tensor, copied to the device once: a copy in every step makes the host wait for the GPU."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def box_size(boxes: Tensor) -> Tensor:
    """sqrt(width * height), in the boxes' own pixels; 0 for empty boxes."""
    width, height = sides(boxes)
    return (width.clamp(min=0) * height.clamp(min=0)).sqrt()


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Cut to the content. boxes: [B, N, ..., 4]; sizes: int64 [B, 2], height and width."""
    height, width = sizes.to(boxes.dtype).unbind(1)
    limit = torch.stack([width, height, width, height], 1)
    return boxes.clamp(min=0).minimum(limit.view(-1, *[1] * (boxes.dim() - 2), 4))


def overlaps(candidates: Tensor, boxes: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Compare all candidates with all boxes of their chip, a few boxes of every chip at a time.

    Args:
        candidates: [B or 1, N, 4]
        boxes: [B, G, 4]

    Yields:
        columns of G; IoU, float32 [B, g, N]; intersection over the candidate's area, float32 [B, g, N].
    """
    num_chips, num_boxes = boxes.shape[:2]
    step = max(1, CHUNK // max(1, num_chips * candidates.shape[1]))
    cx1, cy1, cx2, cy2 = candidates[:, None].unbind(-1)  # [B or 1, 1, N] each
    area = (cx2 - cx1) * (cy2 - cy1)
    for start in range(0, num_boxes, step):
        columns = slice(start, start + step)
        part = boxes[:, columns, None]  # [B, g, 1, 4]
        bx1, by1, bx2, by2 = part.unbind(-1)
        inter = (torch.minimum(cx2, bx2) - torch.maximum(cx1, bx1)).clamp_(min=0)
        inter *= (torch.minimum(cy2, by2) - torch.maximum(cy1, by1)).clamp_(min=0)
        union = (area + (bx2 - bx1) * (by2 - by1)).sub_(inter)
        yield columns, inter / union, inter / area


def encode(boxes: Tensor, refs: Tensor) -> Tensor:
    """(dx, dy, dw, dh) of `boxes` as seen from `refs`, both [..., 4] (docs/method.md, 7.3)."""
    width, height = sides(refs)
    box_width, box_height = sides(boxes)
    dx = (boxes[..., 0] + boxes[..., 2] - refs[..., 0] - refs[..., 2]) / (2 * width)
    dy = (boxes[..., 1] + boxes[..., 3] - refs[..., 1] - refs[..., 3]) / (2 * height)
    return torch.stack([dx, dy, (box_width / width).log(), (box_height / height).log()], -1)


def decode(deltas: Tensor, refs: Tensor) -> Tensor:
    """Boxes [..., 4] from (dx, dy, dw, dh); dw and dh are held to MAX_LOG_RATIO."""
    width, height = sides(refs)
    x = refs[..., 0] + width * (deltas[..., 0] + 0.5)
    y = refs[..., 1] + height * (deltas[..., 1] + 0.5)
    half_width = width * deltas[..., 2].clamp(max=MAX_LOG_RATIO).exp() / 2
    half_height = height * deltas[..., 3].clamp(max=MAX_LOG_RATIO).exp() / 2
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)


def nms(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Greedy NMS of every chip at once.

    Args:
        boxes: [B, N, 4], best first
        valid: bool [B, N]; the others neither stay nor suppress
        threshold: a box goes when a better one that stays has IoU above this

    Returns:
        bool [B, N], the boxes that stay.
    """
    if boxes.device.type == "cpu":
        return _nms_sequential(boxes, valid, threshold)
    return _nms_parallel(boxes, valid, threshold)


def _nms_sequential(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Chip by chip: on a CPU the greedy loop costs what stays times N, so putting chips together only adds pairs."""
    keep = torch.zeros_like(valid)
    for chip, rows in enumerate(mask.nonzero()[:, 0] for mask in valid):
        kept = torchvision.ops.nms(boxes[chip, rows], -rows.to(boxes.dtype), threshold)
        keep[chip, rows[kept]] = True
    return keep


def _nms_parallel(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """The same set, as the fixed point of "stays if no better one that stays overlaps it".

    After t rounds the first t boxes are settled, so it ends; in practice after a few rounds, each one pass over
    [B, N, N] in place of the greedy loop's N dependent steps.
    """
    beats = torch.cat([iou > threshold for _, iou, _ in overlaps(boxes, boxes)], 1)  # [B, better, worse]
    beats = beats.triu_(diagonal=1) & valid[:, :, None]
    keep = valid
    while True:
        settled = valid & ~(beats & keep[:, :, None]).any(1)
        if torch.equal(settled, keep):  # the one device sync of a round
            return keep
        keep = settled
