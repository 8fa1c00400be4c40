"""What a command shows while it works, and what a Python program that calls the functions does not hear."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.engines.progress import Progress, showing
from tests.conftest import RunSniper
from tests.paths import ROOT
from tests.pipeline.conftest import DataSet

SCRIPT = """
import sys
import time
from pathlib import Path
import pipeline.engines.progress
from sniper_chips import Settings, chips

pipeline.engines.progress.LOG_INTERVAL = 0.0
if sys.argv[4:] == ["loud"]:
    import logging
    logging.basicConfig(level=logging.INFO)
annotations, images, out = map(Path, sys.argv[1:4])
chips(annotations, images, out, Settings())
"""


def build(demo_set: DataSet, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, *map(str, (demo_set.annotations, demo_set.images, out)), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)


def test_functions__are_silent_until_the_caller_turns_the_logger_on(demo_set: DataSet, tmp_path: Path) -> None:
    silent = build(demo_set, tmp_path / "a")
    assert silent.stdout + silent.stderr == ""
    loud = build(demo_set, tmp_path / "b", "loud")
    assert loud.stdout == ""
    assert "INFO:sniper:chips: 12 of 12 images" in loud.stderr


def test_commands__show_progress_on_standard_error(
    demo_set: DataSet, tmp_path: Path, sniper: RunSniper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.engines.progress.LOG_INTERVAL", 0.0)
    annotations, images = demo_set
    done = sniper("chips", "--annotations", annotations, "--images", images, "--out", tmp_path, "--workers", 1)
    assert done.status == 0
    assert done.err.count("chips: 12 of 12 images") == 1
    assert "12 of 12" not in done.out


def test_progress__shows_a_line_in_a_log_only_every_so_often(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sniper")
    with Progress("work", 1000, "things") as progress:
        for _ in range(1000):
            progress.add(1)
    assert caplog.text == ""


def test_showing__says_every_so_often_that_work_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.engines.progress.LOG_INTERVAL", 0.05)
    caplog.set_level("INFO", "sniper")
    with showing("reading a.json"):
        while "reading a.json: 0 s so far" not in caplog.text:
            time.sleep(0.01)
    caplog.clear()
    time.sleep(0.2)
    assert caplog.text == ""


def test_progress__takes_the_time_left_from_the_recent_rate(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "sniper")
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with Progress("work", 1000, "things") as progress:
        for _ in range(10):  # slow to begin with
            clock[0] += 10
            progress.add(1)
        for _ in range(10):
            clock[0] += 10
            progress.add(50, 20_000_000)
        clock[0] += 10
        progress.tick()  # a line comes though nothing was done
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 21
    assert lines[9] == "work: 10 of 1000 things, 0.1/s, 9900 s left"
    assert lines[19] == "work: 510 of 1000 things, 5.0/s, 2.0 MB/s, 98 s left"
