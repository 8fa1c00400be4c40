"""Settings of detection on whole images. Scales and ranges are those that the checkpoint was trained with."""

from typing import Literal

from pydantic import Field

from schemas.settings.section import Section


class DetectSettings(Section):
    """How images are read, and how detections of several scales become one list (docs/method.md, 10.2 and 10.4)."""

    merge: Literal["gaussian", "linear", "hard"] = Field("gaussian", description="soft-NMS of each class")
    sigma: float = Field(0.55, gt=0, description="of the gaussian")
    iou: float = Field(0.5, gt=0, le=1, description="from which linear and hard NMS act")
    min_score: float = Field(0.001, gt=0, lt=1)
    max_detections: int = Field(200, ge=1, description="per image")
    batch_pixels: int = Field(4_000_000, gt=0, description="pixels of one batch, padding included")
    max_side: int = Field(4096, ge=64, description="a scaled image with a longer side is read in overlapping tiles")
    threads: int | None = Field(None, ge=1, description="decoding and resizing; null: the cores this rank may use")
