"""Holds a folder against other processes, and clears away what an interrupted command left in it."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.storage.files import files_in, remove
from pipeline.storage.stores import Location
from pipeline.storage.writing import TEMPORARY, probe_writable
from schemas.errors import UsageError


def remove_temporary(folder: Location) -> None:
    """Delete the unfinished files that an interrupted command left in a folder. Call it only while holding its lock.

    Args:
        folder: What was written in; folders below it are not looked into. An object store has no unfinished files: a
            put is whole or does not happen.
    """
    if isinstance(folder, Path):
        for path in files_in(folder, f"{TEMPORARY}[0-9]*-*"):
            remove(path)


@contextmanager
def locked(folder: Location, work: str, name: str = ".lock") -> Iterator[None]:
    """Hold a folder against other processes while the block runs. The system lets go when this process ends.

    Object stores have no locks: there, two builds of the same settings write the same bytes, and two of different
    settings are the user's to keep apart. A store is only asked whether it takes files, before hours of work. A second
    lock on the same folder fails in this process too, so several ranks of one training run let the first one hold it.

    Args:
        folder: What is written to. It is made where it does not exist.
        work: The command that holds it, for the message to the next one that comes.
        name: File to lock in the folder. A command that writes a single file takes a name of its own here, so that
            others may write beside it.

    Raises:
        UsageError: Another process holds it, or the folder cannot be written or locked.
        DataError: A store does not answer.
    """
    if not isinstance(folder, Path):
        probe_writable(folder)
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("a+")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror or error}; choose another --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(200).strip() or "another command"
            raise UsageError(
                f"{folder}: {holder} is writing here; wait until it has ended, or choose another --out"
            ) from error
        except OSError as error:  # some network file systems
            raise UsageError(f"{folder}: cannot be locked: {error.strerror or error}; choose another --out") from error
        ours = f"`{work}` (process {os.getpid()} on {socket.gethostname()})\n"
        with suppress(OSError):  # on a full disk the lock holds without a name; what cannot be written is told later
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), ours.encode())
        yield
