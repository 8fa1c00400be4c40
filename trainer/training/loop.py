"""The training step and the loop around it. It reads from top to bottom; nothing hooks in from elsewhere."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NoReturn

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.storage import Location, write_atomic
from schemas.errors import DataError
from trainer.evaluation.ground_truth import GroundTruth
from trainer.learning.objective import loss_terms
from trainer.loading.batch import Batch
from trainer.loading.loader import Epoch, Step
from trainer.runtime.checkpoint import checkpoint_path
from trainer.runtime.ranks import any_rank, asked_to_stop, stop_together, sum_over_ranks
from trainer.training.journal import Journal, Meter, pass_line, progress_line
from trainer.training.run import Run
from trainer.training.validate import is_due, picture, validate

LEAST_SCALE = 1e-3
"""Of the loss in fp16: it begins at 65,536, and where gradients still overflow at this one, it is not fp16's doing."""


def train_step(run: Run, step: Step) -> dict[str, float] | None:
    """Take one optimiser step over all micro-batches of all ranks, or leave everything as it was before.

    Args:
        run: what is trained.
        step: what this rank contributes to the global batch.

    Returns:
        The mean of each loss term per chip of the global batch, by its name; None where the step was given up, between
        two micro-batches, because some rank is to stop.

    Raises:
        DataError: a loss or the gradient is not finite on some rank; in fp16, the gradient at LEAST_SCALE too.
    """
    device, options = run.rank.device, run.settings.train
    names = loss_terms(run.model)
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)
    batches: list[Batch] = []
    statistics = run.statistics()
    micros = step.micros[: math.ceil(step.num_chips / run.rank.count)]  # in a short step no rank has a chip for more
    for index, micro in enumerate(micros):
        if any_rank(asked_to_stop()):
            run.undo(statistics)
            return None
        started = time.perf_counter()
        batch = micro.to(device)
        batches.append(replace(batch, images=batch.images.new_empty(0)))  # for a report, which shows no pixels
        sums += _backward(run, batch, names, is_last=index == len(micros) - 1)
        if device.type == "cpu" and not run.is_timed:  # a CPU may take minutes for each
            left = run.num_steps - run.step
            run.tell(pass_line(index, len(micros), time.perf_counter() - started, left))
    run.scaler.unscale_(run.optimizer)
    run.is_timed = True
    size = nn.utils.get_total_norm([p.grad for p in run.learning if p.grad is not None])
    # the host waits for the device here, before anything is changed, and in the NMS of proposals; nowhere else
    *values, norm = torch.cat([sum_over_ranks(sums), size[None].double()]).tolist()
    short = run.loader.batch_size / step.num_chips  # above 1 in an epoch's last, short step: report its mean per chip
    losses_now = {name: value * short for name, value in zip(names, values, strict=True)}
    # fp16 overflows now and then: its scaler passes over such a step by itself, and halves the scale
    is_sound = math.isfinite(norm) or (run.scaler.is_enabled() and run.scaler.get_scale() >= LEAST_SCALE)
    if not all(map(math.isfinite, values)) or not is_sound:
        run.undo(statistics)
        _report_non_finite(run, batches, {**losses_now, "gradient_norm": norm})
    if options.clip_gradient is not None:
        nn.utils.clip_grads_with_norm_(run.learning, options.clip_gradient, size)
    for group in run.optimizer.param_groups:
        group["lr"] = run.schedule.rate(run.step, run.progress)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    if run.ema is not None:
        run.ema.update(run.model)
    return losses_now


def _backward(run: Run, batch: Batch, names: Sequence[str], *, is_last: bool) -> Tensor:
    """Add the gradients of one micro-batch.

    Args:
        run: what is trained.
        batch: on the rank's device.
        names: which loss terms.
        is_last: whether it is the step's last one, with whose backward pass the ranks exchange gradients.

    Returns:
        The loss terms in the order of `names`, float32 [len(names)], each the sum over these chips divided by the size
        of the global batch.
    """
    objective = run.objective
    with objective.no_sync() if isinstance(objective, DistributedDataParallel) and not is_last else nullcontext():
        with run.autocast():
            losses: dict[str, Tensor] = run.objective(
                batch, seed=run.state.seed, epoch=run.state.epoch, batch_size=run.loader.batch_size
            )
        terms = torch.stack([losses[name] for name in names])
        # equal weights (docs/method.md, 8.2); DDP takes the mean over ranks, our losses are terms of one sum
        torch.autograd.backward(run.scaler.scale(terms.sum() * run.rank.count))
    return terms.detach()


