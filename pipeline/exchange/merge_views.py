"""Detections on views, as a file of COCO results, become detections on the images that the views are of."""

from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.coco import SourceImage
from pipeline.coco.stream import JsonText, NotJsonError
from pipeline.coco.text import blocks, encodings, opened
from pipeline.exchange.views import ViewIndex
from pipeline.pyramid.merging import Detections, merge
from pipeline.pyramid.views import Output, View, Viewed
from pipeline.storage import Location, local_copy
from schemas.arrays import FloatArray, IntArray
from schemas.errors import DataError, MissingError
from schemas.settings import DetectSettings


class FoundOnViews(NamedTuple):
    """The boxes of a file of COCO results.

    Attributes:
        image_id: int64 [n], as the file has it: the id of a view.
        category_id: int64 [n].
        boxes: float64 [n, 4], x1 y1 x2 y2, view pixels.
        scores: float64 [n].
    """

    image_id: IntArray
    category_id: IntArray
    boxes: FloatArray
    scores: FloatArray


def read_results(place: Location) -> FoundOnViews:
    """Read a file of COCO results, such as pycocotools, SAHI and most trainers write; 56 bytes a box.

    Each record has image_id, category_id, bbox (x y width height) and score; what else it has is not read.

    Raises:
        DataError: the file is not there, no list of JSON, or a record is not in order.
    """
    ids, categories, numbers = array("q"), array("q"), array("d")
    try:
        with local_copy(place) as path, opened(path) as file:
            for key, records in JsonText(blocks(file, encodings(file)[0])).members():
                if key or not isinstance(records, Iterator):
                    raise DataError(
                        f"{place}: expected COCO results, a list of {{image_id, category_id, bbox, score}}"
                    )
                for row, record in enumerate(records):
                    try:
                        x, y, width, height = map(float, record["bbox"])
                        ids.append(record["image_id"])
                        categories.append(record["category_id"])
                        numbers.extend((x, y, x + width, y + height, float(record["score"])))
                    except (TypeError, ValueError, KeyError, OverflowError) as error:
                        raise DataError(
                            f"{place}: [{row}]: expected whole numbers image_id and category_id, bbox of four numbers "
                            f"and score, found {_shown(record)}"
                        ) from error
    except FileNotFoundError as error:
        raise MissingError(f"{place}: no such file of results") from error
    except (NotJsonError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: is not valid JSON: {error}; expected COCO results") from error
    columns = np.frombuffer(numbers, np.float64).reshape(-1, 5) if len(numbers) else np.empty((0, 5))
    if not np.isfinite(columns).all():
        row = int(np.flatnonzero(~np.isfinite(columns).all(axis=1))[0])
        raise DataError(f"{place}: [{row}]: bbox or score is no finite number")
    return FoundOnViews(np.array(ids, np.int64), np.array(categories, np.int64), columns[:, :4], columns[:, 4])


def _shown(record: Any) -> str:
    text = repr(record)
    return text if len(text) < 200 else f"{text[:200]}..."


def merge_views(
    index: ViewIndex, found: FoundOnViews, options: DetectSettings, where: Location
) -> Iterator[tuple[int, Detections]]:
    """Merge what was found on the views of each image, as `pipeline.pyramid.search` does.

    Args:
        index: the views.
        found: what was found on them.
        options: how detections are merged, and how many stay.
        where: the file of the results, for messages.

    Yields:
        For each image its id and its detections, whose labels are category ids.

    Raises:
        DataError: results are of views that there are not.
    """
    columns = index.table.to_pydict()
    row_of_view = {view_id: row for row, view_id in enumerate(columns["view_id"])}
    order = np.argsort(found.image_id, kind="stable")
    ids, starts = np.unique(found.image_id[order], return_index=True)
    if unknown := [int(id_) for id_ in ids if int(id_) not in row_of_view]:
        raise DataError(
            f"{where}: has results of {len(unknown):,} images that are no views, such as image_id {unknown[0]}; "
            "expected the ids of views.json"
        )
    rows_of_view: dict[int, npt.NDArray[np.int64]] = dict(
        zip(ids.tolist(), np.split(order, starts[1:]) if len(ids) else [], strict=True)
    )
    image_id = index.table["image_id"].to_numpy()
    ends = np.flatnonzero(np.diff(image_id, append=image_id[-1:] - 1)) + 1
    start = 0
    for end in ends.tolist():
        seen: list[tuple[View, Output]] = []
        for row in range(start, end):
            rows = rows_of_view.get(columns["view_id"][row], np.empty(0, np.int64))
            output = (
                found.boxes[rows].astype(np.float32),
                found.scores[rows].astype(np.float32),
                found.category_id[rows],
            )
            seen.append((_view(columns, row), output))
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
