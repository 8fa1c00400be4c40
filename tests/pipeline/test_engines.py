"""The local engine: every item once, errors as they are, no worker left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.engines import run_local
from schemas.errors import DataError


def square(number: int) -> int:
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("item 3 is bad")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_run_local__each_item_once(workers: int) -> None:
    assert sorted(run_local(square, range(20), workers)) == [n * n for n in range(20)]


def test_run_local__no_items() -> None:
    assert list(run_local(square, [], 2)) == []


def test_run_local__draws_items_only_as_they_are_needed() -> None:
    drawn = []

    def items() -> Iterator[int]:
        for number in range(50):
            drawn.append(number)
            yield number

    results = run_local(square, items(), 2)
    next(results)
    assert len(drawn) <= 8
    results.close()  # type: ignore[attr-defined]


def test_run_local__raises_what_the_function_raised() -> None:
    with pytest.raises(ValueError, match="item 3 is bad"):
        list(run_local(fail_at_three, range(20), 2))


def test_run_local__a_killed_worker_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match="worker process died"):
        list(run_local(die_at_three, range(20), 2))


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from pipeline.engines import run_local
from tests.pipeline.test_engines import sleep
if __name__ == "__main__":
    for _ in run_local(sleep, range(100), 2):
        print("one", flush=True)
"""


def sleep(number: int) -> int:
    time.sleep(0.2)
    return number


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_run_local__workers_end_with_their_parent(tmp_path: Path, sent: signal.Signals) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).resolve().parents[2])))
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline()
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(sent)
    process.wait(10)
    gone, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
