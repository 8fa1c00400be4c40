"""Which detection found which object, by COCO's rules, as arrays that every measure at one IoU is made from."""

from typing import NamedTuple

import numpy as np
from pycocotools import mask

from schemas.arrays import BoolArray, Float32Array, FloatArray, IntArray
from trainer.evaluation.ground_truth import Objects
from trainer.evaluation.results import CocoResults

MATCH_IOU = 0.5
"""Least IoU of a detection and the object that it found."""
MAX_DETS = 100
"""Detections of an image and class that count, the best, as COCO has it (docs/method.md, 11.1)."""
NONE = -1
"""Stands for no detection and no object."""
RECALLS = np.linspace(0, 1, 101)  # at which COCO reads the precision


class Matching(NamedTuple):
    """Detections and objects in pairs.

    Attributes:
        object: int64 [D], the row of the object that each detection found, or NONE.
        detection: int64 [N], the row of the detection that found each object, or NONE; always NONE for crowds.
        counts: bool [D], whether a detection counts. One that lies in a crowd of its class and found no other object
            does not, nor does one beyond the best `max_dets` of its image and class.
    """

    object: IntArray
    detection: IntArray
    counts: BoolArray

    @property
    def is_true(self) -> BoolArray:
        """Whether each detection found an object, bool [D]."""
        found: BoolArray = self.object != NONE
        return found

    @property
    def is_false(self) -> BoolArray:
        """Whether each detection counts and found nothing, bool [D]."""
        return self.counts & ~self.is_true


def match(objects: Objects, results: CocoResults, *, max_dets: int = MAX_DETS) -> Matching:
    """Match detections to objects of the same image and class (docs/method.md, 11.4).

    In each image and class the detections choose one after the other, the best score first and equal scores in their
    order: each takes the object it overlaps most, of those that no better one has taken, if their IoU is at least
    MATCH_IOU; of equal ones the last. One that finds none, and of which as much lies in a crowd, does not count.

    Args:
        objects: the ground truth.
        results: the detections, with classes.
        max_dets: detections of each image and class that take part.

    Returns:
        The pairs, by the rows of `objects` and `results`.
    """
    found = np.full(len(results.scores), NONE)
    finder = np.full(len(objects.crowd), NONE)
    counts = np.zeros(len(results.scores), bool)
    if results.category_id is None or not len(results.scores):
        return Matching(found, finder, counts)
    boxes = results.xywh()
    of_group = group_rows(objects.image_id, objects.category_id)
    for group, rows in group_rows(results.image_id, results.category_id).items():
        rows = rows[np.argsort(-results.scores[rows], kind="stable")][:max_dets]
        counts[rows] = True
        if group not in of_group:
            continue
        there = of_group[group]
        overlaps = box_ious(boxes[rows], objects.boxes[there], objects.crowd[there])
        crowd = objects.crowd[there]
        taken = crowd.copy()
        for place in np.flatnonzero((overlaps >= MATCH_IOU).any(axis=1)):
            free = np.where(taken, -1.0, overlaps[place])
            best = len(free) - 1 - int(np.argmax(free[::-1]))
            if free[best] >= MATCH_IOU:
                taken[best] = True
                found[rows[place]], finder[there[best]] = there[best], rows[place]
            elif (overlaps[place][crowd] >= MATCH_IOU).any():
                counts[rows[place]] = False
    return Matching(found, finder, counts)


def box_ious(boxes: FloatArray, others: FloatArray, crowd: BoolArray) -> FloatArray:
    """Return the IoU of each pair of boxes; of a crowd the share of the first box that lies in it.

    Args:
        boxes: float64 [D, 4], x y width height.
        others: float64 [N, 4], x y width height.
        crowd: bool [N], which of `others` are crowds.

    Returns:
        float64 [D, N].
    """
    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))
    return np.asarray(mask.iou(boxes, others, crowd.astype(np.uint8)), np.float64)


def group_rows(*ids: IntArray) -> dict[tuple[int, ...], IntArray]:
    """Group rows by their ids, keeping their order.

    Args:
        ids: int64 [N], one or several columns.
    """
    if not len(ids[0]):
        return {}
    order = np.lexsort(ids[::-1])
    changes = [np.diff(column[order]) != 0 for column in ids]
    groups = np.split(order, np.flatnonzero(np.logical_or.reduce(changes)) + 1)
    return {tuple(int(column[rows[0]]) for column in ids): rows for rows in groups}


class Curve(NamedTuple):
    """Precision and recall of one class, one point per detection that counts, the best score first.

    Attributes:
        precision: float64 [k], of the detections up to each one.
        recall: float64 [k], of the objects found by them; NaN where there is no object.
        scores: float32 [k].
    """

    precision: FloatArray
    recall: FloatArray
    scores: Float32Array

    def average_precision(self) -> float:
        """Return COCO's AP: the mean, over RECALLS, of the best precision at that recall or above; NaN: no object."""
        if np.isnan(self.recall).any():
            return float("nan")
        best = np.maximum.accumulate(self.precision[::-1])[::-1]
        places = np.searchsorted(self.recall, RECALLS, side="left")
        return float(np.append(best, 0.0)[np.minimum(places, len(best))].mean())


def curve(is_true: BoolArray, scores: Float32Array, num_objects: int) -> Curve:
    """Return the curve of some detections.

    Args:
        is_true: bool [k], whether each found an object. Those that do not count are left out beforehand.
        scores: float32 [k].
        num_objects: objects that there were to find.
    """
    order = np.argsort(-scores, kind="stable")
    true = np.cumsum(is_true[order], dtype=np.float64)
    recall = true / num_objects if num_objects else np.full(len(order), np.nan)
    return Curve(true / np.arange(1, len(order) + 1), recall, scores[order])


def class_curve(matching: Matching, objects: Objects, results: CocoResults, category_id: int) -> Curve:
    """Return the curve of one class."""
    assert results.category_id is not None, "detections have classes"
    mine = np.flatnonzero(matching.counts & (results.category_id == category_id))
    mine = mine[np.argsort(results.image_id[mine], kind="stable")]  # equal scores go by image, as in pycocotools
    there = int((~objects.crowd & (objects.category_id == category_id)).sum())
    return curve(matching.is_true[mine], results.scores[mine], there)
