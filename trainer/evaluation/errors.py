"""What is wrong with each false detection, what was missed, and the AP that it costs (docs/method.md, 11.5)."""

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from schemas.arrays import BoolArray, IntArray
from trainer.evaluation.ground_truth import Objects
from trainer.evaluation.matching import MATCH_IOU, NONE, Matching, box_ious, class_curve, group_rows
from trainer.evaluation.results import CocoResults

BACKGROUND_IOU = 0.1
"""A detection is near an object from this IoU on, and is of background if it is near none (docs/method.md, 11.5)."""


class Kind(IntEnum):
    """Kinds of false detections, in the order in which they are tried, and of missed objects."""

    PLACE = 0  # an object of its class is near, but the box does not fit it
    CLASS = 1  # the box fits an object of another class
    DUPLICATE = 2  # the box fits an object of its class that a better detection has found
    BACKGROUND = 3  # nothing is there
    BOTH = 4  # an object of another class is near: neither class nor place is right
    MISSED = 5  # an object that no detection found, and none of the kinds PLACE and CLASS meant


class Errors(NamedTuple):
    """The kind of each error.

    Attributes:
        kind: int64 [D], the Kind of each false detection; NONE for those that are true or do not count.
        object: int64 [D], for PLACE and CLASS the row of the object that was meant, else NONE.
        missed: bool [N], the objects of kind MISSED.
    """

    kind: IntArray
    object: IntArray
    missed: BoolArray

    def count(self, kind: Kind) -> int:
        """Return how many errors are of a kind."""
        return int(self.missed.sum() if kind == Kind.MISSED else (self.kind == kind).sum())


def split_errors(objects: Objects, results: CocoResults, matching: Matching) -> Errors:
    """Tell for each false detection what is wrong with it, and which objects were missed.

    Args:
        objects: the ground truth; crowds take no part.
        results: the detections, with classes.
        matching: of both.
    """
    kind, meant = np.full(len(results.scores), NONE), np.full(len(results.scores), NONE)
    real = np.flatnonzero(~objects.crowd)
    missed = ~objects.crowd & (matching.detection == NONE)
    if results.category_id is None:
        return Errors(kind, meant, missed)
    boxes = results.xywh()
    in_image = group_rows(objects.image_id[real])
    false = np.flatnonzero(matching.is_false)
    for image, rows in group_rows(results.image_id[false]).items():
        rows = false[rows]
        if image not in in_image:
            kind[rows] = Kind.BACKGROUND
            continue
        there = real[in_image[image]]
        overlaps = box_ious(boxes[rows], objects.boxes[there], np.zeros(len(there), bool))
        is_same = results.category_id[rows][:, None] == objects.category_id[there]
        same, other = np.where(is_same, overlaps, -1.0), np.where(is_same, -1.0, overlaps)
        nearest = {Kind.PLACE: there[same.argmax(axis=1)], Kind.CLASS: there[other.argmax(axis=1)]}
        same_iou, other_iou = same.max(axis=1), other.max(axis=1)
        tests = {
            Kind.PLACE: (same_iou >= BACKGROUND_IOU) & (same_iou < MATCH_IOU),
            Kind.CLASS: other_iou >= MATCH_IOU,
            Kind.DUPLICATE: same_iou >= MATCH_IOU,
            Kind.BACKGROUND: overlaps.max(axis=1) < BACKGROUND_IOU,
        }
        kind[rows] = np.select(list(tests.values()), [int(name) for name in tests], int(Kind.BOTH))
        for name, objects_of in nearest.items():
            meant[rows] = np.where(kind[rows] == name, objects_of, meant[rows])
    missed[meant[meant != NONE]] = False
    return Errors(kind, meant, missed)


def gains(objects: Objects, results: CocoResults, matching: Matching, errors: Errors) -> dict[Kind, float]:
    """Return for each kind of error by how much AP50 would rise if there were none of that kind.

    A detection whose class or place is wrong becomes a true one of the object it meant, unless that one is found
    already; other false ones are taken away; missed objects need not be found.
    """
    before = mean_ap(objects, results, matching)
    return {kind: mean_ap(*_mended(objects, results, matching, errors, kind)) - before for kind in Kind}


def mean_ap(objects: Objects, results: CocoResults, matching: Matching) -> float:
    """Return the mean of the classes' AP at the IoU of a matching; NaN where there is no object."""
    classes = np.unique(objects.category_id[~objects.crowd]).tolist()
    values = [class_curve(matching, objects, results, id_).average_precision() for id_ in classes]
    return float(np.mean(values)) if values else float("nan")


def _mended(
    objects: Objects, results: CocoResults, matching: Matching, errors: Errors, kind: Kind
) -> tuple[Objects, CocoResults, Matching]:
    """Return objects, results and matching as they would be if no error of a kind had been made (`gains` says how)."""
    if kind == Kind.MISSED:
        return objects._replace(crowd=objects.crowd | errors.missed), results, matching
    found, finder, counts = matching.object.copy(), matching.detection.copy(), matching.counts.copy()
    wrong = np.flatnonzero(errors.kind == kind)
    counts[wrong] = False
    assert results.category_id is not None, "errors are of detections with classes"
    category_id = results.category_id.copy()
    if kind in (Kind.PLACE, Kind.CLASS):
        for row in wrong[np.argsort(-results.scores[wrong], kind="stable")].tolist():
            target = errors.object[row]
            if finder[target] == NONE:
                found[row], finder[target], counts[row] = target, row, True
                category_id[row] = objects.category_id[target]
    return objects, results._replace(category_id=category_id), Matching(found, finder, counts)
