"""Cuts a chip out of an image: crop, resize and JPEG."""

import math
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import PIL
import pyarrow as pa
import simplejpeg
from PIL import Image

from pipeline.planning.scales import PIXEL_EPSILON


class Codec(NamedTuple):
    """The libraries that decide the bytes of a chip. They are part of every shard's fingerprint.

    Attributes:
        jpeg: name and version of the library that decodes and encodes JPEG.
        resize: name and version of the library that resizes.
        simd: whether resizing uses the vector instructions of the CPU.
    """

    jpeg: str
    resize: str
    simd: bool


def codec() -> Codec:
    """Return the JPEG codec and the resizer that this process uses."""
    simd = ".post" in PIL.__version__  # pillow-simd marks its releases so
    resize = f"{'pillow-simd' if simd else 'pillow'} {PIL.__version__}"
    return Codec(f"simplejpeg {simplejpeg.__version__}", resize, simd)


class Large(NamedTuple):
    """An image that is too large to hold, and is read by windows.

    Attributes:
        width: annotated width, pixels.
        height: annotated height, pixels.
        region: gives the window from whole-numbered x1, y1 to x2, y2 in the annotated frame, mode RGB; it may be
            called from many threads, and raises ImageRefusedError where the file is damaged there.
    """

    width: int
    height: int
    region: Callable[[int, int, int, int], Image.Image]


Picture = Image.Image | Large
"""A source image in the annotated frame: decoded as a whole, or read by windows."""

BAND_PIXELS = 16_000_000
"""Source pixels of a large image that are held at once while it is resized."""
_BANDS = threading.Semaphore(2)  # threads that resize a window of several bands at a time, so that memory is bounded


def cut_chip(
    image: Picture, window: tuple[float, float, float, float], scale: float, width: int, height: int
) -> npt.NDArray[np.uint8]:
    """Resize a window of an image so that chip = (source - origin) * scale holds exactly.

    Pillow's bilinear filter takes a fractional box and widens when it shrinks, so nothing is rounded to whole
    source pixels and nothing aliases (docs/method.md, 2.4). Where the window's scaled side is not whole, the last
    column or row, which the image fills only in part, repeats its neighbour.

    Args:
        image: the source image; one that is decoded has mode RGB or RGBX.
        window: x1 y1 x2 y2 in source pixels, inside the image.
        scale: factor from source pixels to chip pixels.
        width: columns that the chip has, in chip pixels (planning.scales.content_size).
        height: rows that the chip has, in chip pixels.

    Returns:
        The chip's pixels, uint8 [height, width, 3 or 4], RGB or RGBX.
    """
    x1, y1, x2, y2 = window
    full_w = min(width, max(1, math.floor((x2 - x1) * scale + PIXEL_EPSILON)))
    full_h = min(height, max(1, math.floor((y2 - y1) * scale + PIXEL_EPSILON)))
    box = (x1, y1, min(x1 + full_w / scale, image.width), min(y1 + full_h / scale, image.height))
    if isinstance(image, Large):
        pixels = _resize_in_bands(image, box, (full_w, full_h))
    else:
        pixels = _pixels(image.resize((full_w, full_h), Image.Resampling.BILINEAR, box=box))
    if (full_w, full_h) == (width, height):
        return pixels
    return np.pad(pixels, ((0, height - full_h), (0, width - full_w), (0, 0)), mode="edge")


def _resize_in_bands(
    image: Large, box: tuple[float, float, float, float], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Resize a window of a large image, some rows of the result at a time.

    The result is that of resizing the window in one piece, but for a level of some pixels where rounding differs.

    Args:
        image: the large image.
        box: x1 y1 x2 y2 in source pixels, inside the image.
        size: width and height of the result, pixels.

    Returns:
        uint8 [height, width, 3], RGB.
    """
    (x1, y1, x2, y2), (width, height) = box, size
    step_x, step_y = (x2 - x1) / width, (y2 - y1) / height
    reach_x, reach_y = max(step_x, 1) + 1, max(step_y, 1) + 1  # the support of the bilinear filter, and 1 for rounding
    left, right = max(0, math.floor(x1 - reach_x)), min(image.width, math.ceil(x2 + reach_x))
    rows = max(1, int((BAND_PIXELS / (right - left) - 2 * reach_y) / step_y))

    def band(first: int) -> npt.NDArray[np.uint8]:
        last = min(first + rows, height)
        start, stop = y1 + first * step_y, y1 + last * step_y if last < height else y2
        top, bottom = max(0, math.floor(start - reach_y)), min(image.height, math.ceil(stop + reach_y))
        band_box = (x1 - left, start - top, x2 - left, stop - top)
        source = image.region(left, top, right, bottom)
        return np.asarray(source.resize((width, last - first), Image.Resampling.BILINEAR, box=band_box))

    with _BANDS if rows < height else nullcontext():
        return np.concatenate([band(first) for first in range(0, height, rows)])


def _pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return an image as uint8 [height, width, channels], without a copy where Pillow can lend its memory."""
    if image.mode == "RGBX" and hasattr(image, "__arrow_c_array__"):
        try:
            flat: npt.NDArray[np.uint8] = pa.array(image).values.to_numpy()
        except ValueError:  # Pillow lends only what it keeps in one block
            return np.asarray(image)
        return flat.reshape(image.height, image.width, 4)
    return np.asarray(image)


def encode_jpeg(pixels: npt.NDArray[np.uint8], quality: int, subsampling: str) -> bytes:
    """Encode pixels as JPEG.

    Args:
        pixels: uint8 [height, width, 3 or 4], RGB or RGBX.
        quality: JPEG quality, 1 to 100.
        subsampling: resolution of the colours against the brightness: 444, 422 or 420.

    Returns:
        The bytes of the JPEG file.
    """
    colorspace = "RGBX" if pixels.shape[2] == 4 else "RGB"
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colorspace, subsampling)
    return encoded
