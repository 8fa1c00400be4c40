"""What detections get right and wrong, in numbers: precision and recall, kinds of errors, misses by size."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.coco.records import class_names
from schemas.arrays import FloatArray
from trainer.evaluation.errors import Errors, Kind, gains, mean_ap, split_errors
from trainer.evaluation.ground_truth import Objects
from trainer.evaluation.matching import NONE, Matching, class_curve, curve, match
from trainer.evaluation.operating import Point, best_point, class_points, confusion
from trainer.evaluation.results import CocoResults
from trainer.inference.categories import Categories

CURVE_POINTS = 100
BINS_PER_OCTAVE = 2  # of sizes

ADVICE = {
    Kind.PLACE: "the box does not fit: train longer, or take scales at which such objects are larger in the chip",
    Kind.CLASS: "the class is wrong: more data of the classes that are mixed up",
    Kind.DUPLICATE: "found twice: a smaller detect.sigma, or ranges that overlap less",
    Kind.BACKGROUND: "nothing is labelled there: negatives are lacking, or, as pictures may show, labels are",
    Kind.BOTH: "class and place are wrong: mostly few data of the class",
    Kind.MISSED: "not found: a scale is lacking where the misses are of one size, else data or training",
}


class Judged(NamedTuple):
    """Detections held against the objects that there were to find.

    Attributes:
        objects: the ground truth.
        results: the detections.
        matching: which found which, at IoU 0.5.
        errors: what is wrong with the others.
    """

    objects: Objects
    results: CocoResults
    matching: Matching
    errors: Errors


def find_errors(objects: Objects, results: CocoResults) -> Judged:
    """Match detections to objects, and split what does not match into kinds of errors."""
    matching = match(objects, results)
    return Judged(objects, results, matching, split_errors(objects, results, matching))


def best_of_all(found: Judged) -> Point:
    """Return what a detector does at the score with the best F1 over all classes together (docs/method.md, 11.6)."""
    matching, num = found.matching, int((~found.objects.crowd).sum())
    of_all = curve(matching.is_true[matching.counts], found.results.scores[matching.counts], num)
    return best_point(of_all, num)


def as_facts(found: Judged, categories: Categories, bounds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the findings as names and numbers, as JSON has them.

    Args:
        found: what find_errors returned.
        categories: (id, name) of the classes.
        bounds: the valid ranges of the method, [lo, hi), source pixels.

    Returns:
        What docs/report.md explains; AP50 and gains are None where there is no object.
    """
    objects, results, matching, errors = found
    costs = gains(objects, results, matching, errors)
    names = class_names(categories)
    curves = []
    for (id_, _), name in zip(categories, names, strict=True):
        whole = class_curve(matching, objects, results, id_)
        if len(whole.scores) and not np.isnan(whole.recall[0]):
            picked = np.unique(np.linspace(0, len(whole.scores) - 1, CURVE_POINTS).round().astype(int))
            best = np.maximum.accumulate(whole.precision[::-1])[::-1]
            drawn = zip(whole.recall[picked], best[picked], whole.scores[picked], strict=True)
            rows = [{"recall": float(r), "precision": float(p), "score": float(s)} for r, p, s in drawn]
            curves.append({"class": name, "AP50": whole.average_precision(), "points": rows})
    points = class_points(objects, results, matching, categories)
    chosen = best_of_all(found)
    return {
        "AP50": _finite(mean_ap(objects, results, matching)),
        "objects": int((~objects.crowd).sum()),
        "found": int((matching.detection != NONE).sum()),
        "false": int(matching.is_false.sum()),
        "errors": [
            {"kind": kind.name.lower(), "count": errors.count(kind), "AP50_gain": _finite(costs[kind])}
            for kind in Kind
        ],
        "precision_recall": curves,
        "classes": [
            {"class": name, "F1": _finite(point.f1)} | {what: _finite(v) for what, v in point._asdict().items()}
            for name, point in zip(names, points, strict=True)
        ],
        "best": {"F1": _finite(chosen.f1)} | {what: _finite(value) for what, value in chosen._asdict().items()},
        "confusion": _confusion(found, categories, chosen.score),
        "sizes": _by_size(found),
        "ranges": [_of_range(found, low, high) for low, high in bounds],
    }


def _confusion(found: Judged, categories: Categories, score: float) -> list[dict[str, Any]]:
    """Return the cells of the confusion matrix at a score that are not 0; None stands for nothing."""
    objects, results, matching, _ = found
    names = [*class_names(categories), None]
    counts = confusion(objects, results, matching, categories, 0.0 if np.isnan(score) else score)
    return [
        {"object": names[row], "detection": names[column], "number": int(counts[row, column])}
        for row, column in zip(*np.nonzero(counts), strict=True)
    ]


def _finite(value: float) -> float | None:
    """Return a number that JSON can hold; None where there was no object to score against."""
    return value if np.isfinite(value) else None


def object_sizes(objects: Objects) -> FloatArray:
    """Return sqrt(width * height) of each object, float64 [N], source pixels."""
    return np.sqrt(objects.boxes[:, 2] * objects.boxes[:, 3])


def _by_size(found: Judged) -> list[dict[str, Any]]:
    """Count found and other objects over bins of their size."""
    real = ~found.objects.crowd & (object_sizes(found.objects) > 0)
    bins = np.floor(np.log2(object_sizes(found.objects)[real]) * BINS_PER_OCTAVE).astype(int)
    was_found = found.matching.detection[real] != NONE
    return [
        {
            "from": 2 ** (b / BINS_PER_OCTAVE),
            "to": 2 ** ((b + 1) / BINS_PER_OCTAVE),
            "what": what,
            "objects": int(mask[bins == b].sum()),
        }
        for b in np.unique(bins).tolist()
        for what, mask in (("found", was_found), ("not found", ~was_found))
    ]


def _of_range(found: Judged, low: float, high: float) -> dict[str, Any]:
    """Count the objects of a range and those that were found, and the false detections of background in it."""
    real = ~found.objects.crowd
    sizes = object_sizes(found.objects)
    mine = real & (sizes >= low) & (sizes < high)
    xywh = found.results.xywh()
    detected = np.sqrt(np.maximum(xywh[:, 2] * xywh[:, 3], 0))
    background = (found.errors.kind == Kind.BACKGROUND) & (detected >= low) & (detected < high)
    return {
        "range": [low, high if np.isfinite(high) else None],
        "objects": int(mine.sum()),
        "found": int((found.matching.detection[mine] != NONE).sum()),
        "background": int(background.sum()),
    }
