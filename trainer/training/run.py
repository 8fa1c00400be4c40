"""A training run: model, optimiser and loader, made from settings, kept in and restored from checkpoints."""

import math
from typing import Any

import click
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.dataset.build_file import finished_builds
from pipeline.storage import Location
from pipeline.storage.parquet import read_frame
from schemas.errors import UsageError
from schemas.settings import Norm, Precision, Settings
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


class Run:
    """All that a run is made of, in the order it is made; see Checkpoint for what of it is kept."""

    def __init__(
        self,
        dataset: ChipDataset,
        out: Location,
        settings: Settings,
        rank: Rank,
        *,
        last: Checkpoint | None = None,
        rpn_only: bool = False,
    ) -> None:
        """Make it anew, ready for `restore` where `last` is its last checkpoint.

        Raises:
            UsageError: settings that do not go together here. DataError: the data set or the weights cannot be read.
        """
        options = settings.train
        self.dataset, self.out, self.settings, self.rank = dataset, out, settings, rank
        self.terminated = False  # SIGTERM came to this rank
        self.stopping = False  # all ranks end after this step
        builds = finished_builds(dataset.data, pool=not rpn_only)
        self.data: dict[str, str] = {name: build["fingerprint"] for name, build in builds.items()}
        self.chips: dict[str, Any] = builds["positives"]["settings"]["chips"]
        table = read_frame(dataset.data / "categories.parquet").sort("label")
        self.categories: list[tuple[int, str]] = list(table.select("id", "name").iter_rows())
        self.precision: Precision = options.precision or ("bf16" if rank.device.type == "cuda" else "fp32")
        self.model = Detector(settings.model, len(self.categories), self.chips["size"])
        if options.weights is not None and last is None:
            new = [name for name in load_weights(self.model, options.weights) if name.startswith("head.")]
            self.tell(f"weights from {options.weights}" + (f"; start anew: {', '.join(new)}" if new else ""))
        from_scratch = options.weights is None
        per_rank = min(options.chips_per_rank, math.ceil(options.batch_size / rank.count))
        chosen: Norm = "train" if per_rank >= NORM_CHIPS or from_scratch else "frozen"
        self.norm = options.norm or (last.norm if last else chosen)
        if self.norm == "sync" and rank.device.type != "cuda":
            raise UsageError("train.norm: sync takes the statistics of several GPUs, here is none; use train")
        if rpn_only:
            self.model.keep_rpn_only()
        set_norm_policy(self.model, self.norm, freeze_stem=not from_scratch, momentum=options.norm_momentum)
        self.model.to(rank.device)
        self.model.train()
        self.optimizer = make_optimizer(self.model, options)
        self.scaler = torch.amp.GradScaler(rank.device.type, enabled=self.precision == "fp16")
        self.ema = Ema(self.model, options.ema) if options.ema is not None else None
        if options.compile:
            self.model.backbone.compile()
        self.objective: nn.Module = Objective(self.model)
        if rank.count > 1:
            ids = [rank.device.index] if rank.device.type == "cuda" else None
            self.objective = DistributedDataParallel(
                self.objective, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self.loader = BatchLoader(
            dataset,
            settings.loader,
            options.batch_size,
            rank=rank.index,
            ranks=rank.count,
            accumulation=math.ceil(options.batch_size / (rank.count * per_rank)),
            pin=rank.device.type == "cuda",
        )
        self.state, self.step, self.best_ap = State(options.seed), 0, -1.0

    def tell(self, text: str) -> None:
        if self.rank.is_first:
            click.echo(text, err=True)

    def autocast(self) -> torch.autocast:
        return autocast(self.rank.device, self.precision)

    def settings_tree(self) -> dict[str, dict[str, Any]]:
        return self.settings.model_dump(mode="json", include={"model", "loader", "train"})

    def checkpoint(self) -> Checkpoint:
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
        """Give all ranks the same running statistics, the mean, where each has taken those of its own batches.

        Before every validation and checkpoint, so that what is scored is what is kept.
        """
        if self.norm == "train":
            states = [self.model.state_dict(), *([self.ema.state] if self.ema else [])]
            mean_over_ranks([v for state in states for name, v in state.items() if name.endswith(STATISTICS)])

    def restore(self, last: Checkpoint) -> None:
        """Go on where it was; the run has been made with the same settings."""
        self.model.load_state_dict(last.model)
        self.optimizer.load_state_dict(last.optimizer)
        self.scaler.load_state_dict(last.scaler)
        if self.ema is not None and last.ema is not None:
            self.ema.state = {name: value.to(self.rank.device) for name, value in last.ema.items()}
        self.state, self.step, self.best_ap = State(*last.loader), last.step, last.best_ap
