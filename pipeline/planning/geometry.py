"""Chip geometry, compiled by numba: which windows an image gives, and what every box is in each of them.

Boxes and windows are float64 x1 y1 x2 y2 in source pixels, x2 and y2 exclusive; chip = (source - origin) * scale.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel
from pipeline.planning.cover import fits, greedy_cover, holds, window_end, window_side
from schemas.arrays import FloatArray, IntArray
from schemas.codes import Fate, Status

MAX_STARTS = 512
"""Distinct box starts per axis above which the cover falls back to the stride grid; see cover.py."""

_CROWD, _IGNORE, _RESCUED, _OUT_OF_RANGE, _CUT, _VALID = (int(status) for status in Status)
_FATE_COVERED, _FATE_RESCUED, _FATE_UNCOVERED, _FATE_CROWD = (
    int(Fate.COVERED),
    int(Fate.RESCUED),
    int(Fate.UNCOVERED),
    int(Fate.CROWD),
)


class Windows(NamedTuple):
    """Positive windows of a run of images, ordered by image, scale index, then choice.

    Attributes:
        image: int64 [C], position of the image in the run.
        scale_index: int8 [C].
        window: float64 [C, 4], source pixels.
        for_rescue: bool [C], made only for boxes that no regular window holds.
        fate: uint8 [N] per box, schemas.codes.Fate: covered, rescued, uncovered or crowd.
        scale_mask: uint8 [N], bit i set when the box is covered (or rescued) at scale i.
        rescue_chip: int64 [N], the chip (0..C-1) that rescues the box, or -1.
    """

    image: IntArray
    scale_index: npt.NDArray[np.int8]
    window: FloatArray
    for_rescue: npt.NDArray[np.bool_]
    fate: npt.NDArray[np.uint8]
    scale_mask: npt.NDArray[np.uint8]
    rescue_chip: IntArray


class ChipBoxes(NamedTuple):
    """Boxes of each chip, ragged: chip c has rows offsets[c] to offsets[c + 1], in source order.

    Attributes:
        offsets: int64 [C + 1].
        source: int64 [M], the box's position among the run's boxes.
        box: float32 [M, 4], chip pixels, clipped to the content.
        visible: float32 [M], share of the box's area inside the window, (0, 1].
        status: uint8 [M], schemas.codes.Status.
    """

    offsets: IntArray
    source: IntArray
    box: npt.NDArray[np.float32]
    visible: npt.NDArray[np.float32]
    status: npt.NDArray[np.uint8]


@kernel
def plan_windows(
    offsets: IntArray,
    boxes: FloatArray,
    crowd: npt.NDArray[np.bool_],
    image_ids: IntArray,
    widths: IntArray,
    heights: IntArray,
    factors: FloatArray,
    ranges: FloatArray,
    chip_size: int,
    stride: int,
    seed: int,
) -> Windows:
    """Choose the positive windows of a run of images and decide the fate of every box.

    Args:
        offsets: int64 [n + 1], image i has boxes offsets[i] to offsets[i + 1].
        boxes: float64 [N, 4], source pixels, inside the image; crowd: bool [N].
        widths, heights: int64 [n], source pixels; factors: float64 [n, S]; ranges: float64 [S, 2], [lo, hi).
        chip_size, stride: chip pixels.
    """
    num_images, num_scales = factors.shape
    n_all = len(boxes)
    fate = np.full(n_all, _FATE_UNCOVERED, np.uint8)
    mask = np.zeros(n_all, np.uint8)
    rescue_chip = np.full(n_all, -1, np.int64)
    rescue_scale = np.full(n_all, -1, np.int64)
    # A window is only chosen for a box it is the first to hold, so this many is enough.
    capacity = n_all * num_scales + 1
    image = np.empty(capacity, np.int64)
    scale_index = np.empty(capacity, np.int8)
    window = np.empty((capacity, 4))
    for_rescue = np.zeros(capacity, np.bool_)
    count = 0
    for m in range(num_images):
        first, last = offsets[m], offsets[m + 1]
        if first == last:
            continue
        width, height = float(widths[m]), float(heights[m])
        for b in range(first, last):
            if crowd[b]:
                fate[b] = _FATE_CROWD
                continue
            target = -1
            for s in range(num_scales):
                if _in_range(boxes, b, ranges[s, 0], ranges[s, 1]) and _fits_window(
                    boxes, b, width, height, window_side(chip_size, factors[m, s], width, height)
                ):
                    mask[b] |= 1 << s
            if mask[b] == 0:
                target = _rescue_scale(boxes, b, width, height, factors[m], ranges, chip_size)
                rescue_scale[b] = target
                if target >= 0:
                    fate[b] = _FATE_RESCUED
            else:
                fate[b] = _FATE_COVERED
        for s in range(num_scales):
            side = window_side(chip_size, factors[m, s], width, height)
            step = stride / factors[m, s]
            scale_start = count
            chosen = _boxes_where(boxes, mask, 1 << s, first, last)
            if len(chosen) > 0:
                found = _cover(chosen, width, height, side, step, seed, image_ids[m], s, 0)
                window[count : count + len(found)] = found
                count += len(found)
            # A box to rescue that lies whole in a regular window needs no window of its own.
            num_left = 0
            for b in range(first, last):
                if rescue_scale[b] == s:
                    rescue_chip[b] = _first_holding(window, scale_start, count, boxes, b)
                    num_left += rescue_chip[b] < 0
            if num_left > 0:
                left = np.empty((num_left, 4))
                i = 0
                for b in range(first, last):
                    if rescue_scale[b] == s and rescue_chip[b] < 0:
                        left[i] = boxes[b]
                        i += 1
                rescue_start = count
                found = _cover(left, width, height, side, step, seed, image_ids[m], s, rescue_start - scale_start)
                window[count : count + len(found)] = found
                count += len(found)
                for_rescue[rescue_start:count] = True
                for b in range(first, last):
                    if rescue_scale[b] == s and rescue_chip[b] < 0:
                        rescue_chip[b] = _first_holding(window, rescue_start, count, boxes, b)
            image[scale_start:count] = m
            scale_index[scale_start:count] = s
            for b in range(first, last):
                if rescue_scale[b] == s:
                    mask[b] = 1 << s
    return Windows(
        image[:count].copy(),
        scale_index[:count].copy(),
        window[:count].copy(),
        for_rescue[:count].copy(),
        fate,
        mask,
        rescue_chip,
    )


@kernel
def chip_boxes(
    offsets: IntArray,
    boxes: FloatArray,
    crowd: npt.NDArray[np.bool_],
    image: IntArray,
    window: FloatArray,
    scale: FloatArray,
    valid_range: FloatArray,
    rescue_chip: IntArray,
    min_visible: float,
    min_side: float,
) -> ChipBoxes:
    """Clip the boxes of each chip's image to its window and give each its status (docs/method.md, 4.2).

    Args:
        offsets, boxes, crowd: as in plan_windows.
        image: int64 [C], position of the chip's image in the run; window: float64 [C, 4]; scale: float64 [C].
        valid_range: float64 [C, 2], [lo, hi) of the chip's scale.
        rescue_chip: int64 [N], the chip that rescues the box, or -1.
        min_visible: share; min_side: chip pixels.
    """
    num_chips = len(image)
    chip_offsets = np.zeros(num_chips + 1, np.int64)
    for c in range(num_chips):
        met = 0
        for b in range(offsets[image[c]], offsets[image[c] + 1]):
            met += _meets(boxes, b, window, c)
        chip_offsets[c + 1] = chip_offsets[c] + met
    total = chip_offsets[num_chips]
    source = np.empty(total, np.int64)
    box = np.empty((total, 4), np.float32)
    visible = np.empty(total, np.float32)
    status = np.empty(total, np.uint8)
    r = 0
    for c in range(num_chips):
        wx1, wy1, wx2, wy2 = window[c]
        for b in range(offsets[image[c]], offsets[image[c] + 1]):
            if not _meets(boxes, b, window, c):
                continue
            x1, y1 = max(boxes[b, 0], wx1), max(boxes[b, 1], wy1)
            x2, y2 = min(boxes[b, 2], wx2), min(boxes[b, 3], wy2)
            area = (boxes[b, 2] - boxes[b, 0]) * (boxes[b, 3] - boxes[b, 1])
            share = min((x2 - x1) * (y2 - y1) / area, 1.0)
            whole = boxes[b, 0] >= wx1 and boxes[b, 1] >= wy1 and boxes[b, 2] <= wx2 and boxes[b, 3] <= wy2
            source[r] = b
            box[r, 0], box[r, 1] = (x1 - wx1) * scale[c], (y1 - wy1) * scale[c]
            box[r, 2], box[r, 3] = (x2 - wx1) * scale[c], (y2 - wy1) * scale[c]
            visible[r] = share
            if crowd[b]:
                status[r] = _CROWD
            elif share < min_visible or min(x2 - x1, y2 - y1) * scale[c] < min_side:
                status[r] = _IGNORE
            elif rescue_chip[b] == c:
                status[r] = _RESCUED
            elif not _in_range(boxes, b, valid_range[c, 0], valid_range[c, 1]):
                status[r] = _OUT_OF_RANGE
            elif not whole:
                status[r] = _CUT
            else:
                status[r] = _VALID
            r += 1
    return ChipBoxes(chip_offsets, source, box, visible, status)


@kernel
def _in_range(boxes: FloatArray, b: int, lo: float, hi: float) -> bool:
    size = np.sqrt((boxes[b, 2] - boxes[b, 0]) * (boxes[b, 3] - boxes[b, 1]))
    return bool(lo <= size < hi)


@kernel
def _fits_window(boxes: FloatArray, b: int, width: float, height: float, side: float) -> bool:
    return fits(boxes[b, 0], boxes[b, 2], width, side) and fits(boxes[b, 1], boxes[b, 3], height, side)


@kernel
def _meets(boxes: FloatArray, b: int, windows: FloatArray, w: int) -> bool:
    return bool(
        boxes[b, 0] < windows[w, 2]
        and boxes[b, 2] > windows[w, 0]
        and boxes[b, 1] < windows[w, 3]
        and boxes[b, 3] > windows[w, 1]
    )


@kernel
def _rescue_scale(
    boxes: FloatArray, b: int, width: float, height: float, factors: FloatArray, ranges: FloatArray, chip_size: int
) -> int:
    """The scale that takes a box covered nowhere: fewest index steps from where it belongs, ties to the coarser.

    It belongs to the scales whose range holds its size or, where none does, whose range is nearest in ratio.
    Returns -1 when it fits at no scale.
    """
    num_scales = len(factors)
    size = np.sqrt((boxes[b, 2] - boxes[b, 0]) * (boxes[b, 3] - boxes[b, 1]))
    distance = np.empty(num_scales)
    for s in range(num_scales):
        lo, hi = ranges[s]
        distance[s] = 1.0
        if size < lo:
            distance[s] = lo / size
        elif size >= hi:
            distance[s] = np.nextafter(size / hi, np.inf)  # hi itself is outside
    nearest = distance.min()
    best, best_steps = -1, num_scales
    for s in range(num_scales):
        if not _fits_window(boxes, b, width, height, window_side(chip_size, factors[s], width, height)):
            continue
        steps = num_scales
        for home in range(num_scales):
            if distance[home] == nearest:
                steps = min(steps, abs(home - s))
        if steps <= best_steps:
            best, best_steps = s, steps
    return best


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
def _first_holding(windows: FloatArray, start: int, stop: int, boxes: FloatArray, b: int) -> int:
    for w in range(start, stop):
        if holds(windows, w, boxes, b):
            return w
    return -1


@kernel
def _cover(
    boxes: FloatArray,
    width: float,
    height: float,
    side: float,
    step: float,
    seed: int,
    image_id: int,
    s: int,
    ordinal: int,
) -> FloatArray:
    """Windows float64 [k, 4] that hold all `boxes`, each placed within its free play.

    Args:
        ordinal: number of windows the image has at this scale already; with seed, image id and scale index it
            decides the place, so that nothing else does.
    """
    windows, _ = greedy_cover(boxes, width, height, side, step, MAX_STARTS, 1, True)
    for w in range(len(windows)):
        low_x, low_y, high_x, high_y = width, height, 0.0, 0.0  # hull of the boxes it holds
        for b in range(len(boxes)):
            if holds(windows, w, boxes, b):
                low_x, low_y = min(low_x, boxes[b, 0]), min(low_y, boxes[b, 1])
                high_x, high_y = max(high_x, boxes[b, 2]), max(high_y, boxes[b, 3])
        u_x = _uniform(seed, image_id, s, 2 * (ordinal + w))
        u_y = _uniform(seed, image_id, s, 2 * (ordinal + w) + 1)
        windows[w, 0], windows[w, 2] = _place(windows[w, 0], low_x, high_x, width, side, u_x)
        windows[w, 1], windows[w, 3] = _place(windows[w, 1], low_y, high_y, height, side, u_y)
    return windows


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
    """A number in [0, 1) that depends on its arguments alone (splitmix64 finaliser, chained)."""
    h = np.uint64(0x9E3779B97F4A7C15)
    for value in (seed, image_id, s, n):
        h = (h ^ np.uint64(value)) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0x94D049BB133111EB)
        h ^= h >> np.uint64(31)
    return float(h >> np.uint64(11)) * 2.0**-53
