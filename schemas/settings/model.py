"""Settings of the detector's network. What the labels and losses hold constant stands with them, in `trainer`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.settings.section import Section

Positive = Annotated[float, Field(gt=0)]
Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"]


class ModelSettings(Section):
    """The network. The defaults are SNIPER's sizes on a feature pyramid; a slim model serves CPUs."""

    backbone: Backbone = "resnet101"
    neck: Literal["fpn", "c5"] = Field("fpn", description="feature pyramid, or the paper's single map")
    levels: tuple[int, int] = Field((2, 6), description="fpn: finest and coarsest level; level l has stride 2^l")
    width: int = Field(256, ge=8, description="channels of the neck's maps")
    anchor_scales: list[Positive] | None = Field(
        None, description="sides of the square anchors over the stride; null: (8) for fpn, the paper's for c5"
    )
    anchor_ratios: list[Positive] = Field([0.5, 1, 2], min_length=1, description="height / width")
    pooled: int = Field(7, ge=1, le=14, description="side of the pooled map of a proposal")
    head_width: int = Field(1024, ge=8, description="width of the two layers of the box head")
    class_boxes: bool = Field(False, description="one box per class instead of one for all")
    pre_nms: int = Field(2000, ge=1, description="proposals per chip before NMS, all levels together")
    proposals: int = Field(300, ge=1, description="proposals per chip after NMS")

    @model_validator(mode="after")
    def _levels_exist(self) -> Self:
        finest, coarsest = self.levels
        if not 2 <= finest <= min(coarsest, 5) or coarsest > 6:
            raise ValueError(f"levels {self.levels}: expected finest 2..5 and coarsest from there to 6")
        if self.anchor_scales is not None and not self.anchor_scales:
            raise ValueError("anchor_scales is empty; give at least one, or null for the default")
        return self
