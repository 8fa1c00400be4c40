"""Why a build is no success although everything good was written."""

from typing import Any, NamedTuple

import numpy as np

from pipeline.coco.source import Source
from pipeline.dataset.ledger.summary import Summary
from pipeline.dataset.spans import plan_spans
from schemas.codes import Fate, Reason
from schemas.settings import ChipSettings

CAUSES: dict[str, str] = {
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
    images, boxes = counts["images"], counts["boxes"]
    num_images, num_boxes = sum(images["refused"].values()), sum(boxes["refused"].values())
    faults = []
    if num_images / max(images["total"], 1) > limits.max_bad:
        allowed = f"more than --max-bad {limits.max_bad:g} allows"
        faults.append(f"{num_images:,} of {images['total']:,} images were refused, {allowed}")
    if num_boxes / max(boxes["total"], 1) > limits.max_bad_boxes:
        allowed = f"more than --max-bad-boxes {limits.max_bad_boxes:g} allows"
        cause = _commonest(boxes["refused"])
        faults.append(f"{num_boxes:,} of {boxes['total']:,} boxes were refused, {allowed}; {cause}")
    if without := _no_target(source, boxes):
        faults.append(without)
    return ". ".join([*faults, remark]) if faults else None


def foresee_no_target(source: Source, settings: ChipSettings) -> str | None:
    """Say that no box would be a target in any chip, with the likely cause, or return None; no image is read."""
    summary = Summary(source, settings)
    for start, stop, plan in plan_spans(source, settings):
        if np.isin(plan.fate, (Fate.COVERED, Fate.RESCUED)).any():
            return None  # mostly in the first span
        summary.add(plan, start, stop, {}, None)
    return _no_target(source, summary.counts()["boxes"])


def _no_target(source: Source, boxes: dict[str, Any]) -> str | None:
    if not boxes["total"] or boxes["covered"] + boxes["rescued"]:
        return None
    others = {"crowd": boxes["crowd"], "image_refused": boxes["image_refused"]}
    cause = "; ".join(source.warnings) or _commonest(boxes["refused"] | boxes["uncovered"] | others)
    return f"none of {boxes['total']:,} boxes is a target in any chip, so nothing can be trained on: {cause}"


def _commonest(reasons: dict[str, int]) -> str:
    """Say which reason is the commonest, and what probably lies behind it."""
    reason, number = max(reasons.items(), key=lambda item: item[1])
    cause = CAUSES.get(reason)
    return f"the commonest reason is {reason} ({number:,} boxes)" + (f", perhaps because {cause}" if cause else "")
