"""Settings of detection on whole images. Scales and ranges are those that the checkpoint was trained with."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from schemas.settings.section import Section

Threshold = Annotated[float, Field(gt=0, lt=1)]


def _focus_kind(value: Any) -> str | None:
    """Tell words from thresholds, so that only the faults of what was meant are reported."""
    if isinstance(value, int | float):
        return "<threshold>"
    return "<word>" if value in ("auto", "off") else None


FocusSetting = Annotated[
    Annotated[Literal["auto", "off"], Tag("<word>")] | Annotated[Threshold, Tag("<threshold>")],
    Discriminator(
        _focus_kind,
        custom_error_type="focus",
        custom_error_message="Input should be 'auto', 'off' or a threshold between 0 and 1",
    ),
]


class DetectSettings(Section):
    """How images are read, and how detections of several scales become one list (docs/method.md, 10.2 and 10.4)."""

    merge: Literal["gaussian", "linear", "hard"] = "gaussian"
    """The NMS that joins the detections of all scales: soft-NMS (gaussian, linear) or plain (hard)."""

    class_agnostic: bool = False
    """Whether detections of different classes take each other's scores when they are merged, so that an object has
    one class. false means that each class is merged for itself."""

    sigma: float = Field(0.55, gt=0)
    """Width of the gaussian."""

    iou: float = Field(0.5, gt=0, le=1)
    """IoU above which linear and hard NMS act."""

    min_score: float = Field(0.001, gt=0, lt=1)
    """A detection with a lower score is dropped, before and after merging."""

    by_area: bool = True
    """Whether counts grow with area: a view has `model.proposals`, and an image `max_detections`, for each chip's area
    in it (at least once). false means as many for every view and image, as in the paper."""

    max_detections: int = Field(200, ge=1)
    """Detections that an image keeps, the best; see `by_area`."""

    focus: FocusSetting = "auto"
    """Where the finer scales are searched: only where the coarser one says that something small is, with a probability
    above this threshold (docs/focus.md). auto does so with a default threshold where the network has learnt it, off
    searches all. With a threshold, what the coarser scale proposes serves where the network has not learnt it."""

    batch_pixels: int = Field(4_000_000, gt=0)
    """Pixels of one batch of views, padding included. Lower it where memory runs out."""

    max_side: int = Field(4096, ge=64, le=32_767)
    """A scaled image with a longer side, in pixels, is read in overlapping tiles."""

    threads: int | None = Field(None, ge=1)
    """Threads that decode and resize. null means as many as this process may use cores."""

    @model_validator(mode="before")
    @classmethod
    def _off_is_a_word(cls, values: Any) -> Any:
        """YAML reads off as false."""
        if isinstance(values, dict) and values.get("focus") is False:
            return values | {"focus": "off"}
        return values
