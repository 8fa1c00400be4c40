"""Settings of the chips and of the negatives."""

import math
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from schemas.settings.section import Section


class SideScale(Section):
    """Scale an image so that its shorter side is `short_side`, its longer side at most `long_side`."""

    short_side: int | None = Field(None, gt=0)
    long_side: int = Field(gt=0)


Factor = Annotated[float, Field(gt=0, le=64)]

# Told apart by the value, so that only the faults of what was meant are reported.
Scale = Annotated[
    Annotated[Factor, Tag("<factor>")] | Annotated[SideScale, Tag("<sides>")],
    Discriminator(lambda value: "<sides>" if isinstance(value, dict | SideScale) else "<factor>"),
]

MOST_SCALES = 8
"""The ledger keeps the scales of a box as the bits of a byte."""

Bound = Annotated[float, Field(ge=0)]


class ChipSettings(Section):
    """What `sniper chips` makes.

    A finished build refuses another value of most of these settings; `stride`, `max_pixels` and `ignore_categories`
    make only those shards anew that they change.
    """

    size: int = Field(512, ge=32, le=4096)
    """Side of a chip, in chip pixels."""

    scales: list[Scale] = Field([3.0, 1.667, SideScale(long_side=512)], min_length=1, max_length=MOST_SCALES)
    """The scales that an image is cut at, the finest first: a factor, or the sides that it is scaled to. `long_side`
    is the most that the longer side gets, `short_side` what the shorter one gets where that allows it."""

    ranges: list[tuple[Bound, Bound | None]] = [(0, 80), (32, 150), (120, None)]
    """For each scale the sizes [lo, hi) of objects that are learnt there: the square root of width times height, in
    source pixels. null means that there is no upper end."""

    stride: int = Field(32, gt=0)
    """Distance between the windows that may become chips, in chip pixels: those of negatives always, and those
    of positives only in an image with so many boxes that not every start at an edge of a box can be tried."""

    min_visible: float = Field(0.1, ge=0, le=1)
    """An object of which a chip shows a smaller share is ignored there."""

    min_side: float = Field(4, ge=0)
    """An object whose part in a chip has a shorter side, in chip pixels, is ignored there."""

    quality: int = Field(95, ge=1, le=100)
    """JPEG quality of the chips."""

    subsampling: Literal["420", "422", "444"] = "420"
    """JPEG chroma subsampling of the chips."""

    images_per_shard: int | None = Field(None, gt=0)
    """Consecutive images whose chips share a shard. null means up to 128, and fewer for a small data set, so that it
    has at least 16 shards. A shard whose chips take much ends before."""

    max_pixels: int = Field(200_000_000, gt=0)
    """A source image with more pixels is refused, unless it is a TIFF that is read by windows."""

    ignore_categories: list[str] = []
    """Names of categories whose boxes are regions that nobody labelled. They count as crowd: neither targets nor
    background."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Decides where each window lies within its free play."""

    @model_validator(mode="after")
    def _one_range_per_scale(self) -> Self:
        if len(self.scales) != len(self.ranges):
            raise ValueError(f"{len(self.scales)} scales but {len(self.ranges)} ranges; give one range per scale")
        for lo, hi in self.ranges:
            if hi is not None and hi <= lo:
                raise ValueError(f"range [{lo:g}, {hi:g}) is empty; the upper end must exceed the lower")
        return self

    def bounds(self) -> list[tuple[float, float]]:
        """Return the valid ranges [lo, hi), in source pixels, with infinity where there is no upper end."""
        return [(lo, math.inf if hi is None else hi) for lo, hi in self.ranges]


class NegativeSettings(Section):
    """How `sniper negatives` finds proposals and mines them. Each of these settings changes the negatives."""

    rpn_epochs: int = Field(4, ge=1)
    """Epochs of the run that trains the RPN alone, on positive chips, at a fixed rate."""

    nms: float = Field(0.7, gt=0, le=1)
    """A proposal that overlaps a better one by more than this IoU is dropped when the scales are pooled."""

    min_finest: int = Field(25, ge=1)
    """Proposals that a negative chip of the finest scale must cover and no earlier one covers."""

    min_others: int = Field(10, ge=1)
    """The same number at all other scales."""
