"""Negative windows: where a weak RPN sees something and no positive chip does (docs/method.md, 5.4).

Boxes and windows are x1 y1 x2 y2 in source pixels, x2 and y2 exclusive. The kernels are compiled by numba; all of
it is a pure function of its arguments, and the order in which an image's proposals are given does not matter.
"""

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.kernels import kernel
from pipeline.planning.cover import fits, greedy_cover, holds, window_end, window_side
from pipeline.planning.plan import SpanColumns
from schemas.arrays import Float32Array, FloatArray, IntArray

RANDOM_TRIES = 16


class PooledProposals(NamedTuple):
    """Proposals of a run of n images, ragged: image i has rows offsets[i] to offsets[i + 1].

    Attributes:
        offsets: int64 [n + 1].
        boxes: float32 [P, 4], source pixels, inside the image; score: float32 [P].
    """

    offsets: IntArray
    boxes: Float32Array
    score: Float32Array


class Mined(NamedTuple):
    """Negative windows of a run of images, ordered by image, scale index, then choice.

    Attributes:
        image: int64 [C], position of the image in the run; scale_index: int8 [C].
        window: float64 [C, 4], source pixels.
        num_proposals: int64 [C], how many proposals each newly covered when it was chosen.
        mean_score: float32 [C], of those; NaN where there are none.
    """

    image: IntArray
    scale_index: npt.NDArray[np.int8]
    window: FloatArray
    num_proposals: IntArray
    mean_score: Float32Array


@kernel
def merge_scales(proposals: PooledProposals, threshold: float) -> PooledProposals:
    """NMS over the proposals of each image, found at whatever scale: best score first, scores kept.

    A box goes when its IoU with a kept one exceeds `threshold`. Equal scores are ordered by x1, y1, x2, y2, which
    is also the order within each image of what is returned.
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
    """int64 [n], descending scores, equal ones by x1, y1, x2, y2."""
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
    """uint8 [n], 1 where a box before it that stays overlaps it by more than `threshold`; columns are float32 [n].

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
    run: SpanColumns,
    pool: PooledProposals,
    positives: tuple[IntArray, npt.NDArray[np.int8], FloatArray],
    least: IntArray,
    chip_size: int,
    stride: int,
) -> Mined:
    """Mine a run of images.

    Args:
        pool: what merge_scales returned for the run.
        positives: image int64 [C], scale index int8 [C] and window float64 [C, 4] of the run's positive chips.
        least: int64 [S], fewest proposals that a chip of each scale must newly cover.
        chip_size, stride: chip pixels.
    """
    image, scale_index, window = positives
    num_scales = run.factors.shape[1]
    group = image * num_scales + scale_index
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(run.image_ids) * num_scales + 1))
    return mine_windows(
        pool, run.widths, run.heights, run.factors, run.ranges, starts, window[order], least, chip_size, stride
    )


@kernel
def mine_windows(
    pool: PooledProposals,
    widths: IntArray,
    heights: IntArray,
    factors: FloatArray,
    ranges: FloatArray,
    positive_starts: IntArray,
    positives: FloatArray,
    least: IntArray,
    chip_size: int,
    stride: int,
) -> Mined:
    """Per image and scale: cover greedily what lies in no positive chip, until a chip would cover too little.

    The proposals that count are in the scale's range and fit a chip; candidate windows are those of the stride grid
    (cover.py), because hundreds of proposals have hundreds of different edges.

    Args:
        positive_starts: int64 [n * S + 1]; scale s of image m has the positive windows
            positive_starts[m * S + s] to positive_starts[m * S + s + 1] of `positives`, float64 [k, 4].
        The others as in mine_span and plan_windows.
    """
    num_images, num_scales = factors.shape
    capacity = 0
    for s in range(num_scales):
        capacity += len(pool.boxes) // least[s]
    image, scale_index, window = np.empty(capacity, np.int64), np.empty(capacity, np.int8), np.empty((capacity, 4))
    num_proposals, mean_score = np.empty(capacity, np.int64), np.empty(capacity, np.float32)
    c = 0
    for m in range(num_images):
        first, last = pool.offsets[m], pool.offsets[m + 1]
        width, height = float(widths[m]), float(heights[m])
        for s in range(num_scales):
            side = window_side(chip_size, factors[m, s], width, height)
            step = stride / factors[m, s]
            held_by = positives[positive_starts[m * num_scales + s] : positive_starts[m * num_scales + s + 1]]
            rows = _open_rows(pool.boxes, first, last, width, height, side, ranges[s, 0], ranges[s, 1], held_by)
            if len(rows) < least[s]:
                continue
            boxes = np.empty((len(rows), 4))
            for i in range(len(rows)):
                boxes[i] = pool.boxes[rows[i]]
            found, _ = greedy_cover(boxes, width, height, side, step, 0, least[s], False)
            covered = np.zeros(len(rows), np.bool_)
            for w in range(len(found)):
                num, score = 0, 0.0
                for i in range(len(rows)):
                    if not covered[i] and holds(found, w, boxes, i):
                        covered[i] = True
                        num += 1
                        score += pool.score[rows[i]]
                image[c], scale_index[c], window[c] = m, s, found[w]
                num_proposals[c], mean_score[c] = num, score / num
                c += 1
    return Mined(
        image[:c].copy(), scale_index[:c].copy(), window[:c].copy(), num_proposals[:c].copy(), mean_score[:c].copy()
    )


