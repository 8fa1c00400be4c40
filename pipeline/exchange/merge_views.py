"""Detections on views become detections on the images that the views are of."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.coco import SourceImage
from pipeline.exchange.views import ViewIndex
from pipeline.pyramid.merging import Detections, merge
from pipeline.pyramid.views import Output, View, Viewed
from pipeline.storage import Location
from schemas.arrays import IntArray
from schemas.errors import DataError
from schemas.settings import DetectSettings


def merge_views(
    index: ViewIndex, view_id: IntArray, found: Detections, options: DetectSettings, where: Location
) -> Iterator[tuple[int, Detections]]:
    """Merge what was found on the views of each image, as `pipeline.pyramid.search` does.

    Args:
        index: the views.
        view_id: int64 [n], which view each detection is on.
        found: what was found, in view pixels; the labels are category ids.
        options: how detections are merged, and how many stay.
        where: the file of the results, for messages.

    Yields:
        For each image its id and its detections, in source pixels; the labels are category ids.

    Raises:
        DataError: results are of views that there are not.
    """
    columns = index.table.to_pydict()
    row_of_view = {view_id: row for row, view_id in enumerate(columns["view_id"])}
    order = np.argsort(view_id, kind="stable")
    ids, starts = np.unique(view_id[order], return_index=True)
    if unknown := [int(id_) for id_ in ids if int(id_) not in row_of_view]:
        raise DataError(
            f"{where}: has results of {len(unknown):,} images that are no views, such as image_id {unknown[0]}; "
            "expected the ids of views.json"
        )
    rows_of_view: dict[int, IntArray] = dict(
        zip(ids.tolist(), np.split(order, starts[1:]) if len(ids) else [], strict=True)
    )
    image_id = index.table["image_id"].to_numpy()
    ends = np.flatnonzero(np.diff(image_id, append=image_id[-1:] - 1)) + 1
    start = 0
    for end in ends.tolist():
        seen: list[tuple[View, Output]] = []
        for row in range(start, end):
            rows = rows_of_view.get(columns["view_id"][row], np.empty(0, np.int64))
            seen.append((_view(columns, row), [column[rows] for column in found]))
        image = SourceImage(
            columns["image_id"][start],
            columns["image_file"][start],
            columns["image_width"][start],
            columns["image_height"][start],
        )
        yield image.image_id, merge(Viewed(0, seen), image, index.bounds, options, index.size)
        start = end


def _view(columns: dict[str, list[Any]], row: int) -> View:
    x1, y1, x2, y2 = (columns[name][row] for name in ("x1", "y1", "x2", "y2"))
    scale_index, scale, width, height = (columns[name][row] for name in ("scale_index", "scale", "width", "height"))
    return View(0, scale_index, scale, (x1, y1, x2, y2), width, height)
