"""Few windows that hold every box: the greedy cover behind positive and negative chips, compiled by numba.

Everything here is about one image at one scale, in source pixels. Boxes are float64 [n, 4] as x1 y1 x2 y2 with an
area, and all windows have one size. A window holds a box when the whole box lies in it; touching the edge is inside.

Where windows may start. A window can be moved right and down until its left edge meets the leftmost and its
top edge the topmost of the boxes it holds, without losing one. So the starts {box.x1} x {box.y1}, kept inside
the image, contain a best cover among all windows anywhere; the paper's stride grid does not. With more distinct
starts than `limit` on an axis the grid is used there (plus what makes every fitting box coverable), which
bounds the work for dense images and for thousands of proposals (docs/method.md, 3.2 and 3.3).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel
from pipeline.planning.bins import Bins, bin_boxes, held_by
from schemas.arrays import Float32Array, FloatArray, IntArray

CountArray = npt.NDArray[np.int32]


class Level(NamedTuple):
    """One image at one scale, source pixels but for the factor.

    Attributes:
        width, height: of the image.
        factor: source pixels times this are chip pixels.
        side: of a chip's window; where the image is smaller the window is the image's whole side.
        step: of the stride grid.
    """

    width: float
    height: float
    factor: float
    side: float
    step: float


@kernel
def window_side(chip_size: int, factor: float, width: float, height: float) -> float:
    """Return the side of a chip's window, source pixels; exactly the image's where only rounding keeps them apart.

    512 / (512 / 905) is less than 905, and a box as long as that image would fit no chip of it.
    """
    side = chip_size / factor
    for extent in (width, height):
        if abs(side - extent) <= 1e-9 * extent:
            return extent
    return side


@kernel
def pyramid_level(width: float, height: float, factor: float, chip_size: int, stride: int) -> Level:
    """Return what windows of one image at one scale must know; `chip_size` and `stride` are chip pixels."""
    return Level(width, height, factor, window_side(chip_size, factor, width, height), stride / factor)


@kernel
def window_start(low: float, extent: float, side: float) -> float:
    """Return the start of the window whose edge is flush with a box's low edge, kept inside the image."""
    return max(min(low, extent - side), 0.0)


@kernel
def window_end(start: float, extent: float, side: float) -> float:
    """Return the end of a window; exactly `extent` at the far edge, so that rounding excludes no box touching it."""
    if start >= extent - side:
        return extent
    return start + side


@kernel
def fits(low: float, high: float, extent: float, side: float) -> bool:
    """Tell whether some window holds [low, high] on this axis, by the arithmetic of the cover, so that they agree."""
    return high <= window_end(window_start(low, extent, side), extent, side)


@kernel
def box_size(boxes: FloatArray | Float32Array, b: int) -> float:
    """Return the size sqrt(width * height) of box b of [n, 4] (docs/method.md, 2.5); `box_sizes` of many at once."""
    return float(np.sqrt((boxes[b, 2] - boxes[b, 0]) * (boxes[b, 3] - boxes[b, 1])))


@kernel
def fits_window(boxes: FloatArray | Float32Array, b: int, level: Level) -> bool:
    """Tell whether some window of this level holds box b of [n, 4]."""
    return fits(boxes[b, 0], boxes[b, 2], level.width, level.side) and fits(
        boxes[b, 1], boxes[b, 3], level.height, level.side
    )


@kernel
def candidate_starts(
    lows: FloatArray, highs: FloatArray, extent: float, side: float, step: float, limit: int
) -> FloatArray:
    """Return the sorted distinct window starts to be tried on one axis, float64 (see the module's text).

    Args:
        lows, highs: float64 [n], the boxes' edges, source pixels; every box must fit.
        extent, side: of the image and of a window on this axis, source pixels.
        step: of the grid, source pixels; it is used where there are more than `limit` distinct box starts.
    """
    if extent <= side:
        return np.zeros(1)
    if limit > 0:
        flush = np.empty(len(lows))
        for i in range(len(lows)):
            flush[i] = window_start(lows[i], extent, side)
        flush.sort()
        starts = _distinct(flush)
        if len(starts) <= limit:
            return starts
    last = extent - side
    grid = np.arange(0.0, last, step)
    extra = [last]
    latest = -1.0  # of the extra starts; boxes come by their low edges, so what it holds needs none of its own
    for i in np.argsort(lows):
        at = min(int(lows[i] / step), len(grid) - 1)  # of the last grid start not beyond the box
        if grid[at] > lows[i] and at > 0:  # lows / step was rounded up
            at -= 1
        nearest = grid[at]
        is_held = window_end(nearest, extent, side) >= highs[i] or last <= lows[i]
        if not is_held and (latest < 0 or window_end(latest, extent, side) < highs[i]):
            latest = window_start(lows[i], extent, side)
            extra.append(latest)
    both = np.concatenate((grid, np.array(extra)))
    both.sort()
    return _distinct(both)


