"""What involves several processes: ranks that train, fail or have no chip, and a run that is stopped and goes on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from scripts.gpu_check.setting import Setting

RUNS = "tests/trainer/runs.py"
RANK = "scripts.gpu_check.one_rank"
EPOCHS = "train.epochs=8"
WITHIN = 30.0  # seconds in which all ranks have ended after one has raised


def start(*words: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a Python process in the root of the project."""
    path = os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}  # not its ranks
    return subprocess.Popen(
        [sys.executable, *words],
        env=inherited | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_ranks(count: int, *words: str) -> list[subprocess.Popen[str]]:
    """Start processes as torchrun would on one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    shared |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # no name of this machine is looked up
    return [
        start(*words, environment={**shared, "RANK": str(i), "LOCAL_RANK": str(i), "LOCAL_WORLD_SIZE": str(count)})
        for i in range(count)
    ]


def finished(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Wait for processes; the exit status of each, and what it has printed."""
    outputs = [process.communicate()[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def demand_success(ended: list[tuple[int, str]]) -> None:
    """Fail with the output of the first process that did not end well."""
    for rank, (status, output) in enumerate(ended):
        if status:
            raise RuntimeError(f"rank {rank} ended with {status}:\n{output}")


def told(ended: tuple[int, str], before: str) -> str:
    """What a process has printed behind some words, to the end of the line."""
    status, output = ended
    if before not in output:
        raise RuntimeError(f"a rank ended with {status} too early:\n{output}")
    return output.partition(before)[2].splitlines()[0]


def counts(setting: Setting) -> list[int]:
    """Numbers of ranks that can be tried: NCCL takes no two of them on one GPU, gloo takes any."""
    several = setting.device.type == "cpu" or torch.cuda.device_count() > 1
    return [1, 2] if several else [1]


def tiny_chips(setting: Setting) -> Path:
    """A small data set, made once per run."""
    from pipeline.commands.chips import chips
    from schemas.settings import load_settings
    from scripts.make_demo_data import make_demo_data
    from tests.trainer.runs import TINY_CHIPS

    data, out = setting.work / "tiny", setting.work / "tiny-chips"
    if not (out / "run.json").exists():
        make_demo_data(data, 5, 1)
        chips(data / "train.json", data / "train", out, load_settings(None, TINY_CHIPS))
    return out


def ranks(setting: Setting) -> Iterator[dict[str, Any]]:
    """First ranks of which the last one raises, which needs no data; then ranks that train."""
    yield {"backend": "gloo" if setting.device.type == "cpu" else "nccl", "most_ranks": max(counts(setting))}
    if max(counts(setting)) == 1:
        yield {"not_tried": "several ranks, and with them DDP: there is one GPU"}
    late = []
    for count in counts(setting):
        ended = finished(start_ranks(count, "-m", RANK, "raise"))
        done = time.time()
        raised = float(told(ended[-1], "raising at "))
        yield {f"{count}_ranks_end_s": done - raised, f"{count}_ranks_statuses": [status for status, _ in ended]}
        if done - raised > WITHIN or not all(status for status, _ in ended):
            late.append(count)
    if late:
        raise AssertionError(f"with {late} ranks not all ended within {WITHIN} s and a status other than 0")
    data = tiny_chips(setting)
    for count in counts(setting):
        out = setting.work / f"ranks-{count}"
        began = time.perf_counter()
        demand_success(finished(start_ranks(count, RUNS, str(data), str(out))))
        yield {f"{count}_ranks_train_s": time.perf_counter() - began, f"{count}_ranks_loss": losses(out)[-1]}


def losses(run: Path) -> list[float]:
    """The loss of each step of a run."""
    records = (json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


def empty_rank(setting: Setting) -> Iterator[dict[str, Any]]:
    """Two ranks with synchronised norms, one without a chip, against a single process with all chips.

    They share a GPU where there is one, and so are joined by gloo.
    """
    results = []
    for count in (1, 2):
        ended = finished(start_ranks(count, "-m", RANK, "sync"))
        demand_success(ended)
        results += [json.loads(told(each, "result ")) for each in ended]
    alone, first, second = results
    for name in alone:
        yield {f"{name}_alone": alone[name], f"{name}_first_rank": first[name], f"{name}_empty_rank": second[name]}
    others = {name: (first[name] / alone[name] - 1, second[name] / first[name] - 1) for name in alone}
    if wrong := [name for name, off in others.items() if not max(map(abs, off)) < 0.02]:
        raise AssertionError(f"{', '.join(wrong)}: ranks differ from each other or from a single process")


def resume(setting: Setting) -> Iterator[dict[str, Any]]:
    """A run that is stopped by SIGTERM and resumed, against one without interruption: the losses of all steps."""
    data = tiny_chips(setting)
    whole, stopped = setting.work / "whole", setting.work / "stopped"
    demand_success(finished([start(RUNS, str(data), str(whole), EPOCHS)]))
    total = len(losses(whole))
    process = start(RUNS, str(data), str(stopped), EPOCHS)
    while process.poll() is None and not has_steps(stopped, total // 3):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    ((status, _),) = finished([process])
    before = len(losses(stopped))
    yield {"steps": total, "stopped_after": before, "status": status}
    demand_success(finished([start(RUNS, str(data), str(stopped), EPOCHS, "resume")]))
    pairs = list(zip(losses(whole), losses(stopped), strict=True))
    off = [abs(a - b) / a for a, b in pairs]
    yield {"largest_difference_of_a_loss": max(off), "mean_difference": sum(off) / len(off)}
    if status != 143 or not before < total:
        raise AssertionError(f"the run was to be stopped midway with status 143, and ended with {status}")
    if sum(off) / len(off) > (0 if setting.device.type == "cpu" else 0.05):  # a GPU adds up in any order
        raise AssertionError("the resumed run is another one")


def has_steps(run: Path, num: int) -> bool:
    """Whether a run has logged this many steps."""
    log = run / "log.jsonl"
    return log.exists() and len(log.read_text().splitlines()) >= num
