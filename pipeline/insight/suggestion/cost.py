"""What settings of chips would do to a data set, from the planner itself on a sample of its images."""

from typing import NamedTuple

import numpy as np

from pipeline.coco.source import Source
from pipeline.dataset.ledger.summary import Summary
from pipeline.insight.suggestion.scales import comfort
from pipeline.planning.plan import Plan, plan_span
from pipeline.planning.scales import box_sizes, scale_factors
from schemas.arrays import FloatArray, IntArray
from schemas.codes import Fate, Status
from schemas.settings import ChipSettings

SAMPLE = 4096
"""Images that are planned at most."""
SPAN = 64
"""Consecutive images that are taken together."""


class Cost(NamedTuple):
    """What settings do to the sample.

    Attributes:
        images: planned.
        boxes: of these images, without crowds.
        comfortable: boxes that are a target (`valid`) in some chip at a comfortable size (docs/method.md, 15.1).
        nowhere: boxes that are `valid` in no chip: rescued, too small or too long.
        chips: positive chips.
        pixels: of the chips.
        single_scale_pixels: of the images scaled to 800x1333.
        target_sides: float64 [n, 2], width and height of every valid box of every chip, chip pixels.
        target_scale: int64 [n], the scale index of its chip.
    """

    images: int
    boxes: int
    comfortable: int
    nowhere: int
    chips: int
    pixels: int
    single_scale_pixels: int
    target_sides: FloatArray
    target_scale: IntArray


def sample(source: Source) -> list[Source]:
    """Return the images that are planned, in spans: all of a small data set, or spans evenly over a large one.

    Spans with objects and spans without are taken by their shares, and one with objects at least where there is any.
    """
    starts = np.arange(0, source.num_images, SPAN)
    if source.num_images > SAMPLE:
        before = np.append(0, np.cumsum(~source.crowd))[source.offsets]  # objects before each image
        is_empty = before[starts] == before[np.minimum(starts + SPAN, source.num_images)]
        starts = starts[np.argsort(is_empty, kind="stable")]
        starts = np.sort(starts[np.linspace(0, len(starts) - 1, SAMPLE // SPAN).astype(int)])
    return [source.span(start, min(start + SPAN, source.num_images)) for start in starts.tolist()]


def plan_cost(spans: list[Source], settings: ChipSettings) -> Cost:
    """Plan the positive chips of a sample and add up what they hold and cost."""
    comfortable = 0
    counts, sides, scales = [], [], []
    for span in spans:
        plan = plan_span(span, 0, span.num_images, settings)
        summary = Summary(span, settings)
        summary.add(plan, 0, span.num_images, {}, None)
        counts.append(summary.counts())
        comfortable += _count_comfortable(span, plan, settings)
        of_span = _targets(plan)
        sides.append(of_span[0])
        scales.append(of_span[1])
    boxes = [count["boxes"] for count in counts]
    covered = sum(box["covered"] for box in boxes)
    total = sum(box["total"] - box["crowd"] for box in boxes)
    return Cost(
        images=sum(span.num_images for span in spans),
        boxes=total,
        comfortable=comfortable,
        nowhere=total - covered,
        chips=sum(count["chips"]["total"] for count in counts),
        pixels=sum(count["pixels"]["chips"] for count in counts),
        single_scale_pixels=sum(count["pixels"]["single_scale_800x1333"] for count in counts),
        target_sides=np.concatenate(sides),
        target_scale=np.concatenate(scales),
    )


def _count_comfortable(span: Source, plan: Plan, settings: ChipSettings) -> int:
    """Count the boxes that are covered at a scale where their size is comfortable."""
    factors = scale_factors(settings, span.width, span.height)
    size = box_sizes(span.box)[:, None] * np.repeat(factors, np.diff(span.offsets), axis=0)  # [N, S], chip pixels
    low, high = comfort(settings.size)
    covers = (plan.scale_mask[:, None] >> np.arange(factors.shape[1])) & 1
    at_ease = (covers == 1) & (size >= low) & (size <= high)
    return int((at_ease.any(axis=1) & (plan.fate == Fate.COVERED)).sum())


def _targets(plan: Plan) -> tuple[FloatArray, IntArray]:
    """Return width and height of the valid boxes of all chips, chip pixels, and the scale index of each."""
    lists = plan.chips["boxes"].combine_chunks()
    scale = np.repeat(plan.chips["scale_index"].to_numpy().astype(np.int64), np.diff(lists.offsets.to_numpy()))
    boxes = lists.flatten()
    x1, y1, x2, y2 = (boxes.field(name).to_numpy().astype(np.float64) for name in ("x1", "y1", "x2", "y2"))
    is_valid = boxes.field("status").to_numpy(zero_copy_only=False) == Status.VALID.name.lower()
    return np.stack([x2 - x1, y2 - y1], axis=1)[is_valid], scale[is_valid]
