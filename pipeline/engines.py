"""Runs a function over tasks, on this machine or on a Ray cluster. Knows nothing of chips; tasks know nothing of
processes.

Both engines keep one contract (tests/pipeline/test_engines.py): every task once, results as they finish, a bounded
number in flight and the rest drawn only then; what the function raises ends the run and arrives as it was raised; a
task whose worker dies is tried again, ATTEMPTS times in all, and then the others are still finished before the run
ends with an error that names it.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from schemas.errors import DataError, UsageError

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


def run(function: Callable[[Item], Result], tasks: Iterable[Task[Item]], engine: Engine) -> Iterator[Result]:
    """Yield function(task.item) as each finishes, in any order.

    Raises:
        DataError: tasks whose workers died, each named, when all others are done.
        UsageError: an engine that is not there, or an address where none is needed.
        Whatever `function` raises; the other workers are stopped at once.
    """
    if engine.kind == "ray":
        from pipeline.ray_engine import run_ray

        return run_ray(function, tasks, engine)
    if engine.kind != "local":
        raise UsageError(f"engine {engine.kind!r}: expected local or ray")
    if engine.address is not None:
        raise UsageError("--address names a Ray cluster: give --engine ray with it")
    return _run_local(function, tasks, engine.processes)


def _run_local(function: Callable[[Item], Result], tasks: Iterable[Task[Item]], workers: int) -> Iterator[Result]:
    if workers == 1:  # this process
        for task in tasks:
            yield function(task.item)
        return
    source = iter(tasks)
    lost: list[str] = []
    while suspects := (yield from _with_pool(function, source, workers, 2 * workers)):
        for task in suspects:  # one of them killed the pool: one at a time tells which
            again: list[Task[Item]] = [task]
            for _ in range(ATTEMPTS - 1):
                if again:
                    again = yield from _with_pool(function, iter(again), 1, 1)
            lost += [task.name for task in again]
    if lost:
        raise lost_tasks(lost, "killed by the system for memory, or from outside", "with fewer --workers")


def lost_tasks(names: list[str], why: str, advice: str) -> DataError:
    """The error that ends a run in which workers died."""
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return DataError(
        f"{shown}: not done: a worker process died {ATTEMPTS} times over each ({why}). What is finished is kept: run "
        f"the same command again, {advice} if memory was short"
    )


def _with_pool(
    function: Callable[[Item], Result], source: Iterator[Task[Item]], workers: int, in_flight: int
) -> Generator[Result, None, list[Task[Item]]]:
    """Run until the source is exhausted or a worker dies; returns the tasks that were in flight then."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    running: dict[Future[Result], Task[Item]] = {}
    not_taken: list[Task[Item]] = []
    finished = False
    try:
        while not not_taken:
            for task in islice(source, in_flight - len(running)):
                try:
                    running[pool.submit(function, task.item)] = task
                except BrokenProcessPool:
                    not_taken.append(task)
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                if _is_lost(future):
                    continue
                del running[future]
                yield future.result()
            if any(map(_is_lost, running)):  # all are, with the pool
                break
        finished = True
    finally:
        if not finished:
            for child in multiprocessing.active_children():
                child.terminate()
        pool.shutdown(cancel_futures=True)
    return [*running.values(), *not_taken]


def _is_lost(future: Future[Result]) -> bool:
    return future.done() and isinstance(future.exception(), BrokenProcessPool)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it: a killed parent must not leave writers behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
