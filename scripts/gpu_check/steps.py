"""Training steps without a loader: against torchvision, of the RPN alone, compiled, and the largest that fits."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from schemas.settings import Precision, load_settings
from scripts.bench.step_models import (
    as_torchvision,
    calibrated_state,
    device_name,
    losses_of,
    our_model,
    plausible_batch,
    stage_share,
    stepper,
    their_model,
)
from scripts.gpu_check.setting import Setting
from trainer.loading.batch import Batch
from trainer.model import Detector
from trainer.runtime.weights import set_norm_policy


def fused_flops(
    images: Sequence[int], weights: Sequence[int], *_: object, out_shape: Sequence[int], **__: object
) -> int:
    """Operations of a convolution that adds and clips its result itself; torch's counter does not know of them."""
    return conv_flop_count(list(images), list(weights), list(out_shape))


FUSED = dict.fromkeys((torch.ops.aten.cudnn_convolution_relu, torch.ops.aten.cudnn_convolution_add_relu), fused_flops)

PAPER = Path(__file__).resolve().parents[2] / "configs/coco-paper.yaml"
Figures = Iterator[dict[str, Any]]
Step = Callable[[], float]
"""Takes one step and returns its seconds."""

STEPS = 3
"""Steps one after the other in each measurement, so that the host may run ahead as it does in a training. One such
measurement comes before those that count: kernels are chosen in it, and memory is taken."""
COPIED = 2**30  # bytes


def machine(setting: Setting) -> Figures:
    """What runs here, the rate of bf16 matrix products, and how fast memory is copied."""
    device, side = setting.device, setting.sizes.product
    yield {"device": device_name(device), "torch": torch.__version__, "torchvision": torchvision.__version__}
    yield {"python": platform.python_version(), "cuda": torch.version.cuda, "devices": torch.cuda.device_count()}
    yield {"cores": os.cpu_count(), "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    one = torch.ones(1, device=device)
    yield {"launch_us": timed(lambda: one.add_(1), device, times=2000) * 1e6}  # of the smallest kernel
    yield {"matrix_tflops": matrix_rate(device, side)}
    if device.type == "cuda":
        source = torch.ones(COPIED, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        seconds = timed(lambda: target.copy_(source), device)
        yield {"copy_gb_per_s": 2 * COPIED / seconds / 1e9}  # each byte is read and written


def matrix_rate(device: torch.device, side: int) -> float:
    """TFLOP/s of a product of two random bf16 matrices."""
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    timed(lambda: a @ b, device)  # raises the clocks
    return 2 * side**3 / timed(lambda: a @ b, device, times=50) / 1e12


def timed(work: Callable[[], object], device: torch.device, times: int = 10) -> float:
    """Seconds of one call, the mean of several in a row."""
    work()
    started = clock(device)
    for _ in range(times):
        work()
    return (clock(device) - started) / times


def clock(device: torch.device) -> float:
    """Seconds of this machine's clock, once the device is done with all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def against_torchvision(setting: Setting) -> Figures:
    """Ours, torchvision's at its defaults and at equal RoIs, and our bare layers, which take turns in each round."""
    rate = matrix_rate(setting.device, setting.sizes.product)
    for backbone in reversed(setting.sizes.backbones):  # the paper's first
        batch = plausible_batch(setting.sizes.chips, setting.device, setting.sizes.side)
        state = calibrated_state(backbone, batch)
        for precision in setting.sizes.precisions:
            steps = compared_steps(backbone, state, batch, precision)
            yield from compare(f"{backbone}_{precision}", steps, setting.sizes.rounds, len(batch))
        yield from share_of_products(backbone, state, batch, setting.sizes.precisions[0], rate, setting.sizes.rounds)


def compared_steps(backbone: str, state: dict[str, Tensor], batch: Batch, precision: Precision) -> dict[str, Step]:
    """The steps by name; the first is ours."""
    device, side = batch.images.device, batch.images.shape[2]
    ours = our_model(backbone, state, side).to(device)
    floats, targets = as_torchvision(batch)
    steps = {
        "ours": stepper(ours, losses_of(ours, batch), precision, STEPS),
        "bare_layers": stepper(ours, partial(bare_losses, ours, batch), precision, STEPS),
    }
    same_rois = {"box_batch_size_per_image": ours.settings.proposals}
    for name, options, layout in (
        ("torchvision", {}, torch.contiguous_format),
        ("torchvision_same_rois", same_rois, torch.contiguous_format),
        ("torchvision_channels_last", same_rois, torch.channels_last),
    ):
        theirs = their_model(backbone, state, side, **options).to(device).to(memory_format=layout)
        steps[name] = stepper(theirs, partial(theirs, floats, targets), precision, STEPS)
    return steps


def bare_losses(model: Detector, batch: Batch) -> dict[str, Tensor]:
    """Backbone, neck and box head with nothing between them: what no detector with these layers can do without."""
    features = model(batch.images, batch.sizes)
    rows, width = len(batch) * model.settings.proposals, features.pooled.shape[2]
    pooled = features.pooled.new_ones(rows, model.settings.pooled**2, width)
    logits, deltas = model.head(pooled)
    return {"maps": features.rows.float().mean(), "head": logits.mean() + deltas.mean()}


def compare(name: str, steps: dict[str, Step], rounds: int, chips: int) -> Figures:
    """Memory and chips/s of each step, and how many times as fast the first one is, medians over rounds.

    A step that cannot be taken is told, and left out. Without the first one, which is ours, there is no answer.
    """
    first = next(iter(steps))
    for label in list(steps):
        try:
            yield from warmed_up(f"{name}_{label}", steps[label])
        except Exception as error:
            yield {f"{name}_{label}": f"{type(error).__name__}: {str(error)[:200]}"}
            if label == first:
                raise
            del steps[label]
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(rounds):
        for label, step in steps.items():
            seconds[label].append(step())
    for label, taken in seconds.items():
        yield {f"{name}_{label}_chips_per_s": chips / statistics.median(taken)}
        yield {f"{name}_{label}_slowest_over_fastest": max(taken) / min(taken)}
    ours = seconds.pop(first)
    for label, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, ours, strict=True))
        yield {f"{name}_of_bare_layers" if label == "bare_layers" else f"{name}_over_{label}": ratio}


