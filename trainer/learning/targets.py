"""Who learns what: labels of anchors and proposals, by the rules of docs/method.md, 7."""

from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.codes import Status
from trainer.learning.ground_truth import PaddedBoxes, hash_slots
from trainer.loading.batch import Batch
from trainer.model.anchors import may_learn
from trainer.model.boxes import ROI_WEIGHTS, box_size, constant, encode, overlaps, sides
from trainer.model.proposals import compact

EXEMPT_IOU = 0.5  # to a rescued box: such a proposal stays although its size is out of range (docs/method.md, 7.4)


POSITIVE_IOU = 0.5  # anchors and proposals at or above are foreground (docs/method.md, 7.1 and 7.6)
NEGATIVE_IOU = 0.4  # anchors below, to every box, are background (docs/method.md, 7.1)
OTHER_IOU = 0.3  # anchors above, to a box that the RPN does not learn, are ignored (docs/method.md, 7.1)
CROWD_SHARE = 0.5  # of an anchor or proposal, in a crowd: ignored (docs/method.md, 7.1 and 7.6)
RPN_SAMPLES, RPN_POSITIVES = 256, 128  # per chip (docs/method.md, 7.2)
TIE = 1 - 1e-6  # IoU of two anchors equally far from a box differ by rounding; they are ties all the same


@dataclass(frozen=True)
class AnchorSample:
    """S anchors per chip that give RPN loss. Where not `used` the rest means nothing (indices are in bounds).

    slots: int64 [B, S], anchor; used, positive: bool [B, S]; deltas: float32 [B, S, 4], 0 where not positive
    """

    slots: Tensor
    used: Tensor
    positive: Tensor
    deltas: Tensor


def label_anchors(anchors: Tensor, sizes: Tensor, boxes: PaddedBoxes) -> tuple[Tensor, Tensor]:
    """The RPN's label of every anchor.

    1: IoU >= 0.5 to a valid or rescued box, or the best anchor of one (all ties, IoU > 0).
    -1: not 1, and: may not learn; IoU > 0.3 to any other box; half or more inside a crowd; IoU >= 0.4 to any box.
    0: the rest. So a chip without boxes is all 0.
    Positives come first: another box nearby does not take a valid box's anchors from it (docs/method.md, 7).

    Args:
        anchors: float32 [A, 4]; sizes: int64 [B, 2]

    Returns:
        labels int8 [B, A]; for positives the box with the highest IoU, int64 [B, A], a column of `boxes`.
    """
    learns = boxes.having(Status.VALID, Status.RESCUED)
    crowd = boxes.having(Status.CROWD)
    other = boxes.real & ~learns & ~crowd
    # One limit per box does for both kinds: IoU > 0.3 to others, IoU >= 0.4 to crowds.
    veto_iou = torch.where(other, OTHER_IOU, torch.where(crowd, _below(NEGATIVE_IOU), torch.inf))
    allowed = may_learn(anchors, sizes)
    best = anchors.new_zeros(allowed.shape)
    match = torch.zeros_like(allowed, dtype=torch.int64)
    forced, vetoed = torch.zeros_like(allowed), ~allowed
    for columns, iou, share in overlaps(anchors[None], boxes.boxes):
        vetoed |= (iou > veto_iou[:, columns, None]).any(1)
        vetoed |= ((share >= CROWD_SHARE) & crowd[:, columns, None]).any(1)
        iou *= learns[:, columns, None] & allowed[:, None]
        top = iou.amax(2)
        forced |= (iou >= torch.where(top > 0, top * TIE, torch.inf)[:, :, None]).any(1)
        value, column = iou.max(1)
        match = torch.where(value > best, column + columns.start, match)
        best = torch.maximum(best, value)
    positive = (best >= POSITIVE_IOU) | forced
    labels = torch.where(vetoed | (best >= NEGATIVE_IOU), -1, 0).masked_fill(positive, 1)
    return labels.to(torch.int8), match


def _below(value: float) -> float:
    """The float32 next below, so that `> _below(v)` is `>= v`."""
    return float(torch.nextafter(torch.tensor(value), torch.tensor(0.0)))


