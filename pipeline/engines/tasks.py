"""The contract between work and what runs it: tasks, the choice of an engine, and the cores there are."""

import os
from typing import Generic, NamedTuple, TypeVar

from schemas.errors import DataError

Item = TypeVar("Item")

Result = TypeVar("Result")

ATTEMPTS = 3

DEFAULT_MEMORY = 512 << 20  # bytes: the libraries, and images of a few megapixels


class Task(NamedTuple, Generic[Item]):
    """One item of work."""

    name: str  # for messages, such as chips-00012
    item: Item
    memory: int = DEFAULT_MEMORY  # bytes that a Ray worker asks for


class Engine(NamedTuple):
    """Where work runs, and how much of it at a time."""

    kind: str = "local"  # or ray
    workers: int | None = None  # local: processes, None is one per core; ray: tasks at a time, None is what fits
    address: str | None = None  # of the Ray cluster; None: RAY_ADDRESS, a cluster on this machine, or a new one

    @property
    def processes(self) -> int:
        return self.workers or cores()


def cores() -> int:
    """The cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0))


def lost_tasks(names: list[str], why: str, advice: str) -> DataError:
    """The error that ends a run in which workers died."""
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return DataError(
        f"{shown}: not done: a worker process died {ATTEMPTS} times over each ({why}). What is finished is kept: run "
        f"the same command again, {advice} if memory was short"
    )


def available_cores() -> int:
    """The cores this process may use, shared evenly with the other ranks on its machine."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
