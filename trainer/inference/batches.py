"""Runs a network over whole images at every scale, and hands out each image when all of its views are done."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.coco import Reject, SourceImage
from pipeline.engines.tasks import available_cores
from pipeline.images.chip import cut_chip
from pipeline.images.sources import open_sources
from pipeline.pyramid.merging import tile_overlaps
from pipeline.pyramid.views import Output, View, Viewed, compose, plan_views
from pipeline.storage import Location
from trainer.inference.opening import Inference
from trainer.model import Detector
from trainer.runtime.precision import autocast


class ViewBatch(NamedTuple):
    """views: what the batch holds; images: uint8 [B, 3, H, W], channels_last memory, content top left, the rest 0;
    sizes: int64 [B, 2], height and width of the content."""

    views: list[View]
    images: Tensor
    sizes: Tensor


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


def split_runs(num_images: int, length: int | None = None) -> list[range]:
    """Runs of RUN images, or of `length`, the last one shorter; no rank gets part of one."""
    length = length or RUN
    return [range(start, min(start + length, num_images)) for start in range(0, num_images, length)]


def run_views(
    forward: Callable[[Detector, Tensor, Tensor], Sequence[Sequence[Tensor]]],
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
                outputs = [[values.cpu().numpy() for values in output] for output in forward(model, pixels, sizes)]
            clock.worked += time.perf_counter() - read
            for view, output in zip(batch.views, outputs, strict=True):
                done[view.image].append((view, output))
        for view in views:
            missing[view.image] -= 1
            if not missing[view.image]:
                yield Viewed(view.image, done.pop(view.image))
    next(reader, None)  # lets it report the images it refused


def read_batches(
    batches: Sequence[list[View]],
    images: Sequence[SourceImage],
    root: Location,
    max_pixels: int,
    rejects: list[Reject],
    *,
    threads: int,
    pin: bool,
    ahead: int = 2,
) -> Iterator[ViewBatch]:
    """Decode and resize in threads, `ahead` batches before they are asked for. Views of refused images are left out.

    Args:
        max_pixels: an image file with more is refused; rejects: takes a row for each refused image, once.
    """
    refused: dict[int, list[Reject]] = {}

    @lru_cache(maxsize=2)  # the tiles of one image follow each other; more would cost memory where images are huge
    def decoded(image: int) -> Image.Image | None:
        found: list[Reject] = []
        _, _, pixels = next(open_sources(root, [images[image]], max_pixels, found))
        if found:
            refused[image] = found
        return pixels

    def fill(view: View, target: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bool:
        image = decoded(view.image)
        if image is None:
            return False
        pixels = cut_chip(image, view.window, view.scale, view.width, view.height)
        target[: view.height, : view.width] = pixels[:, :, :3]
        return True

    with ThreadPoolExecutor(threads) as pool:

        def begin(views: list[View]) -> tuple[list[View], Tensor, list[Future[bool]]]:
            height, width = views[0].shape
            buffer = torch.zeros((len(views), height, width, 3), dtype=torch.uint8, pin_memory=pin)
            slots = buffer.numpy()
            return views, buffer, [pool.submit(fill, view, slots[i]) for i, view in enumerate(views)]

        waiting: deque[tuple[list[View], Tensor, list[Future[bool]]]] = deque()
        remaining = iter(batches)
        while True:
            while len(waiting) <= ahead and (views := next(remaining, None)) is not None:
                waiting.append(begin(views))
            if not waiting:
                break
            views, buffer, tasks = waiting.popleft()
            good = [task.result() for task in tasks]
            kept = [view for view, is_good in zip(views, good, strict=True) if is_good]
            if not all(good):
                buffer = buffer[torch.tensor(good)]
            sizes = torch.tensor([(view.height, view.width) for view in kept], dtype=torch.int64).view(-1, 2)
            yield ViewBatch(kept, buffer.permute(0, 3, 1, 2), sizes)
    rejects += [reject for image in sorted(refused) for reject in refused[image]]
