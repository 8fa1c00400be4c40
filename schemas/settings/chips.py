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

Bound = Annotated[float, Field(ge=0)]


class ChipSettings(Section):
    """What `sniper chips` makes. Every field here changes the output and is part of the fingerprint."""

    size: int = Field(512, ge=32, le=4096, description="chip side, chip pixels")
    scales: list[Scale] = Field(
        [3.0, 1.667, SideScale(long_side=512)], min_length=1, max_length=8, description="finest first"
    )
    ranges: list[tuple[Bound, Bound | None]] = Field(
        [(0, 80), (32, 150), (120, None)],
        description="per scale [lo, hi): valid sqrt(area) in source pixels; null is unbounded",
    )
    stride: int = Field(32, gt=0, description="candidate grid, chip pixels")
    min_visible: float = Field(0.1, ge=0, le=1, description="a box less visible than this is ignored")
    min_side: float = Field(4, ge=0, description="a box with a shorter clipped side is ignored, chip pixels")
    quality: int = Field(95, ge=1, le=100, description="JPEG quality")
    subsampling: Literal["420", "422", "444"] = Field("420", description="JPEG chroma subsampling")
    images_per_shard: int = Field(128, gt=0)
    max_pixels: int = Field(200_000_000, gt=0, description="a larger source image is refused")
    seed: int = Field(0, ge=0, lt=2**63, description="places each window within its free play")

    @model_validator(mode="after")
    def _one_range_per_scale(self) -> Self:
        if len(self.scales) != len(self.ranges):
            raise ValueError(f"{len(self.scales)} scales but {len(self.ranges)} ranges; give one range per scale")
        for lo, hi in self.ranges:
            if hi is not None and hi <= lo:
                raise ValueError(f"range [{lo:g}, {hi:g}) is empty; the upper end must exceed the lower")
        return self

    def bounds(self) -> list[tuple[float, float]]:
        """Valid ranges with infinity where unbounded."""
        return [(lo, math.inf if hi is None else hi) for lo, hi in self.ranges]


class NegativeSettings(Section):
    """How `sniper negatives` finds and mines proposals. Every field here changes the output."""

    rpn_epochs: int = Field(4, ge=1, description="of the run of the RPN alone, positives only, at a fixed rate")
    nms: float = Field(0.7, gt=0, le=1, description="pooling drops a proposal with more IoU with a better one")
    min_finest: int = Field(25, ge=1, description="finest scale: a chip must newly cover this many proposals")
    min_others: int = Field(10, ge=1, description="the same at all other scales")
