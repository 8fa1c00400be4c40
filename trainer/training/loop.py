"""The training step and the loop around it. It reads from top to bottom; nothing hooks in from elsewhere."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import NoReturn

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.storage import Location, write_atomic
from schemas.errors import DataError, SniperError
from trainer.evaluation.evaluate import GroundTruth
from trainer.learning.optim import learning_rate
from trainer.loading.batch import Batch
from trainer.loading.loader import Epoch, Step
from trainer.runtime.checkpoint import checkpoint_path, save_checkpoint
from trainer.runtime.ranks import sum_over_ranks, wait_for_all
from trainer.training.journal import Journal, Meter, progress_line
from trainer.training.run import Run
from trainer.training.validate import picture, validate

LOSS_TERMS = ("rpn_class", "rpn_box", "roi_class", "roi_box")


class StoppedError(SniperError):
    """SIGTERM came. The run has been kept in a checkpoint and can be resumed."""


def train_step(run: Run, step: Step) -> dict[str, float]:
    """Take one optimiser step over all micro-batches of all ranks.

    Args:
        step: what this rank contributes to the global batch.

    Returns:
        The mean of each loss term per chip of the global batch, by its name.

    Raises:
        DataError: a loss is not finite on some rank; no weight has been changed.
    """
    device, ranks = run.rank.device, run.rank.count
    names = LOSS_TERMS[:2] if run.model.rpn_only else LOSS_TERMS
    sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
    sums[-1] = float(run.terminated)
    batches: list[Batch] = []
    for index, micro in enumerate(step.micros):
        batch = micro.to(device)
        batches.append(batch)
        is_last = index == len(step.micros) - 1
        # ranks exchange gradients once, with the last micro-batch's backward
        alone = (
            run.objective.no_sync()
            if isinstance(run.objective, DistributedDataParallel) and not is_last
            else nullcontext()
        )
        with alone:
            with run.autocast():
                losses: dict[str, Tensor] = run.objective(
                    batch, seed=run.state.seed, epoch=run.state.epoch, batch_size=run.loader.batch_size
                )
            # equal weights (docs/method.md, 8.2); DDP takes the mean over ranks, our losses are terms of one sum
            torch.autograd.backward(run.scaler.scale(torch.stack(list(losses.values())).sum() * ranks))
        sums[:-1] += torch.stack([losses[name].detach() for name in names])
    *values, stop = sum_over_ranks(sums).tolist()  # the step's one wait for the device, before anything is changed
    short = run.loader.batch_size / step.num_chips  # above 1 in an epoch's last, short step: report its mean per chip
    losses_now = {name: value * short for name, value in zip(names, values, strict=True)}
    if not all(map(math.isfinite, values)):
        _report_non_finite(run, batches, losses_now)
    run.stopping = stop > 0
    if run.settings.train.clip_gradient is not None:
        run.scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.model.parameters(), run.settings.train.clip_gradient)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step, run.state.epoch, run.settings.train)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    if run.ema is not None:
        run.ema.update(run.model)
    return losses_now


def run_loop(run: Run, truth: GroundTruth | None) -> Location:
    """Train until the last epoch ends, and keep, log, draw and validate on the way.

    Args:
        truth: what is validated against; None where nothing is.

    Returns:
        The last checkpoint.

    Raises:
        DataError: a chip cannot be read, a loss is not finite, or a checkpoint cannot be written.
        StoppedError: SIGTERM came; a checkpoint has been written.
    """
    options, rank, out = run.settings.train, run.rank, run.out
    journal = Journal(out, run.step, tensorboard=options.tensorboard) if rank.is_first else None
    meter = Meter(_steps_left(run), rank.device)
    while run.state.epoch < options.epochs:
        for step, waited in _timed(run.loader.epoch(run.state)):
            epoch = run.state.epoch
            losses = train_step(run, step)
            run.state, run.step = step.after, run.step + 1
            epoch_ends = run.state.epoch > epoch
            meter.add(losses, step.num_chips, waited)
            if journal and (run.step % options.log_every == 0 or epoch_ends):
                values = {**meter.take(), "lr": run.optimizer.param_groups[0]["lr"]}
                journal.record(run.step, {"epoch": epoch, **values})
                run.tell(progress_line(epoch, run.step, values))
            if rank.is_first and run.step % options.picture_every == 0 and not run.model.rpn_only:
                picture(run, step.micros[0].to(rank.device))
            if run.stopping or epoch_ends or run.step % options.save_every == 0:
                run.agree()
                if journal:
                    save_checkpoint(out, run.checkpoint(), options.keep)
                    journal.put()
                wait_for_all()
            if truth and epoch_ends and run.state.epoch % options.evaluate_every == 0:
                values = validate(run, truth)
                if journal:
                    journal.record(run.step, {"epoch": epoch, **values})
                    journal.put()
            if run.stopping:
                path = checkpoint_path(out, run.step)
                raise StoppedError(f"stopped at step {run.step}; `--resume` goes on from {path}")
    return checkpoint_path(out, run.step)


def _timed(epoch: Epoch) -> Iterator[tuple[Step, float]]:
    """Yield each step with the seconds that were spent waiting for it."""
    steps = iter(epoch)
    while True:
        asked = time.perf_counter()
        step = next(steps, None)
        if step is None:
            return
        yield step, time.perf_counter() - asked


def _steps_left(run: Run) -> int:
    """Count the steps to the end of the run, taking every epoch for as long as this one."""
    epoch = run.state.epoch
    whole = math.ceil(len(run.loader.epoch(run.state).order) / run.loader.batch_size)
    return (run.settings.train.epochs - epoch) * whole - run.state.position // run.loader.batch_size


def _report_non_finite(run: Run, batches: list[Batch], losses: dict[str, float]) -> NoReturn:
    """Write what the failing step of this rank was made of to a file, and stop."""
    path = run.out / f"non-finite-rank{run.rank.index}.json"
    chips = [
        {"key": key, "boxes": batch.boxes[a:b].tolist(), "status": batch.status[a:b].tolist()}
        for batch in batches
        for key, a, b in zip(batch.keys, batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True)
    ]
    written = {"step": run.step, "losses": {name: str(value) for name, value in losses.items()}, "chips": chips}
    write_atomic(path, msgspec.json.encode(written))
    raise DataError(
        f"step {run.step}: the loss is not finite ({losses}); no weight was changed by it. Its chips are in {path}. "
        "A lower train.learning_rate, more train.warmup_steps or train.clip_gradient helps most often"
    )
