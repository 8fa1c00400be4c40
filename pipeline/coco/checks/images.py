"""Checks the image records of a COCO file and turns those in order into columns."""

import posixpath
from array import array
from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.coco.checks.values import (
    ABSENT,
    Seen,
    id_or_none,
    repeated_ids,
    repeats,
    shifted,
    shown,
    whole,
    why_no_id,
)
from pipeline.coco.records import is_text, is_tiff
from pipeline.coco.rows import Rows
from pipeline.coco.source import REFUSED_IMAGES, RefusedImage
from schemas.arrays import IntArray
from schemas.codes import Reason
from schemas.errors import MORE_PIXELS

BATCH = 4096  # names

REPEATED = "{count} image records repeat the id, name and size of another (first id {example}); each is read once"
FROM_URL = "{count} images have no file_name but a coco_url; its path is the file's name (first {example})"


class ImageFault(NamedTuple):
    """An image record that is not in order: its row, what it gives as far as it is usable, and what is wrong."""

    row: int
    id: int | None
    file_name: str | None
    width: int | None
    height: int | None
    reason: str  # schemas.codes.Reason
    message: str

    def refused(self, shift: int) -> RefusedImage:
        """Return it for the ledger, with `shift` added to its id."""
        image_id = shifted(self.id, shift)
        return RefusedImage(image_id, self.file_name, self.width, self.height, Reason(self.reason))


FAULTS = pa.schema([pa.field("row", pa.int64()), *REFUSED_IMAGES, pa.field("message", pa.string())])


class Images(NamedTuple):
    """The image records of a file.

    Attributes:
        image_id, width, height: int64 [n], those in order, sorted by id; file_name: Arrow large_string [n].
        faults: the others, in file order.
        repeated: a line where an id occurs twice. Where there is one, the file cannot be used.
        num_records: all of them.
    """

    image_id: IntArray
    file_name: pa.Array
    width: IntArray
    height: IntArray
    faults: Rows[ImageFault]
    repeated: list[str]
    num_records: int

    def below(self, folder: str) -> "Images":
        """Return the same images with a folder put before their file names; "" is none."""
        if not folder:
            return self
        start, slash = (pa.scalar(text, pa.large_string()) for text in (folder, "/"))
        moved = (fault._replace(file_name=fault.file_name and f"{folder}/{fault.file_name}") for fault in self.faults)
        return self._replace(
            file_name=pc.binary_join_element_wise(start, self.file_name, slash),
            faults=Rows(ImageFault, FAULTS).plus(moved),
        )


class _Columns:
    """Images in order so far, in file order."""

    def __init__(self) -> None:
        self.row, self.id, self.width, self.height = array("q"), array("q"), array("q"), array("q")
        self.name_hash = array("q")  # of the name in its shortest form
        self._names: list[pa.Array] = []
        self._batch: list[str] = []

    def append(self, row: int, image_id: int, width: int, height: int, name: str) -> None:
        self.row.append(row)
        self.id.append(image_id)
        self.width.append(width)
        self.height.append(height)
        self.name_hash.append(hash(posixpath.normpath(name)))
        self._batch.append(name)
        if len(self._batch) == BATCH:
            self._names.append(pa.array(self._batch, pa.large_string()))
            self._batch = []

    def take_names(self) -> pa.Array:
        """Return the names as one array; they are gone here."""
        names, self._names = [*self._names, pa.array(self._batch, pa.large_string())], []
        return pa.chunked_array(names).combine_chunks()


def check_images(records: Iterable[Any], max_pixels: int | None, seen: Seen) -> Images:
    """Check image records, given in file order.

    Args:
        records: as the JSON has them.
        max_pixels: images annotated with more are refused.
        seen: counts what is read otherwise than it is written.
    """
    images = _Columns()
    faults: Rows[ImageFault] = Rows(ImageFault, FAULTS)
    refused: set[int] = set()  # hashes of what faults say
    num_records = num_urls = 0
    for row, record in enumerate(records):
        num_records += 1
        if not isinstance(record, dict):
            message = f"is {shown(record)}; expected an object"
            faults.append(ImageFault(row, None, None, None, None, Reason.BAD_RECORD, message))
            continue
        image_id = whole(record.get("id"), "ids of images", seen)
        width, height = (whole(record.get(side), "widths and heights", seen) for side in ("width", "height"))
        name: Any = record.get("file_name")
        if name is None and is_text(record.get("coco_url")):
            name = url_path(str(record["coco_url"]))
            num_urls += 1
        found = _fault(record, image_id, name, width, height, max_pixels)
        if found is None:
            images.append(row, image_id, width, height, name)
        else:
            w, h = (side if 0 < side < 2**31 else None for side in (width, height))
            fault = ImageFault(row, id_or_none(image_id), name if is_text(name) else None, w, h, *found)
            said = hash(fault[1:])
            if fault.id is not None and said in refused:
                seen.add(REPEATED, fault.id)
            else:
                refused.add(said)
                faults.append(fault)
    file_name = images.take_names()
    if num_urls:
        if num_urls == num_records:
            file_name = less_common_folder(file_name)
        seen.add(FROM_URL, file_name[0].as_py() if len(file_name) else None, num_urls)
    return _sorted(images, file_name, faults, num_records, seen)


