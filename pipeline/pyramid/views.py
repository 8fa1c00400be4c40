"""Whole images at every scale, batched by shape.

The unit is a view: a window of an image at a scale. Mostly the window is the whole image; one that would be larger
than `max_side` is split into overlapping tiles, so that memory is bounded for any image.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.coco import SourceImage
from pipeline.planning.scales import content_size, scale_factors
from schemas.arrays import Float32Array, FloatArray
from schemas.settings import ChipSettings

ALIGN = 32
"""Sides are padded to a multiple of the coarsest stride; views of equal padded shape share batches, so this is all the
padding there is: on average 16 px per side, 3 % of a 512 px side, at most 31 px."""


CELLS = 32
"""Cells of a focus map along the side of a chip: the paper's of 16 px in chips of 512 px (docs/method.md, 16.2)."""

EDGE = 1.0
"""Source pixels: what is found this near to an inner edge of a tile counts as cut by it."""
ROUNDING = 1e-9
"""Share of its length by which a region may be longer than a tile and still be one: so much a factor is rounded."""


Window = tuple[float, float, float, float]
"""x1 y1 x2 y2, source pixels."""


class View(NamedTuple):
    """A window of an image at a scale.

    Attributes:
        image: position among the images that are searched.
        scale_index: place of the scale among the settings' scales, the finest 0.
        scale: factor from source to view pixels.
        window: what the view shows.
        width: of the content, view pixels.
        height: of the content, view pixels.
        region: the part of the image that is searched at this scale around the window; None: all of it.
    """

    image: int
    scale_index: int
    scale: float
    window: Window
    width: int
    height: int
    region: Window | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Padded height and width."""
        return -(-self.height // ALIGN) * ALIGN, -(-self.width // ALIGN) * ALIGN


Output = Sequence[npt.NDArray[Any]]
"""What a network gives for one view: boxes in view pixels, scores, and labels where it detects."""


class Viewed(NamedTuple):
    """One image and what a network gave for each of its views; no views when the image was refused."""

    image: int
    views: list[tuple[View, Output]]


def plan_views(
    images: Sequence[SourceImage], settings: ChipSettings, max_side: int, overlaps: Sequence[float]
) -> list[View]:
    """Return all views of all images, image by image, the finest scale first.

    Args:
        images: what is searched.
        settings: give the scales.
        max_side: view pixels; a larger view is split.
        overlaps: per scale, source pixels that neighbouring tiles share: the largest object looked for there.
    """
    views = []
    for m, (image, factors) in enumerate(zip(images, image_scales(images, settings).tolist(), strict=True)):
        for s, scale in enumerate(factors):
            views += tile_region(View(m, s, scale, image.whole, 0, 0), max_side, overlaps[s])
    return views


def image_scales(images: Sequence[SourceImage], settings: ChipSettings) -> FloatArray:
    """Return the factor from source to view pixels of every image at every scale, float64 [n, S]."""
    return scale_factors(settings, np.array([i.width for i in images]), np.array([i.height for i in images]))


def tile_region(region: View, max_side: int, overlap: float) -> list[View]:
    """Split a window of an image at a scale into tiles, where it is larger than one.

    Args:
        region: its size in view pixels is not read.
        max_side: of a tile, view pixels.
        overlap: what neighbouring tiles share, source pixels.

    Returns:
        The tiles, with their sizes in view pixels.
    """
    views = []
    x_start, y_start, x_end, y_end = region.window
    side = max_side / region.scale
    for y1, y2 in _tiles(y_start, y_end, side, overlap):
        for x1, x2 in _tiles(x_start, x_end, side, overlap):
            window = np.array([[x1, y1, x2, y2]])
            width, height = content_size(window, np.array([region.scale]), max_side).tolist()[0]
            views.append(region._replace(window=(x1, y1, x2, y2), width=width, height=height))
    return views


def _tiles(start: float, end: float, side: float, overlap: float) -> list[tuple[float, float]]:
    """List the windows of `side` that cover [start, end].

    What is no longer than `overlap` (at most half a side, less the edges) lies in one of them, clear of its inner
    edges.
    """
    extent = end - start
    if extent <= side * (1 + ROUNDING):
        return [(start, end)]
    step = side - min(overlap + 2 * EDGE, side / 2)
    count = math.ceil((extent - side) / step) + 1
    starts = (start + np.linspace(0, extent - side, count)).tolist()
    return [*((low, low + side) for low in starts[:-1]), (starts[-1], end)]  # the end itself, and not nearly


def compose(views: list[View], max_pixels: int) -> list[list[View]]:
    """Put views into batches of one padded shape and scale, in a fixed order.

    This is done before the views are shared among ranks, so that ranks change no batch and with it no rounding.

    Args:
        views: of any images.
        max_pixels: of a batch, padding included; a larger view is a batch of its own.
    """
    groups: dict[tuple[int, tuple[int, int]], list[View]] = {}
    for view in views:
        groups.setdefault((view.scale_index, view.shape), []).append(view)
    batches = []
    for (_, (height, width)), group in sorted(groups.items()):
        count = max(1, max_pixels // (height * width))
        batches += [group[i : i + count] for i in range(0, len(group), count)]
    return sorted(batches, key=lambda batch: batch[0].image)  # so that images are done one after the other


def to_source(boxes: Float32Array, view: View) -> Float32Array:
    """Bring boxes of a view into source pixels, and clip them to the view's window.

    Args:
        boxes: float32 [N, 4], x1 y1 x2 y2, view pixels.
        view: what they were found in.

    Returns:
        float32 [N, 4], source pixels.
    """
    x1, y1, x2, y2 = view.window
    in_source = boxes / view.scale + np.array([x1, y1, x1, y1], np.float32)
    low, high = np.array([x1, y1, x1, y1], np.float32), np.array([x2, y2, x2, y2], np.float32)
    limited: Float32Array = np.clip(in_source, low, high)
    return limited