def sample_anchors(anchors: Tensor, labels: Tensor, match: Tensor, boxes: PaddedBoxes, states: Tensor) -> AnchorSample:
    """Draw at most 128 positives and fill up with negatives to 256 per chip: those with the highest hashes.

    labels, match: from `label_anchors`; states: int64 [B], from `key_states`. The hash is of (state, anchor), so a
    chip's draw depends neither on its neighbours in the batch nor on its place among them.
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
    """The box head's labels. Every slot in use counts: no sampling.

    1..K: IoU >= 0.5 to a box that is neither `ignore` nor `crowd`, whatever its status; the best one, first of ties.
    -1, no loss: not in use, or not foreground and IoU >= 0.5 to an `ignore` box or half or more inside a `crowd`.
    0: the rest. As for anchors, foreground comes first: a person annotated inside a crowd is still learnt.

    Args:
        rois: float32 [B, P, 4]; used: bool [B, P]

    Returns:
        labels int64 [B, P]; targets float32 [B, P, 4], times ROI_WEIGHTS, 0 where not foreground.
    """
    ignore, crowd = boxes.having(Status.IGNORE), boxes.having(Status.CROWD)
    target = boxes.real & ~ignore & ~crowd
    best = rois.new_zeros(used.shape)
    match = torch.zeros_like(used, dtype=torch.int64)
    vetoed = ~used
    for columns, iou, share in overlaps(rois, boxes.boxes):
        vetoed |= ((iou >= POSITIVE_IOU) & ignore[:, columns, None]).any(1)
        vetoed |= ((share >= CROWD_SHARE) & crowd[:, columns, None]).any(1)
        value, column = torch.where(target[:, columns, None], iou, 0).max(1)
        match = torch.where(value > best, column + columns.start, match)
        best = torch.maximum(best, value)
    foreground = used & (best >= POSITIVE_IOU)
    labels = torch.where(vetoed, -1, 0)
    deltas = torch.zeros_like(rois)
    if boxes.boxes.shape[1]:
        labels = torch.where(foreground, boxes.labels.gather(1, match), labels)
        weighted = encode(_take(boxes.boxes, match), rois) * constant(ROI_WEIGHTS, rois.device)
        deltas = torch.where(foreground[:, :, None], weighted, 0)
    return labels, deltas


def _take(boxes: Tensor, index: Tensor) -> Tensor:
    """boxes [B, G, 4] at index [B, N] -> [B, N, 4]."""
    return boxes.gather(1, index[:, :, None].expand(-1, -1, 4))


def in_range(boxes: Tensor, batch: Batch) -> Tensor:
    """bool [B, N]: the size lies in the chip's valid range, times its scale. boxes: [B, N, 4], chip pixels."""
    limits = batch.ranges * batch.scales[:, None]
    size = box_size(boxes)
    return (size >= limits[:, :1]) & (size < limits[:, 1:])


def trainable(boxes: Tensor, batch: Batch, truth: PaddedBoxes) -> Tensor:
    """bool [B, A]: in range, or IoU >= 0.5 to a rescued box, whose size is out of range by nature."""
    chosen = in_range(boxes, batch)
    if batch.max_rescued:
        rescued, real = compact(truth.boxes, truth.having(Status.RESCUED), batch.max_rescued)
        for columns, iou, _ in overlaps(boxes, rescued):
            chosen |= ((iou >= EXEMPT_IOU) & real[:, columns, None]).any(1)
    return chosen


def add_ground_truth(
    rois: Tensor, used: Tensor, batch: Batch, truth: PaddedBoxes, states: Tensor
) -> tuple[Tensor, Tensor]:
    """Put boxes in range by their clipped size, and rescued ones, in place of the lowest scores.

    `ignore` and `crowd` boxes are no targets and stay out. Where a chip has more boxes than slots, `states` (int64
    [B], from `key_states`) draws those that get one.
    """
    width, height = sides(truth.boxes)
    target = truth.real & ~truth.having(Status.IGNORE, Status.CROWD) & (width > 0) & (height > 0)
    wanted = target & (in_range(truth.boxes, batch) | truth.having(Status.RESCUED))
    num = rois.shape[1]
    drawn, order = torch.where(wanted, hash_slots(states, wanted.shape[1]), -1).topk(min(num, wanted.shape[1]))
    chosen = truth.boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    return compact(torch.cat([chosen, rois], 1), torch.cat([drawn >= 0, used], 1), num)
