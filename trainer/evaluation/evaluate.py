"""`sniper evaluate`: COCO AP and AR on whole, original images, by pycocotools, with the source category ids."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch.distributed as dist

from pipeline.coco import Reject, Source, SourceImage
from pipeline.coco.read import read_coco
from pipeline.engines.progress import Progress
from pipeline.images.sources import image_folder
from pipeline.pyramid.merging import Found
from pipeline.storage import Location, is_folder, make_folder, read_bytes, write_atomic
from schemas.errors import DataError, UsageError
from schemas.settings import Settings
from trainer.evaluation.coco_scores import Results, Summary, score
from trainer.inference.batches import Clock, split_runs
from trainer.inference.detect import detect_images
from trainer.inference.opening import Inference, open_detector
from trainer.runtime.ranks import Rank, joined


class Truth(NamedTuple):
    """What is scored against: an annotation file, as it lies there and as read, and the folder of its images."""

    annotations: Location
    images: Location
    source: Source
    notes: list[str]  # what a reader of the scores should know


class Evaluation(NamedTuple):
    """detections: COCO results format; proposals, where those were scored."""

    summary: Summary
    detections: Results
    rejects: list[Reject]  # images and boxes that were left out
    notes: list[str]


def evaluate(
    checkpoint: Location,
    annotations: Location,
    images: Location,
    settings: Settings | None = None,
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
    with joined() as rank:
        state, inference = open_detector(checkpoint, settings or Settings(), rank.device)
        truth = open_truth(annotations, images, inference.chips.max_pixels, state.categories)
        return score_model(inference, state.categories, truth, rank, out, max_dets)


def open_truth(
    annotations: Location, images: Location, max_pixels: int, categories: list[tuple[int, str]] | None
) -> Truth:
    """Read what is to be scored against.

    Args:
        categories: those of the model; None where classes do not matter.

    Raises:
        DataError: the file cannot be trusted, or has no category that the model knows.
        UsageError: there is no such image folder.
    """
    image_folder(images)
    source = read_coco(annotations, max_pixels)
    notes = list(source.notes)
    if categories is not None:
        there, known = dict(source.categories), dict(categories)
        if there.keys().isdisjoint(known):
            raise DataError(
                f"{annotations}: has categories {list(there)[:10]}, the model knows {list(known)[:10]}: "
                "none in common; evaluate on data with the categories it was trained on"
            )
        if unknown := [f"{id_} ({name})" for id_, name in there.items() if id_ not in known]:
            notes.append(f"the model knows no category {', '.join(unknown)}: nothing of it can be found")
        if renamed := [
            f"{i}: {known[i]!r} learnt, {there[i]!r} here" for i in there if known.get(i, there[i]) != there[i]
        ]:
            notes.append(f"categories have other names than in training, {'; '.join(renamed)}: are they the same?")
    return Truth(annotations, images, source, notes)


def score_model(
    inference: Inference,
    categories: list[tuple[int, str]],
    truth: Truth,
    rank: Rank,
    out: Location | None,
    max_dets: int,
) -> Evaluation | None:
    """Score a network at hand; see `evaluate`."""

    def find(sources: Sequence[SourceImage], runs: Sequence[range], clock: Clock) -> Iterator[Results]:
        for position, found in detect_images(inference, runs, sources, truth.images, clock):
            yield as_results(sources[position], found, categories)

    def summarise(objects: dict[str, Any], results: Results) -> Summary:
        return score(objects, results, inference.chips.bounds(), max_dets)

    counted = min(max_dets, inference.options.max_detections)
    return score_source(truth, find, summarise, rank, out, counted)


def score_source(
    truth: Truth,
    find: Callable[[Sequence[SourceImage], Sequence[range], Clock], Iterator[Results]],
    summarise: Callable[[dict[str, Any], Results], Summary],
    rank: Rank,
    out: Location | None,
    most: int,
) -> Evaluation | None:
    """Search every image once, whatever the number of ranks, and score what all of them found.

    Args:
        most: results per image that can count; of images with more boxes it makes a note.
        find: yields the results of each image of the runs, best first, and leaves refused images in the clock.
        summarise: from the truth, as of load_truth, and all results; called on the first rank alone.
        The others as in `evaluate`.
    """
    if out is not None and rank.is_first:
        if is_folder(out):
            raise UsageError(f"{out}: is a folder; name a file for what is found")
        make_folder(out.parent)
    sources = truth.source.images(0, truth.source.num_images)
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
    objects = load_truth(truth.annotations, set(truth.source.row.tolist()), {reject.id for reject in rejects})
    summary = summarise(objects, results)
    if out is not None:
        write_atomic(out, json.dumps(results).encode())
        write_atomic(out.with_suffix(".summary.json"), json.dumps(summary, indent=1).encode())
    notes = list(truth.notes)
    if num_crowded := crowded(objects, most):
        notes.append(
            f"{num_crowded} images hold more boxes than the {most} results of an image that can count; see --max-dets "
            "and, for detections, detect.max_detections"
        )
    return Evaluation(summary, results, [*truth.source.rejects, *rejects], notes)


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


def crowded(truth: dict[str, Any], max_dets: int) -> int:
    """How many images hold more boxes than `max_dets`."""
    counts = Counter(box["image_id"] for box in truth["annotations"])
    return sum(count > max_dets for count in counts.values())


def describe(report: Evaluation) -> str:
    """The summary in text, one line each, and what to know of it."""
    lines = [f"{name:<28}{'n/a' if value is None else f'{value:.3f}'}" for name, value in report.summary.items()]
    return "\n".join([*lines, *(f"WARNING: {note}" for note in report.notes)])
