"""An annotation file as flat columns, with what is wrong in it sorted out. Polygons are never parsed."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.arrays import IntArray
from schemas.codes import Fate, Reason


class Reject(NamedTuple):
    """A refused image or box: one row of rejects.parquet."""

    kind: str  # image or annotation
    id: int | None
    file: str | None
    reason: Reason
    message: str


class RefusedBox(NamedTuple):
    """A source box that is not in order, for the ledger; ids are None where the record gives no integer."""

    row: int
    annotation_id: int | None
    image_id: int | None
    category_id: int | None
    fate: Fate  # refused itself, or its image was
    reason: Reason


class SourceImage(NamedTuple):
    image_id: int
    file_name: str
    width: int  # as annotated, pixels
    height: int

    @property
    def is_tiff(self) -> bool:
        """Whether the name is that of a TIFF, which is read by windows where it is large."""
        return is_tiff(self.file_name)


def is_tiff(file_name: str) -> bool:
    """Tell whether a file is a TIFF by its name."""
    return file_name.lower().endswith((".tif", ".tiff"))


@dataclass(frozen=True)
class Source:
    """An annotation file as flat columns. Images are sorted by id, boxes by image and then by row.

    Some 49 bytes per box, and 40 per image and its name.

    Attributes:
        image_id: int64 [n]; file_name: Arrow large_string [n]; width, height: int64 [n], pixels as annotated.
        offsets: int64 [n + 1]; image i has boxes offsets[i] to offsets[i + 1].
        row: uint32 [N], position in the file's list of annotations, from 0; int64 where that does not hold it.
        annotation_id: int64 [N]; label: int32 [N], position of the category in `categories`, from 1.
        box: float64 [N, 4], x1 y1 x2 y2, source pixels, clipped to the image; crowd: bool [N].
        categories: (id, name) sorted by id.
        rejects: rows for rejects.parquet found while reading, in file order, images first.
        refused_images: (id, file_name, width, height, reason) of image records that are not in order.
        refused_boxes: boxes that are not in order, or belong to a refused image record.
        num_clipped: boxes that reached beyond the image and were clipped.
        notes: remarks a user should see that refuse nothing.
    """

    image_id: npt.NDArray[np.int64]
    file_name: pa.Array
    width: npt.NDArray[np.int64]
    height: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    row: npt.NDArray[np.uint32] | npt.NDArray[np.int64]
    annotation_id: npt.NDArray[np.int64]
    label: npt.NDArray[np.int32]
    box: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]
    categories: list[tuple[int, str]]
    rejects: list[Reject] = field(default_factory=list)
    refused_images: list["RefusedImage"] = field(default_factory=list)
    refused_boxes: list[RefusedBox] = field(default_factory=list)
    num_clipped: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        return len(self.image_id)

    @cached_property
    def category_of_label(self) -> npt.NDArray[np.int64]:
        """Category ids, int64 [K + 1], by label; label 0 is background and has none, here 0."""
        return np.array([0, *(category_id for category_id, _ in self.categories)], np.int64)

    def images(self, start: int, stop: int) -> list[SourceImage]:
        """The records of images [start, stop)."""
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


class RefusedImage(NamedTuple):
    id: int | None
    file_name: str | None
    width: int | None
    height: int | None
    reason: Reason


def describe_rejects(rejects: Iterable[Reject], limit: int | None = 5) -> list[str]:
    """Lines for a person: each reason with its count and up to `limit` examples; None: all."""
    groups: dict[tuple[str, str], list[Reject]] = {}
    for reject in rejects:
        groups.setdefault((reject.kind, reject.reason), []).append(reject)
    lines = []
    for (kind, reason), group in sorted(groups.items(), key=lambda item: (item[0][0] != "image", -len(item[1]))):
        lines.append(f"{len(group)} {kind}{'s' if len(group) > 1 else ''}: {reason}")
        lines += [f"    {reject.message}" for reject in group[:limit]]
        if limit is not None and len(group) > limit:
            lines.append(f"    ... and {len(group) - limit} more")
    return lines


def find_ids(among: IntArray, ids: IntArray) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Where int64 ids [m] stand in a sorted array, and whether they do."""
    if not len(among):
        return np.zeros(len(ids), np.int64), np.zeros(len(ids), np.bool_)
    positions = np.minimum(np.searchsorted(among, ids), len(among) - 1)
    return positions, among[positions] == ids
