"""Scales and ranges for given sizes of boxes: pure arithmetic on two percentiles (docs/method.md, 15)."""

import math
from typing import Literal

import numpy as np

from pipeline.coco.source import Source
from pipeline.planning.scales import box_sizes
from schemas.settings import ChipSettings, SideScale
from schemas.settings.chips import MOST_SCALES

COMFORT = (32.0, 240.0)
"""Sizes of an object in a chip of 512 px that a detector learns well, chip pixels; in proportion for other chips."""
REFERENCE_SIZE = 512
PERCENTILES = (5, 95)
"""Sizes that the finest scale brings up to the lower end of comfort, and the coarsest one to the middle of it."""
LARGEST_FACTOR = 4.0
"""The finest scale at most, for chips of 512 px: more pixels show no more of an object."""
OVERLAP = 1.77
"""A range begins at the end of the finer one over this: the geometric mean of the paper's 80/32 and 150/120."""
SLACK = 2**0.25
"""Factor by which scales may be further apart than a step."""
NEARLY_WHOLE = 1.1
"""A finest scale within this factor of the one that makes the image a chip is that one, which costs a single chip."""

Name = Literal["lean", "balanced", "dense"]
STEPS: dict[Name, float] = {"lean": 4.0, "balanced": 2.0, "dense": math.sqrt(2)}
"""Factor from one scale to the next of each proposal; the paper's are 1.8 and, for images of 640 px, 2.1."""


def comfort(size: int) -> tuple[float, float]:
    """Return the comfortable sizes of objects in chips of `size` px, chip pixels."""
    return COMFORT[0] * size / REFERENCE_SIZE, COMFORT[1] * size / REFERENCE_SIZE


def propose(source: Source, base: ChipSettings, name: Name) -> ChipSettings:
    """Propose scales and ranges for a data set (docs/method.md, 15.1 and 15.2).

    Args:
        source: with at least one box that is no crowd.
        base: all other settings of the chips; those of `scales` and `ranges` are not looked at.
        name: which proposal.

    Returns:
        `base` with scales, the finest first, whose ranges leave no gap from 0 to infinity.
    """
    low, high = comfort(base.size)
    boxes = source.box[~source.crowd]
    small, large = np.percentile(box_sizes(boxes), PERCENTILES)
    whole = float(np.median(base.size / np.maximum(source.width, source.height)))  # the image becomes one chip
    finest = float(np.clip(low / small, whole, max(LARGEST_FACTOR * base.size / REFERENCE_SIZE, whole)))
    if finest < NEARLY_WHOLE * whole:
        finest = whole
    coarsest = float(np.clip(math.sqrt(low * high) / large, whole, finest))
    if coarsest < min(finest, whole * math.sqrt(2)):
        coarsest = whole
    factors = _spaced(finest, coarsest, STEPS[name])
    if coarsest > whole and (boxes[:, 2:] - boxes[:, :2]).max() > base.size / factors[-1]:
        factors.append(whole)  # the longest boxes fit no chip of the last factor
    scales: list[float | SideScale] = [float(f"{factor:.2g}") for factor in factors]
    if factors[-1] == whole:
        scales[-1] = SideScale(long_side=base.size)
    ends = [float(max(1, round(high / factor))) for factor in factors[:-1]]
    begins = [0.0, *(float(round(end / OVERLAP)) for end in ends)]
    return base.model_copy(update={"scales": scales, "ranges": list(zip(begins, [*ends, None], strict=True))})


def _spaced(finest: float, coarsest: float, step: float) -> list[float]:
    """Return factors in equal proportions from the finest to the coarsest, at most about `step` apart.

    Where one is enough it is the finest, at which all objects are large enough.
    """
    count = math.ceil(math.log(finest / coarsest / SLACK) / math.log(step))
    if count < 1:
        return [finest]
    count = min(count, MOST_SCALES - 2)  # one more may follow
    return [*(finest * (coarsest / finest) ** (k / count) for k in range(count)), coarsest]
