"""Looks at, lists and removes files in a folder of this machine or below any fsspec URL, such as s3://bucket/folder.

What a store answers badly (500, throttling, a time-out) is asked for again, with growing waits. A location may be
pickled, used by many threads at a time, and used on both sides of a fork.
"""

import fnmatch
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from upath import UPath

from pipeline.storage.reading import ahead
from pipeline.storage.stores import OPTIONS, Location, client, insist, lies_in
from pipeline.storage.writing import probe_writable
from schemas.errors import UsageError


class Stamp(NamedTuple):
    """Size and times of a file.

    Attributes:
        size: bytes.
        modified: when its content was last written, seconds since 1970; 0 where a store does not tell.
        touched: the same, or when it was last replaced, moved or copied if that is later.
    """

    size: int
    modified: float
    touched: float


def stamp_of(place: Location) -> Stamp | None:
    """Return size and times of a regular file; None where there is none.

    Raises:
        OSError: Whether there is one cannot be found out.
    """
    try:
        if isinstance(place, Path):
            status = place.stat()
            times = status.st_mtime, max(status.st_mtime, status.st_ctime)
            return Stamp(status.st_size, *times) if stat.S_ISREG(status.st_mode) else None
        info = insist(lambda: client(place).info(place.path), place)
    except (FileNotFoundError, NotADirectoryError):
        return None
    modified = next((_seconds(info[key]) for key in MODIFIED if info.get(key) is not None), 0.0)
    return None if info["type"] == "directory" else Stamp(int(info["size"]), modified, modified)


MODIFIED = ("LastModified", "last_modified", "updated", "mtime", "created")
"""What stores call the time of a file's last change."""


def _seconds(value: Any) -> float:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return float(value.timestamp() if isinstance(value, datetime) else value)


def touch(place: Location) -> None:
    """Set the time of a local file to now, if the system allows it. Stores keep the time of the last put."""
    if isinstance(place, Path):
        with suppress(OSError):
            os.utime(place)


def size_of(place: Location) -> int | None:
    """Return the bytes of a file; None where there is none.

    Raises:
        OSError: whether there is one cannot be found out.
    """
    stamp = stamp_of(place)
    return None if stamp is None else stamp.size


def is_file(place: Location) -> bool:
    """Tell whether there is such a file.

    Raises:
        OSError: It cannot be found out.
    """
    return size_of(place) is not None


def is_folder(place: Location) -> bool:
    """Tell whether there is such a folder. In an object store there is one if any key begins with its name.

    Raises:
        OSError: It cannot be found out.
    """
    if isinstance(place, Path):
        return place.is_dir()
    try:
        found = insist(lambda: client(place).info(place.path), place)["type"]
    except FileNotFoundError:
        return False
    return found == "directory" or bool(_listed(place))


def files_in(folder: Location, pattern: str) -> list[Location]:
    """List the files directly in a folder whose names match, sorted; none where there is no such folder.

    Args:
        folder: Its name is taken literally, even if it has * ? or [ in it.
        pattern: A shell pattern for the name, such as "*.parquet".

    Raises:
        OSError: A store does not list the folder.
    """
    if isinstance(folder, Path):
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    files = sorted(name for name, kind in _listed(folder).items() if kind == "file")
    names = (file.rsplit("/", 1)[-1] for file in files)
    return [folder / name for name in names if name and fnmatch.fnmatchcase(name, pattern)]


def _listed(folder: UPath) -> dict[str, str]:
    """List what is directly in a remote folder: path -> "file" or "directory"; nothing if there is none.

    A key may have the name of the folder itself, as some tools make them; it is not in it.
    """
    within = f"{folder.path.rstrip('/')}/"
    try:
        entries = insist(lambda: client(folder).ls(within, detail=True), folder)
    except FileNotFoundError:
        return {}
    return {entry["name"]: entry["type"] for entry in entries if entry["name"].rstrip("/").startswith(within)}


