"""The local engine: a pool of processes on this machine."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from pipeline.engines.tasks import ATTEMPTS, Item, Result, Task, lost_tasks


def run_local(function: Callable[[Item], Result], tasks: Iterable[Task[Item]], workers: int) -> Iterator[Result]:
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
