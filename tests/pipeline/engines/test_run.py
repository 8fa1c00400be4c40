"""One contract for every engine: each task once, errors as they are, the lost named, no worker left behind."""

import atexit
import itertools
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from pipeline.engines.progress import Progress
from pipeline.engines.run import run_tasks
from pipeline.engines.tasks import ATTEMPTS, Engine, Task, report
from schemas.errors import DataError, UsageError
from tests.paths import ROOT

pytest_plugins = ["tests.clusters"]


NOWHERE = "127.0.0.1:1"


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Two workers of each kind."""
    if request.param == "ray":
        return Engine("ray", 4, request.getfixturevalue("ray_cluster"))
    return Engine("local", 2)


def tasks(count: int) -> list[Task[int]]:
    return [Task(f"item-{number}", number) for number in range(count)]


def square(number: int) -> int:
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise DataError("item 3 is bad")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_once(marker: Path) -> str:
    """The first process that comes by dies."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return marker.name
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def leave_a_mark(folder: Path) -> None:
    (folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()


def take_too_much(number: int) -> int:
    if number == 3:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, -1))
        return len(bytearray(16 << 30))
    return number


def test_run__each_task_once(engine: Engine) -> None:
    assert sorted(run_tasks(square, tasks(20), engine)) == [n * n for n in range(20)]


def test_run__no_tasks(engine: Engine) -> None:
    assert list(run_tasks(square, [], engine)) == []


def test_run__draws_tasks_only_as_they_are_needed(engine: Engine) -> None:
    drawn = []

    def items() -> Iterator[Task[int]]:
        for task in tasks(50):
            drawn.append(task)
            yield task

    results = run_tasks(square, items(), engine)
    next(results)
    assert len(drawn) <= 8
    results.close()  # type: ignore[attr-defined]


def test_run__a_slow_consumer_makes_no_task_run_twice(engine: Engine, tmp_path: Path) -> None:
    for _ in run_tasks(leave_a_mark, [Task(f"item-{i}", tmp_path) for i in range(10)], engine):
        time.sleep(0.05)  # meanwhile others finish
    assert len(list(tmp_path.iterdir())) == 10


def test_run__raises_what_the_function_raised(engine: Engine) -> None:
    with pytest.raises(DataError, match="^item 3 is bad$"):
        list(run_tasks(fail_at_three, tasks(20), engine))


class FromTwoError(Exception):
    """Cannot be made again of what it says."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def fail_with_two(number: int) -> int:
    raise FromTwoError("this", "that")


def test_run__an_error_that_no_other_process_can_make_arrives_as_its_text() -> None:
    with pytest.raises(RuntimeError, match="FromTwoError: this and that"):
        list(run_tasks(fail_with_two, tasks(3), Engine("local", 2)))


def test_run__ray_leaves_sigterm_to_the_command(ray_cluster: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    for _ in run_tasks(square, tasks(3), Engine("ray", 2, ray_cluster)):
        assert signal.getsignal(signal.SIGTERM) is before


def test_run__out_of_memory_in_python_arrives_as_such(engine: Engine) -> None:
    with pytest.raises(MemoryError):
        list(run_tasks(take_too_much, tasks(5), engine))


def test_run__a_task_whose_worker_dies_is_tried_again(engine: Engine, tmp_path: Path) -> None:
    markers = [Task(f"item-{i}", tmp_path / str(i)) for i in range(2)]
    assert sorted(run_tasks(die_once, markers, engine)) == ["0", "1"]


def test_run__a_task_that_always_kills_its_worker_is_named_when_the_others_are_done(engine: Engine) -> None:
    done: list[int] = []
    with pytest.raises(DataError, match=rf"item-3\b.*not done.*{ATTEMPTS} times"):
        done.extend(run_tasks(die_at_three, tasks(12), engine))
    assert sorted(done) == [n for n in range(12) if n != 3]


class Units(NamedTuple):
    """Numbers to add up; some are refused."""

    numbers: list[int]
    folder: Path
    refused: dict[int, str]


def add_up(item: Units) -> tuple[int, dict[int, str]]:
    """Dies at a number 13 that is not refused."""
    leave_a_mark(item.folder)
    total = 0
    for position, number in enumerate(item.numbers):
        report(position, 1)
        if position in item.refused:
            continue
        if number == 13:
            os.kill(os.getpid(), signal.SIGSEGV)
        total += number
    return total, item.refused


def without(item: Units, position: int, why: str) -> Units:
    return item._replace(refused=item.refused | {position: why})


def test_run__goes_on_without_a_unit_that_kills_its_worker(engine: Engine, tmp_path: Path) -> None:
    """Only the task that is lost is repeated."""
    items = [[1, 2, 13, 3, 13], [4, 5], [6, 13], [7]]
    for number in range(len(items)):
        (tmp_path / str(number)).mkdir()
    units = [
        Task(f"item-{i}", Units(numbers, tmp_path / str(i), {}), units=len(numbers), refuse=without)
        for i, numbers in enumerate(items)
    ]
    done = list(run_tasks(add_up, units, engine))
    assert sorted((total, sorted(refused)) for total, refused in done) == [(6, [1]), (6, [2, 4]), (7, []), (9, [])]
    for why in (why for _, refused in done for why in refused.values()):
        assert why.startswith("a worker process died of SIGSEGV over it, 3 times")
    assert [len(list((tmp_path / str(number)).iterdir())) for number in (1, 3)] == [1, 1]
    assert len(list((tmp_path / "0").iterdir())) <= 2 * ATTEMPTS + 3


def test_run__a_callers_own_child_lives_on(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    child.start()
    try:
        with pytest.raises(DataError, match="item 3 is bad"):
            list(run_tasks(fail_at_three, tasks(20), Engine("local", 2)))
        assert child.is_alive()
    finally:
        child.kill()
        child.join()


UNGUARDED = """
import sys
sys.path.insert(0, {root!r})
from pipeline.engines.tasks import Engine, Task
from pipeline.engines.run import run_tasks
from tests.pipeline.engines.test_run import square
print(*run_tasks(square, [Task(str(n), n) for n in range(4)], Engine("local", 2)))
"""


def test_run__says_at_once_that_a_script_has_no_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED.format(root=str(ROOT)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("schemas.errors.UsageError: worker processes cannot start")
    assert '`if __name__ == "__main__":`' in done.stderr
    assert "memory" not in done.stderr


def test_run__tasks_that_fill_the_memory_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engines.local.memory_limit", lambda: 10)
    large = [Task(f"large-{i}", 0.1, memory=6) for i in range(3)]
    times = sorted(run_tasks(when, large, Engine("local", 3)))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))


def count_slowly(number: int) -> int:
    for position in range(number):
        report(position, 1_000_000)
        time.sleep(0.2)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_run__shows_progress_within_a_task(
    workers: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sniper")
    monkeypatch.setattr("pipeline.engines.progress.LOG_INTERVAL", 0.1)
    work = [Task(f"item-{i}", 8, units=8) for i in range(2)]
    with Progress("count", 16, "things") as progress:
        assert list(run_tasks(count_slowly, work, Engine("local", workers), progress)) == [8, 8]
    lines = [record.getMessage() for record in caplog.records]
    numbers = [int(line.split()[1]) for line in lines]
    assert any(0 < number < 8 for number in numbers), lines
    assert any("of 16 things, " in line and "MB/s" in line and "s left" in line for line in lines), lines
    assert numbers == sorted(numbers)
    assert max(numbers) <= 16


SCRIPT = """
import sys, time
from pathlib import Path
from typing import NamedTuple
sys.path.insert(0, {root!r})
from pipeline.engines.tasks import Engine, Task
from pipeline.engines.run import run_tasks
from tests.pipeline.engines.test_run import sleep
if __name__ == "__main__":
    for _ in run_tasks(sleep, (Task(str(n), n) for n in range(100)), {engine!r}):
        print("one", flush=True)
