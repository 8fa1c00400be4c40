"""Writes files whole or not at all, on a local disk and in an object store."""

import hashlib
import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from upath import UPath

from pipeline.storage.stores import AHEAD, Location, client, insist, is_disk_full
from schemas.errors import AGAIN, DataError, UsageError

BUFFER = 1 << 20  # bytes; many small writes become few

TEMPORARY = ".tmp-"
"""Start of every unfinished file's name, so that no reader takes one for a finished file."""

PUT_PATIENCE, SLOWEST_PUT = 30.0, 1 << 19  # seconds, and bytes per second on top: nobody below sets a put a limit


def write_atomic(place: Location, data: bytes) -> None:
    """Write a file whole, or not at all.

    Raises:
        DataError: The system or the store refuses to write.
    """
    with atomic_file(place) as file:
        file.write(data)


def write_together(files: Iterable[tuple[Location, bytes]]) -> None:
    """Write many small files, of which each appears whole or not at all. All are on disk, or in the store, on return.

    To wait for the disk once, and not for each file, makes this a hundred times as fast as `write_atomic`. A store
    gets several files at a time.

    Args:
        files: where each goes, and its content. They are drawn as they are written.

    Raises:
        DataError: The system or the store refuses to write.
    """

    def write(file: tuple[Location, bytes]) -> bool:
        place, data = file
        with atomic_file(place, waits=False) as opened:
            opened.write(data)
        return isinstance(place, Path)

    remaining, any_here = iter(files), False
    with ThreadPoolExecutor(AHEAD) as pool:
        while some := list(islice(remaining, AHEAD)):
            any_here |= any(list(pool.map(write, some)))
    if any_here:
        os.sync()


@contextmanager
def atomic_file(place: Location, *, waits: bool = True) -> Iterator[IO[bytes]]:
    """Give a file to write. It takes its name when the block ends well and its bytes are on disk or in the store.

    Args:
        place: Where it is to be.
        waits: False: do not wait for a disk of this machine, so that after a power cut the file may lack its bytes.

    Raises:
        DataError: The system refuses to write (the disk is full or read-only), or the store does.
    """
    with explained(place), _renamed(place, waits) if isinstance(place, Path) else _put(place) as file:
        yield file


@contextmanager
def explained(place: Location) -> Iterator[None]:
    """Say of an error of the system, while the block writes a file, which file it is and what to do.

    Raises:
        DataError: The block has raised OSError.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if isinstance(place, Path):
            remedy = "Make room, or choose another folder,"
        elif is_disk_full(error):  # a file is made here before it is put
            why = f"{why}, in the temporary folder {tempfile.gettempdir()} of this machine"
            remedy = "Make room there, or set TMPDIR to another folder,"
        else:
            remedy = "See to the store, or choose another folder,"
        raise DataError(f"{place}: cannot be written: {why}. {remedy} and {AGAIN}") from error


@contextmanager
def _renamed(path: Path, waits: bool) -> Iterator[IO[bytes]]:
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb", buffering=BUFFER) as file:
            yield file
            file.flush()
            if waits:
                os.fsync(file.fileno())
        temporary.replace(path)
        if waits:
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _put(place: UPath) -> Iterator[IO[bytes]]:
    """Write to a temporary file here, and put that when the block ends, so that a failed put can be repeated whole."""
    with nameless_file() as file:
        yield file
        file.flush()
        limit = PUT_PATIENCE + os.fstat(file.fileno()).st_size / SLOWEST_PUT

        def ask() -> None:
            file.seek(0)
            store = client(place)
            store.put_file(path_of(file), place.path, **({"timeout": limit} if store.async_impl else {}))

        insist(ask, place)


@contextmanager
def nameless_file() -> Iterator[IO[bytes]]:
    """Give a temporary file without a name, which is gone when the process ends, even if it is killed."""
    with tempfile.TemporaryFile(buffering=BUFFER) as file:
        yield file


def path_of(file: IO[bytes]) -> str:
    """Return the path under which this process opens a nameless file while that is open."""
    return f"/dev/fd/{file.fileno()}"


def probe_writable(folder: Location) -> None:
    """Find out whether a bucket takes files below a folder, before hours of work. A local folder is not looked at.

    Raises:
        UsageError: There is no such bucket, or no permission to write there.
        DataError: The store does not answer.
    """
    if isinstance(folder, Path):
        return
    place = folder / f"{TEMPORARY}probe"
    try:
        insist(lambda: client(place).pipe_file(place.path, b""), place)
    except (FileNotFoundError, PermissionError) as error:
        raise UsageError(
            f"{folder}: cannot be written: {error.strerror or error}; make the bucket, give the credentials in the "
            "environment permission to write there, or choose another folder"
        ) from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}; {AGAIN}") from error
    with suppress(OSError):  # who may write need not be allowed to delete
        insist(lambda: client(place).rm_file(place.path), place)


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


class HashingFile(io.RawIOBase):
    """Hands on what is written to it, from its start to its end, and hashes it.

    Args:
        file: the file that takes the bytes. It stays open when this one is closed: who opened it closes it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sha256, self._size = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        """Tell that the file can be written."""
        return True

    def write(self, data: Any) -> int:
        """Write anything that has bytes and return their number."""
        self._sha256.update(data)
        self._file.write(data)
        size = memoryview(data).nbytes
        self._size += size
        return size

    def tell(self) -> int:
        """Return the number of bytes written so far."""
        return self._size

    def close(self) -> None:
        """Leave the file open."""

    def hexdigest(self) -> str:
        """Return the SHA-256 of all bytes written so far, hex."""
        return self._sha256.hexdigest()
