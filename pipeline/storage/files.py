"""Where files live: a folder of this machine or any fsspec URL (s3://bucket/folder). All reading and writing of data
sets and runs goes through these functions.

On a local disk a file takes its name by rename; on an object store by one final put, which is whole or does not
happen. What a store answers badly (500, throttling, a time-out, a truncated body) is asked for again, with growing
waits. Credentials come from the environment alone; a URL that carries some is refused.

A location may be pickled, used by many threads at a time, and used on both sides of a fork.
"""

import fnmatch
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

from upath import UPath

from pipeline.storage.stores import AHEAD, OPTIONS, Location, client, insist

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_bytes(place: Location) -> bytes:
    """A whole file.

    Raises:
        FileNotFoundError: there is none; OSError: it cannot be read.
    """
    if isinstance(place, Path):
        return place.read_bytes()

    def ask() -> bytes:
        data: bytes = client(place).cat_file(place.path)
        return data

    return insist(ask, place)


def read_range(place: Location, offset: int, size: int) -> bytes:
    """Bytes [offset, offset + size) of a file; fewer where it ends before.

    Raises:
        FileNotFoundError: there is none; OSError: it cannot be read.
    """
    if isinstance(place, Path):
        with place.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    if size <= 0:
        return b""  # a store takes an empty range for the whole file

    def ask() -> bytes:
        store = client(place)
        try:
            data: bytes = store.cat_file(place.path, start=offset, end=offset + size)
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            if store.info(place.path)["size"] <= offset:  # which a store takes for an error
                return b""
            raise
        return data

    return insist(ask, place)


def read_each(places: Sequence[Location]) -> Iterator[bytes | OSError]:
    """The files' contents in order, or why one cannot be read; from an object store some are fetched ahead."""

    def read(place: Location) -> bytes | OSError:
        try:
            return read_bytes(place)
        except OSError as error:
            return error

    return ahead(read, places)


def read_all(places: Sequence[Location]) -> Iterator[bytes]:
    """As read_each, where each file must be there.

    Raises:
        FileNotFoundError, OSError: as read_bytes.
    """
    for content in read_each(places):
        if isinstance(content, OSError):
            raise content
        yield content


def ahead(function: Callable[[Item], Result], places: Sequence[Item]) -> Iterator[Result]:
    """function(place) of each in order; where they are remote, AHEAD at a time."""
    if len(places) < 2 or isinstance(places[0], Path):
        yield from map(function, places)
        return
    rest = iter(places)
    pool = ThreadPoolExecutor(AHEAD)
    try:
        waiting = deque(pool.submit(function, place) for place in islice(rest, AHEAD))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, place) for place in islice(rest, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def size_of(place: Location) -> int | None:
    """Bytes of a file; None where there is none.

    Raises:
        OSError: whether there is one cannot be found out.
    """
    try:
        if isinstance(place, Path):
            status = place.stat()
            return None if stat.S_ISDIR(status.st_mode) else status.st_size
        info = insist(lambda: client(place).info(place.path), place)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if info["type"] == "directory" else int(info["size"])


def is_file(place: Location) -> bool:
    return size_of(place) is not None


def is_folder(place: Location) -> bool:
    """Whether there is such a folder; on an object store, whether any key begins so."""
    if isinstance(place, Path):
        return place.is_dir()
    try:
        return bool(insist(lambda: client(place).info(place.path), place)["type"] == "directory")
    except FileNotFoundError:
        return False


def files_in(folder: Location, pattern: str) -> list[Location]:
    """The files directly in a folder whose names match, sorted; none where there is no such folder."""
    if isinstance(folder, Path):
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    if not is_folder(folder):  # s3fs would list what is beside it
        return []
    try:
        entries = insist(lambda: client(folder).ls(folder.path, detail=True), folder)
    except FileNotFoundError:
        return []
    files = sorted(entry["name"] for entry in entries if entry["type"] == "file")
    names = (file.rsplit("/", 1)[-1] for file in files)
    return [folder / name for name in names if name and fnmatch.fnmatchcase(name, pattern)]


def make_folder(folder: Location) -> None:
    """Make a folder and those above it; object stores have none."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)


def remove(place: Location) -> None:
    """Delete a file, if it is there."""
    with suppress(FileNotFoundError):
        if isinstance(place, Path):
            place.unlink()
        else:
            insist(lambda: client(place).rm_file(place.path), place)


def remove_folder(folder: Location) -> None:
    """Delete a folder with all that is in it, if it is there; of a bucket, all that is in it."""
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
    """Path -> "file" or "directory" of all that is in a remote folder, and of the key that stands for an empty one."""
    start = folder.path.rstrip("/") + "/"
    found = insist(lambda: client(folder).find(folder.path, withdirs=True, detail=True), folder)
    return {name: entry["type"] for name, entry in found.items() if name.startswith(start)}


def remove_files(folder: Location, *patterns: str) -> None:
    """Delete the files directly in a folder whose names match one of `patterns`, in their order; then the folder, if
    nothing else is in it."""
    files = [file for pattern in patterns for file in files_in(folder, pattern)]
    for _ in ahead(remove, files):
        pass
    if isinstance(folder, Path):
        with suppress(OSError):  # there is none, or something else is in it
            folder.rmdir()
    elif files and not {name.rstrip("/") for name in _inside(folder)} - {folder.path.rstrip("/")}:
        remove_folder(folder)


@contextmanager
def local_copy(place: Location) -> Iterator[Path]:
    """A file under a path of this machine: itself, or a temporary copy.

    Raises:
        FileNotFoundError, OSError: as read_bytes.
    """
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="sniper-") as folder:
        copy = Path(folder) / place.name
        download(place, copy)
        yield copy


def download(place: UPath, path: Path) -> None:
    """Copy a remote file to a path of this machine; not atomic.

    Raises:
        FileNotFoundError: there is none; OSError: it cannot be read.
    """

    def ask() -> None:
        store = client(place)
        store.get_file(place.path, str(path))
        found, expected = path.stat().st_size, store.info(place.path)["size"]
        if found != expected:  # the connection ended early
            raise OSError(f"{found} bytes came of {expected}")

    insist(ask, place)
