"""Chip geometry, compiled by numba: which windows an image gives, and what every box is in each of them.

Boxes and windows are float64 x1 y1 x2 y2 in source pixels, x2 and y2 exclusive; chip = (source - origin) * scale.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel
from pipeline.planning.bins import bin_boxes, held_by, holds, rows_meeting
from pipeline.planning.cover import (
    Level,
    box_size,
    fits_window,
    greedy_cover,
    pyramid_level,
    window_end,
)
from schemas.arrays import BoolArray, Float32Array, FloatArray, IntArray
from schemas.codes import Fate, Status

MAX_STARTS = 512
"""Distinct box starts per axis above which the cover falls back to the stride grid; see cover.py."""

_CROWD, _IGNORE, _RESCUED, _OUT_OF_RANGE, _CUT, _VALID = (int(status) for status in Status)
_FATE_COVERED, _FATE_RESCUED, _FATE_FITS_NO_CHIP, _FATE_TOO_SMALL, _FATE_CROWD = (
    int(Fate.COVERED),
    int(Fate.RESCUED),
    int(Fate.FITS_NO_CHIP),
    int(Fate.TOO_SMALL),
    int(Fate.CROWD),
)


class SpanColumns(NamedTuple):
    """What planning needs of a span of n images with N boxes, at S scales.

    Attributes:
        first: place of the span's first box among those of the source.
        offsets: int64 [n + 1], image i has boxes offsets[i] to offsets[i + 1].
        boxes: float64 [N, 4], source pixels, inside the image; crowd: bool [N].
        image_ids, widths, heights: int64 [n]; widths and heights in source pixels.
        factors: float64 [n, S], source pixels times these are chip pixels.
        ranges: float64 [S, 2], the sizes of boxes [lo, hi) that belong to each scale, source pixels.
    """

    first: int
    offsets: IntArray
    boxes: FloatArray
    crowd: BoolArray
    image_ids: IntArray
    widths: IntArray
    heights: IntArray
    factors: FloatArray
    ranges: FloatArray


class Windows(NamedTuple):
    """C windows of a span of images, ordered by image, scale index, then choice.

    Attributes:
        image: int64 [C], position of the image in the span.
        scale_index: int8 [C].
        window: float64 [C, 4], source pixels.
    """

    image: IntArray
    scale_index: npt.NDArray[np.int8]
    window: FloatArray


class Planned(NamedTuple):
    """The positive windows of a span of images and what they do to its N boxes.

    Attributes:
        windows: the C windows.
        for_rescue: bool [C], made only for boxes that no regular window holds.
        fate: uint8 [N] per box, schemas.codes.Fate: covered, rescued, too small, fits no chip, or crowd.
        scale_mask: uint8 [N], bit i set when the box is covered (or rescued) at scale i.
        rescue_chip: int64 [N], the chip (0..C-1) that rescues the box, or -1.
    """

    windows: Windows
    for_rescue: BoolArray
    fate: npt.NDArray[np.uint8]
    scale_mask: npt.NDArray[np.uint8]
    rescue_chip: IntArray


class ChipBoxes(NamedTuple):
    """Boxes of each chip, ragged: chip c has rows offsets[c] to offsets[c + 1], in source order.

    Attributes:
        offsets: int64 [C + 1].
        source: int64 [M], the box's position among the span's boxes.
        box: float32 [M, 4], chip pixels, clipped to the content.
        visible: float32 [M], share of the box's area inside the window, (0, 1].
        status: uint8 [M], schemas.codes.Status.
    """

    offsets: IntArray
    source: IntArray
    box: Float32Array
    visible: Float32Array
    status: npt.NDArray[np.uint8]


@kernel
def plan_windows(span: SpanColumns, chip_size: int, stride: int, min_side: float, seed: int) -> Planned:
    """Choose the positive windows of a span of images and decide the fate of every box (docs/method.md, 3).

    Args:
        span: the images and their boxes.
        chip_size, stride: chip pixels.
        min_side: smallest shorter side of a target, chip pixels.
        seed: of the places that windows are moved to.
    """
    num_images, num_scales = span.factors.shape
    num_boxes = len(span.boxes)
    fate = np.full(num_boxes, _FATE_FITS_NO_CHIP, np.uint8)
    mask = np.zeros(num_boxes, np.uint8)
    rescue_scale = np.full(num_boxes, -1, np.int64)
    rescue_chip = np.full(num_boxes, -1, np.int64)
    # A window is only chosen for a box it is the first to hold, so this many is enough.
    capacity = num_boxes * num_scales + 1
    image, scale_index = np.empty(capacity, np.int64), np.empty(capacity, np.int8)
    window, for_rescue = np.empty((capacity, 4)), np.zeros(capacity, np.bool_)
    count = 0
    for m in range(num_images):
        first, last = span.offsets[m], span.offsets[m + 1]
        if first == last:
            continue
        width, height = float(span.widths[m]), float(span.heights[m])
        num_rescued = _assign_scales(span, m, chip_size, min_side, fate, mask, rescue_scale)
        for s in range(num_scales):
            level, start = pyramid_level(width, height, span.factors[m, s], chip_size, stride), count
            boxes = _boxes_where(span.boxes, mask, 1 << s, first, last)
            if len(boxes) > 0:
                found = _cover(boxes, level, seed, span.image_ids[m], s, 0)
                window[count : count + len(found)] = found
                count += len(found)
            if num_rescued > 0:
                rows = first + np.flatnonzero(rescue_scale[first:last] == s)
                rows = _rescued_in(span.boxes, rows, window, start, count, level, rescue_chip)
                if len(rows) > 0:
                    found = _cover(span.boxes[rows], level, seed, span.image_ids[m], s, count - start)
                    window[count : count + len(found)] = found
                    for_rescue[count : count + len(found)] = True
                    count += len(found)
                    _rescued_in(span.boxes, rows, window, count - len(found), count, level, rescue_chip)
            image[start:count], scale_index[start:count] = m, s
        for b in range(first, last):
            if rescue_scale[b] >= 0:
                mask[b] = 1 << rescue_scale[b]
    windows = Windows(image[:count].copy(), scale_index[:count].copy(), window[:count].copy())
    return Planned(windows, for_rescue[:count].copy(), fate, mask, rescue_chip)


@kernel
def _assign_scales(
    span: SpanColumns,
    m: int,
    chip_size: int,
    min_side: float,
    fate: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.uint8],
    rescue_scale: IntArray,
) -> int:
    """Decide for each box of image m at which scales it asks for a window; for one at none, where it is rescued.

    Args:
        span: the span of the image.
        m: the image's position in it.
        chip_size: chip pixels.
        min_side: smallest shorter side of a target, chip pixels; a smaller box asks for nothing.
        fate, mask, rescue_scale: of the span's boxes, those of the image are filled in; `mask` without rescues.

    Returns:
        The number of boxes to be rescued.
    """
    first, last = span.offsets[m], span.offsets[m + 1]
    width, height = float(span.widths[m]), float(span.heights[m])
    for s in range(len(span.ranges)):
        level = pyramid_level(width, height, span.factors[m, s], chip_size, chip_size)
        for b in range(first, last):
            if (
                not span.crowd[b]
                and _in_range(span.boxes, b, span.ranges[s])
                and fits_window(span.boxes, b, level)
                and not _too_small(span.boxes, b, level, min_side)
            ):
                mask[b] |= 1 << s
    num_rescued = 0
    for b in range(first, last):
        if span.crowd[b]:
            fate[b] = _FATE_CROWD
        elif mask[b]:
            fate[b] = _FATE_COVERED
        else:
            rescue_scale[b], fate[b] = _rescue_scale(span, m, b, chip_size, min_side)
            num_rescued += fate[b] == _FATE_RESCUED
    return num_rescued


@kernel
def _in_range(boxes: FloatArray, b: int, bounds: FloatArray) -> bool:
    return bool(bounds[0] <= box_size(boxes, b) < bounds[1])


@kernel
def _too_small(boxes: FloatArray, b: int, level: Level, min_side: float) -> bool:
    """Tell whether the whole box would be `ignore` in a chip, by the arithmetic of chip_boxes, so that they agree."""
    return bool(min(boxes[b, 2] - boxes[b, 0], boxes[b, 3] - boxes[b, 1]) * level.factor < min_side)


@kernel
def _boxes_where(boxes: FloatArray, mask: npt.NDArray[np.uint8], bit: int, first: int, last: int) -> FloatArray:
    n = 0
    for b in range(first, last):
        n += (mask[b] & bit) != 0
    chosen = np.empty((n, 4))
    n = 0
    for b in range(first, last):
        if mask[b] & bit:
            chosen[n] = boxes[b]
            n += 1
    return chosen


@kernel
def _rescue_scale(span: SpanColumns, m: int, b: int, chip_size: int, min_side: float) -> tuple[int, int]:
    """Find the scale that takes a box covered nowhere: fewest steps from where it belongs, ties to the coarser.

    It belongs to the scales whose range holds its size or, where none does, whose range is nearest in ratio.

    Returns:
        The scale, -1 for none, and the fate of the box: rescued, too small or fits no chip.
    """
    num_scales = len(span.ranges)
    width, height = float(span.widths[m]), float(span.heights[m])
    size = box_size(span.boxes, b)
    distance = np.empty(num_scales)
    for s in range(num_scales):
        lo, hi = span.ranges[s]
        distance[s] = 1.0
        if size < lo:
            distance[s] = lo / size
        elif size >= hi:
            distance[s] = np.nextafter(size / hi, np.inf)  # hi itself is outside
    nearest = distance.min()
    best, best_steps, fate = -1, num_scales, _FATE_FITS_NO_CHIP
    for s in range(num_scales):
        level = pyramid_level(width, height, span.factors[m, s], chip_size, chip_size)
        if not fits_window(span.boxes, b, level):
            continue
        if _too_small(span.boxes, b, level, min_side):
            fate = _FATE_TOO_SMALL
            continue
        steps = num_scales
        for home in range(num_scales):
            if distance[home] == nearest:
                steps = min(steps, abs(home - s))
        if steps <= best_steps:
            best, best_steps = s, steps
    return best, fate if best < 0 else _FATE_RESCUED


@kernel
def _rescued_in(
    boxes: FloatArray, rows: IntArray, windows: FloatArray, start: int, stop: int, level: Level, rescue_chip: IntArray
) -> IntArray:
    """Give each box to the first of some windows that holds it.

    Args:
        boxes: float64 [N, 4]; rows: int64 [r], those to be rescued.
        windows: float64 [C, 4], of which start to stop are tried.
        level: what the windows belong to.
        rescue_chip: int64 [N], filled in for the boxes that a window holds.

    Returns:
        The rows of those that none holds, int64.
    """
    chosen = boxes[rows]
    bins = bin_boxes(chosen, 0, len(chosen), level.width, level.height)
    near = np.empty(len(rows), np.int64)
    is_left = np.ones(len(rows), np.bool_)
    for w in range(start, stop):
        for i in range(held_by(windows, w, chosen, bins, near)):
            if is_left[near[i]]:
                is_left[near[i]] = False
                rescue_chip[rows[near[i]]] = w
    return rows[is_left]


@kernel
def chip_boxes(
    span: SpanColumns, windows: Windows, rescue_chip: IntArray, min_visible: float, min_side: float
) -> ChipBoxes:
    """Clip the boxes of each chip's image to its window and give each its status (docs/method.md, 4.2).

    Args:
        span: the images and their boxes.
        windows: the C chips.
        rescue_chip: int64 [N], the chip that rescues the box, or -1.
        min_visible: smallest visible share of a target.
        min_side: smallest shorter side of what is visible of a target, chip pixels.
    """
    offsets, source = _boxes_met(span, windows)
    box = np.empty((len(source), 4), np.float32)
    visible = np.empty(len(source), np.float32)
    status = np.empty(len(source), np.uint8)
    for c in range(len(windows.image)):
        x1, y1, x2, y2 = windows.window[c]
        s = windows.scale_index[c]
        factor = span.factors[windows.image[c], s]
        for r in range(offsets[c], offsets[c + 1]):
            b = source[r]
            low_x, low_y = max(span.boxes[b, 0], x1), max(span.boxes[b, 1], y1)
            high_x, high_y = min(span.boxes[b, 2], x2), min(span.boxes[b, 3], y2)
            area = (span.boxes[b, 2] - span.boxes[b, 0]) * (span.boxes[b, 3] - span.boxes[b, 1])
            share = min((high_x - low_x) * (high_y - low_y) / area, 1.0)
            box[r, 0], box[r, 1] = (low_x - x1) * factor, (low_y - y1) * factor
            box[r, 2], box[r, 3] = (high_x - x1) * factor, (high_y - y1) * factor
            visible[r] = share
            if span.crowd[b]:
                status[r] = _CROWD
            elif share < min_visible or min(high_x - low_x, high_y - low_y) * factor < min_side:
                status[r] = _IGNORE
            elif rescue_chip[b] == c:
                status[r] = _RESCUED
            elif not _in_range(span.boxes, b, span.ranges[s]):
                status[r] = _OUT_OF_RANGE
            elif not holds(windows.window, c, span.boxes, b):
                status[r] = _CUT
            else:
                status[r] = _VALID
    return ChipBoxes(offsets, source, box, visible, status)


@kernel
def _boxes_met(span: SpanColumns, windows: Windows) -> tuple[IntArray, IntArray]:
    """Find the boxes that meet each window: offsets int64 [C + 1] and their rows int64 [M], ascending in each chip."""
    num_chips = len(windows.image)
    offsets = np.zeros(num_chips + 1, np.int64)
    near = np.empty(len(span.boxes), np.int64)
    source = np.empty(4 * len(span.boxes) + num_chips, np.int64)
    bins = bin_boxes(span.boxes, 0, 0, 1.0, 1.0)
    for c in range(num_chips):
        m = windows.image[c]
        if c == 0 or m != windows.image[c - 1]:
            begin, end = span.offsets[m], span.offsets[m + 1]
            bins = bin_boxes(span.boxes, begin, end, float(span.widths[m]), float(span.heights[m]))
        x1, y1, x2, y2 = windows.window[c]
        met = rows_meeting(bins, span.boxes, x1, y1, x2, y2, near)
        total = offsets[c] + met
        if total > len(source):
            source = np.concatenate((source, np.empty(total + len(source), np.int64)))
        source[offsets[c] : total] = near[:met]
        offsets[c + 1] = total
    return offsets, source[: offsets[num_chips]].copy()


@kernel
def _cover(boxes: FloatArray, level: Level, seed: int, image_id: int, s: int, ordinal: int) -> FloatArray:
    """Return windows float64 [k, 4] that hold all `boxes`, each placed within its free play.

    Args:
        boxes: float64 [n, 4] with n > 0, each of which fits a window.
        level: the image at the scale.
        ordinal: number of windows the image has at this scale already; with seed, image id and scale index `s` it
            decides the place, so that nothing else does.
    """
    windows, _ = greedy_cover(boxes, level, MAX_STARTS, 1, True)
    hulls = _hulls(windows, boxes, level)
    for w in range(len(windows)):
        number = 2 * (ordinal + w)
        u_x, u_y = _uniform(seed, image_id, s, number), _uniform(seed, image_id, s, number + 1)
        windows[w, 0], windows[w, 2] = _place(windows[w, 0], hulls[w, 0], hulls[w, 2], level.width, level.side, u_x)
        windows[w, 1], windows[w, 3] = _place(windows[w, 1], hulls[w, 1], hulls[w, 3], level.height, level.side, u_y)
    return windows


@kernel
def _hulls(windows: FloatArray, boxes: FloatArray, level: Level) -> FloatArray:
    """Return float64 [k, 4]: the smallest box around those that each window holds."""
    hulls = np.empty((len(windows), 4))
    hulls[:, 0], hulls[:, 1], hulls[:, 2], hulls[:, 3] = level.width, level.height, 0.0, 0.0
    if len(windows) == 1:  # it holds all
        for b in range(len(boxes)):
            _widen(hulls, 0, boxes, b)
        return hulls
    bins = bin_boxes(boxes, 0, len(boxes), level.width, level.height)
    near = np.empty(len(boxes), np.int64)
    for w in range(len(windows)):
        for i in range(held_by(windows, w, boxes, bins, near)):
            _widen(hulls, w, boxes, near[i])
    return hulls


@kernel
def _widen(hulls: FloatArray, w: int, boxes: FloatArray, b: int) -> None:
    hulls[w, 0], hulls[w, 1] = min(hulls[w, 0], boxes[b, 0]), min(hulls[w, 1], boxes[b, 1])
    hulls[w, 2], hulls[w, 3] = max(hulls[w, 2], boxes[b, 2]), max(hulls[w, 3], boxes[b, 3])


@kernel
def _place(start: float, low: float, high: float, extent: float, side: float, u: float) -> tuple[float, float]:
    """Move a window to a drawn place among those that hold [low, high], at a whole source pixel if one is free.

    The cover leaves every window with a box at its left and its top edge. Objects would then always sit in the
    same corner of their chips, and their context always be missing on the same side; the original picks among
    equal candidates at random (docs/method.md, 3.4).
    """
    if extent <= side:
        return 0.0, extent
    earliest, latest = max(high - side, 0.0), min(low, extent - side)
    drawn = np.floor(earliest + u * (latest - earliest))
    if drawn < earliest:
        drawn += 1.0
    if drawn <= latest and high <= window_end(drawn, extent, side):
        start = drawn
    return start, window_end(start, extent, side)


@kernel
def _uniform(seed: int, image_id: int, s: int, n: int) -> float:
    """Draw a number in [0, 1) that depends on its arguments alone (splitmix64 finaliser, chained)."""
    h = np.uint64(0x9E3779B97F4A7C15)
    for value in (seed, image_id, s, n):
        h = (h ^ np.uint64(value)) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0x94D049BB133111EB)
        h ^= h >> np.uint64(31)
    return float(h >> np.uint64(11)) * 2.0**-53
