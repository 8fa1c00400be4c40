"""Python scripts in processes of their own, without seconds of imports for each: all are forked from one server.

The server has imported the trainer and done nothing else. What torchrun does, a test of whole builds shows.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.paths import ROOT

_servers = multiprocessing.get_context("forkserver")
_servers.set_forkserver_preload(["trainer.training.train", "trainer.evaluation.evaluate", "torch.optim"])


class Child:
    """A script that runs; a part of what subprocess.Popen offers."""

    def __init__(self, script: Path, arguments: tuple[object, ...], environment: Mapping[str, str]) -> None:
        self._output = Path(tempfile.mkstemp(prefix="output-")[1])
        words = [str(script), *map(str, arguments)]
        everything = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
        self._process: BaseProcess = _servers.Process(target=_run, args=(words, everything, str(self._output)))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, sent: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, sent)

    def wait(self) -> tuple[int, str]:
        """Return the exit status and what was printed."""
        self._process.join()
        status, text = self._process.exitcode, self._output.read_text(errors="replace")
        self._output.unlink()
        assert status is not None
        return status, text


def start(script: Path, *arguments: object) -> Child:
    return Child(script, arguments, {})


def run_ranks(num_ranks: int, script: Path, *arguments: object) -> None:
    """Run a script as torchrun would on one machine; every rank must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
    ranks = [
        Child(script, arguments, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(num_ranks)
    ]
    for rank, (status, text) in enumerate([child.wait() for child in ranks]):
        assert status == 0, f"rank {rank} ended with {status}\n{text}"


def _run(words: list[str], environment: dict[str, str], output: str) -> None:
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    sys.path.insert(0, str(ROOT))
    runpy.run_path(words[0], run_name="__main__")