"""


def sleep(number: int) -> int:
    time.sleep(0.2)
    return number


def start_sleeping(engine: Engine, folder: Path) -> subprocess.Popen[bytes]:
    """A process in the middle of a run."""
    script = folder / "run.py"
    script.write_text(SCRIPT.format(root=str(ROOT), engine=engine))
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"one\n"
    return process


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_run__workers_end_with_their_parent(tmp_path: Path, sent: signal.Signals) -> None:
    process = start_sleeping(Engine("local", 2), tmp_path)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(sent)
    process.wait(60)
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_run__a_task_for_more_memory_than_any_node_has_is_run_all_the_same(ray_cluster: str) -> None:
    assert list(run_tasks(square, [Task("large", 3, memory=1 << 50)], Engine("ray", 1, ray_cluster))) == [9]


def when(seconds: float) -> tuple[float, float]:
    started = time.time()
    time.sleep(seconds)
    return started, time.time()


def test_run__tasks_that_fill_a_node_one_by_one_do_not_meet_there(ray_cluster: str) -> None:
    import ray

    much = int(0.6 * ray.cluster_resources()["memory"])
    large = [Task(f"large-{i}", 0.3, memory=much) for i in range(3)]
    times = sorted(run_tasks(when, large, Engine("ray", 3, ray_cluster)))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))


def test_run__ctrl_c_ends_a_ray_run_and_leaves_the_cluster_to_others(ray_cluster: str, tmp_path: Path) -> None:
    engine = Engine("ray", 2, ray_cluster)
    process = start_sleeping(engine, tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert sorted(run_tasks(square, tasks(4), engine)) == [0, 1, 4, 9]


def test_run__an_address_is_of_a_cluster() -> None:
    with pytest.raises(UsageError, match="give --engine ray"):
        run_tasks(square, tasks(1), Engine("local", 1, NOWHERE))


def test_run__says_when_no_cluster_answers() -> None:
    script = "from tests.pipeline.engines.test_run import *\n"
    script += f"list(run_tasks(square, tasks(1), Engine('ray', 1, {NOWHERE!r})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert f"UsageError: --engine ray: no cluster answers at {NOWHERE}" in result.stderr


def test_run__without_ray_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'PATH_OF_THE_CLONE\[ray\]'"):
        list(run_tasks(square, tasks(1), Engine("ray")))


def test_run__unknown_engine() -> None:
    with pytest.raises(UsageError, match="expected local or ray"):
        list(run_tasks(square, tasks(1), Engine("slurm")))


def leave_a_trace_at_exit(path: Path) -> int:
    atexit.register(path.touch)
    return os.getpid()


def test_worker_ends_at_once_and_takes_nothing_down_step_by_step(tmp_path: Path) -> None:
    """Threads of libraries, met by an interpreter that is taken down, abort it now and then."""
    tasks = [Task(str(i), tmp_path / str(i)) for i in range(2)]
    assert os.getpid() not in list(run_tasks(leave_a_trace_at_exit, tasks, Engine(workers=2)))
    assert list(tmp_path.iterdir()) == []
