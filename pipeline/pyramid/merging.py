"""What is kept of each view's detections, and how they become one list per image."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.coco import SourceImage
from pipeline.pyramid.soft_nms import soft_nms
from pipeline.pyramid.views import EDGE, Viewed, to_source
from schemas.settings import DetectSettings

ELONGATION = 1.5  # longer side over size of what tiles must not cut, an aspect ratio of 2.25


def widened_ranges(bounds: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Training ranges widened for detections: 80, 32-150, 120 become 90, 32-180, 75 (docs/method.md, 10.3)."""
    last = len(bounds) - 1
    return [(lo * 0.625 if s == last else lo, hi * (1.125 if s == 0 else 1.2)) for s, (lo, hi) in enumerate(bounds)]


def tile_overlaps(bounds: Sequence[tuple[float, float]]) -> list[float]:
    """Per scale, what neighbouring tiles share, source pixels: the longest object looked for there."""
    return [ELONGATION * hi for _, hi in widened_ranges(bounds)]


class Found(NamedTuple):
    """What was found on one image, best first.

    boxes: float32 [N, 4], x1 y1 x2 y2, source pixels; scores: float32 [N]; labels: int64 [N], 1..K
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def merge(viewed: Viewed, image: SourceImage, bounds: Sequence[tuple[float, float]], options: DetectSettings) -> Found:
    """Keep of each scale what its range admits and no tile's inner edge cuts; soft-NMS per class over the rest.

    Args:
        viewed: of each view boxes float32 [N, 4] in view pixels, scores float32 [N] and labels int64 [N].
        bounds: the training ranges, per scale [lo, hi).
    """
    ranges, overlaps = widened_ranges(bounds), tile_overlaps(bounds)
    parts: list[Found] = []
    for view, output in sorted(viewed.views, key=lambda item: item[0]):
        found, scores, labels = output
        in_source = to_source(found, view)
        kept = admitted(in_source, ranges[view.scale_index]) & ~_cut_by_tile(
            in_source, view.window, image, overlaps[view.scale_index]
        )
        parts.append(Found(in_source[kept], scores[kept], labels[kept]))
    boxes = np.concatenate([part.boxes for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    rows, new_scores = soft_nms(
        boxes,
        np.concatenate([part.scores for part in parts]),
        labels,
        method=options.merge,
        sigma=options.sigma,
        iou=options.iou,
        min_score=options.min_score,
        limit=options.max_detections,
    )
    return Found(boxes[rows], new_scores, labels[rows])


def admitted(boxes: npt.NDArray[np.float32], bounds: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """bool [N]: sqrt(area) in source pixels lies in [lo, hi); the filter is on detections (docs/method.md, 10.3)."""
    size = np.sqrt(np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None))
    inside: npt.NDArray[np.bool_] = (size > 0) & (size >= bounds[0]) & (size < bounds[1])
    return inside


def _cut_by_tile(
    boxes: npt.NDArray[np.float32], window: tuple[float, float, float, float], image: SourceImage, overlap: float
) -> npt.NDArray[np.bool_]:
    """bool [N]: touches an edge of the window that is not the image's, and the neighbouring tile has it whole.

    What is at least as long as tiles share, on that axis, no tile has whole: it stays.
    """
    cut = np.zeros(len(boxes), np.bool_)
    for axis, extent in ((0, image.width), (1, image.height)):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        touches = np.zeros(len(boxes), np.bool_)
        if window[axis] > 0:
            touches |= low < window[axis] + EDGE
        if window[axis + 2] < extent:
            touches |= high > window[axis + 2] - EDGE
        cut |= touches & (high - low < overlap)
    return cut
