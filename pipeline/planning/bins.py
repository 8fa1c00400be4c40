"""Boxes sorted by place, so that those near a window are found without a look at all of them; compiled by numba.

A dense image has as many windows as it has boxes per window, and comparing each with each would be quadratic. Boxes
are put into square bins by their upper left corner. Long boxes would reach out of small bins, so there are several
levels of bins, each with twice the side of the one before, and a box goes to the first level whose bins are at least
as long as its longer side. A box that meets a window then starts in one of the bins that the window meets, or in the
column or row of bins before them.
"""

from typing import NamedTuple

import numpy as np

from pipeline.kernels import kernel
from schemas.arrays import Float32Array, FloatArray, IntArray

BINNED_FROM = 256
"""Boxes; fewer lie in one bin, and each search looks at all of them, which is faster."""

BOXES_PER_BIN = 4.0
"""On average, if all boxes were small and evenly spread."""


class Bins(NamedTuple):
    """Rows of boxes by place.

    Attributes:
        begin, end: rows of the boxes in the array that they are from.
        row: int64 [n], these rows by bin, ascending in each; empty where there are fewer than BINNED_FROM.
        start: int64 [bins + 1]; bin k holds row[start[k]] to row[start[k + 1] - 1]. Bins follow each other level by
            level, row by row.
        width, height: of the image, in pixels of the boxes.
        side: of the smallest bins.
    """

    begin: int
    end: int
    row: IntArray
    start: IntArray
    width: float
    height: float
    side: float


@kernel
def bin_boxes(boxes: FloatArray | Float32Array, begin: int, end: int, width: float, height: float) -> Bins:
    """Sort boxes into bins.

    Args:
        boxes: float64 or float32 [N, 4], x1 y1 x2 y2 inside the image.
        begin, end: rows of the image's boxes.
        width, height: of the image, in pixels of the boxes.
    """
    n = end - begin
    side = max(width, height)
    if n < BINNED_FROM:
        none = np.empty(0, np.int64)
        return Bins(begin, end, none, none, width, height, side)
    side = min(np.sqrt(width * height * BOXES_PER_BIN / n), side)
    first = [0]  # first bin of each level
    while True:
        level_side = side * 2.0 ** (len(first) - 1)
        first.append(first[-1] + _bins_along(width, level_side) * _bins_along(height, level_side))
        if level_side >= max(width, height):
            break
    bin_of = np.empty(n, np.int64)
    start = np.zeros(first[-1] + 1, np.int64)
    for i in range(n):
        b = begin + i
        length = max(boxes[b, 2] - boxes[b, 0], boxes[b, 3] - boxes[b, 1])
        k, level_side = 0, side
        while level_side < length and k < len(first) - 2:
            k, level_side = k + 1, level_side * 2
        columns, rows = _bins_along(width, level_side), _bins_along(height, level_side)
        column, row = _bin_along(boxes[b, 0], level_side, columns), _bin_along(boxes[b, 1], level_side, rows)
        bin_of[i] = first[k] + row * columns + column
        start[bin_of[i] + 1] += 1
    for k in range(len(start) - 1):
        start[k + 1] += start[k]
    following = start[:-1].copy()
    order = np.empty(n, np.int64)
    for i in range(n):
        order[following[bin_of[i]]] = begin + i
        following[bin_of[i]] += 1
    return Bins(begin, end, order, start, width, height, side)


@kernel
def _bins_along(extent: float, side: float) -> int:
    return int(np.ceil(extent / side))


@kernel
def _bin_along(x: float, side: float, count: int) -> int:
    """Return the bin of a coordinate on one axis; the first or the last for what lies outside the image."""
    return max(min(int(x / side), count - 1), 0)