def run_loop(run: Run, truth: GroundTruth | None) -> Location:
    """Train until the last epoch ends, and keep, log, draw and validate on the way.

    Args:
        run: as it was made, or restored from a checkpoint.
        truth: what is validated against; None where nothing is.

    Returns:
        The last checkpoint.

    Raises:
        DataError: a chip cannot be read, a loss is not finite, or a checkpoint cannot be written.
        StoppedError: a signal asked for an end; a checkpoint of the last whole step has been written.
    """
    options, rank = run.settings.train, run.rank
    journal = Journal(run.out, run.step, tensorboard=options.tensorboard, warned=run.warned) if rank.is_first else None
    if journal and run.changed:
        journal.record(run.step, {"epoch": run.state.epoch, "settings": run.changed})
    meter = Meter(run.num_steps - run.step, rank.device)
    while True:
        if truth and is_due(run):
            with meter.paused():
                values = validate(run, truth)
            if journal:
                journal.record(run.step, {"epoch": run.state.epoch - 1, **values})
                journal.put()
        if run.state.epoch >= options.epochs:
            run.settle()
            return checkpoint_path(run.out, run.step)
        epoch = run.state.epoch
        steps = run.loader.epoch(run.state)
        run.epoch_chips = len(steps.order)
        for step, waited in _timed(steps):
            losses = train_step(run, step)
            if losses is None:
                _stop(run, journal)
            run.state, run.step = step.after, run.step + 1
            epoch_ends = run.state.epoch > epoch
            meter.add(losses, step.num_chips, waited)
            if journal and (run.step % options.log_every == 0 or epoch_ends):
                values = {**meter.take(), "lr": run.optimizer.param_groups[0]["lr"]}
                journal.record(run.step, {"epoch": epoch, **values})
                run.tell(progress_line(epoch, run.step, values))
            if rank.is_first and run.step % options.picture_every == 0 and not run.model.rpn_only:
                picture(run, step.micros[0].to(rank.device))
            if epoch_ends or run.is_keep_due():
                _keep(run, journal)


def _keep(run: Run, journal: Journal | None) -> None:
    """Keep the last whole step while the training goes on; the log comes first, for resuming cuts what is ahead."""
    if journal:
        journal.put()
    run.keep()


def _stop(run: Run, journal: Journal | None) -> NoReturn:
    """Keep the last whole step, and end."""
    _keep(run, journal)
    run.settle()
    stop_together(f"step {run.step} is kept in {checkpoint_path(run.out, run.step)}")
    raise AssertionError("a step is given up only where some rank is to stop")


def _timed(epoch: Epoch) -> Iterator[tuple[Step, float]]:
    """Yield each step with the seconds that were spent waiting for it."""
    steps = iter(epoch)
    while True:
        asked = time.perf_counter()
        step = next(steps, None)
        if step is None:
            return
        yield step, time.perf_counter() - asked


def _report_non_finite(run: Run, batches: list[Batch], values: dict[str, float]) -> NoReturn:
    """Write what the failing step of this rank was made of to a file, and stop; no pixels of the batches are used."""
    path = run.out / f"non-finite-rank{run.rank.index}.json"
    chips = [
        {"key": key, "boxes": batch.boxes[a:b].tolist(), "status": batch.status[a:b].tolist()}
        for batch in batches
        for key, a, b in zip(batch.keys, batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True)
    ]
    written = {"step": run.step, "losses": {name: str(value) for name, value in values.items()}, "chips": chips}
    write_atomic(path, msgspec.json.encode(written))
    going_on = "run the same command with it"  # it begins anew, or as `sniper negatives` goes on by itself
    if run.kept_step >= 0 and not run.model.rpn_only:
        going_on = (
            "give it with --resume, which goes on from the last checkpoint, or, where the losses rose long before, "
            "begin anew in another --out"
        )
    raise DataError(
        f"step {run.step}: the loss or the gradient is not finite ({values}); nothing was changed by this step, whose "
        f"chips are in {path}. A lower train.learning_rate, more train.warmup_steps or train.clip_gradient=10 helps "
        f"most often: {going_on}"
    )