def warmed_up(name: str, step: Step) -> Figures:
    """Take the first steps, and tell what they need above the memory that is in use before."""
    is_gpu = torch.cuda.is_available()
    before = torch.cuda.memory_allocated() if is_gpu else 0
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    step()
    if is_gpu:
        yield {f"{name}_peak_gib": (torch.cuda.max_memory_allocated() - before) / 2**30}


def share_of_products(
    backbone: str, state: dict[str, Tensor], batch: Batch, precision: Precision, rate: float, rounds: int
) -> Figures:
    """Which share of the device's measured rate of matrix products the products and convolutions of our step reach."""
    model = our_model(backbone, state, batch.images.shape[2]).to(batch.images.device)
    with FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
        stepper(model, losses_of(model, batch), precision)()
    step = stepper(model, losses_of(model, batch), precision, STEPS)
    seconds = statistics.median(step() for _ in range(rounds))
    tflop = counter.get_total_flops() / 1e12
    yield {f"{backbone}_tflop_per_step": tflop, f"{backbone}_share_of_matrix_rate": tflop / seconds / rate}


def default_model(setting: Setting, batch: Batch) -> Detector:
    """The network of all questions but the comparison."""
    backbone = setting.sizes.backbones[-1]
    return our_model(backbone, calibrated_state(backbone, batch), setting.sizes.side).to(setting.device)


def rpn_stage(setting: Setting) -> Figures:
    """The step of the RPN alone against the full one, proposals per image, and what that makes of COCO's negatives.

    Norms learn, as they do in a training of that many chips a pass.
    """
    batch = plausible_batch(setting.sizes.chips, setting.device, setting.sizes.side)
    model = default_model(setting, batch)
    full, rpn = full_and_rpn(model, batch, setting)
    yield {"full_ms_per_chip": full * 1e3, "rpn_ms_per_chip": rpn * 1e3, "rpn_of_full": rpn / full}
    from scripts.gpu_check.data import extraction_seconds  # needs more packages than the lines above

    extraction, waited = extraction_seconds(model, setting)
    yield {"extraction_ms_per_image": extraction * 1e3, "extraction_data_wait_share": waited}
    yield {"stage_share": stage_share(full, rpn, extraction, 2)}


