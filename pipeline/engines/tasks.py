"""The contract between work and what runs it: tasks, the choice of an engine, and what this machine lends to them."""

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from schemas.errors import AGAIN, DataError, UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

ATTEMPTS = 3
"""Deaths of a worker at the same place of a task, after which that place is given up."""

DEFAULT_MEMORY = 512 << 20  # bytes: the libraries, files fetched ahead, and images of a few megapixels

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")  # names the control groups of this process
UNLIMITED = 1 << 60  # bytes: version 1 of control groups writes a number of about this size for no limit

NO_GUARD = (
    "worker processes cannot start: each of them imports the script that asks for them. In a Python script, call "
    'functions with more than one worker below `if __name__ == "__main__":`, and keep the script in a file, since one '
    "from standard input cannot be imported; where a traceback stands above, it says more"
)


class Task(NamedTuple, Generic[Item]):
    """One item of work.

    Attributes:
        name: For messages, such as chips-00012.
        item: What the function is called with.
        memory: Bytes that a worker takes for it.
        units: What it counts for in the progress, such as its number of images.
        refuse: Makes the item anew without the unit at a position that kills each worker; its arguments are the item,
            the position and the reason. None: the whole task is given up then.
    """

    name: str
    item: Item
    memory: int = DEFAULT_MEMORY
    units: int = 1
    refuse: Callable[[Item, int, str], Item] | None = None


class Engine(NamedTuple):
    """Where work runs, and how much of it at a time.

    Attributes:
        kind: "local" for processes of this machine, or "ray".
        workers: Number of processes, or of tasks on Ray at a time. None: one per core, or as many as fit.
        address: Of the Ray cluster. None: what RAY_ADDRESS says, else a cluster of this machine, else a new one.
    """

    kind: str = "local"
    workers: int | None = None
    address: str | None = None

    @property
    def processes(self) -> int:
        """The number of processes of the local engine."""
        return self.workers or cores()


def check_engine(engine: Engine) -> None:
    """Check the choice of an engine. Call it before long work.

    Raises:
        UsageError: There is no such engine, an address is given where none is needed, or a Python script calls for
            workers from one of these workers.
    """
    if engine.kind not in ("local", "ray"):
        raise UsageError(f"engine {engine.kind!r}: expected local or ray")
    if engine.kind == "local" and engine.address is not None:
        raise UsageError("--address names a Ray cluster: give --engine ray with it")
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a worker that imports the caller's script
        raise UsageError(NO_GUARD)


class LostTasksError(DataError):
    """Some tasks were given up; all others are done."""


def lost_tasks(lost: list[str], advice: str) -> LostTasksError:
    """Make the error that ends a run in which tasks were given up.

    Args:
        lost: Name of each task, with the way in which its worker died.
        advice: How to run the command again if memory was short.
    """
    shown = ", ".join(lost[:20]) + (f" and {len(lost) - 20} more" if len(lost) > 20 else "")
    return LostTasksError(
        f"{shown}: not done: a worker process died {ATTEMPTS} times over each (killed by the system for memory, from "
        f"outside, or by a fault in a library); {AGAIN}. If memory was short, run it {advice}"
    )


Listener = Callable[[int, int], None]

_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hear, in this process, what `report` is called with while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def report(position: int, size: int) -> None:
    """Tell the engine that the task at hand begins with one of its units; those before it are done.

    Args:
        position: Of the unit in its task, from 0.
        size: Bytes that were read for it.
    """
    for listener in _listeners:
        listener(position, size)


def cores() -> int:
    """Return the number of cores that this process may use, by its affinity and by the quota of its container."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min([allowed, *(math.ceil(quota) for quota in _cpu_quotas())]))


def available_cores() -> int:
    """Return the number of cores that this process may use, shared evenly with the other ranks on its machine."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def memory_limit() -> int:
    """Return the bytes of memory that this process and its workers may take: the machine's, or the container's."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [_number(folder / name) for folder in _own_cgroups() for name in ("memory.max", "memory.limit_in_bytes")]
    return min([machine, *(limit for limit in limits if limit is not None and 0 < limit < UNLIMITED)])


def _cpu_quotas() -> Iterator[float]:
    """Yield the cores that each control group of this process allows, where it sets a limit."""
    for folder in _own_cgroups():
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            pass
        else:
            if quota != "max":
                yield int(quota) / int(period)
        old_quota, old_period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if old_quota is not None and old_quota > 0 and old_period:
            yield old_quota / old_period


def _own_cgroups() -> Iterator[Path]:
    """Yield the folders of this process's control groups, versions 1 and 2, each with those above it."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base = CGROUPS / controllers
        own = base / path.strip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(base))


def _number(path: Path) -> int | None:
    """Read a file that holds one number; None where there is no such file, or another word in it."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