def _fault(
    record: dict[str, Any], image_id: int, name: Any, width: int, height: int, max_pixels: int | None
) -> tuple[str, str] | None:
    """Tell what is wrong with an image record by itself: the reason and a message."""
    if image_id == ABSENT:
        return Reason.BAD_RECORD, f"id is {why_no_id(record.get('id'))}"
    if not is_text(name) or not name:
        return Reason.BAD_RECORD, f"file_name is {shown(record.get('file_name'))}; expected a path"
    if not (0 < width < 2**31 and 0 < height < 2**31):
        found = f"{shown(record.get('width'))}, {shown(record.get('height'))}"
        return Reason.BAD_RECORD, f"width, height are {found}; expected whole numbers of pixels"
    # a large TIFF may be one that is read by windows, which shows when it is opened
    if max_pixels is not None and width * height > max_pixels and not is_tiff(name):
        found = f"{width}x{height}, more than {max_pixels:,} pixels"
        return Reason.TOO_MANY_PIXELS, f"is annotated as {found}; {MORE_PIXELS}"
    if not _is_safe(name):
        message = f"file_name {name!r} is absolute or has `..` in it; make it relative to the image folder"
        return Reason.UNSAFE_PATH, message
    return None


def _is_safe(file_name: str) -> bool:
    parts = file_name.replace("\\", "/").split("/")
    return not (parts[0] == "" or parts[0].endswith(":") or ".." in parts or "\0" in file_name)


def url_path(url: str) -> str:
    """Return the path of a coco_url without detours, for a file name that is missing; "" of what is no URL."""
    try:
        return posixpath.normpath(f"/{unquote(urlsplit(url).path)}").lstrip("/")
    except ValueError:  # such as http://[
        return ""


def less_common_folder(file_name: pa.Array) -> pa.Array:
    """Cut off the folders that all names share: the names are those of URLs, which begin with the server's folders."""
    if not len(file_name):
        return file_name
    ends = pc.min_max(file_name)  # what the first and the last have in common, all between them have
    first, last = ends["min"].as_py(), ends["max"].as_py()
    common = posixpath.commonpath([posixpath.dirname(first), posixpath.dirname(last)])
    return pc.utf8_slice_codeunits(file_name, len(common) + 1) if common else file_name


def _sorted(images: _Columns, file_name: pa.Array, faults: Rows[ImageFault], num_records: int, seen: Seen) -> Images:
    """Sort the images by id, take repeated ones once, and refuse those whose file an image before them has."""
    rows, ids, widths, heights, name_hash = (
        np.frombuffer(column, np.int64)
        for column in (images.row, images.id, images.width, images.height, images.name_hash)
    )
    again = _said_again(ids, widths, heights, file_name)
    if len(again):
        seen.add(REPEATED, int(ids[again[0]]), len(again))
        once = np.delete(np.arange(len(ids)), again)
        rows, ids, widths, heights, name_hash = (column[once] for column in (rows, ids, widths, heights, name_hash))
        file_name = file_name.take(pa.array(once))
    repeated = _repeated(rows, ids, faults)
    order = np.argsort(ids, kind="stable")
    if not repeated and len(places := _repeated_files(name_hash, file_name)):
        repeats_file = (
            ImageFault(
                int(rows[place]),
                int(ids[place]),
                file_name[place].as_py(),
                int(widths[place]),
                int(heights[place]),
                Reason.REPEATED_FILE,
                f"file_name {file_name[place].as_py()!r} is that of images[{rows[first]}] too; the first is kept",
            )
            for place, first in places.tolist()
        )
        faults = Rows(ImageFault, FAULTS).plus(merge(faults, repeats_file))
        order = order[~np.isin(order, places[:, 0])]
    names = file_name.take(pa.array(order))
    return Images(ids[order], names, widths[order], heights[order], faults, repeated, num_records)


def _said_again(ids: IntArray, widths: IntArray, heights: IntArray, file_name: pa.Array) -> IntArray:
    """Find the images that repeat the one of the same id before them, in size and name too; places int64 [m]."""
    if not len(repeats(ids)):
        return np.zeros(0, np.int64)
    order = np.argsort(ids, kind="stable")
    before, after = order[:-1], order[1:]
    is_same = np.logical_and.reduce([column[before] == column[after] for column in (ids, widths, heights)])
    before, after = before[is_same], after[is_same]
    same_name = pc.equal(file_name.take(pa.array(before)), file_name.take(pa.array(after)))
    return np.sort(after[same_name.to_numpy(zero_copy_only=False)])


def _repeated(rows: IntArray, ids: IntArray, faults: Rows[ImageFault]) -> list[str]:
    """Return at most one line: an id that several images have, in order or refused, as `repeated_ids` tells it."""
    others = np.fromiter(_with_ids(faults), np.dtype((np.int64, 2)))
    if len(others):
        rows, ids = np.append(rows, others[:, 0]), np.append(ids, others[:, 1])
        order = np.argsort(rows)
        rows, ids = rows[order], ids[order]
    return repeated_ids("images", ids, rows)


def _with_ids(faults: Rows[ImageFault]) -> Iterator[tuple[int, int]]:
    return ((fault.row, fault.id) for fault in faults if fault.id is not None)


def _repeated_files(name_hash: IntArray, file_name: pa.Array) -> npt.NDArray[np.int64]:
    """Find the images whose file an image before them has; int64 [m, 2], the places of both."""
    doubtful = repeats(name_hash)
    again: list[tuple[int, int]] = []
    first_with: dict[str, int] = {}  # name in its shortest form -> place
    for place in np.flatnonzero(np.isin(name_hash, doubtful)).tolist() if len(doubtful) else []:
        first = first_with.setdefault(posixpath.normpath(file_name[place].as_py()), place)
        if first != place:
            again.append((place, first))
    return np.array(again, np.int64).reshape(-1, 2)
