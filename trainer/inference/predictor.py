"""A detector that stays loaded: made once from a checkpoint, called with images as often as wanted."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import overload

import numpy as np
import torch
from PIL import Image

from pipeline.coco import SourceImage
from pipeline.pyramid.focus import Focus, FocusMap, focus_limits, painted_map
from pipeline.pyramid.merging import Detections
from pipeline.pyramid.reading import ImageLike, ViewBatch, open_files
from pipeline.pyramid.search import SearchLog, focus_threshold, search_any, search_images
from pipeline.pyramid.views import Output, View
from pipeline.storage import Location, location
from schemas.arrays import BoolArray
from schemas.errors import UsageError, refuse_text
from schemas.settings import Settings, settings_or_defaults
from trainer.inference.opening import Inference, allocator, as_network, open_detector
from trainer.model import predict, predict_and_focus

Network = Callable[[ViewBatch], list[Output]]

# A fork copies none of the threads that torch computes with, and a network would wait for them for ever. With one
# thread it has none to wait for. A web server that loads a predictor before it forks its workers needs that.
os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


class Predictor:
    """Detects objects on images, with a network that is loaded once.

    It holds nothing that a call changes, so that several threads may call it at a time. On a CPU a forked process may
    use it, too, with one thread of its own. A file is turned as its EXIF says; an image of Pillow is taken as it
    stands.

        predictor = Predictor("run/")
        found = predictor("photo.jpg")  # or an array, an image of Pillow, or a list of these
        names = [predictor.categories[label - 1][1] for label in found.labels]

    Attributes:
        categories: (source id, name) of the network's classes, by label from 1.
        inference: the network, and how it is run.
    """

    def __init__(
        self,
        checkpoint: Location | str,
        settings: Settings | None = None,
        *,
        device: torch.device | str | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        """Load a checkpoint.

        Args:
            checkpoint: a checkpoint file, or the folder of a run: its best checkpoint, else its last.
            settings: the section `detect` is used, and chips.max_pixels where it was given.
            device: where the network runs; None: on a GPU where there is one, else on the CPU.
            classes: names of the classes that are wanted; none: all.

        Raises:
            UsageError: settings were given that contradict the checkpoint, or it knows no class of a name.
            DataError: the checkpoint cannot be read, or is of the RPN alone.
        """
        refuse_text("classes", classes)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        state, self.inference = open_detector(location(checkpoint), settings_or_defaults(settings), where)
        self.categories: list[tuple[int, str]] = state.categories
        self._network = detecting(self.inference)
        if classes:
            self._network = _only(self._network, _wanted(self.categories, classes))

    @overload  # text, which is a path here, is a sequence of text as well
    def __call__(self, images: ImageLike) -> Detections: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: Sequence[ImageLike] | Iterator[ImageLike]) -> list[Detections]: ...

    def __call__(self, images: ImageLike | Sequence[ImageLike] | Iterator[ImageLike]) -> Detections | list[Detections]:
        """Detect on an image, or on each of several.

        Args:
            images: an array uint8 [height, width, 3], RGB, an image of Pillow, or a path or URL of an image file; or
                several of these.

        Returns:
            For each image boxes float32 [n, 4], x1 y1 x2 y2 in its pixels, scores float32 [n] and labels int64 [n],
            1..K, best first.

        Raises:
            UsageError: something is no image.
            DataError: a file cannot be read.
            OutOfMemoryError: the network needs more memory than there is.
        """
        if isinstance(images, np.ndarray | Image.Image | str | Location):
            return self([images])[0]
        _, chips, options, device, _ = self.inference
        focus = focus_of(self.inference)
        return list(search_any(self._network, images, chips, options, allocator(device), focus))

    def detect_files(
        self, images: Sequence[SourceImage], root: Location, spans: Sequence[range], log: SearchLog
    ) -> Iterator[tuple[int, Detections]]:
        """Detect on image files whose sizes are known; the arguments and what comes are those of `detect_images`."""
        return detect_images(self.inference, spans, images, root, log, self._network)


def detect_images(
    inference: Inference,
    spans: Sequence[range],
    images: Sequence[SourceImage],
    root: Location,
    log: SearchLog,
    network: Network | None = None,
) -> Iterator[tuple[int, Detections]]:
    """Detect on some images at all scales.

    Args:
        inference: the network, and how it is run.
        spans: positions among `images`; views of images of one span share batches.
        images: what can be searched.
        root: folder that their file names are relative to.
        log: takes the times and a row for each refused image, before the next image is yielded.
        network: what finds boxes in views; None: `detecting(inference)`.

    Yields:
        For each image of the spans that can be read its position among `images` and its merged detections.
    """
    network = network or detecting(inference)
    _, chips, options, device, _ = inference
    opened = open_files(images, root, chips.max_pixels)
    focus = focus_of(inference)
    return search_images(network, images, opened, spans, chips, options, log, allocator(device), focus)


def detecting(inference: Inference) -> Network:
    """Return what finds boxes, scores and labels in a batch of views, and with focus what `focus_of` reads."""
    options = inference.options
    plain, focused = (
        as_network(inference, partial(forward, min_score=options.min_score, by_area=options.by_area))
        for forward in (predict, predict_and_focus)
    )
    if focus_of(inference) is None:
        return plain
    return lambda batch: (focused if batch.views[0].scale_index else plain)(batch)  # nothing is finer than the finest


def focus_of(inference: Inference) -> Focus | None:
    """Return how images are searched from coarse to fine; None where every scale is searched whole."""
    model, chips, options, _, _ = inference
    if options.focus == "off" or (options.focus == "auto" and model.focus is None):
        return None
    limits = focus_limits(chips.bounds(), model.settings.focus_limits)
    stride = model.layout.strides[model.focus_level]

    def of(view: View, output: Output) -> FocusMap:
        if model.focus is not None:
            return FocusMap(output[3], (stride, stride))
        return painted_map(view, output[3], output[4], limits[view.scale_index], chips.size)

    return Focus(focus_threshold(options), of)


def _wanted(categories: Sequence[tuple[int, str]], classes: Sequence[str]) -> BoolArray:
    """Say of each label, 0 to K, whether its class is among the names that are wanted."""
    known = [name for _, name in categories]
    if unknown := [name for name in classes if name not in known]:
        raise UsageError(
            f"the network knows no class {', '.join(map(repr, unknown))}; it knows {', '.join(known[:100])}"
        )
    return np.array([False, *(name in classes for name in known)])


def _only(network: Network, is_wanted: BoolArray) -> Network:
    """Return a network that keeps of each view what has a wanted label."""

    def narrowed(batch: ViewBatch) -> list[Output]:
        found = network(batch)
        return [[*(column[is_wanted[one[2]]] for column in one[:3]), *one[3:]] for one in found]

    return narrowed
