"""Runs a network over whole images at every scale, and hands out each image when all of its views are done."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from pipeline.coco import Reject, SourceImage
from pipeline.storage import Location
from schemas.detect import DetectSettings
from schemas.settings import ChipSettings
from trainer.loader import available_cores
from trainer.pyramid import View, compose, plan_views, read_batches

Output = TypeVar("Output")
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


@dataclass(frozen=True)
class Viewed(Generic[Output]):
    """One image and what the network gave for each of its views; no views when the image was refused."""

    image: int
    views: list[tuple[View, Output]]


def split_runs(num_images: int) -> list[range]:
    """Runs of RUN images, the last one shorter; no rank gets part of one."""
    return [range(start, min(start + RUN, num_images)) for start in range(0, num_images, RUN)]


def widened_ranges(bounds: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Training ranges widened for detections: 80, 32-150, 120 become 90, 32-180, 75 as the paper's do (facts §2.8)."""
    last = len(bounds) - 1
    return [(lo * 0.625 if s == last else lo, hi * (1.125 if s == 0 else 1.2)) for s, (lo, hi) in enumerate(bounds)]


def tile_overlaps(bounds: Sequence[tuple[float, float]]) -> list[float]:
    """Per scale, what neighbouring tiles share, source pixels: the longest object looked for there."""
    return [ELONGATION * hi for _, hi in widened_ranges(bounds)]


def run_views(
    forward: Callable[[Tensor, Tensor], list[Output]],
    runs: Sequence[range],
    images: Sequence[SourceImage],
    root: Location,
    chips: ChipSettings,
    options: DetectSettings,
    device: torch.device,
    clock: Clock,
) -> Iterator[Viewed[Output]]:
    """Yield each image of the runs once, refused ones too, in the order in which they are complete.

    Args:
        forward: (images uint8 [B, 3, H, W], sizes int64 [B, 2]), on the device -> one output per view.
        runs: positions among `images`; each run's views share batches.
        root: folder that file names are relative to.
        chips: scales and ranges.
    """
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
    pin = device.type == "cuda"
    reader = read_batches(batches, images, root, chips.max_pixels, clock.rejects, threads=threads, pin=pin)
    for views in batches:
        started = time.perf_counter()
        batch = next(reader)
        read = time.perf_counter()
        clock.waited += read - started
        if batch.views:
            outputs = forward(batch.images.to(device, non_blocking=True), batch.sizes.to(device, non_blocking=True))
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
