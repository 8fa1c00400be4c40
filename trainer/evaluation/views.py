"""`sniper merge-views`: detections of any program on views, merged on the images and scored. It needs no torch."""

import json
from typing import NamedTuple

import numpy as np

from pipeline.coco.read import read_coco
from pipeline.coco.rejects import describe_rejects
from pipeline.exchange.merge_views import merge_views as merge_found
from pipeline.exchange.views import INDEX, LISTING, ViewIndex, read_index
from pipeline.pyramid.merging import Detections
from pipeline.storage import Location, location, locked, write_atomic
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, Settings, settings_or_defaults
from schemas.settings.section import contradictions
from schemas.wording import shell
from trainer.evaluation.coco_scores import Summary, score
from trainer.evaluation.ground_truth import crowded_notes, read_objects
from trainer.evaluation.matching import MAX_DETS
from trainer.evaluation.results import (
    CocoResults,
    check_out,
    join_results,
    misread,
    read_results,
    summary_file,
    write_results,
)


class Merged(NamedTuple):
    """What became of detections on views.

    Attributes:
        detections: on the images.
        num_on_views: how many there were on the views.
        summary: COCO's scores; None where there were no annotations.
        notes: what a reader of the detections and their scores should know.
    """

    detections: CocoResults
    num_on_views: int
    summary: Summary | None
    notes: list[str]


def merge_views(
    views: Location | str,
    results: Location | str,
    out: Location | str,
    settings: Settings | None = None,
    *,
    annotations: Location | str | None = None,
    max_dets: int = MAX_DETS,
) -> Merged:
    """Turn COCO results on views into COCO results on the images that the views are of, and score them.

    Args:
        views: what `sniper views` wrote.
        results: file of COCO results, whose image ids are those of views.json; SAHI's have the same form.
        out: file for the COCO results on the images. The summary goes beside it.
        settings: the section `detect` says how detections are merged, and how many stay; boxes of
            chips.ignore_categories count as crowd.
        annotations: COCO file that the views were made with, to score against.
        max_dets: detections per image and class that every score takes into account.

    Raises:
        UsageError: `out` or the summary beside it would replace a file that is read, `out` is a folder or a file of
            another origin, its folder cannot be made, another process writes it, a size or ranges of chips were given
            that are not those of the views, or no category has one of the names in chips.ignore_categories.
        DataError: a file cannot be read, results are of views that there are not, or the annotations are of other
            images.
    """
    folder, place, out = location(views), location(results), location(out)
    truth = None if annotations is None else location(annotations)
    check_out(out, [place, folder / INDEX, folder / LISTING, *([] if truth is None else [truth])])
    with locked(out.parent, "sniper merge-views", f".{out.name}.lock"):
        settings = settings_or_defaults(settings)
        index, read = read_index(folder), read_results(place)
        ranges = [[lo, None if np.isinf(hi) else hi] for lo, hi in index.bounds]
        if differing := contradictions("chips", settings.chips, {"size": index.size, "ranges": ranges}):
            raise UsageError(
                f"{folder}: was made with other settings:\n  "
                + "\n  ".join(differing)
                + "\nLeave these out, or make the views anew with `sniper views --overwrite`"
            )
        assert read.category_id is not None  # a file has them
        found = Detections(read.boxes, read.scores, read.category_id)
        parts = []
        for image_id, merged in merge_found(index, read.image_id, found, settings.detect, place):
            ids = np.full(len(merged.scores), image_id, np.int64)
            parts.append(CocoResults(ids, merged.labels, merged.boxes, merged.scores))
        detections = join_results(parts)
        views_of = index.table.sort_by("view_id")
        view_id, width, height = (views_of[name].to_numpy() for name in ("view_id", "width", "height"))
        notes = misread(read, view_id, width, height, place)
        summary = None
        if truth is not None:
            summary, remarks = _score(index, detections, truth, settings.chips, max_dets)
            notes += remarks
        write_results(out, detections)
        if summary is not None:
            write_atomic(summary_file(out), json.dumps(summary, indent=1).encode())
        return Merged(detections, len(read.scores), summary, notes)


def _score(
    index: ViewIndex, detections: CocoResults, annotations: Location, chips: ChipSettings, max_dets: int
) -> tuple[Summary, list[str]]:
    """Score against the boxes of the images that there are views of, and say what is odd about the annotations."""
    source = read_coco(annotations, ignore_categories=chips.ignore_categories, as_written=True)
    searched = set(zip(index.table["image_id"].to_pylist(), index.table["image_file"].to_pylist(), strict=True))
    there = set(zip(source.image_id.tolist(), source.file_name.to_pylist(), strict=True))
    if other := searched - there:
        id_, name = min(other)
        raise DataError(
            f"{annotations}: {len(other):,} of the images that the views are of are not in it, such as {name} with "
            f"the id {id_}; make the views with `{shell('sniper', 'views', '--annotations', annotations)}`"
        )
    named = dict(index.categories)
    known = [(id_, name, named[id_]) for id_, name in source.categories if id_ in named]
    if moved := [f"{id_} is {name!r}, there {then!r}" for id_, name, then in known if name != then]:
        anew = shell("sniper", "views", "--annotations", annotations)
        raise DataError(
            f"{annotations}: numbers the classes otherwise than the views, {', '.join(moved)}; give the file "
            f"that they were made with, or make them anew with `{anew}`"
        )
    objects, remarks = read_objects(source)
    remarks += crowded_notes(source, max_dets, by_class=True)
    scored = objects.take(np.isin(objects.image_id, [id_ for id_, _ in searched]))
    notes = [*source.warnings, *source.notes, *remarks, *describe_rejects(source.rejects)]
    return score(scored, source.categories, detections, index.bounds, max_dets), notes
