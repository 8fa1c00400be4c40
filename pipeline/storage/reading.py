"""Reads files of this machine or below any fsspec URL, such as s3://bucket/folder: whole, in parts, or many at a time.

What a store answers badly (500, throttling, a time-out, a truncated body) is asked for again, with growing waits.
"""

import errno
import os
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TypeVar

from upath import UPath

from pipeline.storage.stores import AHEAD, AHEAD_BYTES, Location, client, insist, is_disk_full
from pipeline.storage.writing import nameless_file, path_of

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_bytes(place: Location) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
    """
    if isinstance(place, Path):
        with _open_regular(place) as file:
            return file.read()

    def ask() -> bytes:
        data: bytes = client(place).cat_file(place.path)
        return data

    return insist(ask, place)


def _open_regular(path: Path) -> IO[bytes]:
    """Open a regular file, itself or through links. A pipe, a socket or a device might never end, or be waited for.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be opened, or is no regular file.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "Is no regular file but a pipe or a device", str(path))
    return file


def read_range(place: Location, offset: int, size: int) -> bytes:
    """Read the bytes [offset, offset + size) of a file; fewer where it ends before.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
    """
    if isinstance(place, Path):
        with _open_regular(place) as file:
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


def open_binary(place: Location) -> IO[bytes]:
    """Open a file to read parts of it one after the other, such as one that is too large to read whole.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be opened.
    """
    if isinstance(place, Path):
        return _open_regular(place)
    file: IO[bytes] = insist(lambda: client(place).open(place.path, "rb", cache_type="readahead"), place)
    return file


def read_each(places: Sequence[Location]) -> Iterator[bytes | OSError]:
    """Yield each file's content in order, or why it cannot be read.

    Files of an object store are fetched ahead: at most AHEAD of them, and no more than fit into AHEAD_BYTES if each is
    as large as the largest so far.
    """

    def read(place: Location) -> bytes | OSError:
        try:
            return read_bytes(place)
        except OSError as error:
            return error

    return ahead(read, places, weigh=lambda content: len(content) if isinstance(content, bytes) else 0)


def read_all(places: Sequence[Location]) -> Iterator[bytes]:
    """Yield each file's content in order. Files of an object store are fetched ahead.

    Raises:
        FileNotFoundError: One of the files is not there.
        OSError: One of them cannot be read.
    """
    for content in read_each(places):
        if isinstance(content, OSError):
            raise content
        yield content


def ahead(
    function: Callable[[Item], Result], places: Sequence[Item], weigh: Callable[[Result], int] = lambda _: 0
) -> Iterator[Result]:
    """Yield function(place) of each place in order; where they are remote, several threads work ahead.

    Args:
        function: What to do with a place.
        places: All local, or all remote.
        weigh: Tells the bytes that a result holds. Until the first result has come, two calls run at a time; then as
            many as AHEAD and AHEAD_BYTES allow if every result is as heavy as the heaviest so far.
    """
    if len(places) < 2 or isinstance(places[0], Path):
        yield from map(function, places)
        return
    rest = iter(places)
    pool = ThreadPoolExecutor(AHEAD)
    try:
        waiting = deque(pool.submit(function, place) for place in islice(rest, 2))
        heaviest = 1
        while waiting:
            result = waiting.popleft().result()
            heaviest = max(heaviest, weigh(result))
            allowed = max(1, min(AHEAD, AHEAD_BYTES // heaviest))
            waiting.extend(pool.submit(function, place) for place in islice(rest, max(0, allowed - len(waiting))))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def local_copy(place: Location) -> Iterator[Path]:
    """Give a path of this machine under which this process can read a file: its own, or that of a temporary copy.

    The copy has no name in the temporary folder, so that nothing stays there when the process is killed.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read, or the temporary folder is full.
    """
    if isinstance(place, Path):
        yield place
        return
    with nameless_file() as file:
        copy = Path(path_of(file))
        download(place, copy)
        yield copy


def download(place: UPath, path: Path) -> None:
    """Copy a remote file to a path of this machine; not atomic.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read, or the disk of this machine is full.
    """

    def ask() -> None:
        store = client(place)
        store.get_file(place.path, str(path))
        found, expected = path.stat().st_size, store.info(place.path)["size"]
        if found != expected:  # the connection ended early
            raise OSError(f"{found} bytes came of {expected}")

    try:
        insist(ask, place)
    except OSError as error:
        if not is_disk_full(error):
            raise
        folder = tempfile.gettempdir() if path.parent == Path("/dev/fd") else path.parent
        raise OSError(
            error.errno, f"{error.strerror}, in {folder} of this machine: make room there", str(place)
        ) from error
