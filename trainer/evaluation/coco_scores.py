"""Score boxes with COCO's AP and AR, computed by faster-coco-eval, whose numbers are those of pycocotools."""

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools.cocoeval import Params

from pipeline.coco.records import class_names
from pipeline.storage import Location, read_bytes, refuse_foreign, write_atomic
from schemas.arrays import FloatArray
from schemas.errors import UsageError
from trainer.evaluation.ground_truth import Objects
from trainer.evaluation.matching import group_rows, match
from trainer.evaluation.operating import class_points
from trainer.evaluation.results import CocoResults
from trainer.inference.categories import Categories

COCO_AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}

POINT = ("F1", "score", "precision", "recall")
"""What the summary says of each class at the score of its best F1."""
Summary = dict[str, float | None]
"""Name of a score -> its value, 0 to 1, or None where the ground truth has no box that it counts."""


def score(
    objects: Objects,
    categories: Categories,
    results: CocoResults,
    bounds: Sequence[tuple[float, float]],
    max_dets: int,
) -> Summary:
    """Score detections with AP and AR as COCO defines them: of all boxes, by size, by class and by valid range.

    Args:
        objects: the ground truth.
        categories: (id, name) of its classes, by id.
        results: what was found.
        bounds: the valid ranges of the method, [lo, hi) of sqrt(width * height) of a box, source pixels.
        max_dets: detections per image and class that every score takes into account.

    Returns:
        The scores in the order in which they are printed. COCO's sizes (small, medium, large) are of the annotated
        area, the ranges are of the box.
    """
    ids = [id_ for id_, _ in categories]
    whole = run_coco(objects, ids, results, COCO_AREAS, max_dets)
    summary: Summary = {"AP": whole.precision(), "AP50": whole.precision(iou=0.5)}
    summary["AP75"] = whole.precision(iou=0.75)
    summary |= {f"AP_{name}": whole.precision(area=name) for name in ("small", "medium", "large")}
    summary |= {f"AR_{name}" if name != "all" else "AR": whole.recall(area=name) for name in COCO_AREAS}
    areas = {f"{lo:g}-{hi:g}": area_range(lo, hi) for lo, hi in bounds}
    by_range = run_coco(objects.as_large_as_boxes(), ids, results, areas, max_dets)
    summary |= {f"AP_range_{name}": by_range.precision(area=name) for name in areas}
    points = class_points(objects, results, match(objects, results, max_dets=max_dets), categories)
    for k, (name, point) in enumerate(zip(class_names(categories), points, strict=True)):
        summary[f"AP[{name}]"] = whole.precision(category=k)
        summary[f"AP50[{name}]"] = whole.precision(iou=0.5, category=k)
        for what, value in zip(POINT, (point.f1, *point), strict=True):
            summary[f"{what}[{name}]"] = None if math.isnan(value) else value
    return summary


def describe_scores(summary: Summary, notes: Sequence[str] = ()) -> str:
    """Put scores into lines of text, one for each, then a table of the classes and the notes."""
    names = [name for name in summary if "[" not in name]
    lines = [f"{name:<28}{_shown(summary[name])}" for name in names]
    if classes := [name[3:-1] for name in summary if name.startswith("AP[")]:
        width = max(28, *(len(name) + 2 for name in classes))
        columns = [column for column in ("AP", "AP50", *POINT) if f"{column}[{classes[0]}]" in summary]
        lines += ["", f"{'class':<{width}}" + "".join(f"{column:<10}" for column in columns).rstrip()]
        for name in classes:
            values = [_shown(summary[f"{column}[{name}]"]) for column in columns]
            lines.append(f"{name:<{width}}" + "".join(f"{value:<10}" for value in values).rstrip())
        if "F1" in columns:
            lines.append("F1: the best at IoU 0.5, with the score from which detections are then taken.")
    return "\n".join([*lines, *(f"WARNING: {note}" for note in notes)])


def class_table(summary: Summary) -> pl.DataFrame:
    """Return a row for each class: its name and what the summary has of it, null where that is not defined."""
    names = [name[3:-1] for name in summary if name.startswith("AP[")]
    columns = {column: [summary.get(f"{column}[{name}]") for name in names] for column in ("AP", "AP50", *POINT)}
    return pl.DataFrame({"class": names, **columns}, schema={"class": pl.String, **dict.fromkeys(columns, pl.Float64)})


def write_class_table(path: Location, summary: Summary) -> None:
    """Write `class_table` as CSV or Parquet, to a place that `check_table` has looked at."""
    frame, content = class_table(summary), io.BytesIO()
    frame.write_csv(content) if path.suffix.lower() == ".csv" else frame.write_parquet(content)
    write_atomic(path, content.getvalue())


def check_table(path: Location) -> None:
    """Look, before any work, whether a table of classes can be written to a place.

    Raises:
        UsageError: the name ends neither in .csv nor in .parquet, its folder cannot be written to, or a file or folder
            of another origin is there.
    """
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise UsageError(f"{path}: a table is written as CSV or Parquet; give a name that ends in .csv or .parquet")
    refuse_foreign(path, _is_table, "`sniper evaluate --table`")


