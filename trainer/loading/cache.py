"""Shards of a data set in a bucket, on this machine's disk: whole or not there, shared by all processes, bounded.

A shard lies under its SHA-256, so data sets and runs share it, and a file never holds anything but what its name says.
All state is in the folder itself:

    shards/<sha256>.tar               whole; mtime is when its hash was last checked, atime when it was last opened
    shards/.tmp-<sha256>-<bytes>      on its way, by the process that holds its lock:
    shards/.tmp-<sha256>-<bytes>.lock
    shards/.lock                      held while room is made

Locks are the system's (flock): they end with their process, however it ends, and so does the claim of an open shard.
What a killed process left behind is removed by the next one that makes room.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from upath import UPath

from pipeline.storage import TEMPORARY, download, is_disk_full
from schemas.errors import DataError
from schemas.settings import LoaderSettings, loader_section

DOWNLOADS = 3
"""How often a shard is downloaded before it is given up, where its hash is wrong each time."""


class Cache(NamedTuple):
    """Where shards are kept, and how many bytes of them."""

    folder: Path
    max_bytes: int

    def path(self, sha256: str) -> Path:
        """Return where the shard with this SHA-256, hex, lies if it is in the cache."""
        return self.folder / "shards" / f"{sha256}.tar"


class Shard(NamedTuple):
    """A remote tar file: its URL, its length in bytes and its SHA-256, hex, as its record in the manifest has them."""

    place: UPath
    size: int
    sha256: str


def user_folder() -> Path:
    """Return the folder that is used by default: below XDG_CACHE_HOME, or else below ~/.cache.

    A user whom the machine does not know, without HOME, gets a folder of its own below the folder of temporary files.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given or Path.home() / ".cache") / "sniper-chips"
    except RuntimeError:  # there is no home
        return Path(tempfile.gettempdir()) / f"sniper-chips-{os.getuid()}"


def cache_of(settings: LoaderSettings) -> Cache:
    """Return the cache that settings name, or else the user's. Nothing is made on disk yet.

    Raises:
        UsageError: it is given something else than the section of the loader.
    """
    settings = loader_section(settings)
    folder = Path(settings.cache).expanduser().absolute() if settings.cache is not None else user_folder()
    return Cache(folder, round(settings.cache_gb * 1e9))


def open_shard(cache: Cache, shard: Shard, own: Collection[str]) -> int:
    """Open a shard in the cache, after downloading it where it is not there yet. While it is open the shard stays.

    One process of the machine downloads, and the others wait for it; should it die, another one goes on. The number of
    bytes and the SHA-256 are compared before the file gets its name. A file that is there already is compared by its
    number of bytes, and once after each start of the machine by its SHA-256, because a power cut may leave anything.

    The cache keeps to `max_bytes`, and to what the disk has room for, by deleting shards that nobody has open: first
    those that are not among `own`, the longest unused first; then those of `own`, the last used first, because an
    epoch comes back last to what it has just passed. What is open stays, so the disk holds at most `max_bytes`, or
    what is open and on its way where that is more.

    Args:
        cache: the folder and its limit.
        shard: what to open.
        own: SHA-256, hex, of all shards of the data set at hand.

    Returns:
        A file descriptor, which the caller closes.

    Raises:
        DataError: it cannot be had whole, or the cache cannot be written, or its disk is full.
    """
    path = cache.path(shard.sha256)
    folder = path.parent
    try:
        while True:
            descriptor = _open(path, shard)
            if descriptor is None:
                folder.mkdir(parents=True, exist_ok=True)
                descriptor = _fetch(cache.max_bytes, path, shard, own)
            if descriptor is not None:
                return descriptor
    except OSError as error:
        if _is_full(error):
            raise _full(folder, shard.size) from error
        raise DataError(
            f"{folder}: {error.strerror or error}; name another folder on a disk of this machine as loader.cache"
        ) from error


