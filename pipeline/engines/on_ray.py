"""The Ray engine: a loop over Ray core that submits tasks and waits. Where a task runs is Ray's to decide."""

import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from pipeline.engines.extras import needed
from pipeline.engines.local import TICK, run_in_processes
from pipeline.engines.progress import Progress
from pipeline.engines.tasks import ATTEMPTS, Engine, Item, LostTasksError, Result, Task, lost_tasks
from schemas.errors import UsageError

CONNECT_SECONDS = 10
END_SECONDS = 30  # for workers to end that were told to


def run_on_ray(
    function: Callable[[Item], Result], tasks: Iterable[Task[Item]], engine: Engine, progress: Progress | None = None
) -> Iterator[Result]:
    """Run tasks on the cluster at `engine.address`; a cluster that this process has joined already is used.

    Raises:
        LostTasksError: Tasks whose workers died, when all others are done.
        UsageError: Ray is not installed, or no cluster answers.
        Whatever `function` raises.
    """
    with needed("ray"):
        import ray
        from ray import exceptions
    joined_here = not ray.is_initialized()
    if joined_here:
        _join(ray, engine.address)
    # Ray's own retries are off: those after a lack of memory would never end
    remote: Any = ray.remote(num_cpus=1, max_retries=0)(_run_one)
    source = iter(tasks)
    running: dict[Any, Task[Item]] = {}
    attempts: Counter[str] = Counter()
    lost: list[str] = []

    def submit(task: Task[Item]) -> None:
        attempts[task.name] += 1
        memory = min(task.memory, _largest_node(ray))  # more than any node has would wait for ever
        is_last = attempts[task.name] == ATTEMPTS
        running[remote.options(name=task.name, memory=memory).remote(function, task, is_last)] = task

    try:
        while True:
            # a growing cluster must see demand beyond what it has
            limit = engine.workers or 2 * _cores(ray)
            for task in islice(source, max(0, limit - len(running))):
                submit(task)
            if not running:
                break
            done, _ = ray.wait(list(running), num_returns=1, timeout=TICK)
            if progress is not None:
                progress.tick()
            for reference in done:
                task = running.pop(reference)
                try:
                    result: Result | LostTasksError = ray.get(reference)
                except exceptions.RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, BaseException) else error) from None
                except exceptions.RayError as error:
                    if attempts[task.name] < ATTEMPTS:
                        submit(task)
                    else:
                        lost.append(f"{task.name} ({type(error).__name__})")
                    continue
                if isinstance(result, LostTasksError):
                    lost.append(task.name)
                    continue
                del attempts[task.name]
                if progress is not None:
                    progress.add(task.units)
                yield result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if running:  # no worker may go on writing behind the next build's back
            ray.wait(list(running), num_returns=len(running), timeout=END_SECONDS)
        if joined_here:
            ray.shutdown()
    if lost:
        raise lost_tasks(lost, "on nodes with more of it; Ray's logs say more")


def _run_one(function: Callable[[Item], Result], task: Task[Item], is_last: bool) -> Result | LostTasksError:
    """Do a task on a Ray worker.

    Args:
        function: What to call with the task's item.
        task: What to do.
        is_last: Workers have died over it before. It is done in a process below this one, so that the local engine
            finds the unit that kills its worker and goes on without it.

    Returns:
        The function's result, or the error that says that the task was given up.
    """
    if not is_last:
        return function(task.item)
    try:
        return next(run_in_processes(function, [task], 1))
    except LostTasksError as error:
        return error


def _join(ray: Any, address: str | None) -> None:
    """Join a cluster.

    Raises:
        UsageError: No cluster answers.
    """
    wanted = address or os.environ.get("RAY_ADDRESS")
    try:
        host, separator, port = (wanted or "").removeprefix("ray://").rpartition(":")
        if separator:  # Ray itself would end this process
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        stopping = signal.getsignal(signal.SIGTERM)
        ray.init(address=wanted, log_to_driver=False, logging_level="warning")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, stopping)  # Ray puts one of its own in its place, which ends without a word
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--engine ray: no cluster answers at {wanted or 'this machine'}: {error}; start one with `ray start "
            "--head`, or leave --address away to run on this machine alone"
        ) from error


def _cores(ray: Any) -> int:
    """Return the cores that the cluster has now."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _largest_node(ray: Any) -> int:
    """Return the bytes of memory that the roomiest node with a core lends to tasks."""
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return max((int(has.get("memory", 0)) for has in nodes if has.get("CPU", 0) >= 1), default=1 << 62)
