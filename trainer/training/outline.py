"""What a run will do, told before its first step: a table, and a warning for each setting that does not fit."""

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch

from schemas.settings import LoaderSettings, ModelSettings, Settings
from schemas.wording import counted
from trainer.learning.schedule import WARMUP_SHARE
from trainer.model import Detector
from trainer.model.boxes import MOST_COMPARED
from trainer.training.run import Run, passes_of_step

PRETRAINED = {
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet34": "ResNet34_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V2",
    "resnet101": "ResNet101_Weights.IMAGENET1K_V2",
    "mobilenet_v2": "MobileNet_V2_Weights.IMAGENET1K_V2",
}
"""Values of train.weights that serve each backbone."""
SETTLED = 0.95  # share that the run's own batches should have in running statistics and averages at its end
LARGEST_MOMENTUM = 0.3  # of batch norm; with more, the statistics are those of the last few batches alone
SLOW_PIXELS = 128 * 128 * 16  # of one forward pass; with more, a deep network on a CPU takes seconds to minutes
DEEP = ("resnet50", "resnet101")


def outline(run: Run) -> str:
    """Write down what will be trained, how and for how long, as a table with one line per subject."""
    options, model = run.settings.train, run.settings.model
    passes, _, per_pass = passes_of_step(options, run.rank.count)
    millions = _count(run.model) / 1e6
    levels = f"levels {model.levels[0]} to {model.levels[1]}" if model.neck == "fpn" else "one map"
    rows = {
        "network": f"{'the RPN of ' if run.model.rpn_only else ''}{model.backbone}, {model.neck}, {levels}, "
        f"{millions:.1f} million numbers{_default(run.settings, 'model')}",
        "weights": f"the run's own, of step {run.step:,}"
        if run.step
        else options.weights or "none: it starts from scratch",
        "chips": f"{run.epoch_chips:,} of {run.chips['size']} px in an epoch, {_negatives(run)}; "
        f"{counted(len(run.categories), 'class', 'classes')}",
        "steps": f"{run.num_steps:,}: {counted(options.epochs, 'epoch')} of {run.epoch_steps:,}, "
        f"{counted(options.batch_size, 'chip')} each{_default(run.settings, 'train')}",
        "chips per rank": f"{per_pass} in a forward pass, {counted(passes, 'pass', 'passes')} per step, "
        f"{counted(run.rank.count, 'rank')}",
        "rate": _rate(run),
        "batch norm": f"{run.norm}"
        + (f", momentum {options.norm_momentum:g}" if run.norm != "frozen" else ", stored statistics"),
        "precision": f"{run.precision} on {'the GPU' if run.rank.device.type == 'cuda' else 'the CPU'}",
        "memory": f"about {expected_memory(run, per_pass):.1f} GB on each rank",
    }
    return "\n".join(["what will be trained:", *(f"  {name:<16}{text}" for name, text in rows.items())])


def _negatives(run: Run) -> str:
    """Say how many of an epoch's chips are negative, and of how many they are drawn."""
    m = run.loader.dataset.manifest
    _, of_image = np.unique(m.image_ids[m.num_positives :], return_counts=True)
    if not len(of_image):
        return "none of them negative (`sniper negatives` mines some)"
    drawn = of_image.clip(max=run.loader.settings.negatives_per_image).sum()
    return f"{drawn:,} of them negative, drawn from a pool of {of_image.sum():,}"


def _default(settings: Settings, section: str) -> str:
    return "" if getattr(settings, section).model_fields_set else " (all by default)"


def _rate(run: Run) -> str:
    schedule = run.schedule
    begin = f"{schedule.full:g}"
    if schedule.warmup_steps:
        begin += f" after a warm-up of {counted(schedule.warmup_steps, 'step')}"
    within = [decay for decay in schedule.decays if decay < run.settings.train.epochs]
    steps = [f"{decay:.4g} (step {round(decay * run.epoch_steps):,})" for decay in within]
    if steps:
        begin += f", divided by ten after epoch {' and '.join(steps)}"
    return f"{begin}; final rate {schedule.rate(run.num_steps, run.settings.train.epochs - 1e-9):.3g}"


def expected_memory(run: Run, chips: int) -> float:
    """Estimate the memory that training takes on one rank, in 10^9 bytes.

    Counted are the weights and their average where there is one, gradients and momenta of those that learn, and what
    the backbone and the neck keep for the backward pass; a fifth of that is added for the heads and for what lives for
    a moment only.

    Args:
        run: before its first step.
        chips: of one forward pass.
    """
    kept, learning = _count(run.model), _count(run.model, learning=True)
    numbers = kept * (1 if run.ema is None else 2) + learning * 2
    narrow = 1.0 if run.precision == "fp32" else 0.5
    return (4 * numbers + 1.2 * narrow * chips * _kept_bytes(run.model, run.chips["size"])) / 1e9


