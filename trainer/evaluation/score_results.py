"""`sniper evaluate --results`: the scores of a file of COCO results, of whatever detector. It needs no torch."""

from typing import NamedTuple

import numpy as np

from pipeline.coco import Reject
from pipeline.coco.read import read_coco
from pipeline.coco.source import Source
from pipeline.storage import Location, location
from schemas.errors import DataError
from schemas.settings import Settings, settings_or_defaults
from trainer.evaluation.coco_scores import Summary, score
from trainer.evaluation.ground_truth import crowded_notes, read_objects
from trainer.evaluation.matching import MAX_DETS
from trainer.evaluation.results import CocoResults, misread, read_results


class ScoredFile(NamedTuple):
    """The scores of a file.

    Attributes:
        summary: the scores by name.
        rejects: a row for each image and each box that was left out.
        notes: what a reader of the scores should know.
    """

    summary: Summary
    rejects: list[Reject]
    notes: list[str]


def score_results(
    results: Location | str,
    annotations: Location | str,
    settings: Settings | None = None,
    *,
    max_dets: int = MAX_DETS,
) -> ScoredFile:
    """Score COCO results on whole images.

    Args:
        results: file of COCO results, as `sniper evaluate --out`, SAHI and most trainers write it.
        annotations: COCO JSON file of the images that were searched.
        settings: of the section `chips` the ranges that scores are given for, and `ignore_categories`, whose boxes
            count as crowd.
        max_dets: detections per image and class that every score takes into account.

    Raises:
        DataError: a file cannot be read, detections are of images that the annotations do not list, or none is of a
            class that they have.
        UsageError: no category has one of the names in chips.ignore_categories.
    """
    options = settings_or_defaults(settings).chips
    place, truth = location(results), location(annotations)
    source = read_coco(truth, options.max_pixels, options.ignore_categories, as_written=True)
    found = read_results(place)
    objects, remarks = read_objects(source)
    remarks += crowded_notes(source, max_dets, by_class=True)
    notes = [*source.warnings, *source.notes, *remarks, *foreign(found, source, place, truth)]
    notes += misread(found, source.image_id, source.width, source.height, place)
    found = found.take(np.isin(found.image_id, source.image_id))  # a refused image has no boxes to score against
    summary = score(objects, source.categories, found, options.bounds(), max_dets)
    return ScoredFile(summary, list(source.rejects), notes)


def foreign(results: CocoResults, source: Source, detections: Location, annotations: Location) -> list[str]:
    """Return a remark where detections are of classes that an annotation file does not have.

    Raises:
        DataError: there are detections of images that the file does not list, or none is of a class that it has.
    """
    refused = [image.id for image in source.refused_images if image.id is not None]
    images = np.concatenate([source.image_id, np.array(refused, np.int64)])
    elsewhere = results.image_id[~np.isin(results.image_id, images)]
    count = len(results.scores)
    if len(elsewhere):
        raise DataError(
            f"{detections}: {len(elsewhere):,} of {count:,} detections are of images that {annotations} does not "
            f"list, such as image_id {elsewhere[0]}; give the annotation file of the images that were searched"
        )
    if results.category_id is None:
        return []
    classless = ~np.isin(results.category_id, [id_ for id_, _ in source.categories])
    if not classless.any():
        return []
    text = f"{classless.sum():,} of {count:,} detections are of classes that {annotations} does not have"
    if classless.all():
        raise DataError(
            f"{detections}: {text}, such as category_id {results.category_id[0]}; give the annotation file with the "
            "classes that the detector was trained on"
        )
    return [f"{text}, and enter no score of a class"]
