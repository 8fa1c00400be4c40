"""A training run in memory: network, optimiser and loader, made from settings and kept in checkpoints."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.dataset.build_file import finished_builds
from pipeline.engines.progress import log
from pipeline.storage import Location
from pipeline.storage.parquet import read_frame
from schemas.errors import UsageError
from schemas.settings import Norm, Precision, Settings, TrainSettings
from trainer.learning.objective import Objective
from trainer.learning.optim import Ema, make_optimizer
from trainer.loading.dataset import ChipDataset
from trainer.loading.loader import BatchLoader
from trainer.loading.order import State
from trainer.model import Detector
from trainer.model.heads import autocast
from trainer.runtime.checkpoint import Checkpoint
from trainer.runtime.ranks import Rank, mean_over_ranks
from trainer.runtime.weights import load_weights, set_norm_policy

NORM_CHIPS = 8  # fewer chips per rank make poor batch statistics (docs/method.md, 6.5)
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
        state: where the loader stands; step: optimiser steps done so far.
        best_ap: the highest AP of a validation so far; -1 before the first one.
        terminated: SIGTERM came to this rank.
        stopping: all ranks end after the step at hand.
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
    state: State
    step: int = 0
    best_ap: float = -1.0
    terminated: bool = False
    stopping: bool = False

    def tell(self, text: str) -> None:
        """Log a remark for the user, on the first rank alone."""
        tell(self.rank, text)

    def autocast(self) -> torch.autocast:
        """Return the context that the network computes in."""
        return autocast(self.rank.device, self.precision)

    def settings_tree(self) -> dict[str, dict[str, Any]]:
        """Return the settings that a checkpoint keeps: section -> key -> value, as JSON has them."""
        return self.settings.model_dump(mode="json", include={"model", "loader", "train"})

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
            best_ap=self.best_ap,
        )

    def agree(self) -> None:
        """Give all ranks the mean of their running statistics, where each rank has taken those of its own batches.

        Call it on all ranks before every validation and checkpoint, so that what is scored is what is kept.
        """
        if self.norm == "train":
            states = [self.model.state_dict(), *([self.ema.state] if self.ema else [])]
            mean_over_ranks([v for state in states for name, v in state.items() if name.endswith(STATISTICS)])

    def restore(self, last: Checkpoint) -> None:
        """Take over everything that a checkpoint holds, so that the run goes on where the checkpoint was written.

        Args:
            last: of a run with the same data and settings, apart from those that may change.
        """
        self.model.load_state_dict(last.model)
        self.optimizer.load_state_dict(last.optimizer)
        self.scaler.load_state_dict(last.scaler)
        if self.ema is not None and last.ema is not None:
            self.ema.state = {name: value.to(self.rank.device) for name, value in last.ema.items()}
        self.state, self.step, self.best_ap = State(*last.loader), last.step, last.best_ap


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
    chips: dict[str, Any] = builds["positives"]["settings"]["chips"]
    table = read_frame(dataset.data / "categories.parquet").sort("label")
    categories: list[tuple[int, str]] = list(table.select("id", "name").iter_rows())
    precision: Precision = options.precision or ("bf16" if rank.device.type == "cuda" else "fp32")
    norm = _norm(options, rank, last)
    classes = [name for _, name in categories]
    model = _network(settings, classes, chips["size"], norm, rank, anew=last is None, rpn_only=rpn_only)
    per_rank = chips_per_pass(options, rank.count)
    return Run(
        out=out,
        settings=settings,
        rank=rank,
        data={name: build["fingerprint"] for name, build in builds.items()},
        chips=chips,
        categories=categories,
        precision=precision,
        norm=norm,
        model=model,
        optimizer=make_optimizer(model, options),
        scaler=torch.amp.GradScaler(rank.device.type, enabled=precision == "fp16"),
        ema=Ema(model, options.ema) if options.ema is not None else None,
        objective=_objective(model, options, rank),
        loader=BatchLoader(
            dataset,
            settings.loader,
            options.batch_size,
            rank=rank.index,
            ranks=rank.count,
            accumulation=math.ceil(options.batch_size / (rank.count * per_rank)),
            pin=rank.device.type == "cuda",
        ),
        state=State(options.seed),
    )


def tell(rank: Rank, text: str) -> None:
    """Log a remark for the user, on the first rank alone."""
    if rank.is_first:
        log.info(text)


def chips_per_pass(options: TrainSettings, ranks: int) -> int:
    """Return the most chips that one rank has in one forward pass."""
    return min(options.chips_per_rank, math.ceil(options.batch_size / ranks))


def _norm(options: TrainSettings, rank: Rank, last: Checkpoint | None) -> Norm:
    """Choose what batch norm does: the setting, else what the run began with, else by the chips per forward pass."""
    enough = chips_per_pass(options, rank.count) >= NORM_CHIPS or options.weights is None
    norm: Norm = options.norm or (last.norm if last else "train" if enough else "frozen")
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


def _objective(model: Detector, options: TrainSettings, rank: Rank) -> nn.Module:
    """Join the network with its losses, and with the other ranks where there are any."""
    if options.compile:
        model.backbone.compile()
    objective = Objective(model)
    if rank.count == 1:
        return objective
    ids = [rank.device.index] if rank.device.type == "cuda" else None
    return DistributedDataParallel(objective, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)
