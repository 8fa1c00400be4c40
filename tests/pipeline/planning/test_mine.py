"""Mining against slow, obvious references."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.planning.geometry import SpanColumns, Windows
from pipeline.planning.mine import Mined, PooledProposals, merge_scales, mine_span, random_span
from pipeline.planning.plan import plan_span, span_columns
from schemas.settings import ChipSettings
from tests.pipeline.sources import make_source

Box = tuple[float, float, float, float]
OPTIONS = ChipSettings(size=64, scales=[1.0, 0.5, {"long_side": 64}], ranges=[(0, 20), (12, 50), (40, None)], stride=8)
LEAST = np.array([4, 2, 2])


def make_pool(seed: int, span: SpanColumns, most: int = 60) -> PooledProposals:
    """Random proposals in clusters, inside their images; coordinates in eighths, scores in tenths, so with ties."""
    rng = np.random.default_rng(seed)
    boxes, counts = [np.empty((0, 4))], []
    for width, height in zip(span.widths, span.heights, strict=True):
        n = int(rng.integers(0, most))
        extent = np.array([width, height], float)
        size = np.minimum(np.exp(rng.uniform(0.5, 4.5, (n, 2))), extent)
        spots = rng.uniform(0, 1, (4, 2)) * extent
        low = np.clip(spots[rng.integers(4, size=n)] + rng.normal(0, 15, (n, 2)), 0, extent - size)
        boxes.append(np.floor(np.concatenate([low, low + size], axis=1) * 8) / 8 + [0, 0, 0.125, 0.125])
        boxes[-1][:, 2:] = np.minimum(boxes[-1][:, 2:], extent)
        counts.append(n)
    every = np.concatenate(boxes).astype(np.float32)
    score = (rng.integers(0, 10, len(every)) / 10).astype(np.float32)
    return PooledProposals(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), every, score)


def of_image(pool: PooledProposals, m: int) -> list[tuple[Box, float]]:
    rows = slice(int(pool.offsets[m]), int(pool.offsets[m + 1]))
    return [
        (tuple(box), score) for box, score in zip(pool.boxes[rows].tolist(), pool.score[rows].tolist(), strict=True)
    ]


def iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def holds(window: Box, box: Box) -> bool:
    return window[0] <= box[0] and window[1] <= box[1] and box[2] <= window[2] and box[3] <= window[3]


def slow_starts(boxes: list[Box], axis: int, extent: float, side: float, step: float) -> list[float]:
    """The stride grid with its flush end, and the own start of each box that no grid window holds."""
    if extent <= side:
        return [0.0]
    grid = [k * step for k in range(math.ceil((extent - side) / step))] + [extent - side]
    own = []
    for box in boxes:
        if not any(start <= box[axis] and box[axis + 2] <= min(start + side, extent) for start in grid):
            own.append(max(min(box[axis], extent - side), 0.0))
    return sorted({*grid, *own})


def slow_mine(
    proposals: list[tuple[Box, float]],
    positives: list[Box],
    extent: tuple[float, float],
    factor: float,
    valid_range: tuple[float, float],
    least: int,
) -> list[tuple[Box, int, float]]:
    """Design, "Negative chips", read aloud for one image and scale; windows with count and mean score."""
    side, step = OPTIONS.size / factor, OPTIONS.stride / factor
    left = [
        (box, score)
        for box, score in proposals
        if valid_range[0] <= math.sqrt((box[2] - box[0]) * (box[3] - box[1])) < valid_range[1]
        and box[2] - box[0] <= side
        and box[3] - box[1] <= side
        and not any(holds(window, box) for window in positives)
    ]
    if not left:
        return []
    boxes = [box for box, _ in left]
    starts = [slow_starts(boxes, axis, extent[axis], side, step) for axis in (0, 1)]
    lows = [min(box[axis] for box in boxes) for axis in (0, 1)]
    highs = [max(box[axis] for box in boxes) for axis in (2, 3)]
    flush = [max(min(low, size - side), 0.0) for low, size in zip(lows, extent, strict=True)]
    if all(high <= min(start + side, size) for high, start, size in zip(highs, flush, extent, strict=True)):
        starts = [[flush[0]], [flush[1]]]  # one window holds all: it need not lie on the grid
    windows: list[Box] = [
        (x, y, min(x + side, extent[0]), min(y + side, extent[1])) for y, x in itertools.product(starts[1], starts[0])
    ]
    total = [sum(holds(window, box) for box in boxes) for window in windows]
    chosen = []
    while left:
        gain = [sum(holds(window, box) for box, _ in left) for window in windows]
        best = max(range(len(windows)), key=lambda w: (gain[w], total[w], -w))  # then topmost, then leftmost
        if gain[best] < least:
            break
        new = [score for box, score in left if holds(windows[best], box)]
        chosen.append((windows[best], len(new), sum(new) / len(new)))
        left = [(box, score) for box, score in left if not holds(windows[best], box)]
    return chosen


def mine(
    seed: int, pool: PooledProposals | None = None
) -> tuple[SpanColumns, PooledProposals, dict[tuple[int, int], list[Box]], Mined]:
    """Three images whose sides and factors are such that windows have exact edges; their positives as planned."""
    source = make_source(seed, num_images=3, size=(256, 192))
    plan = plan_span(source, 0, 3, OPTIONS)
    span = span_columns(source, 0, 3, OPTIONS)
    pool = make_pool(seed, span) if pool is None else pool
    scale_index = plan.chips["scale_index"].to_numpy()
    window = np.stack([plan.chips[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1)
    if seed % 3 == 0:  # as if most objects were unknown
        keep = np.arange(len(window)) % 4 == 0
    else:
        keep = np.ones(len(window), bool)
    positives: dict[tuple[int, int], list[Box]] = {}
    for m, s, w in zip(plan.image[keep], scale_index[keep], window[keep].tolist(), strict=True):
        positives.setdefault((int(m), int(s)), []).append(tuple(w))
    mined = mine_span(
        span, pool, Windows(plan.image[keep], scale_index[keep], window[keep]), LEAST, OPTIONS.size, OPTIONS.stride
    )
    return span, pool, positives, mined


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_mine__agrees_with_the_rules_read_aloud(seed: int) -> None:
    span, pool, positives, mined = mine(seed)
    found = [
        (int(m), int(s), tuple(w), int(n), float(score))
        for m, s, w, n, score in zip(
            *mined.windows[:2], mined.windows.window.tolist(), mined.num_proposals, mined.mean_score, strict=True
        )
    ]
    expected = []
    for m, s in itertools.product(range(3), range(3)):
        windows = slow_mine(
            of_image(pool, m),
            positives.get((m, s), []),
            (float(span.widths[m]), float(span.heights[m])),
            float(span.factors[m, s]),
            OPTIONS.bounds()[s],
            int(LEAST[s]),
        )
        expected += [(m, s, window, count, score) for window, count, score in windows]
    assert [row[:2] + row[3:4] for row in found] == [row[:2] + row[3:4] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert row[2] == pytest.approx(wanted[2], abs=1e-9)
        assert row[4] == pytest.approx(wanted[4], abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.7, 1.0]))
@settings(max_examples=60)
def test_pool_scales__is_greedy_nms_per_image_in_any_order_of_rows(seed: int, threshold: float) -> None:
    span = span_columns(make_source(seed, num_images=3, size=(256, 192)), 0, 3, OPTIONS)
    pool = make_pool(seed, span)
    pooled = merge_scales(pool, threshold)
    for m in range(3):
        kept: list[tuple[Box, float]] = []
        for box, score in sorted(of_image(pool, m), key=lambda row: (-row[1], row[0])):
            if all(iou(box, other) <= threshold + 1e-6 for other, _ in kept):
                kept.append((box, score))
        assert of_image(pooled, m) == kept
    order = np.concatenate(
        [np.random.default_rng(seed).permutation(np.arange(*pool.offsets[m : m + 2])) for m in range(3)]
    )
    again = merge_scales(PooledProposals(pool.offsets, pool.boxes[order], pool.score[order]), threshold)
    for ours, theirs in zip(pooled, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_mine__nothing_where_positives_hold_every_proposal() -> None:
    source = make_source(1, num_images=3)
    options = ChipSettings()
    plan = plan_span(source, 0, 3, options)
    span = span_columns(source, 0, 3, options)
    # forty times each object, a little smaller, so that its chips hold it; and what is in range elsewhere removed
    shrink = np.linspace(0.001, 0.002, 40)[:, None, None]
    objects = np.array([box for box, fate in zip(span.boxes, plan.fate, strict=True) if fate == 0])
    image = np.repeat(np.arange(3), np.diff(span.offsets))[plan.fate == 0]
    centre = np.tile((objects[:, :2] + objects[:, 2:]) / 2, 2)
    boxes = (objects + (centre - objects) * shrink).transpose(1, 0, 2).reshape(-1, 4)
    counts = np.bincount(image, minlength=3) * 40
    pool = PooledProposals(
        np.concatenate([[0], np.cumsum(counts)]), boxes.astype(np.float32), np.ones(len(boxes), np.float32)
    )
    window = np.stack([plan.chips[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1)
    least = np.array([25, 10, 10])
    positives = Windows(plan.image, plan.chips["scale_index"].to_numpy(), window)
    assert len(objects) > 10
    assert len(mine_span(span, pool, positives, least, 512, 32).num_proposals) == 0
    none = Windows(np.empty(0, np.int64), np.empty(0, np.int8), np.empty((0, 4)))
    assert len(mine_span(span, pool, none, least, 512, 32).num_proposals) > 3


def windows_of(mined: Mined, m: int) -> list[tuple[int, list[float]]]:
    image, scale_index, window = mined.windows
    return [(int(scale_index[c]), window[c].tolist()) for c in np.flatnonzero(image == m)]


@pytest.mark.parametrize("per_image", [1, 3])
def test_random__windows_are_inside_different_and_mostly_without_objects(per_image: int) -> None:
    source = make_source(5, num_images=60)
    options = ChipSettings()
    span = span_columns(source, 0, 60, options)
    mined = random_span(span, per_image, options.size, seed=0)
    on_object = 0
    for m in range(60):
        windows = windows_of(mined, m)
        assert 1 <= len(windows) <= per_image
        assert sorted(windows) == windows
        assert len({(s, *window) for s, window in windows}) == len(windows)
        for s, (x1, y1, x2, y2) in windows:
            side, extent = options.size / span.factors[m, s], (span.widths[m], span.heights[m])
            assert x1 >= 0
            assert y1 >= 0
            assert x2 <= extent[0]
            assert y2 <= extent[1]
            assert x2 - x1 == pytest.approx(min(side, extent[0]))
            assert y2 - y1 == pytest.approx(min(side, extent[1]))
            lo, hi = options.bounds()[s]
            boxes: npt.NDArray[np.float64] = span.boxes[span.offsets[m] : span.offsets[m + 1]]
            boxes = boxes[~span.crowd[span.offsets[m] : span.offsets[m + 1]]]
            size = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = ((centre >= [x1, y1]) & (centre < [x2, y2])).all(axis=1)
            on_object += bool((inside & (size >= lo) & (size < hi)).any())
    assert on_object < 0.1 * len(mined.num_proposals)
    assert set(mined.windows.scale_index.tolist()) >= {0, 1}
    assert mined.num_proposals.sum() == 0
    assert np.isnan(mined.mean_score).all()


def test_random__depends_on_seed_and_image_id_alone() -> None:
    source = make_source(6, num_images=8)
    options = ChipSettings()
    whole = random_span(span_columns(source, 0, 8, options), 2, 512, seed=3)
    part = random_span(span_columns(source, 5, 8, options), 2, 512, seed=3)
    assert [windows_of(part, m) for m in range(3)] == [windows_of(whole, m) for m in range(5, 8)]
    other = random_span(span_columns(source, 0, 8, options), 2, 512, seed=4)
    assert other.windows.window.tolist() != whole.windows.window.tolist()
