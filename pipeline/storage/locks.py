"""Holding a folder against other builds, and clearing away what an interrupted one left."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.storage.files import files_in, remove
from pipeline.storage.stores import Location
from pipeline.storage.writing import TEMPORARY
from schemas.errors import UsageError

_WRITTEN_IN = (".", "positives", "negatives", "proposals", "proposals/rpn", "plan")
"""Folders of a data set that files are written in. All else below it is the user's."""


def remove_temporary(folder: Location) -> None:
    """Delete what an interrupted run left unfinished in a data set. Call only while holding the folder's lock."""
    if isinstance(folder, Path):  # a put leaves nothing behind
        for name in _WRITTEN_IN:
            for path in files_in(folder / name, f"{TEMPORARY}[0-9]*-*"):
                remove(path)


@contextmanager
def locked(folder: Location) -> Iterator[None]:
    """Hold a folder against other builds; the system lets go when the process ends, however it ends.

    Object stores have no locks: there, two builds of the same settings write the same bytes, and two of different
    settings are the user's to keep apart.

    Raises:
        UsageError: another process holds it, or the folder cannot be written or locked.
    """
    if not isinstance(folder, Path):
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror or error}; choose another --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{folder}: another build is writing here; wait for it or choose another --out"
            ) from error
        except OSError as error:  # some network file systems
            raise UsageError(f"{folder}: cannot be locked: {error.strerror or error}; choose another --out") from error
        yield
