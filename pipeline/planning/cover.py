"""Few windows that hold every box: the greedy cover behind positive and negative chips, compiled by numba.

Everything here works on one axis-aligned problem in source pixels: boxes float64 [n, 4] as x1 y1 x2 y2, an
image of `extent` pixels per axis, windows of one size. A box is covered when a window holds it whole;
touching the edge is inside.

Where windows may start. A window can be moved right and down until its left edge meets the leftmost and its
top edge the topmost of the boxes it holds, without losing one. So the starts {box.x1} x {box.y1}, kept inside
the image, contain a best cover among all windows anywhere; the paper's stride grid does not. With more distinct
starts than `limit` on an axis the grid is used there (plus what makes every fitting box coverable), which
bounds the work for dense images and for thousands of proposals.

numba's cache does not see that a kernel in another file calls a changed one here. Every make target looks (it runs
scripts/setup.sh) and compiles all of them again; who edits and runs without make runs that script.
"""

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel
from schemas.arrays import Float32Array, FloatArray, IntArray

CountArray = npt.NDArray[np.int32]


@kernel
def window_side(chip_size: int, factor: float, width: float, height: float) -> float:
    """Side of a chip's window, source pixels; exactly the image's side where only rounding keeps them apart.

    512 / (512 / 905) is less than 905, and a box as long as that image would fit no chip of it.
    """
    side = chip_size / factor
    for extent in (width, height):
        if abs(side - extent) <= 1e-9 * extent:
            return extent
    return side


@kernel
def window_start(low: float, extent: float, side: float) -> float:
    """Start of the window whose edge is flush with a box's low edge, kept inside the image."""
    return max(min(low, extent - side), 0.0)


@kernel
def window_end(start: float, extent: float, side: float) -> float:
    """End of the window; exactly `extent` at the far edge, so that rounding excludes no box touching it."""
    if start >= extent - side:
        return extent
    return start + side


@kernel
def fits(low: float, high: float, extent: float, side: float) -> bool:
    """Whether some window holds [low, high] on this axis; the same arithmetic as the cover, so they agree."""
    return high <= window_end(window_start(low, extent, side), extent, side)


@kernel
def holds(windows: FloatArray, w: int, boxes: FloatArray | Float32Array, b: int) -> bool:
    """Whether window w of [k, 4] holds box b of [n, 4] whole; touching the edge is inside."""
    return bool(
        windows[w, 0] <= boxes[b, 0]
        and windows[w, 1] <= boxes[b, 1]
        and boxes[b, 2] <= windows[w, 2]
        and boxes[b, 3] <= windows[w, 3]
    )


