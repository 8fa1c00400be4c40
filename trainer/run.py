"""A training run: model, optimiser and loader, made from settings, kept in and restored from checkpoints."""

import math
from typing import Any

import click
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.parquet import read_frame
from pipeline.run_file import read_run
from pipeline.storage import Location
from schemas.model import ModelSettings
from schemas.settings import Settings
from trainer.checkpoint import Checkpoint
from trainer.dataset import ChipDataset
from trainer.loader import BatchLoader, State
from trainer.model import Detector
from trainer.optim import Ema, make_optimizer
from trainer.ranks import Rank
from trainer.weights import load_weights, set_norm_policy

NORM_CHIPS = 8  # fewer chips per rank make poor batch statistics (facts §8.5)


class Run:
    """All that a run is made of, in the order it is made; see Checkpoint for what of it is kept."""

    def __init__(
        self, dataset: ChipDataset, out: Location, settings: Settings, rank: Rank, *, rpn_only: bool = False
    ) -> None:
        options = settings.train
        self.dataset, self.out, self.settings, self.rank = dataset, out, settings, rank
        self.terminated = False  # SIGTERM came to this rank
        self.stopping = False  # all ranks end after this step
        self.source = read_run(dataset.data, "sniper chips")
        self.fingerprint: str = self.source["fingerprint"]
        self.chips: dict[str, Any] = self.source["settings"]["chips"]
        table = read_frame(dataset.data / "categories.parquet").sort("label")
        self.categories: list[tuple[int, str]] = list(table.select("id", "name").iter_rows())
        self.precision = options.precision or ("bf16" if rank.device.type == "cuda" else "fp32")
        self.model = Detector(settings.model, len(self.categories), self.chips["size"])
        if options.weights is not None:
            new = [name for name in load_weights(self.model, options.weights) if name.startswith("head.")]
            self.tell(f"weights from {options.weights}" + (f"; start anew: {', '.join(new)}" if new else ""))
        from_scratch = options.weights is None
        per_rank = min(options.chips_per_rank, math.ceil(options.batch_size / rank.count))
        norm = options.norm or ("train" if per_rank >= NORM_CHIPS or from_scratch else "frozen")
        if rpn_only:
            self.model.keep_rpn_only()
        set_norm_policy(self.model, norm, freeze_stem=not from_scratch, momentum=options.norm_momentum)
        self.model.to(rank.device)
        self.model.train()
        self.optimizer = make_optimizer(self.model, options)
        self.scaler = torch.amp.GradScaler(rank.device.type, enabled=self.precision == "fp16")
        self.ema = Ema(self.model, options.ema) if options.ema is not None else None
        if options.compile:
            self.model.backbone.compile()
        self.forward: nn.Module = self.model
        if rank.count > 1:
            ids = [rank.device.index] if rank.device.type == "cuda" else None
            self.forward = DistributedDataParallel(
                self.model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
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
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.rank.device.type, dtype, enabled=self.precision != "fp32")

    def settings_tree(self) -> dict[str, dict[str, Any]]:
        return self.settings.model_dump(mode="json", include={"model", "loader", "train"})

    def checkpoint(self) -> Checkpoint:
        random = {"cpu": torch.get_rng_state()}
        if self.rank.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state()
        return Checkpoint(
            model=self.model.state_dict(),
            ema=self.ema.state if self.ema else None,
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            random=random,
            step=self.step,
            loader=(self.state.seed, self.state.epoch, self.state.position),
            settings=self.settings_tree(),
            categories=self.categories,
            chips=self.chips,
            data=self.fingerprint,
            best_ap=self.best_ap,
        )

    def restore(self, last: Checkpoint) -> None:
        self.model.load_state_dict(last.model)
        self.optimizer.load_state_dict(last.optimizer)
        self.scaler.load_state_dict(last.scaler)
        if self.ema is not None and last.ema is not None:
            self.ema.state = {name: value.to(self.rank.device) for name, value in last.ema.items()}
        torch.set_rng_state(last.random["cpu"])
        if self.rank.device.type == "cuda" and "cuda" in last.random:
            torch.cuda.set_rng_state(last.random["cuda"])
        self.state, self.step, self.best_ap = last.state, last.step, last.best_ap
        self.tell(f"resumed: epoch {self.state.epoch}, step {self.step}")


def make_detector(checkpoint: Checkpoint) -> Detector:
    """The network of a checkpoint, with its average of weights where it has one."""
    settings = ModelSettings.model_validate(checkpoint.settings["model"])
    model = Detector(settings, len(checkpoint.categories), checkpoint.chips["size"])
    model.load_state_dict(checkpoint.ema or checkpoint.model)
    return model
