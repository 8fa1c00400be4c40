"""Signals that ask for an end: the first is remembered, a second Ctrl-C ends the process."""

import os
import signal
import subprocess
import sys

import pytest

from schemas.errors import StoppedError
from tests.paths import ROOT
from trainer.runtime.stopping import Stop


@pytest.mark.parametrize(
    ("number", "status", "name"),
    [
        *((signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")),
        *((signal.SIGUSR1, 143, "SIGUSR1"), (signal.SIGHUP, 143, "SIGHUP")),
    ],
)
def test_stop__takes_a_signal_and_gives_the_handlers_back(number: signal.Signals, status: int, name: str) -> None:
    before = signal.getsignal(number)
    with Stop("Go on.") as stop:
        assert not stop.signal
        signal.raise_signal(number)
        assert stop.signal == number
        error = stop.error("step 3 is kept")
    assert signal.getsignal(number) is before
    assert (str(error), error.exit_status) == (f"stopped by {name}: step 3 is kept. Go on.", status)


def test_stop__leaves_a_closed_terminal_ignored_where_nohup_has_it_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop("") as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.signal
    finally:
        signal.signal(signal.SIGHUP, before)


def test_at_once__breaks_off_its_block_alone() -> None:
    done = []
    with Stop("") as stop:

        def block() -> None:
            with stop.at_once():
                signal.raise_signal(signal.SIGTERM)
                done.append("the block went on")

        for _ in range(2):  # the second does not even begin
            with pytest.raises(StoppedError):
                block()
        signal.raise_signal(signal.SIGTERM)  # outside of such a block it breaks nothing off
    assert done == []


def test_stop__a_second_ctrl_c_ends_the_process_at_once() -> None:
    script = (
        "import signal\nfrom trainer.runtime.stopping import Stop\n"
        "with Stop(''):\n signal.raise_signal(2); print('one', flush=True); signal.raise_signal(2); print('two')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (-signal.SIGINT, "one\n")