@kernel
def candidate_starts(
    lows: FloatArray, highs: FloatArray, extent: float, side: float, step: float, limit: int
) -> FloatArray:
    """Sorted distinct window starts on one axis (see the module's text).

    Args:
        lows, highs: float64 [n], the boxes' edges, source pixels; every box must fit.
        step: grid step, source pixels, used where there are more than `limit` distinct box starts.
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
    for i in range(len(lows)):
        nearest = grid[min(int(lows[i] / step), len(grid) - 1)]  # the last grid start not beyond the box
        if nearest > lows[i] and nearest > 0:  # lows / step was rounded up
            nearest -= step
        held_by_last = last <= lows[i]
        if window_end(nearest, extent, side) < highs[i] and not held_by_last:
            extra.append(window_start(lows[i], extent, side))
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
    boxes: FloatArray,
    extent_x: float,
    extent_y: float,
    side: float,
    step: float,
    limit: int,
    min_new: int,
    prune: bool,
) -> tuple[FloatArray, IntArray]:
    """Choose windows greedily until every box is covered, or the best window would cover too few new ones.

    Each step takes the window that newly covers most boxes; among equals the one that holds most boxes in
    all, then the topmost, then the leftmost. Holding more boxes leaves fewer windows in the end: `prune` then
    drops, in the order chosen, every window whose boxes all lie in other chosen windows.

    Args:
        boxes: float64 [n, 4] with n > 0, source pixels, each of which must fit a window.
        extent_x, extent_y: image width and height, source pixels.
        side: window side, source pixels; where the image is smaller the window is the whole side.
        step, limit: see candidate_starts.
        min_new: stop when the best window would newly cover fewer than this many boxes (at least 1).

    Returns:
        windows: float64 [k, 4], source pixels, in the order chosen.
        new: int64 [k], how many boxes each newly covered when it was chosen.
    """
    n = len(boxes)
    low_x, low_y = boxes[:, 0].min(), boxes[:, 1].min()
    if (
        n >= min_new
        and fits(low_x, boxes[:, 2].max(), extent_x, side)
        and fits(low_y, boxes[:, 3].max(), extent_y, side)
    ):  # one window holds all: most calls
        window = np.empty((1, 4))
        window[0, 0], window[0, 1] = window_start(low_x, extent_x, side), window_start(low_y, extent_y, side)
        window[0, 2], window[0, 3] = window_end(window[0, 0], extent_x, side), window_end(window[0, 1], extent_y, side)
        return window, np.full(1, n)
    xs = candidate_starts(boxes[:, 0], boxes[:, 2], extent_x, side, step, limit)
    ys = candidate_starts(boxes[:, 1], boxes[:, 3], extent_y, side, step, limit)
    nx, ny = len(xs), len(ys)
    x_ends, y_ends = np.empty(nx), np.empty(ny)
    for i in range(nx):
        x_ends[i] = window_end(xs[i], extent_x, side)
    for j in range(ny):
        y_ends[j] = window_end(ys[j], extent_y, side)

    # Starts that hold a box are a run on each axis: [first, last] columns and rows.
    spans = np.empty((n, 4), np.int64)  # first column, last column, first row, last row
    new_count = np.zeros((ny, nx), np.int32)  # uncovered boxes each window holds
    for b in range(n):
        spans[b, 0] = np.searchsorted(x_ends, boxes[b, 2], side="left")
        spans[b, 1] = np.searchsorted(xs, boxes[b, 0], side="right") - 1
        spans[b, 2] = np.searchsorted(y_ends, boxes[b, 3], side="left")
        spans[b, 3] = np.searchsorted(ys, boxes[b, 1], side="right") - 1
        new_count[spans[b, 2], spans[b, 0]] += 1  # the corners of its run of windows; summed up below
        if spans[b, 1] + 1 < nx:
            new_count[spans[b, 2], spans[b, 1] + 1] -= 1
        if spans[b, 3] + 1 < ny:
            new_count[spans[b, 3] + 1, spans[b, 0]] -= 1
            if spans[b, 1] + 1 < nx:
                new_count[spans[b, 3] + 1, spans[b, 1] + 1] += 1
    for j in range(ny):
        for i in range(1, nx):
            new_count[j, i] += new_count[j, i - 1]
        if j > 0:
            for i in range(nx):
                new_count[j, i] += new_count[j - 1, i]
    total_count = new_count.copy()

    best_column = np.empty(ny, np.int64)  # per row, so that a step rescans only the rows it changed
    for j in range(ny):
        best_column[j] = _best_in_row(new_count, total_count, j)

    chosen = np.empty((n, 2), np.int64)  # column, row
    new = np.empty(n, np.int64)
    k = 0
    covered = np.zeros(n, np.bool_)
    changed = np.zeros(ny, np.bool_)
    while k < n:
        row = 0
        for j in range(1, ny):
            a, b = new_count[j, best_column[j]], new_count[row, best_column[row]]
            if a > b or (a == b and total_count[j, best_column[j]] > total_count[row, best_column[row]]):
                row = j
        column = best_column[row]
        gain = new_count[row, column]
        if gain < min_new:
            break
        chosen[k, 0], chosen[k, 1], new[k] = column, row, gain
        k += 1
        for b in range(n):
            if not covered[b] and spans[b, 0] <= column <= spans[b, 1] and spans[b, 2] <= row <= spans[b, 3]:
                covered[b] = True
                for j in range(spans[b, 2], spans[b, 3] + 1):
                    changed[j] = True
                    for i in range(spans[b, 0], spans[b, 1] + 1):
                        new_count[j, i] -= 1
        for j in range(ny):
            if changed[j]:
                best_column[j] = _best_in_row(new_count, total_count, j)
                changed[j] = False

    kept = np.ones(k, np.bool_)
    if prune and k > 1:
        _drop_redundant(chosen[:k], spans, kept)
    windows = np.empty((kept.sum(), 4))
    new_kept = np.empty(len(windows), np.int64)
    m = 0
    for w in range(k):
        if kept[w]:
            windows[m, 0], windows[m, 2] = xs[chosen[w, 0]], x_ends[chosen[w, 0]]
            windows[m, 1], windows[m, 3] = ys[chosen[w, 1]], y_ends[chosen[w, 1]]
            new_kept[m] = new[w]
            m += 1
    return windows, new_kept


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
def _drop_redundant(chosen: IntArray, spans: IntArray, kept: npt.NDArray[np.bool_]) -> None:
    """Clear `kept` for each window, in order, all of whose boxes lie in other kept windows."""
    n = len(spans)
    times = np.zeros(n, np.int64)
    for w in range(len(chosen)):
        for b in range(n):
            times[b] += _is_within(chosen, w, spans, b)
    for w in range(len(chosen)):
        redundant = True
        for b in range(n):
            if times[b] == 1 and _is_within(chosen, w, spans, b):
                redundant = False
                break
        if redundant:
            kept[w] = False
            for b in range(n):
                times[b] -= _is_within(chosen, w, spans, b)


@kernel
def _is_within(chosen: IntArray, w: int, spans: IntArray, b: int) -> bool:
    return bool(spans[b, 0] <= chosen[w, 0] <= spans[b, 1] and spans[b, 2] <= chosen[w, 1] <= spans[b, 3])
