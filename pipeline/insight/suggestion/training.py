"""How to train on proposed chips: anchors, network and schedule, each value with its reason (docs/method.md, 15.4)."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.insight.suggestion.cost import Cost
from schemas.arrays import FloatArray
from schemas.settings import ModelSettings

Device = Literal["gpu", "cpu"]

ANCHOR_IOU = 0.5
ANCHOR_SHARE = 0.92
"""Of the targets of every scale; `sniper train` warns below 0.9, by a count of all anchors."""
TRIED_TARGETS = 5000  # per scale
ANCHOR_SCALES = (
    *([8.0], [6.0], [4.0]),
    *([8.0, 11.3], [6.0, 8.5], [4.0, 5.7], [3.0, 4.2]),
    *([2.0, 4.0, 5.7], [2.0, 2.8, 4.0, 5.7]),
)
"""Sides of anchors in strides, by what they cost; one octave, or half of one, lies between an anchor and the next."""
ANCHOR_RATIOS = ([0.5, 1.0, 2.0], [0.33, 0.5, 1.0, 2.0, 3.0], [0.2, 0.33, 0.5, 1.0, 2.0, 3.0, 5.0])

SMALL_LEVELS = (2, 5)
SMALL_NETWORK: dict[str, tuple[Any, str]] = {
    "backbone": ("resnet18", "a small network, which learns from scratch"),
    "levels": ([*SMALL_LEVELS], "a coarser level would have anchors larger than such a chip"),
    "width": (64, "a quarter of the default"),
    "pooled": (5, "half of the cells that a proposal is pooled to"),
    "head_width": (128, "an eighth of the default"),
    "proposals": (100, "a third of the default; a small chip holds fewer objects"),
    "pre_nms": (500, "a quarter of the default, as there are fewer anchors"),
}

EPOCH_STEPS = 100  # that an epoch should have at least
GPU_BATCHES, CPU_BATCH = (128, 64, 32, 16), 8
GPU_EPOCHS, GPU_STEPS, MOST_EPOCHS = 12, 3000, 100
CPU_EPOCHS, CPU_CHIPS, CPU_RATE = 3, 3000, 0.48
NORM_SHARE = 30  # the running statistics of batch norm look back over this part of a run
PRETRAINED = "ResNet101_Weights.IMAGENET1K_V2"


class Choice(NamedTuple):
    """A setting that is proposed.

    Attributes:
        section, name: of the setting.
        value: as `--config` takes it.
        why: the reason, as part of a comment.
    """

    section: str
    name: str
    value: Any
    why: str


def choose_training(cost: Cost, num_images: int, device: Device) -> list[Choice]:
    """Choose anchors, network and schedule for chips.

    Args:
        cost: of the chips that are trained on, for a sample.
        num_images: of the whole data set.
        device: what trains.
    """
    chips = max(1, round(cost.chips * num_images / max(cost.images, 1)))
    levels = SMALL_LEVELS if device == "cpu" else ModelSettings().levels
    network = [Choice("model", name, *reason) for name, reason in SMALL_NETWORK.items()] if device == "cpu" else []
    schedule = _for_cpu(chips) if device == "cpu" else _for_gpu(chips)
    return [*network, *_anchors(cost, levels), *schedule]


def _anchors(cost: Cost, levels: tuple[int, int]) -> Iterator[Choice]:
    """Choose the first anchors that meet ANCHOR_SHARE of the targets of every scale, else those that meet most."""
    sides = _some_targets(cost)
    best, chosen = -1.0, (ANCHOR_RATIOS[0], ANCHOR_SCALES[0])
    for ratios, scales in product(ANCHOR_RATIOS, ANCHOR_SCALES):
        share = min((_share_met(some, scales, ratios, levels) for some in sides), default=1.0)
        if share > best:
            best, chosen = share, (ratios, scales)
        if share >= ANCHOR_SHARE:
            break
    why = f"in strides; some anchor meets {best:.0%} of the targets of every scale, or more, at IoU 0.5"
    yield Choice("model", "anchor_scales", chosen[1], why)
    if chosen[0] != ANCHOR_RATIOS[0]:
        yield Choice("model", "anchor_ratios", chosen[0], "height over width; many objects are longer than 1:2")


def _some_targets(cost: Cost) -> list[FloatArray]:
    """Return sides of targets [n, 2], chip pixels, of each scale that has some."""
    by_scale = [cost.target_sides[cost.target_scale == index] for index in np.unique(cost.target_scale)]
    return [sides[:: max(1, len(sides) // TRIED_TARGETS)] for sides in by_scale]


def _share_met(sides: FloatArray, scales: list[float], ratios: list[float], levels: tuple[int, int]) -> float:
    """Return the share of boxes that some anchor meets at ANCHOR_IOU.

    A box lies anywhere in its cell, so the nearest anchor's centre is a quarter of a stride away on average, along
    either axis; the overlap is computed for that distance.

    Args:
        sides: float64 [n, 2], width and height, chip pixels.
        scales, ratios: of the anchors, as in the settings.
        levels: finest and coarsest of the feature pyramid.
    """
    best = np.zeros(len(sides))
    for stride in (2**level for level in range(levels[0], levels[1] + 1)):
        for scale in scales:
            for ratio in ratios:
                anchor = stride * scale * np.array([ratio**-0.5, ratio**0.5])
                overlap = np.minimum(np.minimum(sides, anchor), (sides + anchor) / 2 - stride / 4).clip(min=0).prod(1)
                best = np.maximum(best, overlap / (sides.prod(1) + anchor.prod() - overlap))
    return float((best >= ANCHOR_IOU).mean())


def _for_gpu(chips: int) -> Iterator[Choice]:
    batch = next((batch for batch in GPU_BATCHES if chips >= batch * EPOCH_STEPS), GPU_BATCHES[-1])
    steps = math.ceil(chips / batch)
    epochs = min(max(GPU_EPOCHS, math.ceil(GPU_STEPS / steps)), MOST_EPOCHS)
    yield Choice("train", "weights", PRETRAINED, "fine-tuning takes far fewer chips than a start from scratch")
    yield Choice("train", "batch_size", batch, f"an epoch of {chips:,} positive chips has {steps:,} steps then")
    yield Choice("train", "epochs", epochs, f"{epochs * steps:,} steps in all, and more with negative chips")
    yield from _follow_up(epochs, epochs * steps)


def _for_cpu(chips: int) -> Iterator[Choice]:
    epochs = min(max(CPU_EPOCHS, round(CPU_CHIPS / chips)), MOST_EPOCHS)
    steps = epochs * math.ceil(chips / CPU_BATCH)
    yield Choice("train", "batch_size", CPU_BATCH, "few chips make many steps, and batch norm needs no more")
    yield Choice("train", "epochs", epochs, f"{epochs * chips:,} chips in all, {steps:,} steps")
    rate = "four times that of fine-tuning, as all starts anew; it is for a batch of 128 and scaled with it"
    yield Choice("train", "learning_rate", CPU_RATE, rate)
    yield Choice("train", "clip_gradient", 10, "keeps the first steps from scratch in bounds")
    yield from _follow_up(epochs, steps)


def _follow_up(epochs: int, steps: int) -> Iterator[Choice]:
    """Choose what follows from the length of a run."""
    momentum = float(f"{min(max(NORM_SHARE / steps, 0.005), 0.1):.1g}")
    warmup = min(1000, max(1, steps // 10))
    yield Choice("train", "warmup_steps", warmup, "a tenth of the run, at most the paper's 1,000")
    yield Choice("train", "norm_momentum", momentum, "batch norm's statistics then look back over a part of the run")
    yield Choice("negatives", "rpn_epochs", math.ceil(epochs / 3), "a third of the training, as in the paper")
