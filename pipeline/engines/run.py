"""Runs a function over tasks, on this machine or on a Ray cluster.

Knows nothing of chips; tasks know nothing of processes.

Both engines keep one contract (tests/pipeline/engines/test_run.py): every task is done once, results come as they
finish, a bounded number is in flight and the rest is drawn only then. What the function raises ends it all and arrives
as it was raised. Only a task whose worker dies is repeated. Where ATTEMPTS workers have died at the same unit of a
task, the task goes on without that unit if it can; else the task is given up, the others are still finished, and then
an error names it.
"""

from collections.abc import Callable, Iterable, Iterator

from pipeline.engines.local import run_local
from pipeline.engines.progress import Progress
from pipeline.engines.tasks import Engine, Item, Result, Task, check_engine


def run_tasks(
    function: Callable[[Item], Result],
    tasks: Iterable[Task[Item]],
    engine: Engine,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Yield function(task.item) as each finishes, in any order.

    Args:
        function: A function of a module, so that a worker finds it.
        tasks: Drawn only as workers become free.
        engine: Where the function runs.
        progress: Shows the units that are done; those of a task at its end, or each where the function reports them.

    Raises:
        LostTasksError: Tasks whose workers died, each named, when all others are done.
        UsageError: The engine is not there, or an address is given where none is needed.
        Whatever `function` raises; the other workers are stopped at once.
    """
    check_engine(engine)
    if engine.kind == "ray":
        from pipeline.engines.on_ray import run_on_ray

        return run_on_ray(function, tasks, engine, progress)
    return run_local(function, tasks, engine.processes, progress)
