"""Runs a function over work items. Knows nothing of chips, and the items know nothing of processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from schemas.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_local(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield function(item) as each finishes, in any order, from `workers` processes of this machine.

    At most two items per worker are in flight; further ones are drawn from `items` only then. One worker means
    this process.

    Raises:
        DataError: a worker process died.
        Whatever `function` raises; the other workers are stopped at once.
    """
    if workers == 1:
        yield from map(function, items)
        return
    source = iter(items)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    finished = False
    try:
        running = {pool.submit(function, item) for item in islice(source, 2 * workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(function, item) for item in islice(source, len(done))}
            for future in done:
                yield future.result()
        finished = True
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died (killed by the system for memory, or from outside). Finished shards are kept: "
            "run the same command again, with fewer --workers if memory was short"
        ) from error
    finally:
        if not finished:
            for child in multiprocessing.active_children():
                child.terminate()
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it: a killed parent must not leave writers behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
