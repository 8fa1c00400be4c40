"""Where files live. Every stage reads and writes through these functions, so that fsspec stands in one place."""

import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from schemas.errors import DataError, UsageError

BUFFER = 1 << 20  # bytes; many small writes become few

TEMPORARY = ".tmp-"
"""Start of every unfinished file's name; no reader or glob for chips-* sees one."""


def write_atomic(path: Path, data: bytes) -> None:
    """Put a file under its name whole, or not at all."""
    with atomic_file(path) as file:
        file.write(data)


def image_folder(path: Path | None) -> Path:
    """The folder, if it is one.

    Raises:
        UsageError: it is not.
    """
    if path is None or not path.is_dir():
        raise UsageError(f"{path}: no such image folder; give the folder that file_name is relative to as --images")
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its name only when the block ends well and the bytes are on disk.

    Raises:
        DataError: the system refuses to write (disk full, read-only).
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb", buffering=BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror or error}. Make room, or choose another folder, and run "
            "the same command again: what is finished is kept"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


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


def remove_temporary(folder: Path) -> None:
    """Delete what an interrupted run left unfinished. Call only while holding the folder's lock."""
    for path in folder.rglob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other builds; the system lets go when the process ends, however it ends.

    Raises:
        UsageError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror or error}; choose another --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{folder}: another build is writing here; wait for it or choose another --out"
            ) from error
        yield
