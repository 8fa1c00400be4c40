"""Scales of the pyramid and sizes of boxes. Plain NumPy, so that workers load fast."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from schemas.arrays import FloatArray, IntArray
from schemas.settings import ChipSettings, SideScale

Number = TypeVar("Number", np.float32, np.float64)

PIXEL_EPSILON = 1e-6
"""A scaled side this little above a whole number of pixels is that number: 512 / 640 * 640 is not 512."""


def scale_factors(settings: ChipSettings, widths: IntArray, heights: IntArray) -> FloatArray:
    """Return the factor from source to chip pixels of every image at every scale, unrounded (docs/method.md, 2.2).

    Args:
        settings: the scales.
        widths, heights: int64 [n], source pixels.

    Returns:
        float64 [n, S].
    """
    long = np.maximum(widths, heights).astype(np.float64)
    short = np.minimum(widths, heights).astype(np.float64)
    columns = []
    for scale in settings.scales:
        if isinstance(scale, SideScale):
            factor = scale.long_side / long
            if scale.short_side is not None:
                factor = np.minimum(factor, scale.short_side / short)
        else:
            factor = np.full(len(long), scale, np.float64)
        columns.append(factor)
    return np.stack(columns, axis=1)


def box_sizes(boxes: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Return the size sqrt(width * height) of each box [N, 4], in its own pixels; 0 for empty boxes."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return np.sqrt(np.maximum(width, 0) * np.maximum(height, 0))  # type: ignore[no-any-return]


def content_size(windows: FloatArray, scales: FloatArray, size: int) -> npt.NDArray[np.int16]:
    """Return the stored width and height of each chip, int16 [C, 2]: the whole scaled window, at most `size`.

    A fraction of a pixel is rounded up: the last column then holds less than a pixel of image, repeated.

    Args:
        windows: float64 [C, 4], source pixels.
        scales: float64 [C], factor from source to chip pixels.
        size: of a chip, chip pixels.
    """
    sides = (windows[:, 2:] - windows[:, :2]) * scales[:, None]
    return np.clip(np.ceil(sides - PIXEL_EPSILON), 1, size).astype(np.int16)


def scale_name(scale: float | SideScale) -> str:
    """Return a scale as a person would write it: `3`, `512/long side`, `800/short side, at most 1333`."""
    if not isinstance(scale, SideScale):
        return f"{scale:g}"
    if scale.short_side is None:
        return f"{scale.long_side}/long side"
    return f"{scale.short_side}/short side, at most {scale.long_side}"