def _count(model: Detector, *, learning: bool = False) -> int:
    """Count the numbers of all parameters, or of those that learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not learning)


def _kept_bytes(model: Detector, side: int) -> int:
    """Count the bytes that backbone and neck keep of one chip for the backward pass. Nothing is computed."""
    hollow = copy.deepcopy(model).to("meta")
    fixed = {id(tensor) for tensor in [*hollow.parameters(), *hollow.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in fixed:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hollow(
            torch.empty(1, 3, side, side, dtype=torch.uint8, device="meta"),
            torch.empty(1, 2, dtype=torch.int64, device="meta"),
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def mismatches(run: Run) -> Iterator[str]:
    """Yield a line for each setting that does not fit the run, with its name and a value that would."""
    options, model, steps = run.settings.train, run.settings.model, run.num_steps
    if options.weights is None and model.backbone in DEEP:
        yield (
            f"{model.backbone} starts from scratch, which takes far more data and epochs than fine-tuning: set "
            f"train.weights={PRETRAINED[model.backbone]}, or a file of weights"
        )
    if options.batch_size > run.epoch_chips:
        yield (
            f"train.batch_size {options.batch_size} is more than the {counted(run.epoch_chips, 'chip')} of an epoch, "
            f"so no step is a whole one: set train.batch_size={run.epoch_chips} or less"
        )
    if run.schedule.warmup_steps < options.warmup_steps:
        yield (
            f"train.warmup_steps {options.warmup_steps} is more than {WARMUP_SHARE:.0%} of the run's "
            f"{counted(steps, 'step')}: the warm-up is cut to {run.schedule.warmup_steps}"
        )
    if late := [decay for decay in options.decay_epochs if decay >= options.epochs]:
        yield (
            f"train.decay_epochs {late} lies behind the last of {counted(options.epochs, 'epoch')}: the rate stays "
            "high; give shares of the run, such as [0.8]"
        )
    if options.evaluate_every > options.epochs:
        yield (
            f"train.evaluate_every {options.evaluate_every} is more than the {counted(options.epochs, 'epoch')}: "
            "only the last one is validated"
        )
    yield from _without_effect(run)
    yield from _averages(run)
    if run.rank.device.type == "cpu":
        yield from _slow(run)


def _without_effect(run: Run) -> Iterator[str]:
    """Yield a line for each setting by which something has no effect, or not where it should."""
    model, m = run.settings.model, run.loader.dataset.manifest
    if (pool := len(m.keys) - m.num_positives) and not run.settings.loader.negatives_per_image:
        yield (
            f"loader.negatives_per_image 0: no epoch holds any of the pool's {counted(pool, 'negative chip')}: set "
            f"loader.negatives_per_image={LoaderSettings().negatives_per_image}"
        )
    if model.neck == "c5" and model.levels != ModelSettings.model_fields["levels"].default:
        yield (
            f"model.levels {list(model.levels)} has no effect with model.neck=c5, which has one map: leave it out, or "
            "set model.neck=fpn"
        )
    if run.rank.device.type == "cuda" and model.pre_nms > MOST_COMPARED:
        yield (
            f"model.pre_nms {model.pre_nms} is more than the {MOST_COMPARED} boxes that a GPU compares, so NMS runs "
            f"on the CPU while the GPU waits: set model.pre_nms={MOST_COMPARED} or less"
        )


def _averages(run: Run) -> Iterator[str]:
    """Yield a line for each moving average that the run is too short for."""
    options, steps = run.settings.train, run.num_steps
    updates = steps * min(run.loader.accumulation, math.ceil(run.epoch_chips / run.rank.count))  # none without a chip
    momentum = options.norm_momentum
    fitting = min(LARGEST_MOMENTUM, round(1 - (1 - SETTLED) ** (2 / max(updates, 2)), 3))
    if run.norm != "frozen" and (share := 1 - (1 - momentum) ** updates) < SETTLED and fitting > momentum:
        yield (
            f"train.norm_momentum {momentum:g}: after {counted(steps, 'step')} the running statistics of batch norm "
            f"are only {share:.0%} this run's: set train.norm_momentum={fitting:g}"
        )
    if options.ema is not None and (share := 1 - options.ema**steps) < SETTLED:
        fitting = round((1 - SETTLED) ** (2 / max(steps, 2)), 4)
        yield (
            f"train.ema {options.ema:g}: after {counted(steps, 'step')} the average of weights is only {share:.0%} "
            f"this run's: set train.ema={fitting:g}"
        )


def _slow(run: Run) -> Iterator[str]:
    """Yield a line where a CPU would be busy for long with a single forward pass."""
    options, model, side = run.settings.train, run.settings.model, run.chips["size"]
    per_pass = passes_of_step(options, run.rank.count).most
    if model.backbone in DEEP and per_pass * side**2 > SLOW_PIXELS:
        yield (
            f"there is no GPU: one forward pass of {model.backbone} over {counted(per_pass, 'chip')} of {side} px "
            "takes a CPU minutes. For a first try set model.backbone=resnet18, model.width=64, model.head_width=128, "
            "train.batch_size=8 and train.chips_per_rank=2, as scripts/demo.yaml does for small chips"
        )