def _open(path: Path, shard: Shard) -> int | None:
    """Open a cached shard with a shared lock on it; None where there is no whole one. A broken one is deleted."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status, now = os.fstat(descriptor), time.time_ns()
        checked = status.st_mtime_ns
        whole = status.st_size == shard.size
        if whole and checked < now - time.monotonic_ns():  # before this machine was started
            checked = now
            whole = _sha256(descriptor) == shard.sha256
        if whole and status.st_nlink:
            with suppress(PermissionError):  # another user's file: read it all the same
                os.utime(descriptor, ns=(now, checked))
            return descriptor
        if not whole:
            path.unlink(missing_ok=True)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _sha256(descriptor: int) -> str:
    """Return the SHA-256, hex, of an open file."""
    with open(descriptor, "rb", closefd=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(max_bytes: int, path: Path, shard: Shard, own: Collection[str]) -> int | None:
    """Download a shard and open it with a shared lock.

    Returns:
        The descriptor; None where another process or thread was downloading it, and has ended. Look again then.
    """
    temporary = path.with_name(f"{TEMPORARY}{shard.sha256}-{shard.size}")
    lock_path = temporary.with_name(f"{temporary.name}.lock")
    with _locked(lock_path) as lock:
        if not _is_at(lock, lock_path):  # its former holder is done, and took it away
            return None
        try:
            if path.exists():
                return None
            if not make_room(path.parent, max_bytes, own):  # what this one reserved by its lock is counted
                raise _full(path.parent, shard.size)
            _download(shard, temporary)
            descriptor = os.open(temporary, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # before anyone who makes room can see it
            temporary.replace(path)
            return descriptor
        finally:
            temporary.unlink(missing_ok=True)
            lock_path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold an exclusive lock on a file, which is made where it is missing; yield its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: a process forked meanwhile has it open, too
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Tell whether an open file is still the one at this path, and was not deleted or replaced since."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _download(shard: Shard, path: Path) -> None:
    """Download a shard to a path, up to DOWNLOADS times until its bytes are right.

    Raises:
        DataError: it is missing, cannot be read, or is not what the manifest says.
    """
    for _ in range(DOWNLOADS):
        try:
            download(shard.place, path)
        except OSError as error:
            if _is_full(error):
                raise
            raise DataError(f"{shard.place}: cannot be read: {error.strerror or error}") from error
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        if (size, found) == (shard.size, shard.sha256):
            return
    raise DataError(
        f"{shard.place}: {shard.size} bytes with SHA-256 {shard.sha256} expected, {size} with {found} found, "
        f"{DOWNLOADS} times; `sniper verify` names all that is damaged"
    )


def _is_full(error: BaseException | None) -> bool:
    """Tell whether an error, or one that caused it, is that the disk is full."""
    while error is not None:
        if is_disk_full(error):
            return True
        error = error.__cause__
    return False


def _full(folder: Path, size: int) -> DataError:
    """Return the error for a cache whose disk has no room for a shard of `size` bytes."""
    free = shutil.disk_usage(folder).free
    return DataError(
        f"{folder}: the disk is full: {gigabytes(size)} wanted for a shard, {gigabytes(free)} free, and nothing in "
        "the cache is unused; make room, name another folder as loader.cache, or lower loader.window"
    )


def gigabytes(size: int) -> str:
    """Write a number of bytes as gigabytes of 10^9 bytes."""
    return f"{size / 1e9:.3g} GB"


def make_room(folder: Path, max_bytes: int, own: Collection[str]) -> bool:
    """Delete unused shards until `max_bytes` and the disk have room for those on their way.

    Args:
        folder: `shards/` of the cache.
        max_bytes: what all shards in it may take.
        own: SHA-256, hex, of the shards that are deleted last.

    Returns:
        Whether the disk has room now. Whether `max_bytes` has is not told: open shards may exceed it.
    """
    with _locked(folder / ".lock"):
        coming, written = _on_their_way(folder)
        shards = [(path, status) for path in folder.glob("*.tar") if (status := _status(path))]
        excess = coming + sum(status.st_size for _, status in shards) - max_bytes
        lacking = coming - written - shutil.disk_usage(folder).free
        # False sorts first: strangers, the oldest of them; then our own, the newest of them
        shards.sort(key=lambda s: (True, -s[1].st_atime_ns) if s[0].stem in own else (False, s[1].st_atime_ns))
        for path, status in shards:
            if max(excess, lacking) <= 0:
                break
            if _unlink_unused(path):
                excess -= status.st_size
                lacking -= status.st_size
    return lacking <= 0


def _on_their_way(folder: Path) -> tuple[int, int]:
    """Count the bytes of the shards being downloaded, and remove what killed processes left.

    Returns:
        Their bytes when done; their bytes on disk already.
    """
    coming = written = 0
    for lock_path in folder.glob(f"{TEMPORARY}*.lock"):
        temporary = lock_path.with_suffix("")
        if _unlink_unused(lock_path, temporary):
            continue
        coming += int(temporary.name.rpartition("-")[2])
        written += status.st_blocks * 512 if (status := _status(temporary)) else 0
    return coming, written


def _status(path: Path) -> os.stat_result | None:
    """Return a file's status; None where it is gone."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _unlink_unused(path: Path, *with_it: Path) -> bool:
    """Delete a file that nobody holds a lock on.

    Args:
        path: the file; it stays where somebody holds a lock on it, or where it is another user's.
        with_it: other files that belong to whoever holds the lock; they go with it.

    Returns:
        Whether it is gone.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(descriptor, path):  # deleted, and another one made in its place, since it was opened
            return False
        for each in (*with_it, path):  # the locked file last, since from then on others may take its place
            each.unlink(missing_ok=True)
    except (BlockingIOError, PermissionError):
        return False
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # as in _locked
        os.close(descriptor)
    return True
