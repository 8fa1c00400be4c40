"""The local engine: processes of this machine, each with a pipe to this one, which deals out the tasks."""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Generic

from pipeline.engines.progress import Progress
from pipeline.engines.tasks import (
    ATTEMPTS,
    NO_GUARD,
    Item,
    Result,
    Task,
    listening,
    lost_tasks,
    memory_limit,
)
from schemas.errors import UsageError

TICK = 1.0  # seconds between two looks at the progress
MOST_DEATHS = 20  # over one task, wherever in it they happen
END_SECONDS = 10  # for a worker to end that was told to


def run_local(
    function: Callable[[Item], Result], tasks: Iterable[Task[Item]], workers: int, progress: Progress | None = None
) -> Iterator[Result]:
    """Run tasks in this process where one worker is asked for, else in processes of their own.

    Raises:
        LostTasksError: Tasks whose workers died, when all others are done.
        UsageError: Workers cannot start.
        Whatever `function` raises.
    """
    if workers > 1:
        yield from run_in_processes(function, tasks, workers, progress)
        return
    counter = _Counter(progress)
    for task in tasks:
        with listening(partial(counter.begin, task)):
            result = function(task.item)
        counter.finish(task)
        yield result


def run_in_processes(
    function: Callable[[Item], Result], tasks: Iterable[Task[Item]], workers: int, progress: Progress | None = None
) -> Iterator[Result]:
    """Run tasks in up to `workers` processes, which are started as they are needed and end with this generator.

    Raises:
        LostTasksError: Tasks whose workers died, when all others are done.
        UsageError: Workers cannot start.
        Whatever `function` raises.
    """
    crew = _Crew(function, workers, _Counter(progress))
    source = iter(tasks)
    is_exhausted = False
    try:
        while True:
            crew.deal()
            may_draw = not is_exhausted and len(crew.drawn) < workers
            if may_draw:  # one at a time, so that no worker waits while others are planned
                task = next(source, None)
                is_exhausted = task is None
                if task is not None:
                    crew.drawn.append(task)
            elif crew.is_done():
                break
            for worker in crew.heard_from(0.0 if may_draw else TICK):
                yield from crew.hear(worker)
            if progress is not None:
                progress.tick()
    finally:
        crew.end()
    if crew.lost:
        raise lost_tasks(crew.lost, "with fewer --workers")


