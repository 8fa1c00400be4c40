"""The Ray engine: a submit-and-wait loop over Ray core. Retries and placement are Ray's."""

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from pipeline.engines.extras import needed
from pipeline.engines.tasks import ATTEMPTS, Engine, Task, lost_tasks
from schemas.errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 10
END_SECONDS = 30  # for workers to end that were told to


def run_ray(function: Callable[[Item], Result], tasks: Iterable[Task[Item]], engine: Engine) -> Iterator[Result]:
    """As engines.run. Joins the cluster at `engine.address`; one that this process has joined already is used."""
    with needed("ray"):
        import ray
        from ray import exceptions
    joined_here = not ray.is_initialized()
    if joined_here:
        _join(ray, engine.address)
    # Ray's own retries are off: those after a lack of memory would never end
    remote = ray.remote(num_cpus=1, max_retries=0)(function)
    source = iter(tasks)
    running: dict[Any, Task[Item]] = {}
    attempts: Counter[str] = Counter()
    lost: list[str] = []

    def submit(task: Task[Item]) -> None:
        attempts[task.name] += 1
        memory = min(task.memory, _largest_node(ray))  # more than any node has would wait for ever
        running[remote.options(name=task.name, memory=memory).remote(task.item)] = task

    try:
        while True:
            # a growing cluster must see demand beyond what it has
            limit = engine.workers or 2 * _cores(ray)
            for task in islice(source, max(0, limit - len(running))):
                submit(task)
            if not running:
                break
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                task = running.pop(reference)
                try:
                    result: Result = ray.get(reference)
                except exceptions.RayTaskError as error:
                    raise error.cause from None
                except exceptions.RayError as error:
                    if attempts[task.name] < ATTEMPTS:
                        submit(task)
                    else:
                        lost.append(f"{task.name} ({type(error).__name__})")
                    continue
                del attempts[task.name]
                yield result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if running:  # no worker may go on writing behind the next build's back
            ray.wait(list(running), num_returns=len(running), timeout=END_SECONDS)
        if joined_here:
            ray.shutdown()
    if lost:
        raise lost_tasks(lost, "Ray's logs say more", "on nodes with more of it")


def _join(ray: Any, address: str | None) -> None:
    """Raises UsageError when no cluster answers."""
    wanted = address or os.environ.get("RAY_ADDRESS")
    try:
        host, separator, port = (wanted or "").removeprefix("ray://").rpartition(":")
        if separator:  # Ray itself would end this process
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=wanted, log_to_driver=False, logging_level="warning")
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--engine ray: no cluster answers at {wanted or 'this machine'}: {error}; start one with `ray start "
            "--head`, or leave --address away to run on this machine alone"
        ) from error


def _cores(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _largest_node(ray: Any) -> int:
    """Bytes of memory that the roomiest node lends to tasks."""
    return max((int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"]), default=1 << 62)
