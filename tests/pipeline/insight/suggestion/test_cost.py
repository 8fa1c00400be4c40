"""The figures of a proposal are those of the planner."""

from dataclasses import replace

import numpy as np

from pipeline.dataset.ledger.summary import Summary
from pipeline.insight.suggestion.cost import SAMPLE, SPAN, plan_cost, sample
from pipeline.planning.plan import plan_span
from schemas.settings import ChipSettings, SideScale
from tests.pipeline.sources import make_source, sized_source


def test_plan_cost__counts_what_a_build_counts() -> None:
    source, settings = make_source(1, 150), ChipSettings()
    cost = plan_cost(sample(source), settings)
    summary = Summary(source, settings)
    summary.add(plan_span(source, 0, 150, settings), 0, 150, {}, None)
    counts = summary.counts()
    assert cost.images == 150
    assert cost.boxes == counts["boxes"]["total"] - counts["boxes"]["crowd"]
    assert cost.nowhere == cost.boxes - counts["boxes"]["covered"]
    assert cost.chips == counts["chips"]["total"]
    assert cost.pixels == counts["pixels"]["chips"]
    assert len(cost.target_sides) == counts["chips"]["boxes_by_status"]["valid"]


def test_plan_cost__a_size_is_comfortable_in_the_chip() -> None:
    sizes = np.array([15.0, 17, 50, 119, 121])  # of these the scale of 2 makes 30, 34, 100, 238 and 242 px
    settings = ChipSettings(scales=[2.0], ranges=[(0, None)])
    cost = plan_cost(sample(sized_source(sizes, 640, 640, per_image=1)), settings)
    assert (cost.boxes, cost.nowhere, cost.comfortable) == (5, 0, 3)
    out_of_range = ChipSettings(scales=[2.0, SideScale(long_side=512)], ranges=[(0, 40), (100, None)])
    cost = plan_cost(sample(sized_source(sizes, 640, 640, per_image=1)), out_of_range)
    assert (cost.nowhere, cost.comfortable) == (
        1,
        3,
    )  # 50 is valid nowhere; 119 and 121 are at ease in the whole image


def test_sample__is_the_whole_of_a_small_set_and_reaches_over_a_large_one() -> None:
    small = sample(sized_source(np.full(70, 9.0), 64, 64, per_image=1))
    assert [span.num_images for span in small] == [64, 6]
    large = sample(sized_source(np.full(3 * SAMPLE, 9.0), 64, 64, per_image=1))
    assert sum(span.num_images for span in large) == SAMPLE
    assert large[0].image_id[0] == 0
    assert large[-1].image_id[-1] == 3 * SAMPLE - 1
    assert max(span.num_images for span in large) == SPAN


def test_sample__holds_objects_where_only_a_few_images_do() -> None:
    """Two spans beside each other have objects, and the last has crowds alone."""
    source = sized_source(np.full(5 * SAMPLE, 9.0), 64, 64, per_image=1)
    held = np.zeros(source.num_images, bool)
    held[1100 : 1100 + SPAN], held[-1] = True, True
    source = replace(
        source,
        offsets=np.append(0, np.cumsum(held)),
        **{name: getattr(source, name)[held] for name in ("row", "annotation_id", "label", "box")},
        crowd=np.append(np.zeros(SPAN, bool), True),
    )
    spans = sample(source)
    assert sum(span.num_images for span in spans) == SAMPLE
    assert plan_cost(spans, ChipSettings()).boxes > 0
    assert (np.diff([span.image_id[0] for span in spans]) > 0).all()
