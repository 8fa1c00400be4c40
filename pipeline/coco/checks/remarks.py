"""Remarks on a whole data set that could be read: what was read how, and what is probably a mistake of the file."""

import re
from collections.abc import Collection

import numpy as np

from pipeline.coco.checks.boxes import Boxes, FileRecords, Tally, count_twins
from pipeline.coco.checks.categories import doubles
from pipeline.coco.checks.values import repeats

_means_ignore = re.compile(r"ignor|don.?t.?care|difficult|crowd|unlabel|void", re.IGNORECASE).search


def notes(known: list[tuple[int, str]], boxes: Boxes, files: list[FileRecords]) -> list[str]:
    """Return lines about what may look odd and is kept as it is.

    Args:
        known: (id, name) of the categories, in the order of the labels.
        boxes: those of all files.
        files: the files.
    """
    lines = [f"{line}: they stay two classes" for line in doubles(known)]
    used = set(np.unique(boxes.label).tolist())
    if len(used) < len(known):  # boxes that are refused are boxes, too
        used |= {
            file.label_of_id.get(box.category_id)
            for file in files
            for box in boxes.refused
            if box.category_id is not None and file.start <= box.row < file.stop
        }
    if empty := [f"{name!r} ({i})" for label, (i, name) in enumerate(known, 1) if label not in used]:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        lines.append(f"{len(empty)} of {len(known)} categories have no box: {', '.join(empty[:5])}{more}")
    if again := len(repeats(boxes.annotation_id)):
        lines.append(f"{again:,} annotation ids occur more than once; no box is lost, for its row says which it is")
    twins, row = count_twins(boxes)
    if twins:
        lines.append(
            f"{twins:,} boxes are the same as another of their image and category (first annotations[{row}]); "
            "all are kept"
        )
    return lines


def warnings(
    known: list[tuple[int, str]], used: Collection[int], ignored: Collection[str], boxes: Boxes, tally: Tally
) -> list[str]:
    """Return lines about what is probably a mistake.

    Args:
        known: (id, name) of the categories, in the order of the labels.
        used: ids of categories that boxes have; none where there are several files.
        ignored: names given as ignore categories.
        boxes: those of all files.
        tally: what was counted while they were checked.
    """
    return [*_of_categories(known, used, ignored), *of_coordinates(tally), *_of_crowds(boxes, ignored)]


def _of_categories(known: list[tuple[int, str]], used: Collection[int], ignored: Collection[str]) -> list[str]:
    lines = []
    ids = [i for i, _ in known]
    unknown = set(used) - set(ids)
    if unknown and any(set(used) <= {i + shift for i in ids} for shift in (-1, 1)):
        lines.append(
            f"boxes have the category_id {min(unknown)}, the categories {ids[0]} to {ids[-1]}: one may count from 0 "
            "and the other from 1, and then all boxes have a wrong class"
        )
    if alike := [repr(name) for _, name in known if name not in ignored and _means_ignore(name)]:
        lines.append(
            f"category {', '.join(alike)} looks like regions that nobody labelled; if so, name it in "
            "chips.ignore_categories, for now its boxes are targets"
        )
    return lines


def of_coordinates(tally: Tally) -> list[str]:
    """Return a line if the boxes that were counted are probably shares of the image, or corners."""
    if tally.sound and tally.within_one > 0.01 * tally.sound:  # no object is that small
        return [
            f"{tally.within_one:,} of {tally.sound:,} boxes lie between 0 and 1: they are shares of the image, where "
            "COCO has pixels; multiply them by its width and height"
        ]
    if tally.sound and tally.clipped > 0.2 * tally.sound and tally.as_corners > 0.95 * tally.sound:
        return [
            f"{tally.clipped / tally.sound:.0%} of the boxes reach beyond their image and nearly all have width > x "
            "and height > y: the file seems to hold x1 y1 x2 y2 where COCO has x y width height"
        ]
    return []


def _of_crowds(boxes: Boxes, ignored: Collection[str]) -> list[str]:
    if not len(boxes.crowd) or not boxes.crowd.all():
        return []
    setting = ", or chips.ignore_categories names their category" if ignored else ""
    remedy = ", or leave their category out of chips.ignore_categories" if ignored else ""
    return [
        f"all {len(boxes.crowd):,} boxes are crowd (iscrowd or ignore is 1{setting}), so that none is a target; where "
        "they are single objects (CVAT writes iscrowd: 1 for masks drawn with a brush), write iscrowd: 0" + remedy
    ]
