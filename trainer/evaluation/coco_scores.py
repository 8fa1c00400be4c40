"""Score boxes with COCO's AP and AR, computed by pycocotools."""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COCO_AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}

CocoResults = list[dict[str, Any]]
"""COCO results: {"image_id", "category_id", "bbox": [x, y, width, height] in source pixels, "score"} for each box."""

Summary = dict[str, float | None]
"""Name of a score -> its value, 0 to 1, or None where the ground truth has no box that it counts."""


def score(
    truth: dict[str, Any], results: CocoResults, bounds: Sequence[tuple[float, float]], max_dets: int
) -> Summary:
    """Score detections with AP and AR as COCO defines them: of all boxes, by size, by class and by valid range.

    Args:
        truth: the ground truth as the content of a COCO annotation file.
        results: what was found.
        bounds: the valid ranges of the method, [lo, hi) of sqrt(width * height) of a box, source pixels.
        max_dets: detections per image and class that every score takes into account.

    Returns:
        The scores in the order in which they are printed. COCO's sizes (small, medium, large) are of the annotated
        area, the ranges are of the box.
    """
    whole = run_coco(truth, results, COCO_AREAS, max_dets)
    summary: Summary = {"AP": whole.precision(), "AP50": whole.precision(iou=0.5)}
    summary["AP75"] = whole.precision(iou=0.75)
    summary |= {f"AP_{name}": whole.precision(area=name) for name in ("small", "medium", "large")}
    summary |= {f"AR_{name}" if name != "all" else "AR": whole.recall(area=name) for name in COCO_AREAS}
    names = {category["id"]: category.get("name", category["id"]) for category in truth["categories"]}
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    lines = {id_: f"{name} #{id_}" if name in twice else name for id_, name in names.items()}
    summary |= {f"AP[{lines[id_]}]": whole.precision(category=k) for k, id_ in enumerate(whole.categories)}
    summary |= {f"AP50[{lines[id_]}]": whole.precision(iou=0.5, category=k) for k, id_ in enumerate(whole.categories)}
    areas = {f"{lo:g}-{hi:g}": area_range(lo, hi) for lo, hi in bounds}
    by_range = run_coco(with_box_areas(truth), results, areas, max_dets)
    summary |= {f"AP_range_{name}": by_range.precision(area=name) for name in areas}
    return summary


def area_range(lo: float, hi: float) -> tuple[float, float]:
    """Turn the sizes [lo, hi) into the least and the largest area, both included, as pycocotools takes them."""
    return lo**2, math.nextafter(min(hi**2, 1e10), 0)


def with_box_areas(truth: dict[str, Any]) -> dict[str, Any]:
    """Return the ground truth with width * height of the box as the area of each object."""
    boxes = [{**box, "area": box["bbox"][2] * box["bbox"][3]} for box in truth["annotations"]]
    return {**truth, "annotations": boxes}


class Scores(NamedTuple):
    """What COCOeval has computed: T thresholds of IoU, R of recall, K categories, A ranges of area.

    Attributes:
        precisions: float64 [T, R, K, A], -1 where there is no box.
        recalls: float64 [T, K, A], -1 where there is no box.
        ious: float64 [T], the thresholds of IoU.
        areas: names of the ranges of area.
        categories: category ids.
    """

    precisions: Any
    recalls: Any
    ious: Any
    areas: list[str]
    categories: list[int]

    def precision(self, iou: float | None = None, area: str = "all", category: int | None = None) -> float | None:
        """Return the mean precision over the thresholds and all that is not singled out; None without any box."""
        area = area if area in self.areas else self.areas[0]
        values = self._at(iou, self.precisions)[:, :, :, self.areas.index(area)]
        if category is not None:
            values = values[:, :, category]
        return _mean(values)

    def recall(self, iou: float | None = None, area: str = "all") -> float | None:
        """Return the mean recall over the thresholds, or at one of them; None without any box."""
        return _mean(self._at(iou, self.recalls)[:, :, self.areas.index(area)])

    def _at(self, iou: float | None, values: Any) -> Any:
        return values if iou is None else values[np.isclose(self.ious, iou)]


def _mean(values: Any) -> float | None:
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def run_coco(
    truth: dict[str, Any], results: CocoResults, areas: dict[str, tuple[float, float]], max_dets: int
) -> Scores:
    """Run COCOeval on boxes.

    Args:
        truth: the ground truth as the content of a COCO annotation file.
        results: what was found.
        areas: name of a range -> least and largest area, both included, of the objects that count in it.
        max_dets: detections per image and class that are taken into account.
    """
    # numbered anew: pycocotools takes a match with the object of id 0 for none
    objects = [{**box, "id": i} for i, box in enumerate(truth["annotations"], 1)]
    truth = {**truth, "annotations": objects}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its timings
        evaluation = COCOeval(_index(truth), _index({**truth, "annotations": _as_boxes(results)}), "bbox")
        evaluation.params.areaRng = [list(bounds) for bounds in areas.values()]
        evaluation.params.areaRngLbl = list(areas)
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    arrays, params = evaluation.eval, evaluation.params
    precisions, recalls = arrays["precision"][..., 0], arrays["recall"][..., 0]
    return Scores(precisions, recalls, params.iouThrs, list(areas), list(params.catIds))


def _as_boxes(results: CocoResults) -> list[dict[str, Any]]:
    return [
        {**result, "id": i, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
        for i, result in enumerate(results, 1)
    ]


def _index(dataset: dict[str, Any]) -> Any:
    """Make a COCO object of the content of a file; unlike loadRes it takes an empty list of boxes."""
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco
