"""Statuses, rescue and content size against slow, obvious references."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.planning.plan import plan_span
from pipeline.planning.scales import content_size, scale_factors
from schemas.codes import Fate
from schemas.settings import ChipSettings, SideScale
from tests.pipeline.sources import make_source


def slow_status(
    box: list[float], crowd: bool, chip: dict[str, Any], rescued_here: bool, options: ChipSettings
) -> str | None:
    """Design, "Boxes of a chip", read aloud. None when the box does not meet the window."""
    x1, y1 = max(box[0], chip["x1"]), max(box[1], chip["y1"])
    x2, y2 = min(box[2], chip["x2"]), min(box[3], chip["y2"])
    if x2 <= x1 or y2 <= y1:
        return None
    visible = (x2 - x1) * (y2 - y1) / ((box[2] - box[0]) * (box[3] - box[1]))
    size = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    if crowd:
        return "crowd"
    if visible < options.min_visible or min(x2 - x1, y2 - y1) * chip["scale"] < options.min_side:
        return "ignore"
    if rescued_here:
        return "rescued"
    if not chip["range_min"] <= size < chip["range_max"]:
        return "out_of_range"
    inside = box[0] >= chip["x1"] and box[1] >= chip["y1"] and box[2] <= chip["x2"] and box[3] <= chip["y2"]
    return "valid" if inside else "cut"


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([64, 512]), gap=st.booleans())
@settings(max_examples=60)
def test_plan__agrees_with_the_rules_read_aloud(seed: int, size: int, gap: bool) -> None:
    """Cover, fates, rescue and every status, on random images; with `gap`, some sizes are valid nowhere."""
    ranges: list[tuple[float, float | None]] = [(0, 60), (100, 150), (200, None)]
    options = ChipSettings(size=size, **({"ranges": ranges} if gap else {}))
    source = make_source(seed, num_images=3)
    plan = plan_span(source, 0, 3, options)
    chips = plan.chips.to_pylist()
    for m in range(3):
        mine = [chip for chip in chips if chip["image_id"] == source.image_id[m]]
        width, height = int(source.width[m]), int(source.height[m])
        factors = [3.0, 1.667, 512 / max(width, height)]
        for b in range(source.offsets[m], source.offsets[m + 1]):
            box, crowd, fate = source.box[b].tolist(), bool(source.crowd[b]), plan.fate[b]
            statuses = {}
            for chip in mine:
                found = [r for r in chip["boxes"] if r["annotation_id"] == source.annotation_id[b]]
                is_rescued = bool(found) and found[0]["status"] == "rescued"
                expected = slow_status(box, crowd, chip, is_rescued, options)
                assert (found[0]["status"] if found else None) == expected
                statuses[chip["key"]] = expected
            if crowd:
                assert fate == Fate.CROWD
                continue
            wide, high, length = box[2] - box[0], box[3] - box[1], math.sqrt
            sides = [size / factor for factor in factors]
            fits = [
                (wide <= min(side, width) * (1 + 1e-12)) and (high <= min(side, height) * (1 + 1e-12))
                for side in sides
            ]
            in_range = [lo <= length(wide * high) < hi for lo, hi in options.bounds()]
            is_target = [min(wide, high) * factor >= options.min_side for factor in factors]
            covered = [s for s in range(3) if fits[s] and in_range[s] and is_target[s]]
            whole_at = {
                chip["scale_index"]
                for chip in mine
                if chip["x1"] <= box[0] and chip["y1"] <= box[1] and box[2] <= chip["x2"] and box[3] <= chip["y2"]
            }
            if covered:
                assert fate == Fate.COVERED
                assert whole_at >= set(covered)
                assert "valid" in statuses.values()
            elif any(fit and large for fit, large in zip(fits, is_target, strict=True)):
                assert fate == Fate.RESCUED
                (scale,) = [s for s in range(3) if plan.scale_mask[b] >> s & 1]
                assert fits[scale]
                assert scale in whole_at
                statuses_here = [status for status in statuses.values() if status == "rescued"]
                assert len(statuses_here) == 1
            else:
                assert fate == (Fate.TOO_SMALL if any(fits) else Fate.FITS_NO_CHIP)


def test_rescue__takes_the_nearest_scale_where_it_fits_ties_to_the_coarser() -> None:
    source = make_source(0, num_images=1, size=(640, 480), boxes=[[10, 10, 410, 16], [300, 300, 390, 390]])
    options = ChipSettings(ranges=[(0, 80), (100, 150), (150, None)])
    plan = plan_span(source, 0, 1, options)
    assert plan.fate.tolist() == [1, 1]
    # the first (size 49) is in range at scale 0 alone, but longer than the chips of scales 0 and 1; the second
    # (size 90) is in range nowhere, and nearer in ratio to 100 than to 80
    assert plan.scale_mask.tolist() == [4, 2]


def test_content_size__rounds_fractions_up_and_never_floats_over() -> None:
    windows = np.array([[0, 0, 640, 427], [0, 0, 500, 375], [0.5, 3, 171.16666666666666, 173.66666666666666]])
    scales = np.array([512 / 640, 512 / 500, 3.0])
    assert content_size(windows, scales, 512).tolist() == [[512, 342], [512, 384], [512, 512]]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (2.5, [2.5, 2.5]),
        (SideScale(long_side=512), [512 / 640, 512 / 1000]),
        (SideScale(short_side=800, long_side=1333), [800 / 480, 800 / 900]),
    ],
)
def test_scale_factors__per_form(scale: float | SideScale, expected: list[float]) -> None:
    options = ChipSettings(scales=[scale], ranges=[(0, None)])
    factors = scale_factors(options, np.array([640, 1000]), np.array([480, 900]))
    np.testing.assert_allclose(factors[:, 0], expected)


def test_plan__a_box_as_long_as_its_image_fits_the_chip_of_the_whole_image() -> None:
    """512 / (512 / 905) is less than 905."""
    source = make_source(0, num_images=1, size=(905, 300), boxes=[[0, 0, 905, 300]])
    plan = plan_span(source, 0, 1, ChipSettings())
    assert plan.fate.tolist() == [0]
    (chip,) = plan.chips.to_pylist()
    assert (chip["x1"], chip["x2"], chip["width"]) == (0, 905, 512)
