"""Settings of the detector's network. What the labels and losses hold constant stands with them, in `trainer`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.settings.section import Section

Positive = Annotated[float, Field(gt=0)]
Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"]


class ModelSettings(Section):
    """The network. The defaults are SNIPER's sizes on a feature pyramid; a slim model serves CPUs."""

    backbone: Backbone = "resnet101"
    """The network that gives the maps."""

    neck: Literal["fpn", "c5"] = "fpn"
    """What stands on the backbone: a feature pyramid, or the paper's single map (c5)."""

    levels: tuple[int, int] = (2, 6)
    """Finest and coarsest level of the feature pyramid. Level l has one cell in 2^l pixels."""

    width: int = Field(256, ge=8)
    """Channels of the neck's maps."""

    anchor_scales: list[Positive] | None = None
    """Sides of the square anchors, as multiples of the stride. null means [8] for fpn, and the paper's for c5."""

    anchor_ratios: list[Positive] = Field([0.5, 1, 2], min_length=1)
    """Height over width of the anchors."""

    pooled: int = Field(7, ge=1, le=14)
    """Side of the map that a proposal is pooled to, in cells."""

    head_width: int = Field(1024, ge=8)
    """Width of the two layers of the box head."""

    class_boxes: bool = False
    """Whether the head gives one box for each class instead of one for all."""

    deformable: bool = False
    """Whether the 3x3 convolutions of the last stage that is in use, and the bins that a proposal is pooled to, lie
    where the network learns to put them (as in the original; docs/method.md, 6.7)."""

    focus: bool = False
    """Whether the network also learns where something small calls for a finer scale, so that detection searches the
    finer scales there alone (docs/focus.md)."""

    focus_limits: list[Annotated[float, Field(ge=0)]] | None = None
    """For each scale the size in source pixels below which an object calls for the next finer one; the finest scale's
    is not used. null takes it from `chips.ranges` (docs/method.md, 16.1)."""

    pre_nms: int = Field(2000, ge=1)
    """Proposals of a chip that go into NMS, of all levels together."""

    proposals: int = Field(300, ge=1)
    """Proposals of a chip that are left after NMS."""

    @model_validator(mode="after")
    def _levels_exist(self) -> Self:
        finest, coarsest = self.levels
        if not 2 <= finest <= min(coarsest, 5) or coarsest > 6:
            raise ValueError(f"levels {self.levels}: expected finest 2..5 and coarsest from there to 6")
        if self.anchor_scales is not None and not self.anchor_scales:
            raise ValueError("anchor_scales is empty; give at least one, or null for the default")
        return self

    @model_validator(mode="after")
    def _proposals_are_of_those_in_nms(self) -> Self:
        if self.proposals > self.pre_nms:
            raise ValueError(
                f"proposals {self.proposals} is more than pre_nms {self.pre_nms}, of which they are what NMS leaves; "
                "lower proposals, or raise pre_nms"
            )
        return self
