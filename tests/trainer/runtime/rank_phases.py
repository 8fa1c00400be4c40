"""Starts two ranks per phase, of which one fails or stops, and prints how both ended: python rank_phases.py.

Torch is imported once, and each rank is a fork of this process.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from schemas.errors import DataError, StoppedError
from trainer.runtime import ranks
from trainer.runtime.ranks import (
    Rank,
    any_rank,
    asked_to_stop,
    from_first,
    gather_to_first,
    joined,
    stop_together,
    stoppable,
    sum_over_ranks,
    wait_for_all,
)

WRITTEN = 5  # exit status of a rank that has written all it had to
HANG = 120.0  # seconds after which a rank counts as hung; only for a fault


def preparing(rank: Rank) -> None:
    """The first rank finds the folder in use while the other waits for what it finds."""
    from_first(lambda: _fail(DataError("the folder is in use")))


def preparing_with_a_bug(rank: Rank) -> None:
    """What is no error of ours is relayed, too."""
    from_first(lambda: _fail(ValueError("a bug")))


def stepping(rank: Rank) -> None:
    """The second rank fails in its step while the first waits for its losses."""
    if rank.index == 1:
        raise DataError("a chip cannot be read")
    sum_over_ranks(torch.zeros(1, device=rank.device)).tolist()


def scoring(rank: Rank) -> None:
    """The first rank fails while it scores, and the other waits as long as that takes."""
    gather_to_first("found", rank)
    if rank.is_first:
        raise OSError("no space left")
    wait_for_all()


def busy(rank: Rank) -> None:
    """The second rank fails while the first is at work by itself."""
    if rank.index == 1:
        raise DataError("a chip cannot be read")
    time.sleep(2 * HANG)


def writing(rank: Rank) -> None:
    """The second rank fails while the first is writing a checkpoint, which takes longer than ends are waited for."""
    if rank.index == 1:
        raise DataError("a chip cannot be read")
    ranks.GRACE = 0.5
    with ranks.unbroken:
        time.sleep(4)
        os._exit(WRITTEN)


def leaving(rank: Rank) -> None:
    """The second rank fails after its last step, when the first has nothing to do but leave."""
    if rank.index == 1:
        raise DataError("the disk is full")


def stopping(rank: Rank) -> None:
    """One rank is asked to stop, and both stop before the same step."""
    with stoppable("Go on with --resume"):
        if rank.index == 1:
            signal.raise_signal(signal.SIGTERM)
        for step in range(10):
            if any_rank(asked_to_stop()):
                assert step == 0
                stop_together("step 0 is kept")


def uneven(rank: Rank) -> None:
    """One rank is done with its images long before the other, for longer than a rank may be late in a step."""
    assert ranks._groups is not None
    ranks._groups.prompt = dist.new_group(backend="gloo", timeout=timedelta(seconds=6))  # on a busy machine it takes 1
    time.sleep(8 * rank.index)
    stop_together("nothing is scored")


def ending(rank: Rank) -> None:
    """Both end well."""
    assert sum_over_ranks(torch.ones(1, device=rank.device)).item() == 2


PHASES: list[Callable[[Rank], None]] = [
    preparing,
    preparing_with_a_bug,
    stepping,
    scoring,
    busy,
    writing,
    leaving,
    stopping,
    uneven,
    ending,
]


def _fail(error: Exception) -> None:
    raise error


def start(phase: Callable[[Rank], None], index: int, port: int) -> int:
    """Fork a rank; its exit status says how the phase ended."""
    if pid := os.fork():
        return pid
    os.environ.update(
        RANK=str(index), LOCAL_RANK=str(index), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    status = 0
    try:
        with joined() as rank:
            phase(rank)
    except StoppedError as error:
        status = error.exit_status
    except DataError:
        status = 3
    except (RuntimeError, ValueError, OSError):
        status = 4
    os._exit(status)


def statuses(pids: list[int]) -> list[int | str]:
    """Wait for the ranks: their exit statuses, or "hung"."""
    ended: dict[int, int | str] = {}
    until = time.monotonic() + HANG
    while len(ended) < len(pids):
        for pid in pids:
            if pid not in ended:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
        if time.monotonic() > until:
            for pid in pids:
                if pid not in ended:
                    os.kill(pid, signal.SIGKILL)
                    ended[pid] = "hung"
    return [ended[pid] for pid in pids]


if __name__ == "__main__":
    probes = [socket.socket() for _ in PHASES]  # all at once, so that no port is given twice
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    # All phases run at the same time, since some of them wait for seconds.
    started = [[start(phase, index, port) for index in range(2)] for phase, port in zip(PHASES, ports, strict=True)]
    json.dump({phase.__name__: statuses(pids) for phase, pids in zip(PHASES, started, strict=True)}, sys.stdout)
