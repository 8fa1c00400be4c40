"""COCO's scores of what any detector found, for the benchmarks and the ablations."""

from collections.abc import Iterable, Sequence

from pipeline.coco import SourceImage
from pipeline.pyramid.merging import Detections
from trainer.evaluation.coco_scores import Summary, score
from trainer.evaluation.ground_truth import GroundTruth
from trainer.evaluation.matching import MAX_DETS
from trainer.evaluation.results import CocoResults, join_results, of_image


def score_found(
    truth: GroundTruth,
    sources: Sequence[SourceImage],
    found: Iterable[Detections],
    bounds: Sequence[tuple[float, float]],
) -> tuple[Summary, CocoResults]:
    """Score what was found on images.

    Args:
        truth: what is scored against. Labels are those of the network that it was opened for; where it was opened for
            none, they number the categories of the file from 1.
        sources: the images that were searched.
        found: what was found on each of them.
        bounds: the valid ranges of the method, [lo, hi), source pixels.

    Returns:
        The scores by name, and what was found as COCO results.
    """
    ids = truth.ids or [id_ for id_, _ in truth.source.categories]
    results = join_results([of_image(source.image_id, one, ids) for source, one in zip(sources, found, strict=True)])
    return score(truth.objects, truth.source.categories, results, bounds, MAX_DETS), results
