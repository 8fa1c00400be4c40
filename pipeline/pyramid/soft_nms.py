"""Soft-NMS (Bodla et al. 2017), class by class in one compiled call. Boxes are x1 y1 x2 y2, exclusive."""

from typing import Literal

import numpy as np

from pipeline.kernels import kernel
from schemas.arrays import Float32Array, IntArray

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
    """Lower the score of each box by its overlap with better ones of its class; keep the best.

    Again and again the best box of a class is kept and the others' scores are multiplied by exp(-IoU^2 / sigma)
    (gaussian), by 1 - IoU where IoU exceeds `iou` (linear), or by 0 there (hard).

    Args:
        boxes: float32 [N, 4]; scores: float32 [N]; labels: int64 [N].
        sigma: 0.55, min_score: 0.001, limit: 200 as the original (docs/method.md, 10.2 and 10.4).

    Returns:
        rows: int64 [M], M <= limit, highest new score first, ties by row; new scores: float32 [M].
    """
    order = np.lexsort((np.arange(len(labels)), -scores, labels))  # class by class, best first, ties by row
    sorted_labels = labels[order]
    starts = np.flatnonzero(np.diff(sorted_labels, prepend=-1))
    offsets = np.append(starts, len(labels))
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
    """Give new scores float32 [N], 0 for what fell below min_score; class c has the rows offsets[c]:offsets[c + 1]."""
    result = np.zeros(len(scores), np.float32)
    for c in range(len(offsets) - 1):
        first, count = offsets[c], offsets[c + 1] - offsets[c]
        score = scores[first : first + count].copy()
        left = np.arange(first, first + count)  # rows still in play; their scores stand beside them in `score`
        while count > 0:
            top = 0
            for i in range(1, count):
                if score[i] > score[top] or (score[i] == score[top] and left[i] < left[top]):
                    top = i
            if score[top] < min_score:
                break
            row = left[top]
            result[row] = score[top]
            count -= 1
            left[top], score[top] = left[count], score[count]
            area = (boxes[row, 2] - boxes[row, 0]) * (boxes[row, 3] - boxes[row, 1])
            i = 0
            while i < count:
                other = left[i]
                width = min(boxes[row, 2], boxes[other, 2]) - max(boxes[row, 0], boxes[other, 0])
                height = min(boxes[row, 3], boxes[other, 3]) - max(boxes[row, 1], boxes[other, 1])
                if width > 0 and height > 0:
                    inter = width * height
                    other_area = (boxes[other, 2] - boxes[other, 0]) * (boxes[other, 3] - boxes[other, 1])
                    overlap = inter / (area + other_area - inter)
                    if method == 0:
                        score[i] *= np.exp(-overlap * overlap / sigma)
                    elif overlap > iou:
                        score[i] *= 1 - overlap if method == 1 else 0
                    if score[i] < min_score:  # drop it: the last one takes its place
                        count -= 1
                        left[i], score[i] = left[count], score[count]
                        continue
                i += 1
    return result
