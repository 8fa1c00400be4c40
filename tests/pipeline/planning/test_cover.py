"""The cover: every box in some window, no window out of place, few of them."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.planning.cover import Level, candidate_starts, fits, greedy_cover

FloatArray = npt.NDArray[np.float64]


def level(width: float, height: float, side: float, step: float) -> Level:
    return Level(float(width), float(height), 512 / side, float(side), float(step))


def boxes_that_fit(seed: int, count: int, width: float, height: float, side: float) -> FloatArray:
    """Random boxes inside the image, none longer than a window, some flush with the far edges."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.5, min(side, width, height), (count, 2))
    low = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - size)
    high = low + size
    flush = rng.random((count, 2)) < 0.1
    high = np.where(flush, [width, height], high)
    low = np.where(flush, high - size, low)
    boxes = np.concatenate([low, high], axis=1)
    keep = [fits(b[0], b[2], width, side) and fits(b[1], b[3], height, side) for b in boxes]
    return boxes[np.array(keep, bool)]


def holds(windows: FloatArray, boxes: FloatArray) -> npt.NDArray[np.bool_]:
    """bool [n, k]: box n lies whole in window k."""
    low = (windows[None, :, :2] <= boxes[:, None, :2]).all(2)
    high: npt.NDArray[np.bool_] = (windows[None, :, 2:] >= boxes[:, None, 2:]).all(2)
    return low & high


problems = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.floats(5, 3000),
    st.floats(5, 3000),
    st.floats(5, 700),
    st.sampled_from([0, 3, 512]),
)


@given(problems)
@settings(max_examples=300)
def test_greedy_cover__holds_every_box_in_windows_inside_the_image(
    problem: tuple[int, int, float, float, float, int],
) -> None:
    seed, count, width, height, side, limit = problem
    boxes = boxes_that_fit(seed, count, width, height, side)
    if len(boxes) == 0:
        return
    for prune in (False, True):
        windows, new = greedy_cover(boxes, level(width, height, side, side / 16), limit, 1, prune)
        assert holds(windows, boxes).any(axis=1).all()
        assert (windows[:, :2] >= 0).all()
        assert (windows[:, 2:] <= [width, height]).all()
        expected = np.minimum([side, side], [width, height])
        np.testing.assert_allclose(windows[:, 2:] - windows[:, :2], np.tile(expected, (len(windows), 1)), rtol=1e-9)
        if not prune:
            assert new.sum() == len(boxes)
            assert (np.diff(new) <= 0).all()


def test_greedy_cover__holds_boxes_that_begin_one_bit_before_a_start_of_the_grid() -> None:
    """And that end where a window from the start before ends, or one bit beyond. 1 / step is rounded there."""
    for extent, side, step in ((8000.0, 512 / 3, 32 / 3), (3000.0, 307.1, 19.2), (997.0, 100.1, 6.3)):
        starts = candidate_starts(np.zeros(1), np.ones(1), extent, side, step, 0)
        low = np.nextafter(starts[1:-1], 0)
        ends = starts[:-2] + side
        for high in (ends, np.nextafter(ends, np.inf), np.nextafter(low + side, 0)):
            boxes = np.stack([low, np.full_like(low, 5.0), high, np.full_like(low, 9.0)], axis=1)
            boxes = boxes[[fits(box[0], box[2], extent, side) for box in boxes]]
            windows, _ = greedy_cover(boxes, level(extent, extent, side, step), 0, 1, True)
            assert holds(windows, boxes).any(axis=1).all()


@given(problems)
@settings(max_examples=100)
def test_greedy_cover__no_window_is_redundant_after_pruning(
    problem: tuple[int, int, float, float, float, int],
) -> None:
    seed, count, width, height, side, limit = problem
    boxes = boxes_that_fit(seed, count, width, height, side)
    if len(boxes) == 0:
        return
    windows, _ = greedy_cover(boxes, level(width, height, side, side / 16), limit, 1, True)
    held = holds(windows, boxes)
    for k in range(len(windows)):
        alone = held[:, k] & (held.sum(axis=1) == 1)
        assert alone.any()