@kernel
def _distinct(ascending: FloatArray) -> FloatArray:
    count = 1
    for i in range(1, len(ascending)):
        if ascending[i] != ascending[count - 1]:
            ascending[count] = ascending[i]
            count += 1
    return ascending[:count]


@kernel
def greedy_cover(
    boxes: FloatArray, level: Level, limit: int, min_new: int, prune: bool
) -> tuple[FloatArray, IntArray]:
    """Choose windows greedily until every box is covered, or the best window would cover too few new ones.

    Each step takes the window that newly covers most boxes; among equals the one that holds most boxes in
    all, then the topmost, then the leftmost. Holding more boxes leaves fewer windows in the end: `prune` then
    drops, in the order chosen, every window whose boxes all lie in other chosen windows.

    Args:
        boxes: float64 [n, 4] with n > 0, source pixels, each of which must fit a window.
        level: the image and the size of its windows.
        limit: see candidate_starts.
        min_new: stop when the best window would newly cover fewer than this many boxes (at least 1).
        prune: drop windows that the others make superfluous.

    Returns:
        windows: float64 [k, 4], source pixels, in the order chosen.
        new: int64 [k], how many boxes each newly covered when it was chosen.
    """
    if len(boxes) >= min_new:
        window = _window_of_all(boxes, level)
        if len(window):  # most calls
            return window, np.full(1, len(boxes))
    xs = candidate_starts(boxes[:, 0], boxes[:, 2], level.width, level.side, level.step, limit)
    ys = candidate_starts(boxes[:, 1], boxes[:, 3], level.height, level.side, level.step, limit)
    x_ends, y_ends = _ends(xs, level.width, level.side), _ends(ys, level.height, level.side)
    bins = bin_boxes(boxes, 0, len(boxes), level.width, level.height)
    windows, new = _choose(boxes, bins, xs, ys, x_ends, y_ends, min_new)
    if prune and len(windows) > 1:
        kept = _needed(windows, boxes, bins)
        if len(kept) < len(windows):
            return windows[kept], new[kept]
    return windows, new


@kernel
def _window_of_all(boxes: FloatArray, level: Level) -> FloatArray:
    """Return the one window float64 [1, 4] that holds all boxes, or none: [0, 4]."""
    low_x, low_y = boxes[:, 0].min(), boxes[:, 1].min()
    if not (
        fits(low_x, boxes[:, 2].max(), level.width, level.side)
        and fits(low_y, boxes[:, 3].max(), level.height, level.side)
    ):
        return np.empty((0, 4))
    window = np.empty((1, 4))
    window[0, 0] = window_start(low_x, level.width, level.side)
    window[0, 1] = window_start(low_y, level.height, level.side)
    window[0, 2] = window_end(window[0, 0], level.width, level.side)
    window[0, 3] = window_end(window[0, 1], level.height, level.side)
    return window


@kernel
def _ends(starts: FloatArray, extent: float, side: float) -> FloatArray:
    ends = np.empty(len(starts))
    for i in range(len(starts)):
        ends[i] = window_end(starts[i], extent, side)
    return ends


@kernel
def _spans(boxes: FloatArray, xs: FloatArray, ys: FloatArray, x_ends: FloatArray, y_ends: FloatArray) -> IntArray:
    """Return int64 [n, 4]: first and last column, first and last row of the candidates that hold each box.

    On each axis they are consecutive starts.
    """
    spans = np.empty((len(boxes), 4), np.int64)
    for b in range(len(boxes)):
        spans[b, 0] = np.searchsorted(x_ends, boxes[b, 2], side="left")
        spans[b, 1] = np.searchsorted(xs, boxes[b, 0], side="right") - 1
        spans[b, 2] = np.searchsorted(y_ends, boxes[b, 3], side="left")
        spans[b, 3] = np.searchsorted(ys, boxes[b, 1], side="right") - 1
    return spans


