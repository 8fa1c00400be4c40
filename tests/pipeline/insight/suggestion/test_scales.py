"""Proposed scales and ranges: no gap, in proportion to what they are for, and close to the paper's on COCO."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.coco.read import read_coco
from pipeline.coco.source import Source
from pipeline.insight.suggestion.cost import Cost, plan_cost, sample
from pipeline.insight.suggestion.scales import STEPS, Name, propose
from pipeline.planning.scales import scale_factors
from schemas.arrays import FloatArray
from schemas.settings import ChipSettings, SideScale
from tests.paths import shared_data
from tests.pipeline.sources import sized_source

NAMES = st.sampled_from(list(STEPS))


def log_normal(median: float, spread: float, count: int = 400, seed: int = 0) -> FloatArray:
    """Sizes of which two thirds lie within a factor exp(spread) of the median."""
    return np.exp(np.random.default_rng(seed).normal(math.log(median), spread, count))


@settings(max_examples=30)
@given(st.floats(3, 600), st.floats(0.05, 1.3), st.integers(150, 5000), st.sampled_from([256, 512]), NAMES)
def test_propose__ranges_leave_no_gap_and_scales_descend(
    median: float, spread: float, side: int, size: int, name: Name
) -> None:
    source = sized_source(log_normal(min(median, side / 3), spread), side, side)
    found = propose(source, ChipSettings(size=size), name)
    ChipSettings.model_validate(found.model_dump())
    bounds = found.bounds()
    assert bounds[0][0] == 0
    assert bounds[-1][1] == math.inf
    for (low, high), (next_low, next_high) in zip(bounds, bounds[1:], strict=False):
        assert low <= next_low < high <= next_high
    factors = scale_factors(found, source.width[:1], source.height[:1])[0]
    assert (np.diff(factors) < 0).all()
    assert factors[-1] >= size / side * (1 - 0.05)  # a smaller image than one chip would show less for nothing
    steps = factors[:-1] / factors[1:]
    if found.scales[-1] == SideScale(long_side=size):  # it may have been added for the longest boxes
        steps = steps[:-1]
    assert (steps < 1.25 * STEPS[name]).all()


@settings(max_examples=30)
@given(st.floats(12, 300), st.floats(0.1, 1.0), NAMES)
def test_propose__chips_of_half_the_side_get_half_the_factor_and_the_same_ranges(
    median: float, spread: float, name: Name
) -> None:
    source = sized_source(log_normal(median, spread), 1600, 1200)
    whole, half = (propose(source, ChipSettings(size=size), name) for size in (512, 256))
    assert half.ranges == whole.ranges
    of_whole, of_half = (scale_factors(found, source.width[:1], source.height[:1])[0] for found in (whole, half))
    np.testing.assert_allclose(of_half, of_whole / 2, rtol=0.06)  # factors are rounded to two digits


@settings(max_examples=30)
@given(st.floats(10, 400), st.floats(0.1, 0.9), st.sampled_from([(640, 480), (1920, 1080), (4000, 4000)]), NAMES)
def test_propose__most_objects_are_comfortable_and_next_to_none_is_lost(
    median: float, spread: float, side: tuple[int, int], name: Name
) -> None:
    sizes = log_normal(min(median, side[1] / 4), spread)
    largest = 240 * max(side) / 512  # becomes 240 px where the whole image is one chip
    sizes = sizes[(sizes >= 8) & (sizes < min(largest, side[1]))]  # of smaller ones no enlargement allowed makes 32 px
    found = propose(source := sized_source(sizes, *side), ChipSettings(), name)
    cost = plan_cost(sample(source), found)
    assert cost.boxes == len(sizes)
    assert cost.nowhere <= 0.01 * cost.boxes
    if found.scales == [SideScale(long_side=512)]:  # a single chip per image is worth a tenth of the size
        assert np.percentile(sizes, 6) * 512 / max(side) >= 32 / 1.1
    else:
        assert cost.comfortable >= 0.85 * cost.boxes


def test_propose__crowds_of_tiny_faces_become_comfortable() -> None:
    ours, paper = beside_the_paper(sized_source(log_normal(16, 0.8, 2000), 1024, 768, per_image=40))
    assert ours.comfortable > 1.15 * paper.comfortable
    assert ours.pixels < 1.4 * paper.pixels


def test_propose__aerial_pictures_cost_less() -> None:
    ours, paper = beside_the_paper(sized_source(log_normal(40, 0.6, 2000), 4000, 4000, per_image=200))
    assert ours.comfortable > 0.94 * ours.boxes
    assert ours.pixels < 0.75 * paper.pixels


def test_propose__small_objects_are_enlarged_further() -> None:
    ours, paper = beside_the_paper(sized_source(log_normal(9, 0.3, 2000), 640, 480, per_image=10))
    assert ours.comfortable > 2 * paper.comfortable
    assert ours.pixels < 1.3 * paper.pixels


def beside_the_paper(source: Source) -> tuple[Cost, Cost]:
    """What the balanced proposal costs, and what the paper's settings do."""
    ours, paper = (
        plan_cost(sample(source), settings)
        for settings in (propose(source, ChipSettings(), "balanced"), ChipSettings())
    )
    assert ours.nowhere <= 0.01 * ours.boxes
    return ours, paper


def test_propose__coco_gets_what_the_paper_has() -> None:
    source = read_coco(shared_data("coco-val2017-boxes/val.json"))
    found = propose(source, ChipSettings(), "balanced")
    paper = ChipSettings()
    assert found.scales[-1] == paper.scales[-1]
    np.testing.assert_allclose(np.array(found.scales[:-1], float), np.array(paper.scales[:-1], float), rtol=0.1)
    ends = np.array([bound for pair in found.ranges for bound in pair if bound])
    np.testing.assert_allclose(np.log(ends), np.log([80, 32, 150, 120]), atol=math.log(1.5))
    spans = sample(source)
    ours, theirs = plan_cost(spans, found), plan_cost(spans, paper)
    assert ours.comfortable >= theirs.comfortable
    assert 0.9 < ours.pixels / theirs.pixels < 1.05
    assert ours.nowhere < 0.001 * ours.boxes


def test_propose__one_scale_where_one_is_enough() -> None:
    source = sized_source(log_normal(100, 0.2), 640, 480)
    for name in STEPS:
        found = propose(source, ChipSettings(), name)
        assert (found.scales, found.ranges) == ([SideScale(long_side=512)], [(0, None)])
