"""Why a build is no success although everything good was written."""

from typing import Any, NamedTuple

from pipeline.coco.source import Source
from schemas.codes import Reason

CAUSES = {
    Reason.UNKNOWN_IMAGE: "the list of images was cut short, or the boxes belong to another one",
    Reason.UNKNOWN_CATEGORY: "the boxes number the categories otherwise than the list does",
    Reason.NO_AREA: "bbox is not [x, y, width, height]",
    Reason.OUTSIDE_IMAGE: "bbox is not [x, y, width, height] in pixels, or the images had another size",
    Reason.TOO_SMALL: "the objects are smaller than chips.min_side at every scale, or bbox is not in pixels",
}
"""What probably lies behind a reason that refuses most boxes."""


class Limits(NamedTuple):
    """The largest shares that are a success: of refused images, and of boxes that are refused themselves."""

    max_bad: float
    max_bad_boxes: float


def find_shortfall(source: Source, counts: dict[str, Any], limits: Limits, remark: str) -> str | None:
    """Say why a build is no success, with the likely cause, or return None.

    Args:
        source: the annotation file as it was read.
        counts: those of run.json.
        limits: what is a success.
        remark: what there is all the same.
    """
    faults = []
    images, boxes = counts["images"], counts["boxes"]
    num_images = sum(images["refused"].values())
    if num_images / max(images["total"], 1) > limits.max_bad:
        faults.append(f"{num_images:,} of {images['total']:,} images were refused, more than --max-bad {limits.max_bad:g} allows")
    num_boxes = sum(boxes["refused"].values())
    if num_boxes / max(boxes["total"], 1) > limits.max_bad_boxes:
        faults.append(
            f"{num_boxes:,} of {boxes['total']:,} boxes were refused, more than --max-bad-boxes {limits.max_bad_boxes:g} "
            f"allows{_commonest(boxes['refused'])}"
        )
    if boxes["total"] and not boxes["covered"] + boxes["rescued"]:
        lost = {**boxes["refused"], **boxes["uncovered"], "crowd": boxes["crowd"], "refused images": boxes["image_refused"]}
        cause = ": " + "; ".join(source.warnings) if source.warnings else _commonest(lost)
        faults.append(f"none of {boxes['total']:,} boxes is a target in any chip, so there is nothing to train on{cause}")
    return ". ".join([*faults, remark]) if faults else None


def _commonest(reasons: dict[str, int]) -> str:
    reason, number = max(reasons.items(), key=lambda item: item[1])
    cause = CAUSES.get(reason)  # type: ignore[call-overload]  # a Reason is the string
    return f"; the commonest reason is {reason} ({number:,} boxes)" + (f", perhaps because {cause}" if cause else "")