def _is_table(path: Location) -> bool:
    """Tell whether a file is a table of classes."""
    content = io.BytesIO(read_bytes(path))
    try:
        there = (pl.read_csv if path.suffix.lower() == ".csv" else pl.read_parquet)(content, n_rows=0).columns
    except pl.exceptions.PolarsError:
        return False
    return there == [*class_table({}).columns]


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def area_range(lo: float, hi: float) -> tuple[float, float]:
    """Turn the sizes [lo, hi) into the least and the largest area, both included, as pycocotools takes them."""
    return lo**2, math.nextafter(min(hi**2, 1e10), 0)


class Scores(NamedTuple):
    """What COCOeval has computed: T thresholds of IoU, R of recall, K categories, A ranges of area.

    Attributes:
        precisions: float64 [T, R, K, A], -1 where there is no box.
        recalls: float64 [T, K, A], -1 where there is no box.
        ious: float64 [T], the thresholds of IoU.
        areas: names of the ranges of area.
    """

    precisions: FloatArray
    recalls: FloatArray
    ious: FloatArray
    areas: list[str]

    def precision(self, iou: float | None = None, area: str = "all", category: int | None = None) -> float | None:
        """Return the mean precision over the thresholds and all that is not singled out; None without any box."""
        values = self._at(iou, self.precisions)[:, :, :, self.areas.index(area)]
        if category is not None:
            values = values[:, :, category]
        return _mean(values)

    def recall(self, iou: float | None = None, area: str = "all") -> float | None:
        """Return the mean recall over the thresholds, or at one of them; None without any box."""
        return _mean(self._at(iou, self.recalls)[:, :, self.areas.index(area)])

    def _at(self, iou: float | None, values: FloatArray) -> FloatArray:
        return values if iou is None else values[np.isclose(self.ious, iou)]


def _mean(values: FloatArray) -> float | None:
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def run_coco(
    objects: Objects,
    ids: Sequence[int],
    results: CocoResults,
    areas: dict[str, tuple[float, float]],
    max_dets: int,
) -> Scores:
    """Run COCOeval on boxes, one category after the other: it keeps some kilobytes for each box that it is given.

    Args:
        objects: the ground truth.
        ids: category ids, in the order of the scores.
        results: what was found.
        areas: name of a range -> least and largest area, both included, of the objects that count in it.
        max_dets: detections per image and class that are taken into account.
    """
    params = Params("bbox")
    shape = (len(params.iouThrs), len(params.recThrs), len(ids), len(areas))
    precisions, recalls = np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
    true_rows = group_rows(objects.category_id)
    found_rows = {} if results.category_id is None else group_rows(results.category_id)
    for k, id_ in enumerate(ids):
        if (id_,) not in true_rows:
            continue
        truth, found = objects.take(true_rows[id_,]), results.take(found_rows.get((id_,), slice(0)))
        arrays = _run_category(truth, found, areas, max_dets)
        precisions[:, :, k] = arrays["precision"][:, :, 0, :, 0]
        recalls[:, k] = arrays["recall"][:, 0, :, 0]
    return Scores(precisions, recalls, params.iouThrs, list(areas))


def _run_category(
    objects: Objects, results: CocoResults, areas: dict[str, tuple[float, float]], max_dets: int
) -> dict[str, Any]:
    """Run COCOeval on the boxes of one category, whatever its id, and return its arrays."""
    images = [{"id": id_} for id_ in np.union1d(objects.image_id, results.image_id).tolist()]
    evaluation = COCOeval_faster(_index(images, _truths(objects)), _index(images, _found(results)), "bbox")
    evaluation.params.areaRng = [list(bounds) for bounds in areas.values()]
    evaluation.params.areaRngLbl = list(areas)
    evaluation.params.maxDets = [max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    return dict(evaluation.eval)


def _truths(objects: Objects) -> Iterator[dict[str, Any]]:
    columns = zip(*(column.tolist() for column in objects), strict=True)
    # from 1: COCOeval takes a match with the object of id 0 for none
    for number, (image_id, _, box, area, crowd) in enumerate(columns, 1):
        record = {"id": number, "image_id": image_id, "category_id": 1, "bbox": box, "area": area}
        yield {**record, "iscrowd": int(crowd)}


def _found(results: CocoResults) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(results.records(), 1):
        width, height = record["bbox"][2:]
        yield {**record, "id": number, "category_id": 1, "area": width * height, "iscrowd": 0}


def _index(images: list[dict[str, int]], boxes: Iterator[dict[str, Any]]) -> Any:
    """Make a COCO object of the content of a file; unlike loadRes it takes an empty list of boxes."""
    coco = COCO()
    coco.dataset = {"images": images, "annotations": list(boxes), "categories": [{"id": 1}]}
    coco.createIndex()
    return coco
