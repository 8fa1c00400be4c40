"""Where an image is searched at a finer scale: maps of a coarser one become windows (docs/method.md, 16)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.coco import SourceImage
from pipeline.planning.scales import box_sizes
from pipeline.pyramid.merging import widened_ranges
from pipeline.pyramid.views import ALIGN, CELLS, Output, View, Window
from schemas.arrays import Float32Array, FloatArray
from schemas.errors import UsageError
from schemas.settings import ChipSettings

THRESHOLD = 0.03
"""Probability above which a cell calls for the finer scale, where nothing else is set (docs/method.md, 16.3)."""
LEAST = 0.5
"""Least side of a window at its own scale, as a share of a chip's side (docs/method.md, 16.3)."""
WHOLE = 0.9
"""Windows with at least this share of the pixels of the whole image give way to the whole (docs/method.md, 16.3)."""
MOST_JOINED = 512
"""Windows that are compared with each other at a time, so that time and memory are bounded."""


class FocusMap(NamedTuple):
    """How probable it is that something in a cell of a view is small and calls for the next finer scale.

    Attributes:
        values: float32 [rows, columns], in 0 to 1; row 0 and column 0 begin where the view begins.
        cell: height and width of a cell, view pixels.
    """

    values: Float32Array
    cell: tuple[float, float]


class Focus(NamedTuple):
    """How a search goes from coarse to fine.

    Attributes:
        threshold: the probability above which a cell calls for the finer scale.
        of: makes the map of a view from what the network gave for it; None where that says nothing, so that the finer
            scale is searched whole.
    """

    threshold: float
    of: Callable[[View, Output], FocusMap | None]


def focus_limits(bounds: Sequence[tuple[float, float]], given: Sequence[float] | None = None) -> list[float]:
    """Return for each scale the size below which an object calls for the next finer scale (docs/method.md, 16.1).

    It is the lower end of the scale's range as detection takes it, since what is smaller is left to finer scales.
    Where a range has no lower end, it is the upper end of the finer scale's range.

    Args:
        bounds: the training ranges, per scale [lo, hi) of sqrt(width * height), source pixels.
        given: the limits themselves, where they are set (`model.focus_limits`).

    Returns:
        Source pixels, a limit for each scale; 0 for the finest.

    Raises:
        UsageError: there are more or fewer limits than scales, or a limit lies below the lower end of the scale's
            range.
    """
    if given is not None and len(given) != len(bounds):
        raise UsageError(
            f"model.focus_limits: {len(given)} limits, but there are {len(bounds)} scales; give one for each, the "
            "finest first"
        )
    ranges = widened_ranges(bounds)
    for index, limit in enumerate(given or []):
        if index and limit < ranges[index][0]:
            raise UsageError(
                f"model.focus_limits: {limit:g} for scale {index}, which detects from {ranges[index][0]:g} px on: an "
                f"object of a size between would be found at no scale; give at least {ranges[index][0]:g}"
            )
    if given is not None:
        return [0.0, *given[1:]]
    return [0.0, *(lo or finer_hi for (lo, _), (_, finer_hi) in zip(ranges[1:], ranges[:-1], strict=True))]


def painted_map(view: View, boxes: Float32Array, scores: Float32Array, limit: float, chip_size: int) -> FocusMap:
    """Make a map of what was found in a view: a cell has the best score of the small boxes that touch it.

    It serves networks that have not learnt to say where something small is.

    Args:
        view: what was searched.
        boxes: float32 [n, 4], x1 y1 x2 y2, view pixels.
        scores: float32 [n], in 0 to 1.
        limit: boxes smaller than this size count, source pixels.
        chip_size: chip pixels; a chip has CELLS cells along its side.
    """
    cell = chip_size / CELLS
    values = np.zeros((math.ceil(view.height / cell), math.ceil(view.width / cell)), np.float32)
    is_small = box_sizes(boxes) < limit * view.scale
    boxes = np.clip(boxes, 0, np.array([view.width, view.height] * 2, np.float32))
    small = np.flatnonzero(is_small & (box_sizes(boxes) > 0))
    for row in small[np.argsort(scores[small], kind="stable")].tolist():  # the best are painted last
        x1, y1, x2, y2 = (boxes[row] / cell).tolist()
        columns, rows = (
            slice(int(x1), max(math.ceil(x2), int(x1) + 1)),
            slice(int(y1), max(math.ceil(y2), int(y1) + 1)),
        )
        values[rows, columns] = scores[row]
    return FocusMap(values, (cell, cell))


