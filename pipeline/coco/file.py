"""The records of a COCO file, run by run: memory holds a run at a time, whatever the file's size.

A file whose brackets do not lead to its records (it is not JSON, or not UTF-8) is parsed whole instead, so that one
parser has the last word on what is wrong with it.
"""

import json
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.coco.records import File, outline, read_range
from pipeline.storage import Location
from schemas.errors import DataError

LISTS = ("images", "annotations", "categories")


class Image(msgspec.Struct, gc=False):
    id: Any = None
    file_name: Any = None
    width: Any = None
    height: Any = None


class Annotation(msgspec.Struct, gc=False):
    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    iscrowd: Any = 0


class Category(msgspec.Struct, gc=False):
    id: Any = None
    name: Any = None


# A record that is not an object is read as what it is and refused alone, like any other bad record.
_NotAnObject = bool | int | float | str | list[Any] | None

_RECORDS: dict[str, Any] = {
    "images": list[Image | _NotAnObject],
    "annotations": list[Annotation | _NotAnObject],
    "categories": list[Category | _NotAnObject],
    "": list[msgspec.Raw],  # any other list: only whether it is JSON
}
_DECODERS = {name: msgspec.json.Decoder(records) for name, records in _RECORDS.items()}


class _File(msgspec.Struct):
    images: list[Image | _NotAnObject] | None = None
    annotations: list[Annotation | _NotAnObject] | None = None
    categories: list[Category | _NotAnObject] | None = None


class _Rest(msgspec.Struct):
    """A file whose lists hold their number instead of records."""

    images: Any = None
    annotations: Any = None
    categories: Any = None


class CocoFile(NamedTuple):
    """An annotation file's lists.

    Attributes:
        present: names of the lists it has.
        num_annotations: annotation records, or one more.
        runs: name of a list -> its records in order, some thousand at a time; none where it is not present. Raises
            NotPlainError.
    """

    present: set[str]
    num_annotations: int
    runs: Callable[[str], Iterator[list[Any]]]


class NotPlainError(Exception):
    """The file must be parsed whole, if it can be."""


@contextmanager
def streamed(path: Path) -> Iterator[CocoFile]:
    """Open an annotation file to read it run by run.

    Raises:
        NotPlainError: here or while runs are drawn; OSError: the file cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise NotPlainError  # a pipe gives its bytes but once
    with path.open("rb", buffering=0) as file:
        found = outline(file)
        if found is None:
            raise NotPlainError
        numbers = _numbers(found.rest)
        of_list = {name: found.runs[found.runs[:, 0] == number] for name, number in numbers.items()}
        others = found.runs[~np.isin(found.runs[:, 0], list(numbers.values()))]
        for _ in _parsed(file, others, ""):
            pass  # it is JSON
        num_annotations = int(of_list["annotations"][:, 3].sum()) if "annotations" in of_list else 0

        def runs(name: str) -> Iterator[list[Any]]:
            return _parsed(file, of_list[name], name) if name in of_list else iter(())

        yield CocoFile(set(of_list), num_annotations, runs)


def _numbers(rest: bytes) -> dict[str, int]:
    """Name -> number, from a file whose lists hold their number alone."""
    try:
        content = msgspec.json.decode(rest, type=_Rest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        try:
            content = msgspec.convert(json.loads(rest), type=_Rest)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise NotPlainError from error
    marks = {name: getattr(content, name) for name in LISTS}
    if any(type(mark) is not list for mark in marks.values() if mark is not None):
        raise NotPlainError
    return {name: mark[0] for name, mark in marks.items() if mark is not None}


def _parsed(file: File, runs: npt.NDArray[np.int64], name: str) -> Iterator[list[Any]]:
    """The records of a list's runs (rows of records.Outline)."""
    for _, start, stop, num_records in runs.tolist():
        text = read_range(file, start - 1, stop + 1)  # with what stands before and behind: a bracket or a comma
        if len(text) != stop - start + 2:
            raise NotPlainError  # the file has become shorter
        text[0], text[-1] = ord("["), ord("]")
        records = _parse_run(text, name)
        if len(records) != num_records and (records or len(runs) > 1):
            raise NotPlainError
        yield records


def _parse_run(text: bytearray, name: str) -> list[Any]:
    try:
        records: list[Any] = _DECODERS[name].decode(text)
        return records
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # NaN and Infinity are not JSON but occur in the wild; so do 1e999 and lone surrogates
    try:
        records = json.loads(text.decode("utf-8", "surrogatepass"))
        return msgspec.convert(records, type=_RECORDS[name]) if name else records
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise NotPlainError from error


def parse_whole(path: Path, place: Location, run_records: int = 4096) -> CocoFile:
    """Parse a file at once, in memory that is a multiple of its size.

    Args:
        place: where the file came from, for messages.

    Raises:
        DataError: it is not a JSON object with lists; OSError: it cannot be read.
    """
    content = _parse_whole(path.read_bytes(), place)
    lists = {name: getattr(content, name) for name in LISTS if getattr(content, name) is not None}

    def runs(name: str) -> Iterator[list[Any]]:
        records = lists.get(name, [])
        return (records[start : start + run_records] for start in range(0, len(records), run_records))

    return CocoFile(set(lists), len(lists.get("annotations", [])), runs)


def _parse_whole(data: bytes, place: Location) -> _File:
    if not data.strip():
        raise DataError(f"{place}: the annotation file is empty; expected COCO JSON")
    if data.startswith(b"version https://git-lfs"):
        raise DataError(f"{place}: is a Git-LFS pointer, not the annotation file itself; fetch it with `git lfs pull`")
    try:
        return msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # as above; a byte-order mark too
    try:
        return msgspec.convert(json.loads(data), type=_File)
    except msgspec.ValidationError as error:
        raise DataError(
            f"{place}: expected a COCO object with the lists images, annotations and categories: {error}. "
            "Convert other formats to COCO first."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: is not valid JSON (truncated, or another format?): {error}. Expected a COCO annotation file."
        ) from error
