"""`sniper evaluate --proposals`: recall of the RPN's proposals alone, of any class, by size (paper, Table 1)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.coco import SourceImage
from pipeline.planning.mine import Pool, pool_scales
from pipeline.storage import Location
from schemas.settings import NegativeSettings, Settings
from trainer.evaluation.coco_scores import Results, Summary, area_range, run_coco, with_box_areas
from trainer.evaluation.evaluate import Evaluation, open_truth, score_source
from trainer.inference.batches import Clock
from trainer.inference.extract import propose_images
from trainer.inference.opening import open_inference
from trainer.runtime.ranks import joined

SIZES = ((0, 25), (25, 50), (50, 100), (100, 200), (200, 300))
"""[lo, hi) of sqrt(width * height), source pixels (paper, Table 1)."""


def evaluate_proposals(
    checkpoint: Location,
    annotations: Location,
    images: Location,
    settings: Settings | None = None,
    *,
    out: Location | None = None,
    max_dets: int = 300,
) -> Evaluation | None:
    """Score the RPN of a checkpoint, of a full run or of `sniper negatives`.

    Under torchrun the ranks share the images; only the first returns a result.

    Args:
        annotations: its categories may be other than those of the checkpoint.
        out: file for the proposals, COCO results format without category_id, as `sniper negatives --proposals` reads
            them; the summary goes beside it.
        max_dets: proposals per image, the best of all scales (300 as the paper's RPN gives).

    Raises:
        DataError: the checkpoint or the annotation file cannot be read.
        UsageError: there is no such image folder.
    """
    with joined() as rank:
        _, inference = open_inference(checkpoint, settings or Settings(), rank.device)

        def find(sources: Sequence[SourceImage], runs: Sequence[range], clock: Clock) -> Iterator[Results]:
            for position, rows in propose_images(inference, runs, sources, images, clock):
                yield [] if rows is None else best_proposals(sources[position].image_id, rows, max_dets)

        def summarise(objects: dict[str, Any], proposals: Results) -> Summary:
            return recall(objects, proposals, max_dets)

        truth = open_truth(annotations, images, inference.chips.max_pixels, None)
        return score_source(truth, find, summarise, rank, out, max_dets)


def best_proposals(image_id: int, rows: pa.Table, most: int) -> Results:
    """An image's proposals at all scales (schema PROPOSALS), pooled by NMS as mining does; the best `most`."""
    boxes = np.stack([rows[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1)
    # copied, because numba would compile once more for arrays that cannot be written
    pool = Pool(np.array([0, len(boxes)]), boxes, rows["score"].to_numpy().copy())
    pool = pool_scales(pool, NegativeSettings().nms)
    pairs = zip(pool.boxes[:most].tolist(), pool.score[:most].tolist(), strict=True)
    return [{"image_id": image_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": s} for (x1, y1, x2, y2), s in pairs]


def recall(truth: dict[str, Any], proposals: Results, max_dets: int) -> Summary:
    """AR (the mean over IoU 0.5 to 0.95), AR50, AR75 and AR of each of SIZES, whatever the class; None: no such box.

    Args:
        truth: as of load_truth; crowds count neither way.
        proposals: image_id, bbox x y width height, score; the best `max_dets` of each image count.
    """
    # one class for all is what COCOeval's useCats=0 means; that one would ask for a known category of each proposal
    truth = with_box_areas(truth)
    boxes = [{**box, "category_id": 1} for box in truth["annotations"]]
    truth = {**truth, "annotations": boxes, "categories": [{"id": 1}]}
    found = [{**proposal, "category_id": 1} for proposal in proposals]
    by_size = {f"{lo}-{hi}": area_range(lo, hi) for lo, hi in SIZES}
    scores = run_coco(truth, found, {"all": (0.0, 1e10), **by_size}, max_dets)
    summary = {"AR": scores.recall(), "AR50": scores.recall(iou=0.5), "AR75": scores.recall(iou=0.75)}
    return summary | {f"AR_{size}": scores.recall(area=size) for size in by_size}
