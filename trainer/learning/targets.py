"""What learns from what: labels of anchors and of proposals (docs/method.md, 7)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.codes import IGNORED, TARGETS, Status
from trainer.learning.ground_truth import PaddedBoxes, hash_slots
from trainer.loading.batch import Batch
from trainer.model.anchors import may_learn
from trainer.model.boxes import ROI_WEIGHTS, box_area, box_size, constant, encode, has_area, overlaps
from trainer.model.proposals import compact

EXEMPT_IOU = 0.5
"""A proposal out of range stays with at least this IoU to a rescued box (docs/method.md, 7.4)."""
POSITIVE_IOU = 0.5
"""An anchor or a proposal with at least this IoU to a box is foreground (docs/method.md, 7.1 and 7.6)."""
NEGATIVE_IOU = 0.4
"""An anchor with less than this IoU to every box is background (docs/method.md, 7.1)."""
OTHER_IOU = 0.3
"""An anchor with more than this IoU to a box that the RPN does not learn gives no loss (docs/method.md, 7.1)."""
CROWD_SHARE = 0.5
"""An anchor or a proposal with at least this share inside a crowd gives no loss (docs/method.md, 7.1 and 7.6)."""
RPN_SAMPLES, RPN_POSITIVES = 256, 128
"""Anchors drawn per chip, and how many of them are positive at most (docs/method.md, 7.2)."""
TIE = 1 - 1e-6
"""IoUs above this share of the best one are ties, since rounding alone tells them apart (docs/method.md, 7.1)."""


@dataclass(frozen=True)
class AnchorSample:
    """The anchors drawn for the loss of the RPN, S of each chip.

    Attributes:
        slots: int64 [B, S], indices of anchors, in bounds everywhere.
        used: bool [B, S]; where False the other numbers mean nothing.
        positive: bool [B, S], anchors that a box was matched to.
        deltas: float32 [B, S, 4], dx dy dw dh of the matched box from the anchor; 0 where not positive.
    """

    slots: Tensor
    used: Tensor
    positive: Tensor
    deltas: Tensor


def label_anchors(anchors: Tensor, sizes: Tensor, boxes: PaddedBoxes) -> tuple[Tensor, Tensor]:
    """Label every anchor for the RPN (docs/method.md, 7.1).

    1 (positive): IoU >= 0.5 to a valid or rescued box, or the best anchor of such a box, with all ties, if its IoU is
    above 0. -1 (no loss): not positive, and it may not learn, or its IoU is > 0.3 to a box of another status, or half
    or more of it lies inside a crowd, or its IoU is >= 0.4 to any box. 0 (negative): all others, so all anchors of a
    chip without boxes. Positives come first: no box nearby takes a valid box's anchors from it.

    Args:
        anchors: float32 [A, 4], chip pixels.
        sizes: int64 [B, 2], height and width of the content, chip pixels.
        boxes: of the batch.

    Returns:
        Labels int8 [B, A]; for positives the box with the highest IoU, int64 [B, A], a column of `boxes`.
    """
    learns = boxes.having(*TARGETS)
    crowd = boxes.having(Status.CROWD)
    other = boxes.real & ~(learns | crowd)
    # One limit per box does for both kinds: IoU > 0.3 to others, IoU >= 0.4 to crowds.
    veto_iou = boxes.boxes.new_full(other.shape, torch.inf)
    veto_iou.masked_fill_(other, OTHER_IOU).masked_fill_(crowd, _below(NEGATIVE_IOU))
    allowed = may_learn(anchors, sizes)
    best = anchors.new_zeros(allowed.shape)
    match = torch.zeros_like(allowed, dtype=torch.int64)
    forced, vetoed = torch.zeros_like(allowed), ~allowed
    for columns, iou, inter in overlaps(anchors[None], boxes.boxes):
        vetoed |= (iou > veto_iou[:, columns, None]).any(1)
        if boxes.max_crowds:
            vetoed |= _inside(crowd[:, columns], inter, anchors)
        iou *= learns[:, columns, None] & allowed[:, None]
        top = iou.amax(2)
        forced |= (iou >= torch.where(top > 0, top * TIE, torch.inf)[:, :, None]).any(1)
        value, column = iou.max(1)
        match = torch.where(value > best, column + columns.start, match)
        best = torch.maximum(best, value)
    positive = (best >= POSITIVE_IOU) | forced
    labels = torch.zeros_like(vetoed, dtype=torch.int8)
    return labels.masked_fill_(vetoed | (best >= NEGATIVE_IOU), -1).masked_fill_(positive, 1), match


def _inside(crowd: Tensor, inter: Tensor, boxes: Tensor) -> Tensor:
    """Tell of which boxes CROWD_SHARE or more lies inside a crowd, bool [B, N].

    Args:
        crowd: bool [B, g], which of the boxes that were compared with are crowds.
        inter: float32 [B, g, N], the areas of the intersections.
        boxes: float32 [N, 4] or [B, 1, N, 4].
    """
    return ((inter / box_area(boxes) >= CROWD_SHARE) & crowd[:, :, None]).any(1)


def _below(value: float) -> float:
    """Return the largest float32 below a value: what exceeds it is at least the value."""
    return float(torch.nextafter(torch.tensor(value), torch.tensor(0.0)))


def sample_anchors(anchors: Tensor, labels: Tensor, match: Tensor, boxes: PaddedBoxes, states: Tensor) -> AnchorSample:
    """Draw at most 128 positive anchors of each chip and fill up with negatives to 256 (docs/method.md, 7.2).

    Those with the highest hashes are drawn. The hash is of (state, anchor), so the draw of a chip depends neither on
    its neighbours in the batch nor on its place among them.

    Args:
        anchors: float32 [A, 4], chip pixels.
        labels: int8 [B, A], from `label_anchors`.
        match: int64 [B, A], from `label_anchors`.
        boxes: of the batch.
        states: int64 [B], from `key_states`.

    Returns:
        The anchors drawn, in no particular order.
    """
    hashes = hash_slots(states, len(anchors))
    first = 2**62  # above every hash
    drawn, slots = torch.where(labels == 1, hashes, -1).topk(min(RPN_POSITIVES, len(anchors)), sorted=False)
    keys = torch.where(labels == 0, hashes, -1)
    keys = keys.scatter(1, slots, torch.where(drawn >= 0, drawn + first, keys.gather(1, slots)))
    keys, slots = keys.topk(min(RPN_SAMPLES, len(anchors)), sorted=False)
    positive = keys >= first
    deltas = anchors.new_zeros(*slots.shape, 4)
    if boxes.boxes.shape[1]:
        matched = _take(boxes.boxes, match.gather(1, slots))
        deltas = torch.where(positive[:, :, None], encode(matched, anchors[slots]), 0)
    return AnchorSample(slots, keys >= 0, positive, deltas)


def label_rois(rois: Tensor, used: Tensor, boxes: PaddedBoxes) -> tuple[Tensor, Tensor]:
    """Label every proposal for the box head; nothing is sampled (docs/method.md, 7.6).

    1..K (foreground): IoU >= 0.5 to a box that is neither `ignore` nor `crowd`, whatever else its status; the class is
    that of the best box, the first of ties. -1 (no loss): not in use, or not foreground and with IoU >= 0.5 to an
    `ignore` box, or half or more inside a crowd. 0 (background): all others. Foreground comes first: a person who is
    annotated inside a crowd is still learnt.

    Args:
        rois: float32 [B, P, 4], chip pixels.
        used: bool [B, P], slots that hold a proposal.
        boxes: of the batch.

    Returns:
        Labels int64 [B, P]; target deltas float32 [B, P, 4], times ROI_WEIGHTS, 0 where not foreground.
    """
    ignore, crowd = boxes.having(Status.IGNORE), boxes.having(Status.CROWD)
    target = boxes.real & ~(ignore | crowd)
    best = rois.new_zeros(used.shape)
    match = torch.zeros_like(used, dtype=torch.int64)
    vetoed = ~used
    for columns, iou, inter in overlaps(rois, boxes.boxes):
        vetoed |= ((iou >= POSITIVE_IOU) & ignore[:, columns, None]).any(1)
        if boxes.max_crowds:
            vetoed |= _inside(crowd[:, columns], inter, rois[:, None])
        value, column = torch.where(target[:, columns, None], iou, 0).max(1)
        match = torch.where(value > best, column + columns.start, match)
        best = torch.maximum(best, value)
    foreground = used & (best >= POSITIVE_IOU)
    labels = -vetoed.long()
    deltas = torch.zeros_like(rois)
    if boxes.boxes.shape[1]:
        labels = torch.where(foreground, boxes.labels.gather(1, match), labels)
        weighted = encode(_take(boxes.boxes, match), rois) * constant(ROI_WEIGHTS, rois.device)
        deltas = torch.where(foreground[:, :, None], weighted, 0)
    return labels, deltas


def _take(boxes: Tensor, index: Tensor) -> Tensor:
    """Return the boxes [B, N, 4] that stand at the columns index [B, N] of boxes [B, G, 4]."""
    return boxes.gather(1, index[:, :, None].expand(-1, -1, 4))


def in_range(boxes: Tensor, batch: Batch) -> Tensor:
    """Tell which boxes, float32 [B, N, 4] in chip pixels, have a size in their chip's valid range; bool [B, N].

    The range is in source pixels, so it is multiplied by the chip's scale (docs/method.md, 7.4).
    """
    limits = batch.ranges * batch.scales[:, None]
    size = box_size(boxes)
    return (size >= limits[:, :1]) & (size < limits[:, 1:])


def trainable(boxes: Tensor, batch: Batch, truth: PaddedBoxes) -> Tensor:
    """Tell which proposals may be trained on: those in range, and those near a rescued box (docs/method.md, 7.4).

    Args:
        boxes: float32 [B, A, 4], chip pixels.
        batch: the chips.
        truth: the boxes of the batch.

    Returns:
        bool [B, A]: the size is in range, or the IoU to a rescued box, whose size is out of range by nature, >= 0.5.
    """
    chosen = in_range(boxes, batch)
    if batch.max_rescued:
        rescued, real = compact(truth.boxes, truth.having(Status.RESCUED), batch.max_rescued)
        for columns, iou, _ in overlaps(boxes, rescued):
            chosen |= ((iou >= EXEMPT_IOU) & real[:, columns, None]).any(1)
    return chosen


def add_ground_truth(
    rois: Tensor, used: Tensor, batch: Batch, truth: PaddedBoxes, states: Tensor
) -> tuple[Tensor, Tensor]:
    """Put annotated boxes in place of the proposals with the lowest scores (docs/method.md, 7.5).

    They are the boxes whose clipped size is in range, and rescued ones; `ignore` and `crowd` boxes stay out. Where a
    chip has more of them than slots, a hash draws those that get one.

    Args:
        rois: float32 [B, P, 4], chip pixels, best first.
        used: bool [B, P], slots that hold a proposal.
        batch: the chips.
        truth: the boxes of the batch.
        states: int64 [B], from `key_states`.

    Returns:
        Boxes float32 [B, P, 4] with the annotated ones first, and which slots are in use, bool [B, P].
    """
    target = truth.real & ~truth.having(*IGNORED) & has_area(truth.boxes)
    wanted = target & (in_range(truth.boxes, batch) | truth.having(Status.RESCUED))
    num = rois.shape[1]
    drawn, order = torch.where(wanted, hash_slots(states, wanted.shape[1]), -1).topk(min(num, wanted.shape[1]))
    return compact(torch.cat([_take(truth.boxes, order), rois], 1), torch.cat([drawn >= 0, used], 1), num)
