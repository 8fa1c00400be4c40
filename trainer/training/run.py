"""A training run in memory: network, optimiser and loader, made from settings and kept in checkpoints."""

import inspect
import math
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.dataset.build_file import POSITIVES, finished_builds
from pipeline.dataset.ledger.read import read_categories
from pipeline.engines.progress import log
from pipeline.pyramid.focus import focus_limits
from pipeline.storage import Location
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, Norm, Precision, Settings, TrainSettings
from trainer.learning.objective import Objective
from trainer.learning.optim import Ema, make_optimizer
from trainer.learning.schedule import Schedule, make_schedule, resumed_schedule
from trainer.loading.dataset import ChipDataset
from trainer.loading.loader import BatchLoader
from trainer.loading.order import State
from trainer.model import Detector
from trainer.model.heads import autocast
from trainer.runtime.checkpoint import Checkpoint, Score, best_ap, find_checkpoints, on_host, save_checkpoint
from trainer.runtime.ranks import Rank, any_rank, from_first, mean_over_ranks, unbroken
from trainer.runtime.weights import load_weights, set_norm_policy

NORM_CHIPS = 8  # fewer chips in a pass make poor batch statistics (docs/method.md, 6.5)
STATISTICS = ("running_mean", "running_var")


@dataclass(kw_only=True)
class Run:
    """All that a training run is made of. `Checkpoint` says what of it is kept on disk.

    Attributes:
        out: folder of checkpoints, log and pictures.
        data: fingerprints of the builds that are trained on, by "positives" and "negatives".
        chips: settings that the positive chips were made with.
        categories: (source id, name) of each class, by label from 1.
        objective: the network with its losses, wrapped for several ranks where there are several.
        epoch_chips: chips of the epoch at hand, of all ranks.
        schedule: what the rate does over the run.
        state: where the loader stands; step: optimiser steps done so far.
        scores: the validations so far, the same on all ranks.
        kept_step: the step of the last checkpoint, which may still be being written; -1 where there is none.
        kept_at: when that was, or when the run was made, in seconds of time.monotonic.
        writer: the thread that writes checkpoints; writing: the last that it was given.
        is_timed: the first step of this process is done, so that its time is known.
        changed: settings that are others than before the run was resumed, one line each.
        warned: what has failed beside the training, so that each is said once.
    """

    out: Location
    settings: Settings
    rank: Rank
    data: dict[str, str]
    chips: dict[str, Any]
    categories: list[tuple[int, str]]
    precision: Precision
    norm: Norm
    model: Detector
    objective: nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    ema: Ema | None
    loader: BatchLoader
    epoch_chips: int
    schedule: Schedule
    state: State
    step: int = 0
    scores: list[Score] = field(default_factory=list)
    kept_step: int = -1
    kept_at: float = field(default_factory=time.monotonic)
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))
    writing: Future[object] | None = None
    is_timed: bool = False
    changed: list[str] = field(default_factory=list)
    warned: set[str] = field(default_factory=set)

    def tell(self, text: str) -> None:
        """Log a remark for the user, on the first rank alone."""
        tell(self.rank, text)

    def autocast(self) -> torch.autocast:
        """Return the context that the network computes in."""
        return autocast(self.rank.device, self.precision)

    @cached_property
    def chip_settings(self) -> ChipSettings:
        """The settings that the positive chips were made with, `chips` as a model."""
        return ChipSettings.model_validate(self.chips)

    @property
    def epoch_steps(self) -> int:
        """Optimiser steps of the epoch at hand."""
        return math.ceil(self.epoch_chips / self.loader.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run, taking every epoch for as long as the one at hand."""
        return self.settings.train.epochs * self.epoch_steps

    @property
    def progress(self) -> float:
        """Passes over the chips so far, with the share of the one at hand."""
        return self.state.epoch + self.state.position / self.epoch_chips

    def settings_tree(self) -> dict[str, dict[str, Any]]:
        """Return the settings that a checkpoint keeps: section -> key -> value, as JSON has them."""
        return self.settings.model_dump(mode="json", include={"model", "loader", "train", "detect"})

    def checkpoint(self) -> Checkpoint:
        """Return the run as it is to be kept. The tensors are those of the run itself, not copies."""
        return Checkpoint(
            model=self.model.state_dict(),
            ema=self.ema.state if self.ema else None,
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            step=self.step,
            loader=(self.state.seed, self.state.epoch, self.state.position),
            settings=self.settings_tree(),
            norm=self.norm,
            precision=self.precision,
            rpn_only=self.model.rpn_only,
            categories=self.categories,
            chips=self.chips,
            data=self.data,
            best_ap=best_ap(self.scores),
            schedule=self.schedule.kept(),
        )

    def agree(self) -> None:
        """Give all ranks the mean of their running statistics, where each rank has taken those of its own batches.

        Call it on all ranks before every validation and checkpoint, so that what is scored is what is kept.
        """
        if self.norm == "train":
            states = [self.model.state_dict(), *([self.ema.state] if self.ema else [])]
            mean_over_ranks([v for state in states for name, v in state.items() if name.endswith(STATISTICS)])

    def statistics(self) -> list[Tensor]:
        """Copy what a forward pass changes: the running statistics of batch norm, where it learns.

        They are copied in one piece per type: one by one they are hundreds of small kernels of a GPU.
        """
        return [torch.cat([buffer.flatten() for buffer in buffers]) for buffers in self._buffers]

    def undo(self, statistics: list[Tensor]) -> None:
        """Give up the step at hand without a trace; `statistics` are those from before it."""
        for buffers, before in zip(self._buffers, statistics, strict=True):
            for buffer, part in zip(buffers, torch.split(before, [b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))
        self.optimizer.zero_grad(set_to_none=True)

    @cached_property
    def learning(self) -> list[nn.Parameter]:
        """The parameters that learn, which are the same for all steps of a run."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @cached_property
    def _buffers(self) -> list[list[Tensor]]:
        """What `statistics` copies, the buffers of one type together."""
        found: dict[torch.dtype, list[Tensor]] = {}
        for buffer in () if self.norm == "frozen" else self.model.buffers():
            found.setdefault(buffer.dtype, []).append(buffer)
        return list(found.values())

    def is_keep_due(self) -> bool:
        """Tell whether the step just taken is to be kept; all ranks call this together and get the same answer.

        The clock is looked at, and so is whether the last checkpoint could be written, where the log has a record.
        """
        options = self.settings.train
        if options.save_every is not None and self.step % options.save_every == 0:
            return True
        has_failed = self.writing is not None and self.writing.done() and self.writing.exception() is not None
        is_late = time.monotonic() - self.kept_at >= 60 * options.save_minutes
        return self.step % options.log_every == 0 and any_rank(is_late or has_failed)

    def keep(self) -> None:
        """Keep the last whole step, on the first rank, while the training goes on. All ranks call this together.

        They wait until the checkpoint before is written and this one is copied to the host's memory.

        Raises:
            DataError: the checkpoint before cannot be written; says what is kept.
        """
        if self.kept_step == self.step:
            return
        self.agree()
        keep = self.settings.train.keep
        from_first(lambda: self.write_later(lambda kept: save_checkpoint(self.out, kept, keep)))
        self.kept_step, self.kept_at = self.step, time.monotonic()

    def write_later(self, write: Callable[[Checkpoint], object]) -> None:
        """Have the thread write the run as it is now. Only the first rank has something to write.

        Args:
            write: is called in the thread, with a copy that lies in the host's memory. There is one copy at a time.

        Raises:
            DataError: what was to be written before cannot be; says what is kept.
        """
        self._wait()
        self.writing = self.writer.submit(_write_whole, write, on_host(self.checkpoint()))

    def settle(self) -> None:
        """Wait on all ranks until the first one has written all that was to be kept.

        Raises:
            DataError: it cannot be written; says what is kept.
        """
        from_first(self._wait)

    def _wait(self) -> None:
        try:
            if self.writing is not None:
                self.writing.result()
        except DataError as error:
            kept = find_checkpoints(self.out)
            what = f"the last checkpoint that is kept is {kept[-1]}" if kept else "no checkpoint is kept"
            raise DataError(f"{error}\nThe run ends at step {self.step}; {what}") from error

    def restore(self, last: Checkpoint) -> None:
        """Take over everything that a checkpoint holds, so that the run goes on where the checkpoint was written.

        Args:
            last: of a run with the same data and settings, apart from those that may change.
        """
        self.model.load_state_dict(last.model)
        if last.optimizer:  # a finished run of the RPN keeps none
            self.optimizer.load_state_dict(last.optimizer)
        self.scaler.load_state_dict(last.scaler)
        if self.ema is not None:  # a finished run of the RPN keeps the average alone, as its weights
            self.ema.state = {name: value.to(self.rank.device) for name, value in (last.ema or last.model).items()}
        self.state, self.step, self.kept_step = State(*last.loader), last.step, last.step
        self.epoch_chips = len(self.loader.epoch(self.state).order)  # with repeats, epochs differ in length
        before = TrainSettings.model_validate(last.settings["train"])
        options = self.settings.train
        self.schedule = resumed_schedule(
            self.schedule,
            # checkpoints of before there were schedules: both settings held as they were given
            last.schedule or {"warmup_steps": before.warmup_steps, "decays": before.decay_epochs},
            self.progress,
            same_warmup=before.warmup_steps == options.warmup_steps,
            same_decays=before.decay_epochs == options.decay_epochs,
        )


def _write_whole(write: Callable[[Checkpoint], object], checkpoint: Checkpoint) -> None:
    with unbroken:
        write(checkpoint)


def make_run(
    dataset: ChipDataset, out: Location, settings: Settings, rank: Rank, *, last: Checkpoint | None, rpn_only: bool
) -> Run:
    """Make a run as it is before its first step.

    Args:
        dataset: the chips to train on.
        out: folder of the run.
        settings: `model`, `loader`, `train` and `detect` are used.
        rank: this process among all of the run.
        last: the checkpoint that `Run.restore` will be called with, or None where the run starts anew.
        rpn_only: train nothing behind the RPN.

    Raises:
        UsageError: settings do not go together on this machine.
        DataError: the data set or the weights cannot be read.
    """
    options = settings.train
    builds = finished_builds(dataset.data, pool=not rpn_only)
    chips: dict[str, Any] = builds[POSITIVES].settings["chips"]
    categories = read_categories(dataset.data)
    precision: Precision = options.precision or ("bf16" if rank.device.type == "cuda" else "fp32")
    norm = _norm(options, rank, last)
    classes = [name for _, name in categories]
    model = _network(settings, classes, chips["size"], norm, rank, anew=last is None, rpn_only=rpn_only)
    limits = focus_limits(ChipSettings.model_validate(chips).bounds(), settings.model.focus_limits)
    loader = BatchLoader(
        dataset,
        settings.loader,
        options.batch_size,
        rank=rank.index,
        ranks=rank.count,
        accumulation=passes_of_step(options, rank.count).number,
        pin=rank.device.type == "cuda",
    )
    state = State(options.seed)
    epoch_chips = len(loader.epoch(state).order)
    return Run(
        out=out,
        settings=settings,
        rank=rank,
        data={name: build.known_as(last.data.get(name) if last else None) for name, build in builds.items()},
        chips=chips,
        categories=categories,
        precision=precision,
        norm=norm,
        model=model,
        optimizer=make_optimizer(model, options),
        scaler=torch.amp.GradScaler(rank.device.type, enabled=precision == "fp16"),
        ema=Ema(model, options.ema) if options.ema is not None else None,
        objective=_objective(model, options, rank, limits),
        loader=loader,
        epoch_chips=epoch_chips,
        schedule=make_schedule(options, math.ceil(epoch_chips / options.batch_size)),
        state=state,
    )


def tell(rank: Rank, text: str) -> None:
    """Log a remark for the user, on the first rank alone."""
    if rank.is_first:
        log.info(text)


def warn(rank: Rank, text: str) -> None:
    """Log a warning for the user, on the first rank alone."""
    if rank.is_first:
        log.warning("WARNING: %s", text)


class Passes(NamedTuple):
    """The forward passes of a whole step: how many each rank makes, and the fewest and most chips of one of them."""

    number: int
    fewest: int
    most: int


def passes_of_step(options: TrainSettings, ranks: int) -> Passes:
    """Deal the chips of a whole step evenly to the forward passes of so many ranks."""
    number = math.ceil(options.batch_size / (ranks * options.chips_per_rank))
    dealt = ranks * number
    return Passes(number, options.batch_size // dealt, math.ceil(options.batch_size / dealt))


def norm_by_chips(options: TrainSettings, ranks: int) -> Norm:
    """Return what batch norm does in a new run where `train.norm` leaves it open."""
    enough = passes_of_step(options, ranks).fewest >= NORM_CHIPS
    return "train" if enough or options.weights is None else "frozen"


def _norm(options: TrainSettings, rank: Rank, last: Checkpoint | None) -> Norm:
    """Choose what batch norm does: the setting, else what the run began with, else by the chips per forward pass."""
    norm = options.norm or (last.norm if last else norm_by_chips(options, rank.count))
    if norm == "sync" and rank.device.type != "cuda":
        raise UsageError("train.norm: sync takes the statistics of several GPUs, here is none; use train")
    return norm


def _network(
    settings: Settings, classes: list[str], side: int, norm: Norm, rank: Rank, *, anew: bool, rpn_only: bool
) -> Detector:
    """Make the network on the rank's device, ready to be trained, with pretrained weights where it starts anew."""
    options = settings.train
    model = Detector(settings.model, len(classes), side)
    if options.weights is not None and anew:
        tell(rank, load_weights(model, options.weights, classes))
    if rpn_only:
        model.keep_rpn_only()
    set_norm_policy(model, norm, freeze_stem=options.weights is not None, momentum=options.norm_momentum)
    return model.to(rank.device).train()


def _objective(model: Detector, options: TrainSettings, rank: Rank, limits: list[float]) -> nn.Module:
    """Join the network with its losses, and with the other ranks where there are any."""
    if options.compile:
        model.backbone.compile()
    objective = Objective(model, limits)
    if rank.count == 1:
        return objective
    # ranks share buffers in `Run.agree` alone; torch 2.14 has another name for that
    newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    arguments: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    if rank.device.type == "cuda":
        arguments["device_ids"] = [rank.device.index]
    warnings.filterwarnings("ignore", "Grad strides do not match")  # those of a 1x1 kernel can be written in two ways
    return DistributedDataParallel(objective, gradient_as_bucket_view=True, **arguments)
