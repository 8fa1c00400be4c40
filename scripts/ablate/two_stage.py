"""What a row does with its chips: so many optimiser steps, then a score on whole images. This is the project's own
detector; `one_stage.py` has another one."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from schemas.settings import Settings
from scripts.ablate.data import Data
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.recall import evaluate_proposals
from trainer.loading.dataset import ChipDataset
from trainer.loading.loader import BatchLoader
from trainer.loading.order import State
from trainer.runtime.checkpoint import checkpoint_path, read_last
from trainer.runtime.ranks import joined
from trainer.training.loop import train_step
from trainer.training.run import make_run

DECAY_AT = 0.8
"""Share of the steps after which the rate is divided by ten."""
KEEP_EVERY = 100  # steps from one checkpoint to the next


class Pace(NamedTuple):
    """How long a step took, the mean over the steps of one process: seconds by the clock, and of all cores."""

    step_s: float
    step_cpu_s: float


class OutOfTimeError(Exception):
    """The time is over. What was learnt is kept, and the same call goes on from there."""


class Stopwatch:
    """Measures the pace of steps, without the first one, which warms up, and says when the time is over."""

    def __init__(self, deadline: float) -> None:
        """Start; `deadline` is a reading of time.monotonic."""
        self._deadline = deadline
        self._readings: list[tuple[float, float]] = []

    def step(self) -> bool:
        """Count a step that is done; returns whether the time is over."""
        self._readings.append((time.perf_counter(), time.process_time()))
        return time.monotonic() > self._deadline

    def pace(self) -> Pace | None:
        """Return the pace; None where fewer than two steps were done."""
        if len(self._readings) < 2:
            return None
        clock, cores = (
            (last - first) / (len(self._readings) - 1)
            for first, last in zip(self._readings[0], self._readings[-1], strict=True)
        )
        return Pace(clock, cores)


def epoch_of(folder: Path, settings: Settings) -> tuple[int, int]:
    """Return the chips of an epoch of a data set, and the pixels of their contents."""
    dataset = ChipDataset(folder)
    order = BatchLoader(dataset, settings.loader, settings.train.batch_size).epoch(State(0)).order
    return len(order), int(dataset.manifest.contents[order].astype(int).prod(axis=1).sum())


def fit(folders: list[Path], out: Path, settings: Settings, steps: int, deadline: float) -> Pace | None:
    """Take so many optimiser steps, whatever an epoch's length, with the trainer's own step; goes on where it stood.

    Args:
        folders: the chips; epoch e reads folder e modulo their number.
        out: folder of the run.
        settings: as of `sniper train`, but that `epochs` and `decay_epochs` give way to `steps` and DECAY_AT.
        steps: of the whole run.
        deadline: a reading of time.monotonic at which to stop.

    Returns:
        The pace; None where this call did fewer than two steps.

    Raises:
        OutOfTimeError: the deadline came first.
    """
    watch = Stopwatch(deadline)
    with joined() as rank:
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.train.seed)
        last = read_last(out)
        datasets = [ChipDataset(folder) for folder in folders]
        run = make_run(datasets[0], out, settings, rank, last=last, rpn_only=False)
        loaders = [run.loader] + [
            BatchLoader(dataset, settings.loader, settings.train.batch_size, pin=rank.device.type == "cuda")
            for dataset in datasets[1:]
        ]
        decay = DECAY_AT * steps / run.epoch_steps  # of the first folder, also in a run that goes on
        if last is not None:
            run.loader = loaders[State(*last.loader).epoch % len(loaders)]  # the place is one of its epoch
            run.restore(last)
        warmup = min(settings.train.warmup_steps, steps // 4)
        run.schedule = run.schedule._replace(warmup_steps=warmup, decays=(decay,))
        while run.step < steps:
            run.loader = loaders[run.state.epoch % len(loaders)]
            epoch = run.loader.epoch(run.state)
            run.epoch_chips = len(epoch.order)
            for step in epoch:
                assert train_step(run, step) is not None, "nothing here asks a step to stop"
                run.state, run.step = step.after, run.step + 1
                is_late = watch.step() and run.step < steps
                if run.step % KEEP_EVERY == 0 or run.step == steps or is_late:
                    run.keep()
                if is_late:
                    run.settle()
                    raise OutOfTimeError(f"step {run.step} of {steps}")
                if run.step == steps:
                    break
        run.settle()
    return watch.pace()


def score(data: Data, out: Path, settings: Settings, steps: int) -> dict[str, Any]:
    """Score the run in `out` on the whole images of the validation set, and the proposals of its RPN.

    Returns:
        COCO's scores by name, as `sniper evaluate` gives them; the detections themselves as `found`; detect_cpu_s,
        the seconds of all cores that detecting and scoring took; the recall of 300 proposals of an image, as
        `sniper evaluate --proposals` gives it.
    """
    checkpoint = checkpoint_path(out, steps)
    began = time.process_time()
    report = evaluate(checkpoint, data.val, data.val_images, settings)
    taken = time.process_time() - began
    proposed = evaluate_proposals(checkpoint, data.val, data.val_images, settings)
    assert report is not None
    assert proposed is not None
    return {
        "scores": {name: value for name, value in report.summary.items() if "[" not in name},
        "found": report.detections,
        "detect_cpu_s": taken,
        "recall": proposed.summary,
    }
