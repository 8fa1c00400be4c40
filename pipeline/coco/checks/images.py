"""Checks the image records of a COCO file and turns those in order into columns."""

import posixpath
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_64_intdigest

from pipeline.coco.checks.ids import StringIds, id_or_none, is_id, is_text, repeated_ids, shown
from pipeline.coco.file import Image
from pipeline.coco.source import RefusedImage, Reject, is_tiff
from schemas.arrays import IntArray
from schemas.codes import Reason
from schemas.errors import MORE_PIXELS


class Images(NamedTuple):
    """The image records of a file.

    Attributes:
        image_id, width, height: int64 [n], those in order, sorted by id; file_name: Arrow large_string [n].
        refused: the others, in file order, and a reject for each.
        string_ids: of all records; repeated_ids: a line where an id occurs twice. Where there is either, the file
            cannot be used, and the columns hold nothing of worth.
        num_records: all of them.
    """

    image_id: IntArray
    file_name: pa.Array
    width: IntArray
    height: IntArray
    refused: list[RefusedImage]
    rejects: list[Reject]
    string_ids: StringIds
    repeated_ids: list[str]
    num_records: int


class _Columns(NamedTuple):
    """Images in order so far; the arrays int64 [n], file_name Arrow large_string [n], one array or chunks.

    Attributes:
        file: uint64 [n], a hash of file_name in its shortest form: the same for the same file.
    """

    row: IntArray
    image_id: IntArray
    width: IntArray
    height: IntArray
    file: npt.NDArray[np.uint64]
    file_name: pa.Array


class _Fault(NamedTuple):
    refused: RefusedImage
    message: str


def check_images(runs: Iterable[list[Any]], max_pixels: int | None) -> Images:
    """Check image records, given in runs; those annotated with more than `max_pixels` are refused."""
    faults: dict[int, _Fault] = {}
    parts = [_odd_columns([], np.empty(0, np.int64))]
    none = np.empty(0, np.int64)
    ids, id_rows = [none], [none]  # of all records that have one
    strings = StringIds("images", "id")
    num_records = 0
    for run in runs:
        rows = np.arange(num_records, num_records + len(run))
        part = _columns(run, rows, max_pixels)
        if part is not None:
            ids.append(part.image_id)
            id_rows.append(rows)
        else:  # some are not in order
            strings.look(run, num_records)
            with_id = np.array([is_id(getattr(record, "id", None)) for record in run], np.bool_)
            ids.append(np.array([run[i].id for i in np.flatnonzero(with_id)], np.int64))
            id_rows.append(rows[with_id])
            found = [_fault(record, max_pixels) for record in run]
            faults |= {int(row): fault for row, fault in zip(rows, found, strict=True) if fault is not None}
            in_order = [i for i, fault in enumerate(found) if fault is None]
            part = _odd_columns([run[i] for i in in_order], rows[in_order])
        parts.append(part)
        num_records += len(run)
    repeated = repeated_ids("images", np.concatenate(ids), np.concatenate(id_rows))
    columns = _joined(parts)
    del parts, ids, id_rows
    if not repeated and not strings.count:
        columns = _without_repeats(columns, faults)
        columns = _sorted(columns)
    found_faults = sorted(faults.items())
    return Images(
        columns.image_id,
        columns.file_name.combine_chunks(),
        columns.width,
        columns.height,
        [fault.refused for _, fault in found_faults],
        [
            Reject("image", fault.refused.id, fault.refused.file_name, fault.refused.reason, f"images[{row}]: {text}")
            for row, fault in found_faults
            for text in [fault.message]
        ],
        strings,
        repeated,
        num_records,
    )


def _columns(run: list[Any], rows: IntArray, max_pixels: int | None) -> _Columns | None:
    """The columns of a run; None where any of its records may not be in order, or needs a closer look."""
    if set(map(type, run)) != {Image}:
        return None
    ids, names = [r.id for r in run], [r.file_name for r in run]
    widths, heights = [r.width for r in run], [r.height for r in run]
    if not set(map(type, ids)) == set(map(type, widths)) == set(map(type, heights)) == {int}:
        return None
    if set(map(type, names)) != {str} or not all(names):
        return None
    # between line feeds, so that starts and ends are seen in one search
    joined = "\n" + "\n".join(names) + "\n"
    if any(mark in joined for mark in ("\\", ":", "..", "\0", "//", "./", "\n/", "/\n", "/.\n")):
        return None
    try:
        joined.encode()  # fails at half a letter
        image_id, width, height = (np.array(values, np.int64) for values in (ids, widths, heights))
    except (OverflowError, UnicodeEncodeError):
        return None
    if min(width.min(), height.min()) <= 0 or max(width.max(), height.max()) >= 2**31:
        return None
    if max_pixels is not None and (width * height).max() > max_pixels:
        return None
    return _Columns(rows, image_id, width, height, _hashes(names), pa.array(names, pa.large_string()))


