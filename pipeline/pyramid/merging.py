"""Merge the detections of all views of an image into one list (docs/method.md, 10.1, 10.3 and 10.4)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.coco import SourceImage
from pipeline.planning.scales import box_sizes
from pipeline.pyramid.views import CELLS, EDGE, View, Viewed, Window, to_source
from schemas.arrays import BoolArray, Float32Array, FloatArray, IntArray
from schemas.settings import DetectSettings

ELONGATION = 1.5
"""Longer side over size of the longest objects that are to be whole in some tile: an aspect ratio of 2.25."""


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
    """Return for each scale how much neighbouring tiles are to share, source pixels (docs/method.md, 10.1).

    It is the length of the longest objects that are looked for there, infinite where the range has no upper end.

    Args:
        bounds: the training ranges, per scale [lo, hi) of sqrt(width * height), source pixels.
    """
    return [ELONGATION * hi for _, hi in widened_ranges(bounds)]


class Detections(NamedTuple):
    """What was found on one image, best first.

    Attributes:
        boxes: float32 [N, 4], x1 y1 x2 y2, source pixels.
        scores: float32 [N].
        labels: int64 [N], as the network gives them; of our own 1..K, in the order of its categories.
    """

    boxes: Float32Array
    scores: Float32Array
    labels: IntArray


def merge(
    viewed: Viewed, image: SourceImage, bounds: Sequence[tuple[float, float]], options: DetectSettings, chip_size: int
) -> Detections:
    """Merge the detections of an image's views by soft-NMS.

    A detection takes part if the range of its scale admits it (docs/method.md, 10.3), if it is not left for a
    neighbouring tile to find (10.1), and if it is not cut by a window of the focus search (16.4). Soft-NMS takes each
    class for itself, or with `options.class_agnostic` all of them as one (10.4).

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
    views = sorted(viewed.views, key=lambda item: item[0])
    tiles = _tiles_of_regions([view for view, _ in views])
    for view, output in views:
        found, scores, labels = output[:3]
        in_source = to_source(found, view)
        kept = admitted(in_source, ranges[view.scale_index])
        own_tiles, overlap = tiles[view.scale_index, view.region], overlaps[view.scale_index]
        kept &= ~_left_to_others(in_source, view.window, own_tiles, overlap)
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


def admitted(boxes: Float32Array, bounds: tuple[float, float]) -> BoolArray:
    """Say of each detection whether its size lies in a range (docs/method.md, 10.3).

    Args:
        boxes: float32 [N, 4], x1 y1 x2 y2, source pixels.
        bounds: [lo, hi) of sqrt(width * height), source pixels.

    Returns:
        bool [N]; false for what has no area.
    """
    size = box_sizes(boxes)
    inside: BoolArray = (size > 0) & (size >= bounds[0]) & (size < bounds[1])
    return inside


def _tiles_of_regions(views: Sequence[View]) -> dict[tuple[int, Window | None], FloatArray]:
    """Return the windows of all views of each region of a scale, float64 [n, 4]."""
    groups: dict[tuple[int, Window | None], list[Window]] = {}
    for view in views:
        groups.setdefault((view.scale_index, view.region), []).append(view.window)
    return {region: np.array(windows) for region, windows in groups.items()}


def _left_to_others(boxes: Float32Array, window: Window, tiles: FloatArray, overlap: float) -> BoolArray:
    """Say of each detection of a tile whether it is left for a neighbouring tile to find (docs/method.md, 10.1).

    It is if an inner edge of its tile cuts it, and if one of two things holds: it is shorter than what tiles are to
    share, or it begins clear of the neighbour's own edge, so that the neighbour shows more of it. An object that is
    longer may be whole in no tile; then the detections of its largest parts stay. Where objects may be of any length,
    only the second case applies.

    Args:
        boxes: float32 [N, 4], x1 y1 x2 y2, source pixels.
        window: x1 y1 x2 y2 of the tile, source pixels.
        tiles: float64 [n, 4], the same of all tiles that its region was split into.
        overlap: how much neighbouring tiles are to share, source pixels; infinite where objects may be of any length.

    Returns:
        bool [N].
    """
    left = np.zeros(len(boxes), np.bool_)
    for axis in (0, 1):
        low, high = window[axis], window[axis + 2]
        starts, ends = tiles[:, axis], tiles[:, axis + 2]
        following, before = starts[starts > low], ends[ends < high]
        is_short = (boxes[:, axis + 2] - boxes[:, axis] < overlap) & math.isfinite(overlap)
        if following.size:
            is_seen = is_short | (boxes[:, axis] >= following.min() + EDGE)
            left |= (boxes[:, axis + 2] > high - EDGE) & is_seen
        if before.size:
            is_seen = is_short | (boxes[:, axis + 2] <= before.max() - EDGE)
            left |= (boxes[:, axis] < low + EDGE) & is_seen
    return left


def _at_inner_edge(boxes: Float32Array, region: Window, image: Window, margin: float) -> BoolArray:
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
    near = np.zeros(len(boxes), np.bool_)
    for axis in (0, 1):
        if region[axis] > image[axis]:
            near |= boxes[:, axis] < region[axis] + margin
        if region[axis + 2] < image[axis + 2]:
            near |= boxes[:, axis + 2] > region[axis + 2] - margin
    return near
