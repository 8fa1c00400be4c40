"""Merge the detections of all views of an image into one list."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.coco import SourceImage
from pipeline.planning.scales import box_sizes
from pipeline.pyramid.views import CELLS, EDGE, Viewed, Window, to_source
from schemas.settings import DetectSettings

ELONGATION = 1.5  # longer side over size of what tiles must not cut, an aspect ratio of 2.25


def widened_ranges(bounds: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Widen the training ranges for detection (docs/method.md, 10.3).

    Args:
        bounds: per scale [lo, hi) of sqrt(width * height), source pixels, such as 0-80, 32-150, 120-inf.

    Returns:
        The same for detections, such as 0-90, 32-180, 75-inf.
    """
    last = len(bounds) - 1
    return [(lo * 0.625 if s == last else lo, hi * (1.125 if s == 0 else 1.2)) for s, (lo, hi) in enumerate(bounds)]


def tile_overlaps(bounds: Sequence[tuple[float, float]]) -> list[float]:
    """Return for each scale how much neighbouring tiles share, source pixels: the longest object looked for there."""
    return [ELONGATION * hi for _, hi in widened_ranges(bounds)]


class Detections(NamedTuple):
    """What was found on one image, best first.

    Attributes:
        boxes: float32 [N, 4], x1 y1 x2 y2, source pixels.
        scores: float32 [N].
        labels: int64 [N], as the network gives them; of our own 1..K, in the order of its categories.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def merge(
    viewed: Viewed, image: SourceImage, bounds: Sequence[tuple[float, float]], options: DetectSettings, chip_size: int
) -> Detections:
    """Keep of each scale what its range admits and no tile's inner edge cuts; run soft-NMS over the rest.

    Soft-NMS takes each class for itself, or with `options.class_agnostic` all of them as one.

    Args:
        viewed: an image, and of each of its views boxes float32 [N, 4] in view pixels, scores float32 [N] and labels
            int64 [N]; at least one view.
        image: the same image's size.
        bounds: the training ranges, per scale [lo, hi) of sqrt(width * height), source pixels.
        options: how detections are merged, and how many stay.
        chip_size: chip pixels; with `options.by_area` an image larger than a chip keeps more, by its area.

    Returns:
        The detections of the image, in source pixels.
    """
    from pipeline.pyramid.nms import soft_nms  # compiled code, which planning views does without

    ranges, overlaps = widened_ranges(bounds), tile_overlaps(bounds)
    parts: list[Detections] = []
    for view, output in sorted(viewed.views, key=lambda item: item[0]):
        found, scores, labels = output[:3]
        in_source = to_source(found, view)
        kept = admitted(in_source, ranges[view.scale_index])
        kept &= ~_cut_by_tile(in_source, view.window, view.region or image.whole, overlaps[view.scale_index])
        if view.region is not None:
            kept &= ~_at_inner_edge(in_source, view.region, image.whole, chip_size / CELLS / view.scale)
        parts.append(Detections(in_source[kept], scores[kept], labels[kept]))
    boxes = np.concatenate([part.boxes for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    rows, new_scores = soft_nms(
        boxes,
        np.concatenate([part.scores for part in parts]),
        np.zeros_like(labels) if options.class_agnostic else labels,
        method=options.merge,
        sigma=options.sigma,
        iou=options.iou,
        min_score=options.min_score,
        limit=most_detections(image.width, image.height, options, chip_size),
    )
    return Detections(boxes[rows], new_scores, labels[rows])


def most_detections(width: int, height: int, options: DetectSettings, chip_size: int) -> int:
    """Return how many detections an image keeps: with `options.by_area` more, if it is larger than a chip.

    Args:
        width, height: of the image, source pixels.
        options: says how many, and whether that holds for each chip's area.
        chip_size: chip pixels.
    """
    num_chips = max(1.0, width * height / chip_size**2) if options.by_area else 1.0
    return math.ceil(options.max_detections * num_chips)


def admitted(boxes: npt.NDArray[np.float32], bounds: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """Say of each detection whether its size lies in a range (docs/method.md, 10.3).

    Args:
        boxes: float32 [N, 4], x1 y1 x2 y2, source pixels.
        bounds: [lo, hi) of sqrt(width * height), source pixels.

    Returns:
        bool [N]; false for what has no area.
    """
    size = box_sizes(boxes)
    inside: npt.NDArray[np.bool_] = (size > 0) & (size >= bounds[0]) & (size < bounds[1])
    return inside


def _cut_by_tile(
    boxes: npt.NDArray[np.float32], window: Window, region: Window, overlap: float
) -> npt.NDArray[np.bool_]:
    """Say of each detection whether a tile's inner edge cuts it while the neighbouring tile has it whole.

    What is at least as long on an axis as tiles share there may be whole in no tile, so that it stays.

    Args:
        boxes: float32 [N, 4], x1 y1 x2 y2, source pixels.
        window: x1 y1 x2 y2 of the tile, source pixels.
        region: x1 y1 x2 y2 of what was split into tiles, source pixels.
        overlap: how much neighbouring tiles share, source pixels.

    Returns:
        bool [N].
    """
    cut = np.zeros(len(boxes), np.bool_)
    for axis in (0, 1):
        is_short = boxes[:, axis + 2] - boxes[:, axis] < overlap
        cut |= is_short & _touches(boxes, window, region, axis, EDGE)
    return cut


def _at_inner_edge(
    boxes: npt.NDArray[np.float32], region: Window, image: Window, margin: float
) -> npt.NDArray[np.bool_]:
    """Say of each detection whether it lies at an edge of a focus window that is no edge of the image.

    There it is a part of something larger, which a coarser scale finds (docs/method.md, 16.4).

    Args:
        boxes: float32 [N, 4], x1 y1 x2 y2, source pixels.
        region: x1 y1 x2 y2 of the focus window, source pixels.
        image: the same of the image.
        margin: how near to the edge, source pixels.

    Returns:
        bool [N].
    """
    return _touches(boxes, region, image, 0, margin) | _touches(boxes, region, image, 1, margin)


def _touches(
    boxes: npt.NDArray[np.float32], inner: Window, outer: Window, axis: int, margin: float
) -> npt.NDArray[np.bool_]:
    """Say of each box whether it comes near to an edge, across an axis, of a window within another one."""
    near = np.zeros(len(boxes), np.bool_)
    if inner[axis] > outer[axis]:
        near |= boxes[:, axis] < inner[axis] + margin
    if inner[axis + 2] < outer[axis + 2]:
        near |= boxes[:, axis + 2] > inner[axis + 2] - margin
    return near
