"""Annotation files as flat columns, with what is wrong in them sorted out."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.coco.records import Reject, SourceImage
from pipeline.coco.rows import Rows
from schemas.arrays import BoolArray, FloatArray, IntArray
from schemas.codes import Fate, Reason
from schemas.tables import REJECTS


class RefusedImage(NamedTuple):
    """An image record that is not in order, for the ledger; None where the record gives no usable value."""

    id: int | None
    file_name: str | None
    width: int | None
    height: int | None
    reason: Reason

    @classmethod
    def of(
        cls, id_: int | None, file_name: str | None, width: int | None, height: int | None, reason: str
    ) -> "RefusedImage":
        """Make a row of plain values."""
        return cls(id_, file_name, width, height, Reason(reason))


REFUSED_IMAGES = pa.schema(
    [
        ("id", pa.int64()),
        ("file_name", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("reason", pa.string()),
    ]
)


class RefusedBox(NamedTuple):
    """A source box that is not in order, for the ledger; ids are None where the record gives no integer."""

    row: int
    annotation_id: int | None
    image_id: int | None
    category_id: int | None
    fate: Fate  # refused itself, or its image was
    reason: Reason

    @classmethod
    def of(
        cls,
        row: int,
        annotation_id: int | None,
        image_id: int | None,
        category_id: int | None,
        fate: int,
        reason: str,
    ) -> "RefusedBox":
        """Make a row of plain values."""
        return cls(row, annotation_id, image_id, category_id, Fate(fate), Reason(reason))


REFUSED_BOXES = pa.schema(
    [
        ("row", pa.int64()),
        ("annotation_id", pa.int64()),
        ("image_id", pa.int64()),
        ("category_id", pa.int64()),
        ("fate", pa.int8()),
        ("reason", pa.string()),
    ]
)


def no_rejects() -> Rows[Reject]:
    """Return an empty list of rows for rejects.parquet."""
    return Rows(Reject.of, REJECTS)


def no_refused_images() -> Rows[RefusedImage]:
    """Return an empty list of refused image records."""
    return Rows(RefusedImage.of, REFUSED_IMAGES)


def no_refused_boxes() -> Rows[RefusedBox]:
    """Return an empty list of refused boxes."""
    return Rows(RefusedBox.of, REFUSED_BOXES)


class AsWritten(NamedTuple):
    """Boxes as their records give them, for scoring, in the order of `Source.box`.

    Attributes:
        xywh: float64 [N, 4], x y width height, source pixels, not clipped.
        area: float64 [N], the field `area`; NaN where there is none, -1 where it is no finite number.
    """

    xywh: FloatArray
    area: FloatArray


@dataclass(frozen=True)
class Source:
    """Annotation files as flat columns. Images are sorted by id, boxes by image and then by row.

    Some 49 bytes per box, and 40 per image and its name. A box is known by its row; ids of annotations may repeat.

    Attributes:
        image_id: int64 [n]; file_name: Arrow large_string [n]; width, height: int64 [n], pixels as annotated.
        offsets: int64 [n + 1]; image i has boxes offsets[i] to offsets[i + 1].
        row: uint32 [N] (int64 when read back from a ledger), position in the list of annotations, from 0; of several
            files the rows of the second follow those of the first.
        annotation_id: int64 [N]; the row within the file where the record has no id that is an integer.
        label: int32 [N], position of the category in `categories`, from 1.
        box: float64 [N, 4], x1 y1 x2 y2, source pixels, clipped to the image; as read from a file it is stored by
            columns. crowd: bool [N].
        categories: (id, name) sorted by id.
        rejects: rows for rejects.parquet found while reading, images first, then in file order.
        refused_images: image records that are not in order.
        refused_boxes: boxes that are not in order, or belong to a refused image record.
        num_clipped: boxes that reached beyond the image and were clipped.
        notes: what was read otherwise than it is written, one line each; nothing is wrong with the result.
        warnings: lines about what is probably a mistake of the file although it can be read.
        as_written: the boxes as their records give them, where that was asked for.
        ignored: ids of the categories that were to be ignored. Their boxes are crowd, and of no class in particular.
    """

    image_id: IntArray
    file_name: pa.Array
    width: IntArray
    height: IntArray
    offsets: IntArray
    row: npt.NDArray[np.uint32] | IntArray
    annotation_id: IntArray
    label: npt.NDArray[np.int32]
    box: FloatArray
    crowd: BoolArray
    categories: list[tuple[int, str]]
    rejects: Rows[Reject] = field(default_factory=no_rejects)
    refused_images: Rows[RefusedImage] = field(default_factory=no_refused_images)
    refused_boxes: Rows[RefusedBox] = field(default_factory=no_refused_boxes)
    num_clipped: int = 0
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    as_written: AsWritten | None = None
    ignored: list[int] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """Images in order."""
        return len(self.image_id)

    @cached_property
    def category_of_label(self) -> IntArray:
        """Category ids, int64 [K + 1], by label; label 0 is background and has none, here 0."""
        return np.array([0, *(category_id for category_id, _ in self.categories)], np.int64)

    def images(self, start: int, stop: int) -> list[SourceImage]:
        """Return the records of images [start, stop)."""
        columns = (self.image_id, self.width, self.height)
        ids, widths, heights = (column[start:stop].tolist() for column in columns)
        names = self.file_name[start:stop].to_pylist()
        return [SourceImage(*record) for record in zip(ids, names, widths, heights, strict=True)]

    def span(self, start: int, stop: int) -> "Source":
        """Return images [start, stop) and their boxes alone, without what was refused."""
        offsets = self.offsets[start : stop + 1]
        boxes = slice(int(offsets[0]), int(offsets[-1]))
        return Source(
            image_id=self.image_id[start:stop],
            file_name=self.file_name.take(pa.array(np.arange(start, stop))),  # a slice would be pickled with the rest
            width=self.width[start:stop],
            height=self.height[start:stop],
            offsets=offsets - boxes.start,
            row=self.row[boxes],
            annotation_id=self.annotation_id[boxes],
            label=self.label[boxes],
            box=self.box[boxes],
            crowd=self.crowd[boxes],
            categories=self.categories,
        )


def find_ids(among: IntArray, ids: IntArray) -> tuple[IntArray, BoolArray]:
    """Return where int64 ids [m] stand in a sorted array, int64 [m], and whether they do, bool [m]."""
    if not len(among):
        return np.zeros(len(ids), np.int64), np.zeros(len(ids), np.bool_)
    positions = np.minimum(np.searchsorted(among, ids), len(among) - 1)
    return positions, among[positions] == ids