def _odd_columns(records: list[Image], rows: IntArray) -> _Columns:
    """The columns of records that are in order, one by one."""
    names = [r.file_name for r in records]
    columns = np.array([(r.id, int(r.width), int(r.height)) for r in records], np.int64).reshape(-1, 3).T
    file = _hashes([posixpath.normpath(name) for name in names])
    return _Columns(rows, columns[0], columns[1], columns[2], file, pa.array(names, pa.large_string()))


def _hashes(names: list[str]) -> npt.NDArray[np.uint64]:
    return np.array([xxh3_64_intdigest(name.encode()) for name in names], np.uint64)


def _fault(r: Any, max_pixels: int | None) -> _Fault | None:
    """What is wrong with an image record by itself."""
    found = _reason(r, max_pixels)
    if found is None:
        return None
    reason, message = found
    if not isinstance(r, Image):
        return _Fault(RefusedImage(None, None, None, None, reason), message)
    file_name = r.file_name if is_text(r.file_name) else None
    width = int(r.width) if _is_side(r.width) else None
    height = int(r.height) if _is_side(r.height) else None
    return _Fault(RefusedImage(id_or_none(r.id), file_name, width, height, reason), message)


def _reason(r: Any, max_pixels: int | None) -> tuple[Reason, str] | None:
    if not isinstance(r, Image):
        return Reason.BAD_RECORD, f"is {shown(r)}; expected an object"
    if not is_id(r.id):
        return Reason.BAD_RECORD, f"id is {shown(r.id)}; expected an integer"
    if not is_text(r.file_name) or not r.file_name:
        return Reason.BAD_RECORD, f"file_name is {shown(r.file_name)}; expected a path"
    if not (_is_side(r.width) and _is_side(r.height)):
        found = f"{shown(r.width)}, {shown(r.height)}"
        return Reason.BAD_RECORD, f"width, height are {found}; expected whole numbers of pixels"
    # a large TIFF may be one that is read by windows, which shows when it is opened
    if max_pixels is not None and r.width * r.height > max_pixels and not is_tiff(r.file_name):
        return (
            Reason.TOO_MANY_PIXELS,
            f"is annotated as {r.width}x{r.height}, more than {max_pixels:,} pixels; {MORE_PIXELS}",
        )
    if not _is_safe(r.file_name):
        return (
            Reason.UNSAFE_PATH,
            f"file_name {r.file_name!r} is absolute or has `..` in it; make it relative to the image folder",
        )
    return None


def _is_side(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 2**31 and value == int(value)


def _is_safe(file_name: str) -> bool:
    parts = file_name.replace("\\", "/").split("/")
    return not (parts[0] == "" or parts[0].endswith(":") or ".." in parts or "\0" in file_name)


def _joined(parts: list[_Columns]) -> _Columns:
    """The runs' columns end to end."""
    return _Columns(
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.image_id for part in parts]),
        np.concatenate([part.width for part in parts]),
        np.concatenate([part.height for part in parts]),
        np.concatenate([part.file for part in parts]),
        pa.chunked_array([part.file_name for part in parts], pa.large_string()),
    )


def _without_repeats(columns: _Columns, faults: dict[int, _Fault]) -> _Columns:
    """Only the first image with each file; the others become faults."""
    hashes = np.sort(columns.file)
    doubtful = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    is_first = np.ones(len(columns.row), np.bool_)
    first_with: dict[str, int] = {}  # file in its shortest form -> row
    for i in np.flatnonzero(np.isin(columns.file, doubtful)).tolist() if len(doubtful) else []:
        name, row = columns.file_name[i].as_py(), int(columns.row[i])
        earlier = first_with.setdefault(posixpath.normpath(name), row)
        if earlier == row:
            continue
        is_first[i] = False
        size = int(columns.width[i]), int(columns.height[i])
        refused = RefusedImage(int(columns.image_id[i]), name, *size, Reason.REPEATED_FILE)
        message = f"file_name {name!r} is that of images[{earlier}] too; the first is kept"
        faults[row] = _Fault(refused, message)
    return columns if is_first.all() else _taken(columns, np.flatnonzero(is_first))


def _sorted(columns: _Columns) -> _Columns:
    """By id, which no two share."""
    if (columns.image_id[1:] > columns.image_id[:-1]).all():
        return columns
    return _taken(columns, np.argsort(columns.image_id))


def _taken(columns: _Columns, places: IntArray) -> _Columns:
    return _Columns(
        columns.row[places],
        columns.image_id[places],
        columns.width[places],
        columns.height[places],
        columns.file[places],
        columns.file_name.take(pa.array(places)),
    )