@pytest.mark.parametrize("seed", range(30))
def test_greedy_cover__first_choice_holds_as_many_boxes_as_any_window_can(seed: int) -> None:
    side, extent = 50.0, 200.0
    boxes = boxes_that_fit(seed, 12, extent, extent, side)
    _, new = greedy_cover(boxes, level(extent, extent, side, 3.0), 512, 1, False)
    # slow and obvious: a subset fits one window if and only if its hull does
    best = 0
    for size in range(len(boxes), 0, -1):
        for subset in itertools.combinations(range(len(boxes)), size):
            chosen = boxes[list(subset)]
            if (chosen[:, 2:].max(0) - chosen[:, :2].min(0) <= side).all():
                best = size
                break
        if best:
            break
    assert new[0] == best


def test_greedy_cover__stops_below_min_new() -> None:
    cluster = np.array([[10.0 + i, 10, 14 + i, 14] for i in range(5)])
    alone = np.array([[300.0, 300, 310, 310]])
    windows, new = greedy_cover(np.concatenate([cluster, alone]), level(400, 400, 50, 3), 0, 3, False)
    assert new.tolist() == [5]
    assert holds(windows, cluster).all()


def test_candidate_starts__grid_has_flush_end_and_reaches_every_fitting_box() -> None:
    # the second box is as long as a window and starts between grid lines
    lows, highs = np.array([3.0, 17.0]), np.array([9.0, 67.0])
    starts = candidate_starts(lows, highs, 130.0, 50.0, 10.0, 0)
    assert starts.tolist() == [0.0, 10.0, 17.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0]


def test_candidate_starts__many_boxes_fall_back_to_the_grid() -> None:
    lows = np.linspace(0, 900, 600)
    starts = candidate_starts(lows, lows + 5, 1000.0, 100.0, 20.0, 512)
    assert len(starts) < 60


def test_candidate_starts__one_extra_start_serves_all_boxes_that_it_can() -> None:
    """Boxes nearly as long as a window, which no grid start holds: 20,000 of them must not make 20,000 starts."""
    rng = np.random.default_rng(0)
    lows = rng.uniform(0, 900, 20_000)
    highs = lows + rng.uniform(90, 99, len(lows))
    starts = candidate_starts(lows, highs, 1000.0, 100.0, 10.0, 512)
    assert len(starts) < 2_000
    latest = starts[np.searchsorted(starts, lows, side="right") - 1]
    assert (np.where(latest >= 900, 1000, latest + 100) >= highs).all()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_greedy_cover__of_many_boxes_chooses_as_by_looking_at_all_of_them(seed: int) -> None:
    """More boxes than one bin takes, against the rule read aloud."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.uniform(np.log(1), np.log(60), (400, 2)))
    low = rng.uniform(0, 1, (400, 2)) * (np.array([500, 300]) - size)
    boxes = np.concatenate([low, low + size], axis=1)
    side, step = 64.0, 16.0
    windows, new = greedy_cover(boxes, level(500, 300, side, step), 0, 1, False)
    xs, ys = (candidate_starts(boxes[:, i], boxes[:, i + 2], e, side, step, 0) for i, e in ((0, 500.0), (1, 300.0)))
    corners = np.array([(x, y) for y in ys for x in xs])
    ends = np.where(corners >= [500 - side, 300 - side], [500, 300], corners + side)
    held = holds(np.concatenate([corners, ends], axis=1), boxes)
    left = np.ones(len(boxes), bool)
    for window, gain in zip(windows, new, strict=True):
        gains = held[left].sum(axis=0)
        best = max(range(len(corners)), key=lambda k: (gains[k], held[:, k].sum(), -k))
        assert gain == gains[best]
        assert window[:2].tolist() == corners[best].tolist()
        left &= ~held[:, best]
    assert not left.any()
