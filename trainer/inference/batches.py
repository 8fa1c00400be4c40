"""Run a network over whole images at every scale, and hand out each image when all of its views are done."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.coco import Reject, SourceImage
from pipeline.engines.tasks import available_cores
from pipeline.images.chip import Picture, cut_chip
from pipeline.images.decode import ImageRefusedError
from pipeline.images.sources import Findings, open_sources
from pipeline.pyramid.merging import tile_overlaps
from pipeline.pyramid.views import Output, View, Viewed, compose, plan_views
from pipeline.storage import Location
from schemas.settings import DetectSettings
from trainer.inference.opening import Inference
from trainer.model import Detector
from trainer.model.heads import autocast
from trainer.runtime.memory import explained_memory


class ViewBatch(NamedTuple):
    """Views of one padded shape, decoded and resized, for one forward pass.

    Attributes:
        planned: the views of the batch, those of refused images included.
        views: what each row of the tensors shows, B of them.
        images: uint8 [B, 3, H, W], RGB, channels_last in memory; the content lies top left, the rest is 0.
        sizes: int64 [B, 2], height and width of the content, view pixels.
    """

    planned: list[View]
    views: list[View]
    images: Tensor
    sizes: Tensor


SPAN = 64
"""Images whose views share batches. A rank gets whole spans, so the number of ranks changes no batch, no rounding."""


@dataclass
class SearchLog:
    """What a search over images leaves behind beside its results.

    Attributes:
        waited: seconds that the network waited for pixels.
        worked: seconds spent in the network.
        rejects: a row for each image that could not be used.
    """

    waited: float = 0.0
    worked: float = 0.0
    rejects: list[Reject] = field(default_factory=list)

    @property
    def data_wait(self) -> float:
        """Share of the time that the network waited for pixels, 0 to 1."""
        return self.waited / max(self.waited + self.worked, 1e-9)


def split_spans(num_images: int, length: int | None = None) -> list[range]:
    """Part the positions 0 to `num_images` into spans of `length` images, by default SPAN; the last may be shorter."""
    length = length or SPAN
    return [range(start, min(start + length, num_images)) for start in range(0, num_images, length)]


def run_views(
    forward: Callable[[Detector, Tensor, Tensor], Sequence[Sequence[Tensor]]],
    inference: Inference,
    spans: Sequence[range],
    images: Sequence[SourceImage],
    root: Location,
    log: SearchLog,
) -> Iterator[Viewed]:
    """Run a network over all views of some images.

    Args:
        forward: takes the network, images uint8 [B, 3, H, W] and sizes int64 [B, 2], both on the device, as in
            ViewBatch; returns for each view a sequence of tensors, such as boxes and scores.
        inference: the network, and how it is run.
        spans: positions among `images`; views of images of one span share batches.
        images: what can be searched.
        root: folder that their file names are relative to.
        log: takes the times and a row for each refused image, before that image is yielded.

    Yields:
        Each image of the spans once, as soon as all of its views are done; a refused one has no views.
    """
    model, chips, options, device, precision = inference
    overlaps = tile_overlaps(chips.bounds())
    missing: dict[int, int] = {}  # views of an image that are still to be done
    done: dict[int, list[tuple[View, Output]]] = {}

    def plan_batches() -> Iterator[list[View]]:
        for span in spans:
            views = plan_views([images[i] for i in span], chips, options.max_side, overlaps)
            views = [view._replace(image=span[view.image]) for view in views]
            for view in views:
                missing[view.image] = missing.get(view.image, 0) + 1
            done.update({i: [] for i in span})
            yield from compose(views, options.batch_pixels)

    refused: dict[int, Reject] = {}
    threads = options.threads or available_cores()
    on_gpu = device.type == "cuda"
    reader = read_batches(plan_batches(), images, root, chips.max_pixels, refused, threads=threads, pin=on_gpu)
    with closing(reader):
        while True:
            started = time.perf_counter()
            batch = next(reader, None)
            read = time.perf_counter()
            if batch is None:
                return
            log.waited += read - started
            if batch.views:
                with (
                    explained_memory(device, partial(_remedy, batch, options)),
                    torch.inference_mode(),
                    autocast(device, precision if on_gpu else "fp32"),
                ):
                    pixels, sizes = (tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.sizes))
                    outputs = [[values.cpu().numpy() for values in output] for output in forward(model, pixels, sizes)]
                log.worked += time.perf_counter() - read
                for view, output in zip(batch.views, outputs, strict=True):
                    done[view.image].append((view, output))
            for view in batch.planned:
                missing[view.image] -= 1
                if not missing[view.image]:
                    del missing[view.image]
                    if view.image in refused:
                        log.rejects.append(refused.pop(view.image))
                    yield Viewed(view.image, done.pop(view.image))


def _remedy(batch: ViewBatch, options: DetectSettings) -> str:
    """Tell what to lower when there is no memory for a batch."""
    count, _, height, width = batch.images.shape
    setting = "batch_pixels" if count > 1 else "max_side"
    lower = count * height * width // 2 if count > 1 else max(width, height) // 2
    return (
        f"the batch is {count} views of {width}x{height}; detect.batch_pixels is {options.batch_pixels}, "
        f"detect.max_side {options.max_side}. Try --set detect.{setting}={lower}"
    )


def read_batches(
    batches: Iterable[list[View]],
    images: Sequence[SourceImage],
    root: Location,
    max_pixels: int,
    refused: dict[int, Reject],
    *,
    threads: int,
    pin: bool,
    ahead: int = 2,
) -> Generator[ViewBatch, None, None]:
    """Decode and resize the views of batches in threads, `ahead` batches before they are asked for.

    Args:
        batches: views of one padded shape each.
        images: what `View.image` is a position in.
        root: folder that their file names are relative to.
        max_pixels: an image file with more pixels is refused.
        refused: takes a row for each refused image, by its position among `images`.
        threads: how many views are made at a time.
        pin: whether the tensors lie in pinned memory, from which a GPU copies faster.
        ahead: batches that are made while one is in use.

    Yields:
        One ViewBatch for each batch, in order, without the views of refused images; it may be empty.
    """
    locks = [threading.Lock() for _ in range(64)]

    @lru_cache(maxsize=2)  # the tiles of one image follow each other; more would cost memory where images are huge
    def opened(image: int) -> Picture | None:
        found = Findings()
        _, _, picture = next(open_sources(root, [images[image]], max_pixels, found, thorough=False))
        if found.rejects:
            (refused[image],) = found.rejects
        return picture

    def fill(view: View, target: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bool:
        with locks[view.image % len(locks)]:  # threads that want the same image open it once
            picture = opened(view.image)
        if picture is None:
            return False
        try:
            pixels = cut_chip(picture, view.window, view.scale, view.width, view.height)
        except ImageRefusedError as error:  # a large image that is damaged here
            source = images[view.image]
            message = f"{source.file_name}: {error.message}"
            refused[view.image] = Reject("image", source.image_id, source.file_name, error.reason, message)
            return False
        target[: view.height, : view.width] = pixels[:, :, :3]
        return True

    pool = ThreadPoolExecutor(threads)

    def begin(views: list[View]) -> tuple[list[View], Tensor, list[Future[bool]]]:
        height, width = views[0].shape
        buffer = torch.zeros((len(views), height, width, 3), dtype=torch.uint8, pin_memory=pin)
        slots = buffer.numpy()
        return views, buffer, [pool.submit(fill, view, slots[i]) for i, view in enumerate(views)]

    waiting: deque[tuple[list[View], Tensor, list[Future[bool]]]] = deque()
    remaining = iter(batches)
    try:
        while True:
            while len(waiting) <= ahead and (views := next(remaining, None)) is not None:
                waiting.append(begin(views))
            if not waiting:
                return
            views, buffer, tasks = waiting.popleft()
            good = [task.result() for task in tasks]
            kept = [view for view, is_good in zip(views, good, strict=True) if is_good]
            if not all(good):
                buffer = buffer[torch.tensor(good)]
            sizes = torch.tensor([(view.height, view.width) for view in kept], dtype=torch.int64).view(-1, 2)
            yield ViewBatch(views, kept, buffer.permute(0, 3, 1, 2), sizes)
    finally:
        pool.shutdown(cancel_futures=True)  # what is waiting is not wanted where the search was stopped