@kernel
def _count_held(spans: IntArray, num_rows: int, num_columns: int) -> CountArray:
    """Return int32 [rows, columns]: how many boxes each candidate holds; the corners of their spans, summed up."""
    count = np.zeros((num_rows, num_columns), np.int32)
    for b in range(len(spans)):
        left, right, top, bottom = spans[b, 0], spans[b, 1] + 1, spans[b, 2], spans[b, 3] + 1
        count[top, left] += 1
        if right < num_columns:
            count[top, right] -= 1
        if bottom < num_rows:
            count[bottom, left] -= 1
            if right < num_columns:
                count[bottom, right] += 1
    for j in range(num_rows):
        for i in range(1, num_columns):
            count[j, i] += count[j, i - 1]
        if j > 0:
            for i in range(num_columns):
                count[j, i] += count[j - 1, i]
    return count


@kernel
def _choose(
    boxes: FloatArray,
    bins: Bins,
    xs: FloatArray,
    ys: FloatArray,
    x_ends: FloatArray,
    y_ends: FloatArray,
    min_new: int,
) -> tuple[FloatArray, IntArray]:
    """Return the windows chosen, float64 [k, 4], and how many boxes each newly covered, int64 [k]."""
    n = len(boxes)
    spans = _spans(boxes, xs, ys, x_ends, y_ends)
    new_count = _count_held(spans, len(ys), len(xs))  # uncovered boxes that each candidate holds
    total_count = new_count.copy()
    best_column = np.empty(len(ys), np.int64)  # of each row, so that a step looks again only at rows it changed
    for j in range(len(ys)):
        best_column[j] = _best_in_row(new_count, total_count, j)
    windows, new = np.empty((n, 4)), np.empty(n, np.int64)
    covered = np.zeros(n, np.bool_)
    near = np.empty(n, np.int64)
    k = 0
    while k < n:
        row = _best_row(new_count, total_count, best_column)
        column = best_column[row]
        gain = new_count[row, column]
        if gain < min_new:
            break
        windows[k, 0], windows[k, 1], windows[k, 2], windows[k, 3] = xs[column], ys[row], x_ends[column], y_ends[row]
        new[k] = gain
        left, right, top, bottom = column, column, row, row  # the candidates that lose a box
        for i in range(held_by(windows, k, boxes, bins, near)):
            b = near[i]
            if covered[b]:
                continue
            covered[b] = True
            for j in range(spans[b, 2], spans[b, 3] + 1):
                for c in range(spans[b, 0], spans[b, 1] + 1):
                    new_count[j, c] -= 1
            left, right = min(left, spans[b, 0]), max(right, spans[b, 1])
            top, bottom = min(top, spans[b, 2]), max(bottom, spans[b, 3])
        for j in range(top, bottom + 1):
            if left <= best_column[j] <= right:  # else the row's best is what it was, and the others fell
                best_column[j] = _best_in_row(new_count, total_count, j)
        k += 1
    return windows[:k].copy(), new[:k].copy()


@kernel
def _best_row(new_count: CountArray, total_count: CountArray, best_column: IntArray) -> int:
    best = 0
    for j in range(1, len(best_column)):
        a, b = new_count[j, best_column[j]], new_count[best, best_column[best]]
        if a > b or (a == b and total_count[j, best_column[j]] > total_count[best, best_column[best]]):
            best = j
    return best


@kernel
def _best_in_row(new_count: CountArray, total_count: CountArray, j: int) -> int:
    best = 0
    for i in range(1, new_count.shape[1]):
        if new_count[j, i] > new_count[j, best] or (
            new_count[j, i] == new_count[j, best] and total_count[j, i] > total_count[j, best]
        ):
            best = i
    return best


@kernel
def _needed(windows: FloatArray, boxes: FloatArray, bins: Bins) -> IntArray:
    """Return the windows that stay, int64, when each one, in order, goes whose boxes all lie in others that stay."""
    near = np.empty(len(boxes), np.int64)
    times = np.zeros(len(boxes), np.int64)  # in how many windows that stay each box lies
    for w in range(len(windows)):
        for i in range(held_by(windows, w, boxes, bins, near)):
            times[near[i]] += 1
    kept, count = np.empty(len(windows), np.int64), 0
    for w in range(len(windows)):
        num_held = held_by(windows, w, boxes, bins, near)
        is_needed = False
        for i in range(num_held):
            is_needed |= times[near[i]] == 1
        if is_needed:
            kept[count] = w
            count += 1
        else:
            for i in range(num_held):
                times[near[i]] -= 1
    return kept[:count]
