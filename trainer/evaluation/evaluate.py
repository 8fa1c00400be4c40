"""Score a detector on whole, original images, `sniper evaluate`: COCO's AP and AR with the source category ids."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.coco import Reject, SourceImage
from pipeline.coco.read import read_coco
from pipeline.coco.source import AsWritten, Source
from pipeline.engines.progress import Progress
from pipeline.images.sources import image_folder
from pipeline.pyramid.merging import Detections
from pipeline.storage import Location, is_folder, make_folder, write_atomic
from schemas.arrays import FloatArray
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, Settings
from trainer.evaluation.coco_scores import CocoResults, Summary, score
from trainer.inference.batches import SearchLog, split_spans
from trainer.inference.detect import detect_images
from trainer.inference.opening import Inference, open_detector
from trainer.runtime.ranks import Rank, asked_to_stop, breakable, gather_to_first, joined, stop_together

LEAST_SHARE, MOST_SHARE = 0.001, 1.01  # of a box that an object's area can be


class GroundTruth(NamedTuple):
    """What is scored against.

    Attributes:
        images: folder that the file names are relative to.
        source: the annotation file as it was read, with the boxes as they were written.
        notes: what a reader of the scores should know.
    """

    images: Location
    source: Source
    notes: list[str]


class Evaluation(NamedTuple):
    """The scores of a network.

    Attributes:
        summary: the scores by name.
        detections: what was found; proposals where those were scored.
        rejects: a row for each image and each box that was left out.
        notes: what a reader of the scores should know.
    """

    summary: Summary
    detections: CocoResults
    rejects: list[Reject]
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
    """Score the detections of a checkpoint. Under torchrun the ranks share the images.

    Args:
        checkpoint: a checkpoint file, or the folder of a run: its best checkpoint, else its last.
        annotations: COCO JSON file.
        images: folder that its file names are relative to.
        settings: the section `detect` is used, and chips.max_pixels where it was given.
        out: file for the detections, COCO results; the summary goes beside it.
        max_dets: detections per image and class that every score takes into account.

    Returns:
        The scores and what they are of; None on every rank but the first.

    Raises:
        DataError: the checkpoint or the annotation file cannot be read, or the network knows none of its categories.
        UsageError: there is no such image folder, `out` is a folder, or settings were given that contradict the
            checkpoint.
    """
    with joined() as rank:
        state, inference = open_detector(checkpoint, settings or Settings(), rank.device)
        truth = open_ground_truth(annotations, images, inference.chips, state.categories)
        return score_model(inference, state.categories, truth, rank, out, max_dets)


def open_ground_truth(
    annotations: Location, images: Location, chips: ChipSettings, categories: list[tuple[int, str]] | None
) -> GroundTruth:
    """Read what is to be scored against.

    Args:
        annotations: COCO JSON file.
        images: folder that its file names are relative to.
        chips: an image with more than `max_pixels` is refused, and boxes of `ignore_categories` count as crowd.
        categories: (source id, name) of what the network knows; None where classes do not matter.

    Raises:
        DataError: the file cannot be trusted, or has no category that the network knows.
        UsageError: there is no such image folder.
    """
    image_folder(images)
    source = read_coco(annotations, chips.max_pixels, chips.ignore_categories, as_written=True)
    assert source.as_written is not None
    notes = [*source.warnings, *source.notes]
    if num_wrong := trusted_areas(source.as_written)[1]:
        notes.append(
            f"the field area of {num_wrong:,} of {len(source.row):,} boxes cannot be true (not positive and finite, "
            "or not between 0.001 and 1.01 of width * height); width * height stands in for it"
        )
    if categories is not None:
        there, known = dict(source.categories), dict(categories)
        if there.keys().isdisjoint(known):
            raise DataError(
                f"{annotations}: has categories {list(there)[:10]}, the model knows {list(known)[:10]}: "
                "none in common; evaluate on data with the categories it was trained on"
            )
        if unknown := [f"{id_} ({name})" for id_, name in there.items() if id_ not in known]:
            notes.append(f"the network knows no category {', '.join(unknown)}: nothing of it can be found")
        if renamed := [
            f"{i}: {known[i]!r} learnt, {there[i]!r} here" for i in there if known.get(i, there[i]) != there[i]
        ]:
            notes.append(f"categories have other names than in training, {'; '.join(renamed)}: are they the same?")
    return GroundTruth(images, source, notes)


def score_model(
    inference: Inference,
    categories: list[tuple[int, str]],
    truth: GroundTruth,
    rank: Rank,
    out: Location | None,
    max_dets: int,
) -> Evaluation | None:
    """Score the detections of a network; all ranks take part.

    Args:
        inference: the network, and how it is run.
        categories: (source id, name) of what the network knows, by label from 1.
        truth: what is scored against.
        rank: which of the processes this is.
        out: file for the detections, COCO results; the summary goes beside it.
        max_dets: detections per image and class that every score takes into account.

    Returns:
        The scores and what they are of; None on every rank but the first.
    """

    def find(sources: Sequence[SourceImage], spans: Sequence[range], log: SearchLog) -> Iterator[CocoResults]:
        for position, found in detect_images(inference, spans, sources, truth.images, log):
            yield as_results(sources[position], found, categories)

    def summarise(objects: dict[str, Any], results: CocoResults) -> Summary:
        return score(objects, results, inference.chips.bounds(), max_dets)

    counted = min(max_dets, inference.options.max_detections)
    return score_source(truth, find, summarise, rank, out, counted)


def score_source(
    truth: GroundTruth,
    find: Callable[[Sequence[SourceImage], Sequence[range], SearchLog], Iterator[CocoResults]],
    summarise: Callable[[dict[str, Any], CocoResults], Summary],
    rank: Rank,
    out: Location | None,
    most: int,
) -> Evaluation | None:
    """Search every image once, whatever the number of ranks, and score what all of them found.

    Args:
        truth: what is scored against.
        find: from the images, the spans of this rank and a log, yields the results of each image, best first, and
            leaves refused images in the log.
        summarise: makes the scores of the ground truth, as the content of a COCO annotation file, and all results. It
            is called on the first rank alone.
        rank: which of the processes this is.
        out: file for the results; the summary goes beside it.
        most: results per image that can count; a note says how many images have more boxes.

    Returns:
        The scores and what they are of; None on every rank but the first.

    Raises:
        UsageError: `out` is a folder.
    """
    if out is not None and rank.is_first:
        if is_folder(out):
            raise UsageError(f"{out}: is a folder; name a file for what is found")
        make_folder(out.parent)
    sources = truth.source.images(0, truth.source.num_images)
    spans = split_spans(len(sources))[rank.index :: rank.count]
    log = SearchLog()
    found: CocoResults = []
    with Progress("evaluate", sum(map(len, spans)), "images") as progress:
        for of_image in find(sources, spans, log):
            found += of_image
            progress.add(1)
            if asked_to_stop():
                break
    stop_together("nothing is scored")
    results, rejects = _gather(found, log.rejects, rank)
    if not rank.is_first:
        return None
    results.sort(key=lambda result: result["image_id"])  # stable: best first within an image
    objects = coco_content(truth.source, {reject.id for reject in rejects})
    with breakable():
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


def as_results(image: SourceImage, found: Detections, categories: list[tuple[int, str]]) -> CocoResults:
    """Turn the detections of an image into COCO results.

    Args:
        image: the image.
        found: its merged detections.
        categories: (source id, name) of what the network knows, by label from 1.
    """
    return [
        {
            "image_id": image.image_id,
            "category_id": categories[label - 1][0],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": value,
        }
        for (x1, y1, x2, y2), value, label in zip(*(values.tolist() for values in found), strict=True)
    ]


def _gather(found: CocoResults, rejects: list[Reject], rank: Rank) -> tuple[CocoResults, list[Reject]]:
    parts = gather_to_first((found, rejects), rank)
    return [r for results, _ in parts for r in results], [r for _, refused in parts for r in refused]


def coco_content(source: Source, refused: set[int | None]) -> dict[str, Any]:
    """Return a data set as the content of a COCO annotation file, with the boxes in order as they were written.

    Args:
        source: read with `as_written`.
        refused: ids of images to leave out, with their boxes.
    """
    assert source.as_written is not None
    areas, _ = trusted_areas(source.as_written)
    image_id = np.repeat(source.image_id, np.diff(source.offsets)).tolist()
    category_id = source.category_of_label[source.label].tolist()
    columns = image_id, category_id, source.as_written.xywh.tolist(), areas.tolist(), source.crowd.tolist()
    return {
        "images": [{"id": i} for i in source.image_id.tolist() if i not in refused],
        "annotations": [
            {"id": id_, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for id_, (image, category, box, area, crowd) in enumerate(zip(*columns, strict=True), 1)
            if image not in refused
        ],
        "categories": [{"id": i, "name": name} for i, name in source.categories],
    }


def trusted_areas(written: AsWritten) -> tuple[FloatArray, int]:
    """Return the area of each object, float64 [N], and how many of the file's are not believed.

    COCO's small, medium and large go by the field `area`, the area of the object's outline. Where there is none,
    width times height of the box stands in; also where the field cannot be true: it is not positive and finite, or
    not between 0.001 and 1.01 of width times height.
    """
    box_area = written.xywh[:, 2] * written.xywh[:, 3]
    share = written.area / box_area
    believed = np.isfinite(written.area) & (share >= LEAST_SHARE) & (share <= MOST_SHARE)
    wrong = ~(believed | np.isnan(written.area))
    return np.where(believed, written.area, box_area), int(np.count_nonzero(wrong))


def crowded(truth: dict[str, Any], max_dets: int) -> int:
    """Count the images that hold more than `max_dets` boxes."""
    counts = Counter(box["image_id"] for box in truth["annotations"])
    return sum(count > max_dets for count in counts.values())


def describe(report: Evaluation) -> str:
    """Put the scores into lines of text, followed by the notes. The AP and the AP50 of a class stand in one line."""
    lines = []
    for name, value in report.summary.items():
        if name.startswith("AP["):
            lines.append(f"{name:<28}{_number(value)}   AP50 {_number(report.summary[f'AP50{name[2:]}'])}")
        elif not name.startswith("AP50["):
            lines.append(f"{name:<28}{_number(value)}")
    return "\n".join([*lines, *(f"WARNING: {note}" for note in report.notes)])


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
