"""Outlines of boxes on pictures, and pictures written in the format that their name says."""

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from pipeline.images.drawing import STATUS_COLORS
from pipeline.storage import Location, make_folder, write_atomic
from schemas.errors import UsageError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
"""Of pictures that are written: suffix, in lower case, -> name of the format in Pillow."""


class Stroke(NamedTuple):
    """How the outline of a box is drawn.

    Attributes:
        color: as Pillow names it.
        width: of the line, pixels.
        dash: length of the dashes and of the gaps between them, pixels; None: a solid line.
    """

    color: str
    width: int
    dash: int | None = None


STATUS_STROKES = {  # told apart by the line as well as by the colour
    "valid": Stroke(STATUS_COLORS["valid"], 2),
    "rescued": Stroke(STATUS_COLORS["rescued"], 2, 9),
    "cut": Stroke(STATUS_COLORS["cut"], 1),
    "out_of_range": Stroke(STATUS_COLORS["out_of_range"], 1, 3),
    "ignore": Stroke(STATUS_COLORS["ignore"], 1, 6),
    "crowd": Stroke(STATUS_COLORS["crowd"], 2, 4),
}


def draw_box(draw: ImageDraw.ImageDraw, corners: Sequence[float], stroke: Stroke) -> None:
    """Draw the outline of a box x1 y1 x2 y2, its last pixels included."""
    x1, y1, x2, y2 = corners
    if stroke.dash is None:
        draw.rectangle((x1, y1, x2, y2), outline=stroke.color, width=stroke.width)
        return
    inner = stroke.width - 1
    for low, high in _dashes(x1, x2, stroke.dash):
        draw.rectangle((low, y1, high, min(y2, y1 + inner)), stroke.color)
        draw.rectangle((low, max(y1, y2 - inner), high, y2), stroke.color)
    for low, high in _dashes(y1, y2, stroke.dash):
        draw.rectangle((x1, low, min(x2, x1 + inner), high), stroke.color)
        draw.rectangle((max(x1, x2 - inner), low, x2, high), stroke.color)


def _dashes(start: float, end: float, length: int) -> list[tuple[float, float]]:
    """Part [start, end] into dashes and gaps of about one length; the first and the last are dashes."""
    count = 2 * max(1, round((end - start) / (2 * length))) + 1
    marks = np.linspace(start, end, count + 1).tolist()
    return list(pairwise(marks))[::2]


def picture_format(path: Location) -> str:
    """Return the format that the name of a picture says, as Pillow names it.

    Raises:
        UsageError: it says none that can be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def write_picture(path: Location, picture: Image.Image) -> None:
    """Write a picture in the format that its name says, whole or not at all, and make its folder.

    Raises:
        UsageError: the name says no format, or one that does not take this picture.
    """
    encoded = io.BytesIO()
    kind = picture_format(path)
    try:
        picture.save(encoded, kind, **({"quality": 90} if kind in ("JPEG", "WEBP") else {}))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: cannot be written as {kind}: {error}; take a name that ends in .png") from error
    make_folder(path.parent)
    write_atomic(path, encoded.getvalue())