def focus_windows(
    maps: Sequence[tuple[View, FocusMap | None]],
    threshold: float,
    image: SourceImage,
    scale: float,
    chips: ChipSettings,
) -> list[Window]:
    """Return the windows of an image that are to be searched at the next finer scale.

    Cells above the threshold are grown by a cell all round, or by a cell of the finer scale where that is more, since
    so much of a window's edge is not searched. Each connected part gives the rectangle around it.
    Rectangles are enlarged about their middle to a least side and to what is padded anyway, and pushed inside the
    image. Two that overlap become one, and so do two of which that makes no more pixels.

    Args:
        maps: of the views of one image at the coarser scale; None where nothing is known of a view.
        threshold: probability above which a cell counts.
        image: the image's size.
        scale: factor from source to view pixels of the finer scale.
        chips: gives the side of a chip.

    Returns:
        x1 y1 x2 y2, source pixels; the whole image alone where the windows have about as many pixels.
    """
    margin = chips.size / CELLS / scale
    parts = [
        np.array([view.window]) if found is None else _connected(view, found, threshold, image, margin)
        for view, found in maps
    ]
    extent = np.array([image.width, image.height], np.float64)
    windows = np.concatenate([*parts, np.empty((0, 4))])
    least = LEAST * chips.size
    count = -1
    while len(windows) != count:  # what has grown may overlap anew
        count = len(windows)
        windows = _joined(_grown(windows, extent, scale, least), scale)
    if _pixels(windows, scale).sum() >= WHOLE * _pixels(np.array([[0, 0, *extent]]), scale).sum():
        return [image.whole]
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in windows.tolist()]


def _connected(view: View, found: FocusMap, threshold: float, image: SourceImage, margin: float) -> FloatArray:
    """Return the rectangle around each connected part of a map above the threshold, float64 [n, 4], source pixels.

    It is larger than the part by a cell, or by `margin` source pixels where that is more, but not than the view.

    The outermost cells of a focus window say nothing where the image goes on: what is cut there looks small, and what
    the window was opened for lies further inside.
    """
    above = found.values > threshold
    if view.region is not None:
        x1, y1, x2, y2 = view.region
        above[:1] &= y1 == 0 or view.window[1] > y1
        above[-1:] &= y2 >= image.height or view.window[3] < y2
        above[:, :1] &= x1 == 0 or view.window[0] > x1
        above[:, -1:] &= x2 >= image.width or view.window[2] < x2
    if not above.any():
        return np.empty((0, 4))
    from scipy import ndimage  # where there is something to find

    near = np.ones((3, 3), np.bool_)
    labels, _ = ndimage.label(ndimage.binary_dilation(above, near), near)
    rectangles = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    cell = np.array(found.cell[::-1]) / view.scale
    around = np.array(rectangles, np.float64) * np.tile(cell, 2)
    more = np.maximum(margin - cell, 0)
    around += np.concatenate([-more, more])
    x1, y1, x2, y2 = view.window
    clipped: FloatArray = np.clip(around + np.array([x1, y1, x1, y1]), [x1, y1, x1, y1], [x2, y2, x2, y2])
    return clipped


def _grown(windows: FloatArray, extent: FloatArray, scale: float, least: float) -> FloatArray:
    """Enlarge windows about their middle to a least side and to whole multiples of ALIGN, and push them inside.

    Args:
        windows: float64 [n, 4], source pixels.
        extent: width and height of the image, source pixels.
        scale: factor from source to view pixels.
        least: view pixels.
    """
    side = (windows[:, 2:] - windows[:, :2]) * scale
    wanted = np.maximum(np.ceil(side / ALIGN - 1e-6) * ALIGN, least) / scale
    wanted = np.minimum(wanted, extent)
    low = (windows[:, :2] + windows[:, 2:] - wanted) / 2
    low = np.clip(low, 0, extent - wanted)
    high = low + wanted
    # exactly the image's ends where only rounding keeps them apart: what lies at another end of a window counts as cut
    near = 1e-9 * extent
    return np.concatenate([np.where(low < near, 0, low), np.where(high > extent - near, extent, high)], axis=1)


def _joined(windows: FloatArray, scale: float) -> FloatArray:
    """Put the rectangle around two windows in place of both where they overlap, or where it has no more pixels.

    What lies at the edge of one window and inside another one would be found twice, and once in part.
    """
    done = [np.empty((0, 4))]
    for start in range(0, len(windows), MOST_JOINED):
        some = windows[start : start + MOST_JOINED]
        while len(some) > 1:
            gain = _gain(some, scale)
            rows, best = np.arange(len(some)), gain.argmax(axis=1)
            is_pair = (best[best] == rows) & (gain[rows, best] >= 0)  # each is the other's best
            first = np.flatnonzero(is_pair & (rows < best))
            if not len(first):
                break
            pair = some[first], some[best[first]]
            around = np.concatenate([np.minimum(*pair)[:, :2], np.maximum(*pair)[:, 2:]], axis=1)
            some = np.concatenate([np.delete(some, [*first, *best[first]], axis=0), around])
        done.append(some)
    return np.concatenate(done)


def _gain(windows: FloatArray, scale: float) -> FloatArray:
    """Return how many view pixels it saves to join two windows, float64 [n, n]; at least 0 where they overlap.

    It is below 0 where they should stay apart, and on the diagonal.
    """
    own = _pixels(windows, scale)
    low, high = windows[:, :2], windows[:, 2:]
    around = np.maximum(high[:, None], high[None]) - np.minimum(low[:, None], low[None])
    common = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
    saved = own[:, None] + own[None] - (around * scale).prod(axis=2)
    gain: FloatArray = np.where((common > 0).all(axis=2), np.maximum(saved, 0), saved)
    np.fill_diagonal(gain, -1)
    return gain


def _pixels(windows: FloatArray, scale: float) -> FloatArray:
    """Return the pixels of the views of some windows, float64 [n]."""
    pixels: FloatArray = ((windows[:, 2:] - windows[:, :2]) * scale).prod(axis=1)
    return pixels
