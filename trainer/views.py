"""Runs a network over whole images at every scale, and hands out each image when all of its views are done."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.coco import Reject, SourceImage
from pipeline.storage import Location
from schemas.detect import DetectSettings
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, Settings
from schemas.train import Precision
from trainer.checkpoint import Checkpoint, read_checkpoint
from trainer.loader import available_cores
from trainer.model import Detector
from trainer.pyramid import View, compose, plan_views, read_batches
from trainer.run import autocast, make_detector

Output = Sequence[Tensor]
"""What a network gives for one view."""
ELONGATION = 1.5  # longer side over size of what tiles must not cut, an aspect ratio of 2.25
RUN = 64
"""Images whose views share batches. Runs are dealt out to ranks whole, so ranks change no batch and no rounding."""


@dataclass
class Clock:
    """Seconds spent waiting for pixels, and in the network."""

    waited: float = 0.0
    worked: float = 0.0
    rejects: list[Reject] = field(default_factory=list)

    @property
    def data_wait(self) -> float:
        return self.waited / max(self.waited + self.worked, 1e-9)


class Inference(NamedTuple):
    """A network and how it is run over whole images.

    model: in eval mode, on `device`; chips: settings of those it was trained on, its scales and ranges
    precision: that it was trained in; a CPU always computes in fp32
    """

    model: Detector
    chips: ChipSettings
    options: DetectSettings
    device: torch.device
    precision: Precision


def open_inference(path: Location, settings: Settings, device: torch.device) -> tuple[Checkpoint, Inference]:
    """A checkpoint, and its network ready to be run.

    Args:
        settings: `detect` is used, and chips.max_pixels where it was given. What else was given must be as the
            checkpoint has it.

    Raises:
        DataError: as read_checkpoint, or its network cannot be made.
        UsageError: other scales, ranges or network than the checkpoint's.
    """
    checkpoint = read_checkpoint(path)
    chips = dict(checkpoint.chips)
    if "max_pixels" in settings.chips.model_fields_set:
        chips["max_pixels"] = settings.chips.max_pixels
    there = {"chips": {name: chips[name] for name in ("scales", "ranges")}, "model": checkpoint.settings["model"]}
    differing = []
    for section, values in there.items():
        given, now = getattr(settings, section).model_fields_set, settings.model_dump(mode="json")[section]
        differing += [
            f"{section}.{name}: {value!r} there, {now[name]!r} given"
            for name, value in values.items()
            if name in given and now[name] != value
        ]
    if differing:
        raise UsageError(
            f"{path}: was trained with other settings, which stay as they are:\n  " + "\n  ".join(differing)
        )
    try:
        model = make_detector(checkpoint)
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"{path}: its network cannot be made again: {str(error).splitlines()[0]}; train anew"
        ) from error
    ready = model.to(device).eval()
    return checkpoint, Inference(
        ready, ChipSettings.model_validate(chips), settings.detect, device, checkpoint.precision
    )


class Viewed(NamedTuple):
    """One image and what the network gave for each of its views, on the CPU; no views when it was refused."""

    image: int
    views: list[tuple[View, Output]]


def split_runs(num_images: int, length: int | None = None) -> list[range]:
    """Runs of RUN images, or of `length`, the last one shorter; no rank gets part of one."""
    length = length or RUN
    return [range(start, min(start + length, num_images)) for start in range(0, num_images, length)]


def widened_ranges(bounds: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Training ranges widened for detections: 80, 32-150, 120 become 90, 32-180, 75 as the paper's do (facts §2.8)."""
    last = len(bounds) - 1
    return [(lo * 0.625 if s == last else lo, hi * (1.125 if s == 0 else 1.2)) for s, (lo, hi) in enumerate(bounds)]


def tile_overlaps(bounds: Sequence[tuple[float, float]]) -> list[float]:
    """Per scale, what neighbouring tiles share, source pixels: the longest object looked for there."""
    return [ELONGATION * hi for _, hi in widened_ranges(bounds)]


def run_views(
    forward: Callable[[Detector, Tensor, Tensor], Sequence[Output]],
    inference: Inference,
    runs: Sequence[range],
    images: Sequence[SourceImage],
    root: Location,
    clock: Clock,
) -> Iterator[Viewed]:
    """Yield each image of the runs once, refused ones too, in the order in which they are complete.

    Args:
        forward: network, images uint8 [B, 3, H, W] and sizes int64 [B, 2], on the device -> one output per view.
        runs: positions among `images`; each run's views share batches.
        root: folder that file names are relative to.
    """
    model, chips, options, device, precision = inference
    overlaps = tile_overlaps(chips.bounds())
    batches: list[list[View]] = []
    missing: dict[int, int] = {}
    for run in runs:
        views = plan_views([images[i] for i in run], chips, options.max_side, overlaps)
        views = [view._replace(image=run[view.image]) for view in views]
        batches += compose(views, options.batch_pixels)
        for view in views:
            missing[view.image] = missing.get(view.image, 0) + 1
    done: dict[int, list[tuple[View, Output]]] = {image: [] for image in missing}
    threads = options.threads or available_cores()
    on_gpu = device.type == "cuda"
    reader = read_batches(batches, images, root, chips.max_pixels, clock.rejects, threads=threads, pin=on_gpu)
    for views in batches:
        started = time.perf_counter()
        batch = next(reader)
        read = time.perf_counter()
        clock.waited += read - started
        if batch.views:
            pixels, sizes = (tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.sizes))
            with torch.inference_mode(), autocast(device, precision if on_gpu else "fp32"):
                outputs = [[values.cpu() for values in output] for output in forward(model, pixels, sizes)]
            clock.worked += time.perf_counter() - read
            for view, output in zip(batch.views, outputs, strict=True):
                done[view.image].append((view, output))
        for view in views:
            missing[view.image] -= 1
            if not missing[view.image]:
                yield Viewed(view.image, done.pop(view.image))
    next(reader, None)  # lets it report the images it refused


def to_source(boxes: Tensor, view: View) -> Tensor:
    """Boxes [N, 4] of a view, view pixels, as source pixels inside the view's window."""
    x1, y1, x2, y2 = view.window
    origin = boxes.new_tensor([x1, y1, x1, y1])
    limit = boxes.new_tensor([x2, y2, x2, y2])
    return (boxes / view.scale + origin).minimum(limit)