@kernel
def _open_rows(
    boxes: Float32Array,
    first: int,
    last: int,
    width: float,
    height: float,
    side: float,
    low: float,
    high: float,
    held_by: FloatArray,
) -> IntArray:
    """Rows [first, last) whose size is in [low, high), that fit a chip, and that no window of `held_by` holds."""
    rows = np.empty(last - first, np.int64)
    n = 0
    for b in range(first, last):
        x1, y1, x2, y2 = float(boxes[b, 0]), float(boxes[b, 1]), float(boxes[b, 2]), float(boxes[b, 3])
        size = np.sqrt((x2 - x1) * (y2 - y1))
        if not (low <= size < high and fits(x1, x2, width, side) and fits(y1, y2, height, side)):
            continue
        held = False
        for w in range(len(held_by)):
            held |= holds(held_by, w, boxes, b)
        if not held:
            rows[n] = b
            n += 1
    return rows[:n]


def random_span(run: SpanColumns, per_image: int, chip_size: int, seed: int) -> Mined:
    """Draw background windows without proposals: the cheap baseline.

    Each is drawn up to RANDOM_TRIES times, a scale and then a place, until it differs from the image's other windows
    and holds the centre of no box in range; else the different one with fewest centres is taken. The scale is one
    at which a chip is smaller than the image, or any where there is none: then the window is the whole image. An
    image may so get fewer than `per_image`.
    """
    rows: list[tuple[int, int, tuple[float, float, float, float]]] = []
    for m in range(len(run.image_ids)):
        of_image = slice(int(run.offsets[m]), int(run.offsets[m + 1]))
        boxes = run.boxes[of_image][~run.crowd[of_image]]
        extent = (float(run.widths[m]), float(run.heights[m]))
        sides = np.array([window_side(chip_size, factor, *extent) for factor in run.factors[m]])
        scales = np.flatnonzero(sides < max(extent)).tolist() or list(range(len(sides)))
        drawn: set[tuple[int, tuple[float, float, float, float]]] = set()
        for n in range(per_image):
            tries = []
            for attempt in range(RANDOM_TRIES):
                u = _uniforms(seed, int(run.image_ids[m]), n, attempt)
                s = scales[int(u[0] * len(scales))]
                window = _random_window(u[1], u[2], extent, float(sides[s]))
                if (s, window) in drawn:
                    continue
                tries.append((_num_centres(boxes, window, run.ranges[s]), attempt, s, window))
                if tries[-1][0] == 0:
                    break
            if tries:
                drawn.add(min(tries)[2:])
        rows += [(m, s, window) for s, window in sorted(drawn)]
    return Mined(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.int8),
        np.array([row[2] for row in rows], np.float64).reshape(-1, 4),
        np.zeros(len(rows), np.int64),
        np.full(len(rows), np.nan, np.float32),
    )


def _random_window(
    u_x: float, u_y: float, extent: tuple[float, float], side: float
) -> tuple[float, float, float, float]:
    """A window at a whole source pixel inside the image; the whole side where the image is smaller."""
    x1, y1 = (float(int(u * (max(size - side, 0.0) + 1))) for u, size in zip((u_x, u_y), extent, strict=True))
    x1, y1 = min(x1, max(extent[0] - side, 0.0)), min(y1, max(extent[1] - side, 0.0))
    return x1, y1, window_end(x1, extent[0], side), window_end(y1, extent[1], side)


def _num_centres(boxes: FloatArray, window: tuple[float, float, float, float], valid_range: FloatArray) -> int:
    """Boxes with sizes in range whose centre lies in the window."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    size = np.sqrt(width * height)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centre >= window[:2]) & (centre < window[2:])).all(axis=1)
    return int((inside & (size >= valid_range[0]) & (size < valid_range[1])).sum())


def _uniforms(seed: int, image_id: int, number: int, attempt: int) -> tuple[float, float, float]:
    """Three numbers in [0, 1) that depend on the arguments alone."""
    first, second, third = (
        xxhash.xxh3_64_intdigest(struct.pack("<QqQQQ", seed, image_id, number, attempt, axis)) for axis in range(3)
    )
    return (first >> 11) * 2.0**-53, (second >> 11) * 2.0**-53, (third >> 11) * 2.0**-53
