"""What was found on many images, as columns: 36 bytes a box, where a list of dicts takes twenty times as much."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.coco.checks.boxes import Tally
from pipeline.coco.checks.remarks import of_coordinates
from pipeline.coco.source import find_ids
from pipeline.pyramid.merging import Detections
from pipeline.storage import Location, atomic_file, is_file, is_folder, read_bytes, read_range, refuse_inputs
from schemas.arrays import Float32Array, FloatArray, IntArray
from schemas.errors import DataError, MissingError, UsageError

BLOCK = 10_000  # boxes that are written to a file at a time


class CocoResults(NamedTuple):
    """Boxes as a file of COCO results has them.

    Attributes:
        image_id: int64 [N].
        category_id: int64 [N]; None where there is no box, or classes do not matter as for proposals.
        boxes: float32 [N, 4], x1 y1 x2 y2, source pixels.
        scores: float32 [N].
    """

    image_id: IntArray
    category_id: IntArray | None
    boxes: Float32Array
    scores: Float32Array

    def take(self, rows: npt.NDArray[Any] | slice) -> "CocoResults":
        """Return some of the boxes, in the order of `rows`."""
        return CocoResults._make(None if column is None else column[rows] for column in self)

    def xywh(self) -> FloatArray:
        """Return the boxes as x y width height, float64 [N, 4]."""
        boxes = self.boxes.astype(np.float64)
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield {"image_id", "category_id", "bbox": [x, y, width, height], "score"} for each box.

        Scores have the fewest digits that name their float32 number: 0.9, not 0.8999999761581421. Boxes have all, so
        that their corners come back exactly.
        """
        names = ("image_id", "category_id", "bbox", "score")
        scores = self.scores.astype(np.str_).astype(np.float64)
        columns = (self.image_id, self.category_id, self.xywh(), scores)
        there = [(name, column) for name, column in zip(names, columns, strict=True) if column is not None]
        for values in zip(*(column.tolist() for _, column in there), strict=True):
            yield dict(zip((name for name, _ in there), values, strict=True))


def of_image(image_id: int, found: Detections, ids: Sequence[int | None]) -> CocoResults:
    """Turn the detections of an image into COCO results.

    Args:
        image_id: id of the image.
        found: its merged detections.
        ids: category ids by label from 1; what has none is left out.
    """
    known = np.array([False, *(category_id is not None for category_id in ids)])
    category_ids = np.array([0, *(category_id or 0 for category_id in ids)], np.int64)
    kept = known[found.labels]
    labels = found.labels[kept]
    return CocoResults(
        np.full(len(labels), image_id, np.int64), category_ids[labels], found.boxes[kept], found.scores[kept]
    )


def join_results(parts: Sequence[CocoResults]) -> CocoResults:
    """Join the results of images, or of ranks, into one; within an image the order stays, images ascend by id."""
    parts = [part for part in parts if len(part.scores)]
    if not parts:
        return CocoResults(np.empty(0, np.int64), None, np.empty((0, 4), np.float32), np.empty(0, np.float32))
    columns = [None if column[0] is None else np.concatenate(column) for column in zip(*parts, strict=True)]
    joined = CocoResults._make(columns)
    return joined.take(np.argsort(joined.image_id, kind="stable"))


Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Record(msgspec.Struct):
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    score: float


def read_results(path: Location) -> CocoResults:
    """Read a file of COCO results with classes, as `sniper evaluate --out` or another program wrote it.

    Ids and other numbers may be written as text, and ids as 7.0, as in annotation files.

    Raises:
        DataError: it is not there, or holds anything else. OSError: it cannot be read.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file of results") from error
    try:
        records = msgspec.json.decode(content, type=list[_Record], strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        odd = " (NaN and Infinity are no JSON)" if re.search(rb"NaN|Infinity", content) else ""
        if "got `str`" in str(error) and "image_id" in str(error):
            odd = "; ids are the annotation file's, which `sniper detect --results` writes if it has --annotations"
        raise DataError(
            f"{path}: expected COCO results, a list of image_id, category_id, bbox and score, as `sniper evaluate "
            f"--out` writes it: {error}{odd}"
        ) from error
    boxes = np.array([record.bbox for record in records], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([record.score for record in records], np.float64)
    most = np.finfo(np.float32).max
    if (odd_rows := np.flatnonzero(~((np.abs(boxes) <= most).all(axis=1) & (np.abs(scores) <= most)))).size:
        raise DataError(
            f"{path}: record {odd_rows[0] + 1} has a box or a score that no float32 number holds; mend it, or leave "
            "it out"
        )
    return CocoResults(
        np.array([record.image_id for record in records], np.int64),
        np.array([record.category_id for record in records], np.int64),
        boxes.astype(np.float32),
        scores.astype(np.float32),
    )


def misread(results: CocoResults, image_id: IntArray, width: IntArray, height: IntArray, place: Location) -> list[str]:
    """Return a remark if the boxes of results are probably shares of the image, or corners.

    Args:
        results: as another program wrote them.
        image_id: int64 [n], ascending, ids of the images; results of other images are passed over.
        width, height: int64 [n], of these images, pixels.
        place: the file of the results, for the remark.
    """
    position, is_known = find_ids(image_id, results.image_id)
    xywh, position = results.xywh()[is_known], position[is_known]
    high = np.stack([width[position], height[position]], axis=1)
    beyond = (xywh[:, :2] < 0) | (xywh[:, :2] + xywh[:, 2:] > high)
    tally = Tally()
    tally.count(xywh, beyond[:, 0] | beyond[:, 1])
    return [f"{place}: {line}" for line in of_coordinates(tally)]


def summary_file(out: Location) -> Location:
    """Return the file for the scores, beside the one for what was found."""
    return out.with_suffix(".summary.json")


def check_out(out: Location, read: Sequence[Location]) -> None:
    """Look, before any work, whether results and the summary beside them may be written to a place.

    Args:
        out: file for the results.
        read: files that are read.

    Raises:
        UsageError: one of those would be replaced, or `out` is a folder or a file that holds no results.
    """
    refuse_inputs((out, summary_file(out)), read)
    if is_folder(out):
        raise UsageError(f"{out}: is a folder; give a file for what is found, such as {out}/found.json, as --out")
    if is_file(out) and not read_range(out, 0, 12).startswith((b'[{"image_id"', b"[]")):
        raise UsageError(
            f"{out}: is there, and holds no results of this command; choose another --out, or move it away"
        )


def write_results(path: Location, results: CocoResults) -> None:
    """Write a file of COCO results, whole or not at all."""
    with atomic_file(path) as file:
        file.write(b"[")
        for start in range(0, len(results.scores), BLOCK):
            block = list(results.take(slice(start, start + BLOCK)).records())
            file.write((b", " if start else b"") + json.dumps(block)[1:-1].encode())
        file.write(b"]")
