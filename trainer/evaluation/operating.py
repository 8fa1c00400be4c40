"""What a detector does at one score: precision, recall and F1 of each class, and which class it takes for which."""

from typing import NamedTuple

import numpy as np

from schemas.arrays import IntArray
from trainer.evaluation.ground_truth import Objects
from trainer.evaluation.matching import MATCH_IOU, NONE, Curve, Matching, box_ious, class_curve, group_rows
from trainer.evaluation.results import CocoResults
from trainer.inference.categories import Categories


class Point(NamedTuple):
    """One class at one score.

    Attributes:
        score: detections from this score on are taken; NaN where none is.
        precision: share of them that found an object; NaN where there is none.
        recall: share of the objects that they found; NaN where there is no object.
    """

    score: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Return the harmonic mean of precision and recall; 0 where one is 0, NaN where there is no object."""
        if np.isnan(self.recall):
            return float("nan")
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both > 0 else 0.0  # also where precision is NaN


def class_points(objects: Objects, results: CocoResults, matching: Matching, categories: Categories) -> list[Point]:
    """Return the point of every class with the largest F1, in the order of `categories` (docs/method.md, 11.6).

    Args:
        objects: the ground truth.
        results: the detections, with classes.
        matching: of both.
        categories: (id, name) of the classes.
    """
    if results.category_id is None:  # nothing was found
        nothing = [Curve(*np.empty((3, 0)))] * len(categories)
        curves = dict(zip((id_ for id_, _ in categories), nothing, strict=True))
    else:
        curves = {id_: class_curve(matching, objects, results, id_) for id_, _ in categories}
    real = objects.category_id[~objects.crowd]
    return [best_point(curves[id_], int((real == id_).sum())) for id_, _ in categories]


def best_point(curve: Curve, num_objects: int) -> Point:
    """Return the point of a curve with the largest F1, of equal ones that with the highest score.

    The score is NaN where there is no detection or no object.
    """
    if not len(curve.scores) or not num_objects:
        return Point(float("nan"), float("nan"), 0.0 if num_objects else float("nan"))
    is_last = np.append(curve.scores[1:] != curve.scores[:-1], True)  # detections of one score are taken together
    found = np.round(curve.recall * num_objects)
    # half of F1 as a quotient of whole numbers: no rounding makes equal ones differ, and of those the first counts
    half = found / (np.arange(1, len(found) + 1) + num_objects)
    best = int(np.where(is_last, half, -1.0).argmax())
    return Point(float(curve.scores[best]), float(curve.precision[best]), float(curve.recall[best]))


def confusion(
    objects: Objects,
    results: CocoResults,
    matching: Matching,
    categories: Categories,
    score: float,
) -> IntArray:
    """Count which class is taken for which (docs/method.md, 11.6).

    A detection that found an object of its class stays with it. Each other one, the best score first, takes the
    object of its image that it overlaps most, of those that are left, if their IoU is at least MATCH_IOU. Detections
    in crowds and crowds themselves do not count.

    Args:
        objects: the ground truth.
        results: the detections, with classes.
        matching: of both.
        categories: (id, name) of the K classes; detections and objects of other classes are left out.
        score: detections from this score on are taken.

    Returns:
        int64 [K + 1, K + 1]: rows are the classes of objects, columns those of detections, in the order of
        `categories`. The last row holds detections of nothing, the last column objects that nothing found.
    """
    num = len(categories)
    place = {id_: k for k, (id_, _) in enumerate(categories)}
    counts = np.zeros((num + 1, num + 1), np.int64)
    if results.category_id is None:
        category_id = np.empty(0, np.int64)
    else:
        category_id = results.category_id
    known = np.isin(category_id, list(place))
    taken = matching.counts & (results.scores >= np.float32(score)) & known
    true = np.flatnonzero(taken & matching.is_true)
    left = ~objects.crowd & np.isin(objects.category_id, list(place))
    left[matching.object[true]] = False
    partner = np.full(len(results.scores), NONE)
    partner[true] = matching.object[true]
    there = np.flatnonzero(left)
    of_image = group_rows(objects.image_id[there])
    false = np.flatnonzero(taken & ~matching.is_true)
    for row in false[np.argsort(-results.scores[false], kind="stable")].tolist():
        rows = there[of_image.get((int(results.image_id[row]),), np.empty(0, np.int64))]
        rows = rows[left[rows]]
        overlaps = box_ious(results.take(slice(row, row + 1)).xywh(), objects.boxes[rows], np.zeros(len(rows), bool))
        if len(rows) and overlaps.max() >= MATCH_IOU:
            partner[row] = rows[overlaps.argmax()]
            left[partner[row]] = False
    for row in np.flatnonzero(taken).tolist():
        object_ = partner[row]
        truth = num if object_ == NONE else place[int(objects.category_id[object_])]
        counts[truth, place[int(category_id[row])]] += 1
    for object_ in np.flatnonzero(left).tolist():
        counts[place[int(objects.category_id[object_])], num] += 1
    return counts
