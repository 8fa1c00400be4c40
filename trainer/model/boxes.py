"""Box geometry on the device.

Boxes are float32 [..., 4], x1 y1 x2 y2, in continuous pixels with x2 and y2 exclusive; nothing adds 1 anywhere
(docs/method.md, 2.1). All boxes of one call are in the same frame, which is chip pixels in training and view pixels
in inference.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
import torchvision
from torch import Tensor

ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Factors of the box head's deltas dx dy dw dh (docs/method.md, 7.3)."""

MAX_LOG_RATIO = math.log(1000 / 16)
"""Largest dw or dh that is decoded, so that exp() of any network's output stays finite (docs/method.md, 7.3)."""

CHUNK = 2**24
"""Pairs of boxes that are compared at once; it bounds each temporary tensor at about 64 MB."""

NMS_ROUNDS = 8
"""Rounds of NMS on a GPU before the host asks whether they were enough; chips need about seven."""

NMS_BLOCK = 512
"""Better boxes that NMS on a GPU compares at a time with all that are worse, and not with those before them."""

MOST_COMPARED = 4096
"""Boxes of a chip or view of which NMS may compare all with all: memory and time grow with the square."""


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a small float32 tensor that is copied to the device only once; do not write into it.

    A copy in every step would make the host wait for the GPU.
    """
    return torch.tensor(values, dtype=torch.float32, device=device)


def has_area(boxes: Tensor) -> Tensor:
    """Tell which boxes [..., 4] have a positive width and height, bool [...]."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def box_area(boxes: Tensor) -> Tensor:
    """Return width times height, [...], of boxes [..., 4]."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    return width * height


def box_size(boxes: Tensor) -> Tensor:
    """Return the size sqrt(width * height), [...], of boxes [..., 4], in the boxes' own pixels; 0 for empty boxes."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp_(min=0).unbind(-1)
    return (width * height).sqrt()


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Cut boxes to the content of their image.

    Args:
        boxes: float32 [B, N, ..., 4], pixels of the image.
        sizes: int64 [B, 2], height and width of the content, pixels of the image.

    Returns:
        float32 of the same shape; a box outside the content becomes empty.
    """
    height, width = sizes.to(boxes.dtype).unbind(1)
    limit = torch.stack([width, height, width, height], 1)
    return boxes.clamp(min=0).minimum(limit.view(-1, *[1] * (boxes.dim() - 2), 4))


def overlaps(candidates: Tensor, boxes: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Compare all candidates with all boxes of their chip, a few boxes of every chip at a time.

    Args:
        candidates: float32 [B or 1, N, 4]; with 1 the same candidates serve every chip.
        boxes: float32 [B, G, 4], in the candidates' frame.

    Yields:
        The slice of G at hand, of length g; the IoU, float32 [B, g, N]; the area of the intersection, float32
        [B, g, N].
    """
    num_chips, num_boxes = boxes.shape[:2]
    step = max(1, CHUNK // max(1, num_chips * candidates.shape[1]))
    cx1, cy1, cx2, cy2 = candidates[:, None].unbind(-1)  # [B or 1, 1, N] each
    area = box_area(candidates)[:, None]
    for start in range(0, num_boxes, step):
        columns = slice(start, start + step)
        part = boxes[:, columns, None]  # [B, g, 1, 4]
        bx1, by1, bx2, by2 = part.unbind(-1)
        inter = (torch.minimum(cx2, bx2) - torch.maximum(cx1, bx1)).clamp_(min=0)
        inter *= (torch.minimum(cy2, by2) - torch.maximum(cy1, by1)).clamp_(min=0)
        union = (area + box_area(part)).sub_(inter)
        yield columns, inter / union, inter


def encode(boxes: Tensor, refs: Tensor) -> Tensor:
    """Return the deltas of boxes as seen from reference boxes (docs/method.md, 7.3).

    Args:
        boxes: float32 [..., 4], with positive width and height.
        refs: float32 [..., 4], in the same frame, with positive width and height.

    Returns:
        float32 [..., 4], dx dy dw dh: centres' differences over the reference's sides, logarithms of side ratios.
    """
    sides_of_refs = refs[..., 2:] - refs[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - refs[..., :2] - refs[..., 2:]) / (2 * sides_of_refs)
    return torch.cat([shift, ((boxes[..., 2:] - boxes[..., :2]) / sides_of_refs).log()], -1)


def decode(deltas: Tensor, refs: Tensor) -> Tensor:
    """Return the boxes that deltas describe from reference boxes; the inverse of `encode`.

    Args:
        deltas: float32 [..., 4], dx dy dw dh; dw and dh above MAX_LOG_RATIO count as MAX_LOG_RATIO.
        refs: float32 [..., 4], any frame.

    Returns:
        float32 [..., 4], x1 y1 x2 y2 in the frame of `refs`.
    """
    sides_of_refs = refs[..., 2:] - refs[..., :2]
    centre = refs[..., :2] + sides_of_refs * (deltas[..., :2] + 0.5)
    half = sides_of_refs * deltas[..., 2:].clamp(max=MAX_LOG_RATIO).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def nms(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Run greedy NMS on every chip by itself.

    Args:
        boxes: float32 [B, N, 4], best first.
        valid: bool [B, N]; boxes where this is False neither stay nor suppress another one.
        threshold: a box goes when a better one that stays overlaps it with an IoU above this.

    Returns:
        bool [B, N], True for the boxes that stay.
    """
    if torch.compiler.is_exporting():
        keep: Tensor = exported_nms(boxes, valid, threshold)
        return keep
    if boxes.shape[1] > MOST_COMPARED:
        return _nms_by_place(boxes, valid, threshold)
    if boxes.device.type == "cpu":
        return _nms_sequential(boxes, valid, threshold)
    return _nms_parallel(boxes, valid, threshold)


@torch.library.custom_op("sniper_chips::nms", mutates_args=())
def exported_nms(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Run `nms` as one operation, which an exported network names instead of the loops inside."""
    return _nms_sequential(boxes, valid, threshold)


@exported_nms.register_fake
def _(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    return torch.empty_like(valid)


def _nms_sequential(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Run torchvision's greedy NMS chip by chip.

    On a CPU its cost is N times the number of boxes that stay, so joining chips would only add pairs to compare.
    """
    keep = torch.zeros_like(valid)
    for chip, rows in enumerate(mask.nonzero()[:, 0] for mask in valid):
        kept = torchvision.ops.nms(boxes[chip, rows], -rows.to(boxes.dtype), threshold)
        keep[chip, rows[kept]] = True
    return keep


def _nms_by_place(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Run the greedy loop on a CPU, comparing each box with those near it alone: for whole images."""
    from pipeline.pyramid.nms import nms as nms_by_place  # compiled code, which chips do without

    keep = torch.zeros_like(valid)
    for chip, rows in enumerate(mask.nonzero()[:, 0] for mask in valid):
        stay = nms_by_place(boxes[chip, rows].float().cpu().numpy(), threshold)
        keep[chip, rows[torch.from_numpy(stay).to(rows.device)]] = True
    return keep


def _nms_parallel(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Find the set of the greedy loop as the fixed point of "a box stays if no better box that stays overlaps it".

    After t rounds the first t boxes are settled, so the search ends; in practice it takes a few rounds, where the
    greedy loop has N steps of which each waits for the one before. A round is one product of a vector and a matrix of
    zeros and ones, which says of each box whether the number of those that beat it is 0, in any precision.
    """
    if not valid.numel():
        return valid
    beats = boxes.new_zeros(*valid.shape, valid.shape[1], dtype=torch.bfloat16)  # [B, better, worse]
    for start in range(0, valid.shape[1], NMS_BLOCK):  # those before a block beat none in it
        better = slice(start, start + NMS_BLOCK)
        for rows, iou, _ in overlaps(boxes[:, start:], boxes[:, better]):
            beats[:, better, start:][:, rows] = (iou > threshold).triu_(diagonal=1 + rows.start)
    keep = candidates = valid.to(beats.dtype)
    while True:
        for _ in range(NMS_ROUNDS):
            before = keep
            keep = candidates * (torch.bmm(before[:, None], beats)[:, 0] == 0)
        if torch.equal(keep, before):  # the host waits for the device here
            return keep.bool()
