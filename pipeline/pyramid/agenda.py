"""What is searched next: views of all scales at once, or from coarse to fine where focus maps say where."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.coco import SourceImage
from pipeline.pyramid.focus import Focus, focus_windows
from pipeline.pyramid.merging import tile_overlaps
from pipeline.pyramid.reading import ViewBatch
from pipeline.pyramid.views import Output, View, Viewed, Window, compose, image_scales, tile_region
from schemas.settings import ChipSettings, DetectSettings

MOST_OPEN = 4
"""Spans that are searched at a time: while one waits for its maps, others give the network work."""


class Searched(NamedTuple):
    """How much of the pyramid was searched.

    Attributes:
        pixels: of all views.
        pyramid: of all images whole, at every scale.
    """

    pixels: float = 0.0
    pyramid: float = 0.0

    def plus(self, other: "Searched") -> "Searched":
        """Add what was searched elsewhere."""
        return Searched(self.pixels + other.pixels, self.pyramid + other.pyramid)

    @property
    def share(self) -> float:
        """Pixels of all views over those of the pyramid."""
        return self.pixels / max(self.pyramid, 1.0)


@dataclass
class _Span:
    """Images whose views share batches.

    Attributes:
        images: positions.
        scale: the finest scale index that has been planned.
    """

    images: range
    scale: int


class Agenda:
    """Gives batches of views, takes what the network made of them, and tells which images are done.

    A batch holds views of one span alone, and a span's batches depend on nothing but its own images, so that ranks and
    the other images change no batch and with it no rounding.
    """

    def __init__(
        self,
        images: Sequence[SourceImage],
        spans: Sequence[range],
        chips: ChipSettings,
        options: DetectSettings,
        focus: Focus | None,
    ) -> None:
        """Plan nothing yet.

        Args:
            images: what can be searched.
            spans: positions among `images`; views of images of one span share batches.
            chips: says at which scales, and which range of sizes each of them has.
            options: how large tiles and batches may be.
            focus: how the search goes from coarse to fine; None: every scale is searched whole.
        """
        self.searched = Searched()
        """How much was planned until now."""
        self._images, self._chips, self._options, self._focus = images, chips, options, focus
        self._overlaps = tile_overlaps(chips.bounds())
        self._spans = iter(spans)
        self._open: dict[int, _Span] = {}  # position of an image that is not done -> its span
        self._missing: dict[int, int] = {}  # views of an image that are planned and not done
        self._done: dict[int, list[tuple[View, Output]]] = {}
        self._batches: deque[list[View]] = deque()

    def following(self) -> list[View] | None:
        """Return the next batch; None where nothing is left, or nothing before results of earlier batches are in."""
        open_spans = len({id(span) for span in self._open.values()})
        if not self._batches and open_spans < MOST_OPEN and (images := next(self._spans, None)) is not None:
            self._begin(images)
        return self._batches.popleft() if self._batches else None

    def add(self, batch: ViewBatch, outputs: Sequence[Output]) -> Iterator[Viewed]:
        """Take what a network gave for the views of a batch.

        Yields:
            Each image that is done now, with its views in the order of scales and windows; without views where it was
            refused.
        """
        for view, output in zip(batch.views, outputs, strict=True):
            self._done[view.image].append((view, output))
        span = self._open[batch.planned[0].image]
        for view in batch.planned:
            self._missing[view.image] -= 1
            if not self._missing[view.image] and span.scale == 0:
                yield self._finish(view.image)
        if span.scale and not any(self._missing.get(image) for image in span.images):
            self._go_finer(span)
            for image in span.images:
                if image in self._open and not self._missing[image]:
                    yield self._finish(image)

    def _begin(self, images: range) -> None:
        """Plan the first views of a span: those of the coarsest scale, or of all scales where there is no focus."""
        coarsest = len(self._chips.scales) - 1
        first = range(len(self._chips.scales)) if self._focus is None else [coarsest]
        span = _Span(images, first[0])
        self._open.update(dict.fromkeys(images, span))
        self._missing.update(dict.fromkeys(images, 0))
        self._done.update({i: [] for i in images})
        sources = [self._images[i] for i in images]
        scales = image_scales(sources, self._chips)
        sides = np.array([[source.width, source.height] for source in sources])
        pyramid = float((sides.prod(axis=1)[:, None] * scales**2).sum())
        self.searched = self.searched._replace(pyramid=self.searched.pyramid + pyramid)
        self._plan(
            view
            for image, source, factors in zip(images, sources, scales.tolist(), strict=True)
            for index in first
            for view in self._tiled(image, index, factors[index], [source.whole])
        )

    def _go_finer(self, span: _Span) -> None:
        """Plan the windows of the next finer scale for the images of a span."""
        assert self._focus is not None
        coarser, span.scale = span.scale, span.scale - 1
        alive = [i for i in span.images if i in self._open]
        scales = image_scales([self._images[i] for i in alive], self._chips)[:, span.scale].tolist()
        views: list[View] = []
        for image, scale in zip(alive, scales, strict=True):
            seen = [item for item in self._done[image] if item[0].scale_index == coarser]
            maps = [
                (view, self._focus.of(view, output)) for view, output in sorted(seen, key=lambda item: item[0].window)
            ]
            windows = focus_windows(maps, self._focus.threshold, self._images[image], scale, self._chips)
            views += self._tiled(image, span.scale, scale, windows)
        self._plan(views)

    def _tiled(self, image: int, index: int, scale: float, windows: Sequence[Window]) -> Iterator[View]:
        """Yield the views of some windows of an image at a scale, in tiles where they are large."""
        for window in windows:
            region = None if window == self._images[image].whole else window  # the edges of the image cut nothing
            planned = View(image, index, scale, window, 0, 0, region)
            yield from tile_region(planned, self._options.max_side, self._overlaps[index])

    def _plan(self, planned: Iterable[View]) -> None:
        """Put views into batches, ahead of those of other spans."""
        views = list(planned)
        for view in views:
            self._missing[view.image] += 1
        pixels = sum(view.width * view.height for view in views)
        self.searched = self.searched._replace(pixels=self.searched.pixels + pixels)
        batches = compose(views, self._options.batch_pixels)
        # the finer views of a span go before the next span's first ones, so that few images are under way
        self._batches.extendleft(reversed(batches))

    def _finish(self, image: int) -> Viewed:
        """Forget an image, and return what was seen of it."""
        del self._open[image], self._missing[image]
        return Viewed(image, sorted(self._done.pop(image), key=lambda item: (item[0].scale_index, item[0].window)))
