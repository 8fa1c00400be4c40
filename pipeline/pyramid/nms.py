"""NMS, plain and soft (Bodla et al. 2017), compiled by numba. Boxes are x1 y1 x2 y2, exclusive.

Boxes are compared with those near them alone, so that time grows with their number and not with its square: a large
view has tens of thousands.
"""

import heapq
from typing import Literal

import numpy as np

from pipeline.kernels import kernel, writable
from pipeline.planning.bins import Bins, bin_boxes, rows_meeting, rows_starting
from schemas.arrays import BoolArray, Float32Array, IntArray

Method = Literal["gaussian", "linear", "hard"]
METHODS: dict[str, int] = {"gaussian": 0, "linear": 1, "hard": 2}


def soft_nms(
    boxes: Float32Array,
    scores: Float32Array,
    labels: IntArray,
    *,
    method: Method = "gaussian",
    sigma: float = 0.55,
    iou: float = 0.5,
    min_score: float = 0.001,
    limit: int = 200,
) -> tuple[IntArray, Float32Array]:
    """Lower the score of each box by its overlap with better ones of its class, and keep the best.

    Again and again the best box of a class is kept and the others' scores are multiplied by exp(-IoU^2 / sigma)
    (gaussian), by 1 - IoU where IoU exceeds `iou` (linear), or by 0 there (hard).

    Args:
        boxes: float32 [N, 4], any frame.
        scores: float32 [N], in [0, 1]; one that is not a number falls away.
        labels: int64 [N], any numbers.
        method: how scores fall.
        sigma: width of the gaussian (docs/method.md, 10.4).
        iou: where linear and hard NMS begin.
        min_score: what falls below it goes.
        limit: how many stay at most.

    Returns:
        The rows that stay, int64 [M], highest new score first, ties by row; their new scores, float32 [M].
    """
    order = np.lexsort((np.arange(len(labels)), -scores, labels))  # class by class, best first, ties by row
    sorted_labels = labels[order]
    ends = np.flatnonzero(np.diff(sorted_labels)) + 1
    offsets = np.unique([0, *ends.tolist(), len(labels)])
    new_scores = _decay(boxes[order], scores[order], offsets, METHODS[method], sigma, iou, min_score)
    best = np.lexsort((order, -new_scores))[:limit]
    best = best[new_scores[best] >= min_score]
    return order[best], new_scores[best]


@kernel
def _decay(
    boxes: Float32Array,
    scores: Float32Array,
    offsets: IntArray,
    method: int,
    sigma: float,
    iou: float,
    min_score: float,
) -> Float32Array:
    """Return new scores float32 [N], 0 for what fell below min_score.

    Class c has the rows offsets[c] to offsets[c + 1]. A heap holds each row with a score that it has or had; a row
    whose score has fallen since goes back with the one it has now.
    """
    result = np.zeros(len(scores), np.float32)
    score = scores.copy()
    near = np.empty(len(scores), np.int64)
    for c in range(len(offsets) - 1):
        first, last = offsets[c], offsets[c + 1]
        bins = _bins(boxes, first, last)
        heap = [(-score[row], row) for row in range(first, last)]  # in order, so it is a heap
        while len(heap):
            value, row = heapq.heappop(heap)
            if not score[row] >= min_score:  # also where it is not a number
                continue
            if -value != score[row]:
                heapq.heappush(heap, (-score[row], row))
                continue
            result[row] = score[row]
            score[row] = 0  # no longer in play
            x1, y1, x2, y2 = boxes[row]
            area = (x2 - x1) * (y2 - y1)
            for i in range(rows_meeting(bins, boxes, x1, y1, x2, y2, near)):
                other = near[i]
                if not score[other] >= min_score:
                    continue
                overlap = _iou(boxes, row, other, area)
                if method == 0:
                    score[other] *= np.exp(-overlap * overlap / sigma)
                elif overlap > iou:
                    score[other] *= 1 - overlap if method == 1 else 0
    return result


@kernel
def _bins(boxes: Float32Array, first: int, last: int) -> Bins:
    width, height = 1.0, 1.0
    for b in range(first, last):
        width, height = max(width, boxes[b, 2]), max(height, boxes[b, 3])
    return bin_boxes(boxes, first, last, width, height)


@kernel
def _iou(boxes: Float32Array, row: int, other: int, area: float) -> float:
    """Return the IoU of two boxes that meet; `area` is that of the first."""
    width = min(boxes[row, 2], boxes[other, 2]) - max(boxes[row, 0], boxes[other, 0])
    height = min(boxes[row, 3], boxes[other, 3]) - max(boxes[row, 1], boxes[other, 1])
    inter = width * height
    other_area = (boxes[other, 2] - boxes[other, 0]) * (boxes[other, 3] - boxes[other, 1])
    return inter / (area + other_area - inter)  # type: ignore[no-any-return]


def nms(boxes: Float32Array, threshold: float) -> BoolArray:
    """Run greedy NMS.

    Args:
        boxes: float32 [N, 4], best first, any frame; each has an area.
        threshold: a box goes when a better one that stays overlaps it with an IoU above this.

    Returns:
        bool [N], True for the boxes that stay.
    """
    return _stay(writable(boxes), threshold)


@kernel
def _stay(boxes: Float32Array, threshold: float) -> BoolArray:
    n = len(boxes)
    stay = np.ones(n, np.bool_)
    if n == 0:
        return stay
    bins = _bins(boxes, 0, n)
    near = np.empty(n, np.int64)
    for b in range(n):
        if not stay[b]:
            continue
        x1, y1, x2, y2 = boxes[b]
        width, height = x2 - x1, y2 - y1
        # The sides of a box with such an IoU are threshold to 1 / threshold of these, and its corner is near; a little
        # is added for the sake of rounding.
        reach = (1 / threshold - 1) * 1.0001
        shorter, longer = max(width, height) * threshold * 0.9999, max(width, height) / threshold * 1.0001
        found = rows_starting(
            bins, x1 - reach * width, y1 - reach * height, x1 + reach * width, y1 + reach * height,
            shorter, longer, near,
        )  # fmt: skip
        for i in range(found):
            other = near[i]
            if (
                other > b
                and stay[other]
                and boxes[other, 0] < x2
                and boxes[other, 2] > x1
                and boxes[other, 1] < y2
                and boxes[other, 3] > y1
                and _iou(boxes, b, other, width * height) > threshold
            ):
                stay[other] = False
    return stay
