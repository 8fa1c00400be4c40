"""Writing files whole or not at all, on a local disk and in an object store."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from upath import UPath

from pipeline.storage.stores import Location, client, insist
from schemas.errors import DataError

BUFFER = 1 << 20  # bytes; many small writes become few

TEMPORARY = ".tmp-"
"""Start of every unfinished file's name; no reader or glob for chips-* sees one."""

PUT_PATIENCE, SLOWEST_PUT = 30.0, 1 << 19  # seconds, and bytes per second on top: nobody below sets a put a limit


def write_atomic(place: Location, data: bytes) -> None:
    """Put a file under its name whole, or not at all."""
    with atomic_file(place) as file:
        file.write(data)


@contextmanager
def atomic_file(place: Location) -> Iterator[IO[bytes]]:
    """A file to write that takes its name only when the block ends well and the bytes are on disk, or in the store.

    Raises:
        DataError: the system refuses to write (disk full, read-only), or the store does.
    """
    try:
        with _renamed(place) if isinstance(place, Path) else _put(place) as file:
            yield file
    except OSError as error:
        remedy = "Make room" if isinstance(place, Path) else "See to the store"
        raise DataError(
            f"{place}: cannot be written: {error.strerror or error}. {remedy}, or choose another folder, and run "
            "the same command again: what is finished is kept"
        ) from error


@contextmanager
def _renamed(path: Path) -> Iterator[IO[bytes]]:
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb", buffering=BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _put(place: UPath) -> Iterator[IO[bytes]]:
    """Through a temporary file here, so that a put which fails can be repeated whole."""
    with tempfile.NamedTemporaryFile(prefix="sniper-", buffering=BUFFER) as file:
        yield file
        file.flush()
        limit = PUT_PATIENCE + os.fstat(file.fileno()).st_size / SLOWEST_PUT

        def ask() -> None:
            store = client(place)
            store.put_file(file.name, place.path, **({"timeout": limit} if store.async_impl else {}))

        insist(ask, place)


def start_writeback(file: IO[bytes]) -> None:
    """Let the system begin to write what it holds of a file to disk, without waiting for it."""
    file.flush()
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError, io.UnsupportedOperation):  # advice; a file in memory has no descriptor
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
