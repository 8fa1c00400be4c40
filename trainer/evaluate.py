"""`sniper evaluate`: COCO AP and AR on whole, original images, by pycocotools, with the source category ids."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.coco import Reject, Source, SourceImage, read_coco
from pipeline.progress import Progress
from pipeline.storage import Location, image_folder, make_folder, read_bytes, write_atomic
from schemas.detect import DetectSettings
from schemas.errors import DataError
from schemas.settings import ChipSettings
from trainer.detect import Found, detect_images, open_model
from trainer.model import Detector
from trainer.ranks import Rank, joined
from trainer.views import Clock, split_runs

COCO_AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}

Results = list[dict[str, Any]]
Summary = dict[str, float | None]
"""Line -> value in 0..1, or None where there is no such box."""


class Evaluation(NamedTuple):
    """detections: COCO results format; proposals, where those were scored."""

    summary: Summary
    detections: Results
    rejects: list[Reject]
    num_crowded: int  # images that hold more boxes than the detections taken into account


def evaluate(
    checkpoint: Location,
    annotations: Location,
    images: Location,
    options: DetectSettings | None = None,
    *,
    out: Location | None = None,
    max_dets: int = 100,
) -> Evaluation | None:
    """Score a checkpoint. Under torchrun the ranks share the images; only the first returns a result.

    Args:
        out: file for the detections, COCO results format; the summary goes beside it.
        max_dets: detections per image that every line of the summary takes into account.

    Raises:
        DataError: the checkpoint or the annotation file cannot be read, or no category of it is one the model knows.
        UsageError: there is no such image folder.
    """
    image_folder(images)
    options = options or DetectSettings()
    with joined() as rank:
        state, model, chips = open_model(checkpoint, rank.device)
        return score_model(model, state.categories, chips, annotations, images, options, rank, out, max_dets)


def score_model(
    model: Detector,
    categories: list[tuple[int, str]],
    chips: ChipSettings,
    annotations: Location,
    images: Location,
    options: DetectSettings,
    rank: Rank,
    out: Location | None,
    max_dets: int,
) -> Evaluation | None:
    """Score a network at hand; see `evaluate`. The model must be in eval mode."""
    source = read_coco(annotations, chips.max_pixels)
    known = {category_id for category_id, _ in source.categories}
    if known.isdisjoint(category_id for category_id, _ in categories):
        raise DataError(
            f"{annotations}: has categories {sorted(known)[:10]}, the model knows {[c for c, _ in categories][:10]}: "
            "none in common; evaluate on data with the categories it was trained on"
        )

    def find(sources: Sequence[SourceImage], runs: Sequence[range], clock: Clock) -> Iterator[Results]:
        for position, found in detect_images(model, chips, runs, sources, images, options, rank.device, clock):
            yield as_results(sources[position], found, categories)

    def summarise(truth: dict[str, Any], results: Results) -> Summary:
        return score(truth, results, chips.bounds(), max_dets)

    return score_source(source, annotations, find, summarise, rank, out, max_dets)


def score_source(
    source: Source,
    annotations: Location,
    find: Callable[[Sequence[SourceImage], Sequence[range], Clock], Iterator[Results]],
    summarise: Callable[[dict[str, Any], Results], Summary],
    rank: Rank,
    out: Location | None,
    max_dets: int,
) -> Evaluation | None:
    """Search every image of a source once, whatever the number of ranks, and score what all of them found.

    Args:
        source: what read_coco gave for `annotations`.
        find: yields the results of each image of the runs, best first, and leaves refused images in the clock.
        summarise: from the truth, as of load_truth, and all results; called on the first rank alone.
        The others as in `evaluate`.
    """
    sources = source.images(0, source.num_images)
    runs = split_runs(len(sources))[rank.index :: rank.count]
    clock = Clock()
    found: Results = []
    with Progress("evaluate", sum(map(len, runs)), "images") as progress:
        for of_image in find(sources, runs, clock):
            found += of_image
            progress.add(1)
    results, rejects = _gather(found, clock.rejects, rank)
    if not rank.is_first:
        return None
    results.sort(key=lambda result: result["image_id"])  # stable: best first within an image
    truth = load_truth(annotations, set(source.row.tolist()), {reject.id for reject in rejects})
    summary = summarise(truth, results)
    if out is not None:
        make_folder(out.parent)
        write_atomic(out, json.dumps(results).encode())
        write_atomic(out.with_suffix(".summary.json"), json.dumps(summary, indent=1).encode())
    return Evaluation(summary, results, rejects, crowded(truth, max_dets))


def as_results(image: SourceImage, found: Found, categories: list[tuple[int, str]]) -> Results:
    """COCO results, x y width height, with the source category ids."""
    return [
        {
            "image_id": image.image_id,
            "category_id": categories[label - 1][0],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": value,
        }
        for (x1, y1, x2, y2), value, label in zip(*(values.tolist() for values in found), strict=True)
    ]


def _gather(found: Results, rejects: list[Reject], rank: Rank) -> tuple[Results, list[Reject]]:
    if rank.count == 1:
        return found, rejects
    everything: list[Any] | None = [None] * rank.count if rank.is_first else None
    dist.gather_object((found, rejects), everything)
    parts = everything or []
    return [r for results, _ in parts for r in results], [r for _, refused in parts for r in refused]


def load_truth(annotations: Location, rows: set[int], refused: set[int | None]) -> dict[str, Any]:
    """The annotation file as pycocotools wants it: boxes that are in order, of images that could be read.

    Args:
        rows: positions in the file of the boxes that are in order; refused: ids of images to leave out.
    """
    raw = json.loads(read_bytes(annotations))
    boxes = []
    for row, box in enumerate(raw["annotations"]):
        if row in rows and box["image_id"] not in refused:
            area = box.get("area")
            plain = {name: box[name] for name in ("id", "image_id", "category_id", "bbox")}
            plain["area"] = area if isinstance(area, int | float) else box["bbox"][2] * box["bbox"][3]
            boxes.append({**plain, "iscrowd": int(box.get("iscrowd") or 0)})
    with_boxes = [image for image in raw["images"] if isinstance(image, dict) and image.get("id") not in refused]
    return {"images": with_boxes, "annotations": boxes, "categories": raw["categories"]}


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
    summary |= {f"AP[{names[id_]}]": whole.precision(category=k) for k, id_ in enumerate(whole.categories)}
    areas = {f"{lo:g}-{hi:g}": (lo**2, min(hi**2, 1e10)) for lo, hi in bounds}
    by_range = run_coco(with_box_areas(truth), results, areas, max_dets)
    summary |= {f"AP_range_{name}": by_range.precision(area=name) for name in areas}
    return summary


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


def crowded(truth: dict[str, Any], max_dets: int) -> int:
    """How many images hold more boxes than `max_dets`."""
    counts: dict[int, int] = {}
    for box in truth["annotations"]:
        counts[box["image_id"]] = counts.get(box["image_id"], 0) + 1
    return sum(count > max_dets for count in counts.values())


def describe(report: Evaluation, max_dets: int) -> str:
    """The summary in text, one line each."""
    lines = [f"{name:<28}{'n/a' if value is None else f'{value:.3f}'}" for name, value in report.summary.items()]
    if report.num_crowded:
        lines.append(
            f"WARNING: {report.num_crowded} images hold more boxes than the {max_dets} that count of what is found; "
            "see --max-dets and, for detections, detect.max_detections"
        )
    return "\n".join(lines)