@kernel
def rows_starting(
    bins: Bins,
    low_x: float,
    low_y: float,
    high_x: float,
    high_y: float,
    shorter: float,
    longer: float,
    found: IntArray,
) -> int:
    """Find the boxes that may start in a place and be of a length; there are others among those found.

    Args:
        bins: of the boxes.
        low_x, low_y, high_x, high_y: where the upper left corner may lie, in pixels of the boxes.
        shorter, longer: bounds of the longer side of the boxes.
        found: int64, as long as there are boxes in the bins; filled from the front with rows of the boxes.

    Returns:
        How many there are.
    """
    count = 0
    if len(bins.row) == 0:
        for b in range(bins.begin, bins.end):
            found[count] = b
            count += 1
        return count
    side, first, smallest = bins.side, 0, 0.0  # sides of the boxes of a level lie between `smallest` and `side`
    while first < len(bins.start) - 1:
        columns, rows = _bins_along(bins.width, side), _bins_along(bins.height, side)
        if smallest <= longer and side >= shorter:
            left, right = _bin_along(low_x, side, columns), _bin_along(high_x, side, columns)
            for row in range(_bin_along(low_y, side, rows), _bin_along(high_y, side, rows) + 1):
                start = first + row * columns  # the bins of a row are neighbours
                for i in range(bins.start[start + left], bins.start[start + right + 1]):
                    found[count] = bins.row[i]
                    count += 1
        first, smallest, side = first + columns * rows, side, side * 2
    return count


@kernel
def rows_meeting(
    bins: Bins, boxes: FloatArray | Float32Array, x1: float, y1: float, x2: float, y2: float, found: IntArray
) -> int:
    """Find the boxes that share an area with a window.

    Args:
        bins: of these boxes.
        boxes: float64 or float32 [N, 4], x1 y1 x2 y2.
        x1, y1, x2, y2: the window, in pixels of the boxes.
        found: int64, as long as there are boxes in the bins; filled from the front with rows of `boxes`, ascending.

    Returns:
        How many there are.
    """
    count = 0
    if len(bins.row) == 0:
        for b in range(bins.begin, bins.end):
            if boxes[b, 0] < x2 and boxes[b, 2] > x1 and boxes[b, 1] < y2 and boxes[b, 3] > y1:
                found[count] = b
                count += 1
        return count
    side, first = bins.side, 0
    while first < len(bins.start) - 1:
        columns, rows = _bins_along(bins.width, side), _bins_along(bins.height, side)
        reach = side * 1.000001  # more than rounding can take from a box's length
        left, right = _bin_along(x1 - reach, side, columns), _bin_along(x2, side, columns)
        for row in range(_bin_along(y1 - reach, side, rows), _bin_along(y2, side, rows) + 1):
            start = first + row * columns  # the bins of a row are neighbours
            for i in range(bins.start[start + left], bins.start[start + right + 1]):
                b = bins.row[i]
                if boxes[b, 0] < x2 and boxes[b, 2] > x1 and boxes[b, 1] < y2 and boxes[b, 3] > y1:
                    found[count] = b
                    count += 1
        first, side = first + columns * rows, side * 2
    found[:count].sort()
    return count


@kernel
def holds(windows: FloatArray, w: int, boxes: FloatArray | Float32Array, b: int) -> bool:
    """Tell whether window w of [k, 4] holds box b of [n, 4]; both in source pixels."""
    return bool(
        windows[w, 0] <= boxes[b, 0]
        and windows[w, 1] <= boxes[b, 1]
        and boxes[b, 2] <= windows[w, 2]
        and boxes[b, 3] <= windows[w, 3]
    )


@kernel
def held_by(windows: FloatArray, w: int, boxes: FloatArray | Float32Array, bins: Bins, found: IntArray) -> int:
    """Find the boxes that a window holds.

    Args:
        windows: float64 [k, 4]; w: the window's row.
        boxes: float64 or float32 [N, 4]; bins: of these boxes.
        found: int64, as long as there are boxes in the bins; filled from the front with rows of `boxes`, ascending.

    Returns:
        How many there are.
    """
    count = 0
    if len(bins.row) == 0:
        for b in range(bins.begin, bins.end):
            if holds(windows, w, boxes, b):
                found[count] = b
                count += 1
        return count
    x1, y1, x2, y2 = windows[w]
    for i in range(rows_meeting(bins, boxes, x1, y1, x2, y2, found)):
        if holds(windows, w, boxes, found[i]):
            found[count] = found[i]
            count += 1
    return count