class _Worker(Generic[Item]):
    """A process that does one task at a time.

    Attributes:
        task: The task that it has been given; None: it is free.
        position: The unit of the task that it has begun with last; None: it has reported none.
        is_ready: It has started and takes tasks.
    """

    def __init__(self, function: Callable[[Item], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other_end = context.Pipe()
        self._function = function
        self.process = context.Process(target=_work, args=(other_end,), daemon=True)
        self.process.start()
        other_end.close()  # so that the pipe ends with the process
        self.task: Task[Item] | None = None
        self.position: int | None = None
        self.is_ready = False

    def give(self, task: Task[Item]) -> None:
        """Give it a task, now or when it is ready."""
        self.task, self.position = task, None
        if self.is_ready:
            with suppress(BrokenPipeError, ConnectionResetError):  # it has died, and the pipe's end will tell
                self.pipe.send((self._function, task.item))


class _Crew(Generic[Item]):
    """The workers, the tasks that wait for one, and the deaths so far.

    Attributes:
        drawn: Tasks that no worker has yet; those to repeat come first.
        lost: A line for each task that was given up.
    """

    def __init__(self, function: Callable[[Item], Any], workers: int, counter: "_Counter") -> None:
        self._function, self._most, self._counter = function, workers, counter
        self._memory = memory_limit()
        self._workers: list[_Worker[Item]] = []
        self._deaths: Counter[tuple[str, int | None]] = Counter()
        self.drawn: deque[Task[Item]] = deque()
        self.lost: list[str] = []

    def is_done(self) -> bool:
        """Tell whether no task waits and none is being done."""
        return not self.drawn and all(worker.task is None for worker in self._workers)

    def deal(self) -> None:
        """Give tasks to free workers, and start workers, as far as their number and the memory allow."""
        while self.drawn:
            taken = [worker.task.memory for worker in self._workers if worker.task is not None]
            if taken and sum(taken) + self.drawn[0].memory > self._memory:
                return
            worker = next((worker for worker in self._workers if worker.task is None), None)
            if worker is None:
                if len(self._workers) == self._most:
                    return
                worker = _Worker(self._function)
                self._workers.append(worker)
            worker.give(self.drawn.popleft())

    def heard_from(self, seconds: float) -> list[_Worker[Item]]:
        """Wait until a worker says something or ends, but no longer than some seconds."""
        speaking = wait([worker.pipe for worker in self._workers], seconds)
        return [worker for worker in self._workers if worker.pipe in speaking]

    def hear(self, worker: _Worker[Item]) -> Iterator[Any]:
        """Take one message of a worker, or its death; yields the result if that is what it says."""
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if kind == "ready":
            worker.is_ready = True
            if worker.task is not None:
                worker.give(worker.task)
        elif kind == "raised":
            error, trace = value
            raise error from _WorkerError(trace)
        elif worker.task is not None:
            if kind == "begun":
                worker.position = value[0]
                self._counter.begin(worker.task, *value)
            else:
                self._counter.finish(worker.task)
                worker.task = None
                yield value

    def _bury(self, worker: _Worker[Item]) -> None:
        """Take a dead worker out, and decide what becomes of its task."""
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        code = worker.process.exitcode or 0
        if not worker.is_ready and code >= 0:
            raise UsageError(NO_GUARD)
        task = worker.task
        if task is None:
            return
        is_signal = -code in set(signal.Signals)
        how = signal.Signals(-code).name if is_signal else f"exit status {code}"
        place = task.name, worker.position
        self._deaths[place] += 1
        if sum(count for (name, _), count in self._deaths.items() if name == task.name) == MOST_DEATHS:
            self.lost.append(f"{task.name} ({how})")
        elif self._deaths[place] < ATTEMPTS:
            self.drawn.appendleft(task)
        elif task.refuse is not None and worker.position is not None:
            why = f"a worker process died of {how} over it, {ATTEMPTS} times"
            self.drawn.appendleft(task._replace(item=task.refuse(task.item, worker.position, why)))
        else:
            self.lost.append(f"{task.name} ({how})")

    def end(self) -> None:
        """End the workers, and no other process."""
        for worker in self._workers:
            if worker.task is not None:
                worker.process.terminate()
            worker.pipe.close()  # a free one ends by itself
        for worker in self._workers:
            worker.process.join(END_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


class _Counter:
    """Brings units of tasks to the progress, each once, however often a task is repeated."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done: Counter[str] = Counter()

    def begin(self, task: Task[Any], position: int, size: int) -> None:
        """Count the units before a position as done, and the bytes read for the unit there."""
        new = position - self._done[task.name]
        if self._progress is not None and new >= 0:
            self._done[task.name] = position
            self._progress.add(new, size)

    def finish(self, task: Task[Any]) -> None:
        """Count all units of a task as done."""
        if self._progress is not None:
            self._progress.add(task.units - self._done.pop(task.name, 0))


class _WorkerError(Exception):
    """Says where in a worker process an error was raised; it is shown as the cause of that error."""


def _work(pipe: Connection) -> None:
    """Do tasks as they come through the pipe until it ends; this is all that a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    _end_with_parent()
    with listening(lambda position, size: pipe.send(("begun", (position, size)))):
        pipe.send(("ready", None))
        while True:
            try:
                function, item = pipe.recv()
            except (EOFError, OSError):
                os._exit(0)  # at once: taken down step by step, threads of libraries abort a worker now and then
            try:
                answer = "done", function(item)
            except BaseException as error:
                answer = "raised", (_sendable(error), traceback.format_exc())
            pipe.send(answer)


def _sendable(error: BaseException) -> BaseException:
    """Return the error, or one of its text where another process could not make it again."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class raises there
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    """End this process when its parent ends, however that ends: it must not leave writers behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
