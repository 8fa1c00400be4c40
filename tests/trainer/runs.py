"""Tiny training runs for tests; also what torchrun and subprocesses start: python runs.py DATA OUT [SETTING ...]."""

import sys
from pathlib import Path

import click
import torch

from schemas.errors import SniperError
from schemas.settings import Settings, load_settings
from trainer.training.train import train

TINY_CHIPS = (
    "chips.size=64",
    "chips.scales=[0.5, {long_side: 64}]",
    "chips.ranges=[[0, 110], [90, null]]",
    "chips.images_per_shard=4",
)
TINY = (
    "model.backbone=resnet18",
    "model.levels=[3, 5]",
    "model.width=16",
    "model.anchor_scales=[3, 5]",
    "model.pooled=3",
    "model.head_width=32",
    "model.proposals=20",
    "model.pre_nms=100",
    "loader.threads=1",
    "train.batch_size=8",
    "train.warmup_steps=2",
    "train.epochs=1",
    "train.log_every=1",
    "train.norm=frozen",
)


def tiny_settings(*assignments: str) -> Settings:
    return load_settings(None, (*TINY, *assignments))


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, out, *assignments = sys.argv[1:]
    resume = "resume" in assignments
    try:
        train(Path(data), Path(out), tiny_settings(*(a for a in assignments if a != "resume")), resume=resume)
    except SniperError as error:
        click.echo(f"sniper: {error}", err=True)
        sys.exit(error.exit_status)