def names_in(folder: Location) -> list[str]:
    """List the names of the files and folders directly in a folder, sorted; none where there is no such folder.

    Raises:
        OSError: The system or the store does not list the folder.
    """
    if isinstance(folder, Path):
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(path.name for path in folder.iterdir())
        return []
    inside = {name.rstrip("/") for name in _listed(folder)} - {folder.path.rstrip("/")}
    return sorted(name.rsplit("/", 1)[-1] for name in inside)


def make_folder(folder: Location) -> None:
    """Make a folder and those above it. In an object store there is nothing to make."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)


def remove(place: Location) -> None:
    """Delete a file, if it is there.

    Raises:
        OSError: It cannot be deleted.
    """
    with suppress(FileNotFoundError):
        if isinstance(place, Path):
            place.unlink()
        else:
            insist(lambda: client(place).rm_file(place.path), place)


def remove_folder(folder: Location) -> None:
    """Delete a folder with all that is in it, if it is there. A bucket itself stays, empty.

    Raises:
        OSError: Something in it cannot be deleted.
    """
    if isinstance(folder, Path):
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        return
    # Not by rm: it takes * ? [ in the folder's name for a pattern, and keeps quiet about files that it cannot delete.
    inside = _inside(folder)

    def delete(file: str) -> None:
        with suppress(FileNotFoundError):
            insist(lambda: client(folder).rm_file(file), file)

    for _ in ahead(delete, [name for name, kind in inside.items() if kind == "file"]):
        pass
    if folder.protocol not in OPTIONS:  # a store that may have folders, empty ones too
        for name in [*sorted((name for name, kind in inside.items() if kind != "file"), reverse=True), folder.path]:
            with suppress(OSError, NotImplementedError):
                client(folder).rmdir(name)


def _inside(folder: UPath) -> dict[str, str]:
    """List all that is in a remote folder, with the key that may stand for an empty folder itself.

    Returns:
        Path -> "file" or "directory".
    """
    start = folder.path.rstrip("/") + "/"
    found = insist(lambda: client(folder).find(folder.path, withdirs=True, detail=True), folder)
    return {name: entry["type"] for name, entry in found.items() if name.startswith(start)}


def remove_all(places: Sequence[Location]) -> None:
    """Delete files, several of a store at a time; those that are not there are no fault.

    Raises:
        OSError: A file cannot be deleted.
    """
    for _ in ahead(remove, places):
        pass


def remove_files(folder: Location, *patterns: str) -> None:
    """Delete files directly in a folder, and then the folder if nothing else is in it.

    Args:
        folder: Its name is taken literally.
        patterns: Shell patterns for names. Files that match the first are deleted first.

    Raises:
        OSError: A file cannot be deleted.
    """
    files = [file for pattern in patterns for file in files_in(folder, pattern)]
    remove_all(files)
    if isinstance(folder, Path):
        with suppress(OSError):  # there is none, or something else is in it
            folder.rmdir()
    elif files and not {name.rstrip("/") for name in _inside(folder)} - {folder.path.rstrip("/")}:
        remove_folder(folder)


def refuse_foreign(place: Location, is_ours: Callable[[Location], bool], writer: str) -> None:
    """Look, before any work, whether a file can be written to a place without harm to anything of another origin.

    Args:
        place: where it is to be; its folder is made.
        is_ours: tells of a file that is there whether it may be replaced.
        writer: what writes such files, for the message.

    Raises:
        UsageError: the folder cannot be made or written to, or a folder, or a file of another origin, is there.
    """
    folder = place.parent
    probe_writable(folder)
    try:
        make_folder(folder)
        if isinstance(folder, Path):
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(f"{place}: cannot be written: {error.strerror or error}; choose another folder") from error
    if is_folder(place) or (is_file(place) and not is_ours(place)):
        raise UsageError(f"{place}: was not written by {writer}; choose another name, or move it away")


def refuse_inputs(written: Sequence[Location], read: Sequence[Location]) -> None:
    """Refuse, before any work, to write over a file that is read.

    Raises:
        UsageError: one of the places that are written is, or lies in, one of those that are read.
    """
    for place, other in product(written, read):
        if lies_in(place, other):
            raise UsageError(f"{place}: would be written over, but is read as {other}; choose another --out")
