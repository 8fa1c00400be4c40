"""Score a detector on whole, original images, `sniper evaluate`: COCO's AP and AR with the source category ids."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import NamedTuple

import numpy as np

from pipeline.coco import Reject, SourceImage
from pipeline.engines.progress import Progress
from pipeline.pyramid.agenda import Searched
from pipeline.pyramid.search import SearchLog, split_spans
from pipeline.storage import Location, location, locked, write_atomic
from schemas.settings import Settings, settings_or_defaults
from trainer.evaluation.coco_scores import Summary, score
from trainer.evaluation.ground_truth import GroundTruth, Objects, open_ground_truth
from trainer.evaluation.matching import MAX_DETS
from trainer.evaluation.results import CocoResults, check_out, join_results, of_image, summary_file, write_results
from trainer.evaluation.seen import refuse_seen
from trainer.inference.opening import Inference, open_detector
from trainer.inference.predictor import detect_images
from trainer.runtime.checkpoint import chosen_file
from trainer.runtime.ranks import Rank, asked_to_stop, breakable, from_first, gather_to_first, joined, stop_together


class Evaluation(NamedTuple):
    """The scores of a network.

    Attributes:
        summary: the scores by name.
        detections: what was found; proposals where those were scored.
        rejects: a row for each image and each box that was left out.
        notes: what a reader of the scores should know.
        searched: how much of the pyramid was searched.
    """

    summary: Summary
    detections: CocoResults
    rejects: list[Reject]
    notes: list[str]
    searched: Searched = Searched()


def evaluate(
    checkpoint: Location | str,
    annotations: Location | str,
    images: Location | str,
    settings: Settings | None = None,
    *,
    out: Location | str | None = None,
    max_dets: int = MAX_DETS,
    allow_seen: bool = False,
) -> Evaluation | None:
    """Score the detections of a checkpoint. Under torchrun the ranks share the images.

    Args:
        checkpoint: a checkpoint file, or the folder of a run: its best checkpoint, else its last.
        annotations: COCO JSON file.
        images: folder that its file names are relative to.
        settings: the section `detect` is used, and chips.max_pixels where it was given.
        out: file for the detections, COCO results; the summary goes beside it.
        max_dets: detections per image and class that every score takes into account.
        allow_seen: score on images that were trained on, too.

    Returns:
        The scores and what they are of; None on every rank but the first.

    Raises:
        DataError: the checkpoint or the annotation file cannot be read, the network knows none of its categories, or
            images were trained on.
        UsageError: there is no such image folder, `out` is a folder, a file of another origin or one that is read, or
            is being written by another process, or settings were given that contradict the checkpoint.
    """
    with joined() as rank:
        if out is not None:
            check_out(location(out), [location(annotations), chosen_file(location(checkpoint))])
        state, inference = open_detector(location(checkpoint), settings_or_defaults(settings), rank.device)
        places = location(annotations), location(images)
        truth = open_ground_truth(*places, inference.chips, state.categories, max_dets, inference.options)
        if not allow_seen:
            with breakable():
                from_first(lambda: refuse_seen(location(checkpoint), truth))
        return score_model(inference, truth, rank, None if out is None else location(out), max_dets)


def score_model(
    inference: Inference, truth: GroundTruth, rank: Rank, out: Location | None, max_dets: int
) -> Evaluation | None:
    """Score the detections of a network; all ranks take part.

    Args:
        inference: the network, and how it is run.
        truth: what is scored against.
        rank: which of the processes this is.
        out: file for the detections, COCO results; the summary goes beside it.
        max_dets: detections per image and class that every score takes into account.

    Returns:
        The scores and what they are of; None on every rank but the first.
    """

    def find(sources: Sequence[SourceImage], spans: Sequence[range], log: SearchLog) -> Iterator[CocoResults]:
        for position, found in detect_images(inference, spans, sources, truth.images, log):
            yield of_image(sources[position].image_id, found, truth.ids)

    def summarise(objects: Objects, results: CocoResults) -> Summary:
        return score(objects, truth.source.categories, results, inference.chips.bounds(), max_dets)

    return score_source(truth, find, summarise, rank, out)


def score_source(
    truth: GroundTruth,
    find: Callable[[Sequence[SourceImage], Sequence[range], SearchLog], Iterator[CocoResults]],
    summarise: Callable[[Objects, CocoResults], Summary],
    rank: Rank,
    out: Location | None,
) -> Evaluation | None:
    """Search every image once, whatever the number of ranks, and score what all of them found.

    Args:
        truth: what is scored against.
        find: from the images, the spans of this rank and a log, yields the results of each image, best first, and
            leaves refused images in the log.
        summarise: makes the scores of the ground truth and all results. It is called on the first rank alone.
        rank: which of the processes this is.
        out: file for the results; the summary goes beside it.

    Returns:
        The scores and what they are of; None on every rank but the first.

    Raises:
        UsageError: another process is writing `out`.
    """
    with _held(out) if out is not None and rank.is_first else nullcontext():
        sources = truth.source.images(0, truth.source.num_images)
        spans = split_spans(len(sources))[rank.index :: rank.count]
        log = SearchLog()
        parts: list[CocoResults] = []
        # one process alone may stop within a batch; several end together, each after an image
        with (
            Progress("evaluate", sum(map(len, spans)), "images") as progress,
            breakable() if rank.count == 1 else nullcontext(),
        ):
            for of_one in find(sources, spans, log):
                parts.append(of_one)
                progress.add(1)
                if asked_to_stop():
                    break
        stop_together("nothing is scored")
        gathered = gather_to_first((join_results(parts), log.rejects, log.searched), rank)
        if not rank.is_first:
            return None
        results = join_results([found for found, _, _ in gathered])
        rejects = [reject for _, refused, _ in gathered for reject in refused]
        unread = [reject.id for reject in rejects if reject.id is not None]
        with breakable():
            summary = summarise(truth.objects.take(~np.isin(truth.objects.image_id, unread)), results)
        if out is not None:
            write_results(out, results)
            write_atomic(summary_file(out), json.dumps(summary, indent=1).encode())
        searched = reduce(Searched.plus, [part for _, _, part in gathered])
        return Evaluation(summary, results, [*truth.source.rejects, *rejects], truth.notes, searched)


def _held(out: Location) -> AbstractContextManager[None]:
    """Hold a file that is to be written against other processes."""
    return locked(out.parent, "sniper evaluate", f".{out.name}.lock")
