"""Negative windows: where a weak RPN sees something and no positive chip does (docs/method.md, 5.4).

Boxes and windows are x1 y1 x2 y2 in source pixels, x2 and y2 exclusive. The kernels are compiled by numba; all of
it is a pure function of its arguments, and the order in which an image's proposals are given does not matter.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.kernels import kernel
from pipeline.planning.bins import bin_boxes, held_by
from pipeline.planning.cover import (
    Level,
    box_size,
    fits_window,
    greedy_cover,
    pyramid_level,
    window_end,
    window_side,
)
from pipeline.planning.geometry import SpanColumns, Windows
from pipeline.planning.scales import box_sizes
from schemas.arrays import Float32Array, FloatArray, IntArray

RANDOM_TRIES = 16

Box = tuple[float, float, float, float]


class PooledProposals(NamedTuple):
    """Proposals of a span of n images, of all scales together: image i has rows offsets[i] to offsets[i + 1].

    Attributes:
        offsets: int64 [n + 1].
        boxes: float32 [P, 4], source pixels, inside the image; score: float32 [P].
    """

    offsets: IntArray
    boxes: Float32Array
    score: Float32Array


class Mined(NamedTuple):
    """Negative windows of a span of images.

    Attributes:
        windows: the C windows.
        num_proposals: int64 [C], how many proposals each newly covered when it was chosen.
        mean_score: float32 [C], of those; NaN where there are none.
    """

    windows: Windows
    num_proposals: IntArray
    mean_score: Float32Array


@kernel
def merge_scales(proposals: PooledProposals, threshold: float) -> PooledProposals:
    """Merge the proposals of each image over its scales by NMS (docs/method.md, 5.3).

    A box goes when its IoU with a kept one exceeds `threshold`; those that stay keep their scores.

    Args:
        proposals: of a span of images, in any order within an image.
        threshold: IoU.

    Returns:
        The proposals that stay; in each image by descending score, equal ones by x1, y1, x2, y2.
    """
    num_images = len(proposals.offsets) - 1
    offsets = np.zeros(num_images + 1, np.int64)
    boxes = np.empty_like(proposals.boxes)
    score = np.empty_like(proposals.score)
    count = 0
    for m in range(num_images):
        first, last = proposals.offsets[m], proposals.offsets[m + 1]
        order = _best_first(proposals.boxes[first:last], proposals.score[first:last])
        n = len(order)
        columns = np.empty((5, n), np.float32)  # x1 y1 x2 y2 area
        for i in range(n):
            b = first + order[i]
            for side in range(4):
                columns[side, i] = proposals.boxes[b, side]
            columns[4, i] = (columns[2, i] - columns[0, i]) * (columns[3, i] - columns[1, i])
        gone = _suppressed(columns[0], columns[1], columns[2], columns[3], columns[4], np.float32(threshold))
        for i in range(n):
            if not gone[i]:
                boxes[count] = columns[:4, i]
                score[count] = proposals.score[first + order[i]]
                count += 1
        offsets[m + 1] = count
    return PooledProposals(offsets, boxes[:count].copy(), score[:count].copy())


@kernel
def _best_first(boxes: Float32Array, score: Float32Array) -> IntArray:
    """Return the order int64 [n] of descending scores, equal ones by x1, y1, x2, y2."""
    order = np.argsort(-score, kind="mergesort")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and score[order[stop]] == score[order[start]]:
            stop += 1
        if stop - start > 1:
            ties = order[start:stop].copy()
            for side in (3, 2, 1, 0):
                ties = ties[np.argsort(boxes[ties, side], kind="mergesort")]
            order[start:stop] = ties
        start = stop
    return order


@kernel
def _suppressed(
    x1: Float32Array,
    y1: Float32Array,
    x2: Float32Array,
    y2: Float32Array,
    area: Float32Array,
    threshold: np.float32,
) -> npt.NDArray[np.uint8]:
    """Return uint8 [n], 1 where a box before it that stays overlaps it by more than `threshold`.

    The columns are float32 [n].

    The inner loop has no branch and starts at 0, so that the compiler makes vector code of it (ten times as fast).
    """
    gone = np.zeros(len(x1), np.uint8)
    zero = np.float32(0)
    for i in range(len(x1)):
        if gone[i]:
            continue
        low_x, low_y, high_x, high_y, own = x1[i], y1[i], x2[i], y2[i], area[i]
        later_x1, later_y1, later_x2, later_y2 = x1[i + 1 :], y1[i + 1 :], x2[i + 1 :], y2[i + 1 :]
        later_area, later_gone = area[i + 1 :], gone[i + 1 :]
        for j in range(len(later_x1)):
            width = max(min(high_x, later_x2[j]) - max(low_x, later_x1[j]), zero)
            height = max(min(high_y, later_y2[j]) - max(low_y, later_y1[j]), zero)
            common = width * height
            later_gone[j] |= np.uint8(common > threshold * (own + later_area[j] - common))
    return gone


def mine_span(
    span: SpanColumns, pool: PooledProposals, positives: Windows, least: IntArray, chip_size: int, stride: int
) -> Mined:
    """Mine the negative windows of a span of images (docs/method.md, 5.4).

    Args:
        span: columns of the images.
        pool: what merge_scales returned for them.
        positives: windows of their positive chips, in any order.
        least: int64 [S], fewest proposals that a chip of each scale must newly cover.
        chip_size, stride: chip pixels.
    """
    num_images, num_scales = span.factors.shape
    group = positives.image * num_scales + positives.scale_index
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(num_images * num_scales + 1))
    return _mine_windows(span, pool, starts, positives.window[order], least, chip_size, stride)


@kernel
def _mine_windows(
    span: SpanColumns,
    pool: PooledProposals,
    starts: IntArray,
    positives: FloatArray,
    least: IntArray,
    chip_size: int,
    stride: int,
) -> Mined:
    """Cover greedily, per image and scale, what lies in no positive chip, until a chip would cover too little.

    The proposals that count are in the scale's range and fit a chip; candidate windows are those of the stride grid
    (cover.py), because hundreds of proposals have hundreds of different edges.

    Args:
        span, pool, least, chip_size, stride: see mine_span.
        starts: int64 [n * S + 1]; scale s of image m has the positive windows starts[m * S + s] to
            starts[m * S + s + 1] of `positives`.
        positives: float64 [k, 4], source pixels.
    """
    num_images, num_scales = span.factors.shape
    capacity = 0
    for s in range(num_scales):
        capacity += len(pool.boxes) // least[s]
    image, scale_index, window = np.empty(capacity, np.int64), np.empty(capacity, np.int8), np.empty((capacity, 4))
    num_proposals, mean_score = np.empty(capacity, np.int64), np.empty(capacity, np.float32)
    c = 0
    for m in range(num_images):
        first, last = pool.offsets[m], pool.offsets[m + 1]
        width, height = float(span.widths[m]), float(span.heights[m])
        for s in range(num_scales):
            level = pyramid_level(width, height, span.factors[m, s], chip_size, stride)
            here = positives[starts[m * num_scales + s] : starts[m * num_scales + s + 1]]
            rows = first + _open_rows(pool.boxes[first:last], level, span.ranges[s], here)
            if len(rows) < least[s]:
                continue
            boxes = pool.boxes[rows].astype(np.float64)
            found, new = greedy_cover(boxes, level, 0, least[s], False)
            stop = c + len(found)
            image[c:stop], scale_index[c:stop], window[c:stop], num_proposals[c:stop] = m, s, found, new
            mean_score[c:stop] = _mean_scores(found, boxes, pool.score[rows], level)
            c = stop
    windows = Windows(image[:c].copy(), scale_index[:c].copy(), window[:c].copy())
    return Mined(windows, num_proposals[:c].copy(), mean_score[:c].copy())


@kernel
def _open_rows(boxes: Float32Array, level: Level, bounds: FloatArray, positives: FloatArray) -> IntArray:
    """Return the rows of boxes whose size is in `bounds`, that fit a chip, and that no positive window holds."""
    is_open = np.empty(len(boxes), np.bool_)
    for b in range(len(boxes)):
        is_open[b] = bounds[0] <= box_size(boxes, b) < bounds[1] and fits_window(boxes, b, level)
    bins = bin_boxes(boxes, 0, len(boxes), level.width, level.height)
    near = np.empty(len(boxes), np.int64)
    for w in range(len(positives)):
        for i in range(held_by(positives, w, boxes, bins, near)):
            is_open[near[i]] = False
    return np.flatnonzero(is_open)


@kernel
def _mean_scores(windows: FloatArray, boxes: FloatArray, score: Float32Array, level: Level) -> Float32Array:
    """Return the mean score, float32 [k], of the proposals that each window newly covers, in the order of windows."""
    bins = bin_boxes(boxes, 0, len(boxes), level.width, level.height)
    near = np.empty(len(boxes), np.int64)
    covered = np.zeros(len(boxes), np.bool_)
    means = np.empty(len(windows), np.float32)
    for w in range(len(windows)):
        num, total = 0, 0.0
        for i in range(held_by(windows, w, boxes, bins, near)):
            if not covered[near[i]]:
                covered[near[i]] = True
                num += 1
                total += score[near[i]]
        means[w] = total / num
    return means


def random_span(span: SpanColumns, per_image: int, chip_size: int, seed: int) -> Mined:
    """Draw background windows without proposals, the cheap baseline (docs/method.md, 5.6).

    The scale is one at which a chip is smaller than the image, or any where there is none: then the window is the
    whole image. An image may get fewer windows than asked for.

    Args:
        span: columns of the images.
        per_image: windows wanted of each.
        chip_size: chip pixels.
        seed: of the draw.
    """
    rows: list[tuple[int, int, Box]] = []
    for m in range(len(span.image_ids)):
        of_image = slice(int(span.offsets[m]), int(span.offsets[m + 1]))
        boxes = span.boxes[of_image][~span.crowd[of_image]]
        extent = (float(span.widths[m]), float(span.heights[m]))
        sides = np.array([window_side(chip_size, factor, *extent) for factor in span.factors[m]])
        scales = np.flatnonzero(sides < max(extent)).tolist() or list(range(len(sides)))
        drawn: set[tuple[int, Box]] = set()
        for n in range(per_image):
            draws = (_uniforms(seed, int(span.image_ids[m]), n, attempt) for attempt in range(RANDOM_TRIES))
            window = _draw_window(draws, boxes, extent, scales, sides, span.ranges, drawn)
            if window is not None:
                drawn.add(window)
        rows += [(m, s, window) for s, window in sorted(drawn)]
    windows = Windows(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.int8),
        np.array([row[2] for row in rows], np.float64).reshape(-1, 4),
    )
    return Mined(windows, np.zeros(len(rows), np.int64), np.full(len(rows), np.nan, np.float32))


def _draw_window(
    draws: Iterable[tuple[float, float, float]],
    boxes: FloatArray,
    extent: tuple[float, float],
    scales: list[int],
    sides: FloatArray,
    ranges: FloatArray,
    drawn: set[tuple[int, Box]],
) -> tuple[int, Box] | None:
    """Return the first new window that holds the centre of no box in range, or the new one with fewest centres.

    Args:
        draws: of each attempt three numbers in [0, 1): for the scale, x and y.
        boxes: float64 [N, 4], of the image, source pixels.
        extent: width and height of the image, source pixels.
        scales: indices of the scales to draw from.
        sides: float64 [S], of a window at each scale, source pixels.
        ranges: float64 [S, 2], sizes of boxes that belong to each scale.
        drawn: scale index and window of those that the image has already.

    Returns:
        Scale index and window, or None where every attempt gives one that is drawn already.
    """
    tries = []
    for attempt, (u_scale, u_x, u_y) in enumerate(draws):
        s = scales[int(u_scale * len(scales))]
        window = _random_window(u_x, u_y, extent, float(sides[s]))
        if (s, window) not in drawn:
            tries.append((_num_centres(boxes, window, ranges[s]), attempt, s, window))
            if tries[-1][0] == 0:
                break
    return min(tries)[2:] if tries else None


def _random_window(u_x: float, u_y: float, extent: tuple[float, float], side: float) -> Box:
    """Return a window at a whole source pixel inside the image; the whole side where the image is smaller."""
    x1, y1 = (float(int(u * (max(size - side, 0.0) + 1))) for u, size in zip((u_x, u_y), extent, strict=True))
    x1, y1 = min(x1, max(extent[0] - side, 0.0)), min(y1, max(extent[1] - side, 0.0))
    return x1, y1, window_end(x1, extent[0], side), window_end(y1, extent[1], side)


def _num_centres(boxes: FloatArray, window: Box, valid_range: FloatArray) -> int:
    """Count the boxes with sizes in range whose centre lies in the window."""
    size = box_sizes(boxes)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centre >= window[:2]) & (centre < window[2:])).all(axis=1)
    return int((inside & (size >= valid_range[0]) & (size < valid_range[1])).sum())


def _uniforms(seed: int, image_id: int, number: int, attempt: int) -> tuple[float, float, float]:
    """Return three numbers in [0, 1) that depend on the arguments alone."""
    first, second, third = (
        xxhash.xxh3_64_intdigest(struct.pack("<QqQQQ", seed, image_id, number, attempt, axis)) for axis in range(3)
    )
    return (first >> 11) * 2.0**-53, (second >> 11) * 2.0**-53, (third >> 11) * 2.0**-53
