"""COCO's AP and AR by pycocotools."""

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

Results = list[dict[str, Any]]

Summary = dict[str, float | None]
"""Line -> value in 0..1, or None where there is no such box."""


def score(truth: dict[str, Any], results: Results, bounds: Sequence[tuple[float, float]], max_dets: int) -> Summary:
    """AP and AR as COCO defines them, per size, per class, and per valid range of the method; None: no such box.

    Every line takes `max_dets` detections per image and class into account. The ranges are of sqrt(width * height);
    COCO's sizes are of the annotated area.
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
    areas = {f"{lo:g}-{hi:g}": area_range(lo, hi) for lo, hi in bounds}
    by_range = run_coco(with_box_areas(truth), results, areas, max_dets)
    summary |= {f"AP_range_{name}": by_range.precision(area=name) for name in areas}
    return summary


def area_range(lo: float, hi: float) -> tuple[float, float]:
    """The areas of sizes in [lo, hi), both ends included as pycocotools takes them."""
    return lo**2, math.nextafter(min(hi**2, 1e10), 0)


def with_box_areas(truth: dict[str, Any]) -> dict[str, Any]:
    """The same truth, each object as large as its box."""
    boxes = [{**box, "area": box["bbox"][2] * box["bbox"][3]} for box in truth["annotations"]]
    return {**truth, "annotations": boxes}


class Scores(NamedTuple):
    """COCOeval's arrays: precisions [T, R, K, A], recalls [T, K, A], -1 where there is no box."""

    precisions: Any
    recalls: Any
    ious: Any
    areas: list[str]
    categories: list[int]

    def precision(self, iou: float | None = None, area: str = "all", category: int | None = None) -> float | None:
        area = area if area in self.areas else self.areas[0]
        values = self._at(iou, self.precisions)[:, :, :, self.areas.index(area)]
        if category is not None:
            values = values[:, :, category]
        return _mean(values)

    def recall(self, iou: float | None = None, area: str = "all") -> float | None:
        return _mean(self._at(iou, self.recalls)[:, :, self.areas.index(area)])

    def _at(self, iou: float | None, values: Any) -> Any:
        return values if iou is None else values[np.isclose(self.ious, iou)]


def _mean(values: Any) -> float | None:
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def run_coco(truth: dict[str, Any], results: Results, areas: dict[str, tuple[float, float]], max_dets: int) -> Scores:
    """COCOeval on boxes. areas: name -> least and largest area, both included, of the objects that count."""
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


def _as_boxes(results: Results) -> list[dict[str, Any]]:
    return [
        {**result, "id": i, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
        for i, result in enumerate(results, 1)
    ]


def _index(dataset: dict[str, Any]) -> Any:
    """A COCO object from a dict; unlike loadRes it takes an empty list of boxes."""
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco
