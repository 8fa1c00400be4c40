"""Runs a function over tasks, on this machine or on a Ray cluster. Knows nothing of chips; tasks know nothing of
processes.

Both engines keep one contract (tests/pipeline/engines/test_run.py): every task once, results as they finish, a bounded
number in flight and the rest drawn only then; what the function raises ends the run and arrives as it was raised; a
task whose worker dies is tried again, ATTEMPTS times in all, and then the others are still finished before the run
ends with an error that names it.
"""

from collections.abc import Callable, Iterable, Iterator

from pipeline.engines.local import run_local
from pipeline.engines.tasks import Engine, Item, Result, Task
from schemas.errors import UsageError


def run(function: Callable[[Item], Result], tasks: Iterable[Task[Item]], engine: Engine) -> Iterator[Result]:
    """Yield function(task.item) as each finishes, in any order.

    Raises:
        DataError: tasks whose workers died, each named, when all others are done.
        UsageError: an engine that is not there, or an address where none is needed.
        Whatever `function` raises; the other workers are stopped at once.
    """
    if engine.kind == "ray":
        from pipeline.engines.on_ray import run_ray

        return run_ray(function, tasks, engine)
    if engine.kind != "local":
        raise UsageError(f"engine {engine.kind!r}: expected local or ray")
    if engine.address is not None:
        raise UsageError("--address names a Ray cluster: give --engine ray with it")
    return run_local(function, tasks, engine.processes)
