"""Score the RPN alone, `sniper evaluate --proposals`: recall of its proposals by size (docs/method.md, 11.2)."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from pipeline.coco import SourceImage
from pipeline.kernels import writable
from pipeline.planning.mine import PooledProposals, merge_scales
from pipeline.pyramid.search import SearchLog
from pipeline.storage import Location, location
from schemas.settings import NegativeSettings, Settings, settings_or_defaults
from trainer.evaluation.coco_scores import COCO_AREAS, Summary, area_range, run_coco
from trainer.evaluation.evaluate import Evaluation, score_source
from trainer.evaluation.ground_truth import Objects, open_ground_truth
from trainer.evaluation.results import CocoResults, check_out
from trainer.evaluation.seen import refuse_seen
from trainer.inference.extract import propose_images
from trainer.inference.opening import open_inference
from trainer.runtime.checkpoint import chosen_file
from trainer.runtime.ranks import breakable, from_first, joined

SIZES = ((0, 25), (25, 50), (50, 100), (100, 200), (200, 300))
"""[lo, hi) of sqrt(width * height), source pixels (paper, Table 1)."""
MAX_PROPOSALS = 300
"""Proposals of an image that count, the best of all scales (docs/method.md, 11.2)."""


def evaluate_proposals(
    checkpoint: Location | str,
    annotations: Location | str,
    images: Location | str,
    settings: Settings | None = None,
    *,
    out: Location | str | None = None,
    max_dets: int = MAX_PROPOSALS,
    allow_seen: bool = False,
) -> Evaluation | None:
    """Score the proposals of a checkpoint's RPN. Under torchrun the ranks share the images.

    Args:
        checkpoint: a checkpoint file, or the folder of a run, be it of `sniper train` or of the RPN that
            `sniper negatives` trains.
        annotations: COCO JSON file; its categories may be other than those of the checkpoint.
        images: folder that its file names are relative to.
        settings: the section `detect` is used, and chips.max_pixels where it was given.
        out: file for the proposals, COCO results without category_id, as `sniper negatives --proposals` reads them;
            the summary goes beside it.
        max_dets: proposals per image that count, the best of all scales; the paper's RPN gives 300.
        allow_seen: score on images that were trained on, too.

    Returns:
        The scores and what they are of; None on every rank but the first.

    Raises:
        DataError: the checkpoint or the annotation file cannot be read, or images were trained on.
        UsageError: there is no such image folder, `out` is a folder, a file of another origin or one that is read, or
            is being written by another process, or settings were given that contradict the checkpoint.
    """
    with joined() as rank:
        if out is not None:
            check_out(location(out), [location(annotations), chosen_file(location(checkpoint))])
        _, inference = open_inference(location(checkpoint), settings_or_defaults(settings), rank.device)
        root = location(images)

        def find(sources: Sequence[SourceImage], spans: Sequence[range], log: SearchLog) -> Iterator[CocoResults]:
            for position, rows in propose_images(inference, spans, sources, root, log):
                if rows is not None:
                    yield best_proposals(sources[position].image_id, rows, max_dets)

        def summarise(objects: Objects, proposals: CocoResults) -> Summary:
            return recall(objects, proposals, max_dets)

        truth = open_ground_truth(location(annotations), root, inference.chips, None, max_dets)
        if not allow_seen:
            with breakable():
                from_first(lambda: refuse_seen(location(checkpoint), truth))
        return score_source(truth, find, summarise, rank, None if out is None else location(out))


def best_proposals(image_id: int, rows: pa.Table, most: int) -> CocoResults:
    """Merge the proposals of one image over its scales by NMS, as mining does, and return the best.

    Args:
        image_id: id of the image.
        rows: its proposals at all scales, schema PROPOSALS.
        most: how many may stay.

    Returns:
        COCO results without classes, best first.
    """
    boxes = np.stack([rows[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1)
    pool = PooledProposals(np.array([0, len(boxes)]), boxes, writable(rows["score"].to_numpy()))
    pool = merge_scales(pool, NegativeSettings().nms)
    boxes, scores = pool.boxes[:most], pool.score[:most]
    return CocoResults(np.full(len(boxes), image_id, np.int64), None, boxes, scores)


def recall(objects: Objects, proposals: CocoResults, max_dets: int) -> Summary:
    """Score proposals with AR (the mean over IoU 0.5 to 0.95), AR50, AR75 and AR of each of SIZES, whatever the class.

    Args:
        objects: the ground truth; crowds count neither way.
        proposals: what was found.
        max_dets: proposals of each image that count, the best.

    Returns:
        The scores in the order in which they are printed.
    """
    # one class for all is what COCOeval's useCats=0 means; that one would ask for a known category of each proposal
    objects = objects.as_large_as_boxes()._replace(category_id=np.ones_like(objects.category_id))
    found = proposals._replace(category_id=np.ones_like(proposals.image_id))
    by_size = {f"{lo}-{hi}": area_range(lo, hi) for lo, hi in SIZES}
    scores = run_coco(objects, [1], found, {"all": COCO_AREAS["all"], **by_size}, max_dets)
    summary = {"AR": scores.recall(), "AR50": scores.recall(iou=0.5), "AR75": scores.recall(iou=0.75)}
    return summary | {f"AR_{size}": scores.recall(area=size) for size in by_size}