def paper(setting: Setting) -> Figures:
    """Chips/s of the network of configs/coco-paper.yaml, in a full step and in one of the RPN alone."""
    batch = plausible_batch(setting.sizes.chips, setting.device, setting.sizes.side)
    backbone, others = setting.sizes.backbones[-1], load_settings(PAPER).model.model_dump(exclude={"backbone"})
    model = our_model(backbone, calibrated_state(backbone, batch), setting.sizes.side, **others).to(setting.device)
    full, rpn = full_and_rpn(model, batch, setting)
    yield {"full_chips_per_s": 1 / full, "rpn_chips_per_s": 1 / rpn}


def full_and_rpn(model: Detector, batch: Batch, setting: Setting) -> tuple[float, float]:
    """Seconds per chip of a full step whose norms learn, and of one of the RPN, which alone is left of the network."""
    set_norm_policy(model, "train")
    full = median_step(model, batch, setting)
    model.keep_rpn_only()
    return full / len(batch), median_step(model, batch, setting) / len(batch)


def median_step(model: Detector, batch: Batch, setting: Setting) -> float:
    """Seconds of a step in the first precision, the median of the rounds."""
    step = stepper(model, losses_of(model, batch), setting.sizes.precisions[0], STEPS)
    step()
    return statistics.median(step() for _ in range(setting.sizes.rounds))


def largest_batch(setting: Setting) -> Figures:
    """Chips of one forward pass, half as many more each time, until memory runs out."""
    num = setting.sizes.chips
    model = default_model(setting, plausible_batch(num, setting.device, setting.sizes.side))
    while True:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            batch = plausible_batch(num, setting.device, setting.sizes.side)
            step = stepper(model, losses_of(model, batch), setting.sizes.precisions[0])
            seconds = [step(), step()][1]
        except RuntimeError as error:
            yield {"too_many_chips": num, "reason": f"{type(error).__name__}: {str(error)[:200]}"}
            if is_fault(error):
                raise
            return
        peak = torch.cuda.max_memory_allocated() / 2**30
        yield {"chips": num, "chips_per_s": num / seconds, "peak_gib": peak}
        num += num // 2


def is_fault(error: RuntimeError) -> bool:
    """Whether a step of many chips has broken the device, as where a kernel reads memory that is not its own.

    What else may be raised is the end that is looked for: memory runs out, or a kernel has too many elements to count.
    """
    return isinstance(error, torch.AcceleratorError) and "out of memory" not in str(error)


def searched(setting: Setting) -> Figures:
    """A step for which cuDNN tries its kernels, to be held against ours in the question `step`.

    It does so in a process of its own, since cuDNN keeps the kernels that it has chosen for a shape without trying.
    """
    batch = plausible_batch(setting.sizes.chips, setting.device, setting.sizes.side)
    model = default_model(setting, batch)
    torch.backends.cudnn.benchmark = True
    step = stepper(model, losses_of(model, batch), setting.sizes.precisions[0], STEPS)
    yield {"first_steps_s": step() * STEPS}
    yield from compare("tries", {"kernels": step}, setting.sizes.rounds, len(batch))


def ways(setting: Setting) -> Figures:
    """A step as it is, against one whose norms learn, and a compiled one."""
    batch = plausible_batch(setting.sizes.chips, setting.device, setting.sizes.side)
    precision = setting.sizes.precisions[0]

    def step_of(*, norms_learn: bool = False, is_compiled: bool = False) -> Step:
        model = default_model(setting, batch)
        if norms_learn:
            set_norm_policy(model, "train")
        if is_compiled:
            model.backbone.compile(fullgraph=True)  # in pieces it would be another question
        return stepper(model, losses_of(model, batch), precision, STEPS)

    steps = {"ours": step_of(), "norms_learn": step_of(norms_learn=True)}
    yield from compare("step", steps, setting.sizes.rounds, len(batch))
    compiled = {"ours": step_of(), "compiled": step_of(is_compiled=True)}
    yield from compare("against", compiled, setting.sizes.rounds, len(batch))
