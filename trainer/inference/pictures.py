"""Pictures of what was found on an image, and of where it was searched."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pipeline.coco import Reject, SourceImage
from pipeline.images.chip import Large, cut_chip
from pipeline.images.drawing import CLASS_COLORS, draw_label
from pipeline.images.pictures import Stroke, draw_box, write_picture
from pipeline.images.sources import open_source
from pipeline.pyramid.focus import FocusMap
from pipeline.pyramid.views import View
from pipeline.storage import Location

LARGEST_DRAWN = 4096  # pixels of the longer side of the picture of a large image


def draw_detections(result: dict[str, Any], path: Location, min_score: float) -> None:
    """Write a picture of the detections with at least a score."""
    picture, zoom = _opened(result)
    draw = ImageDraw.Draw(picture)
    line = max(2, max(picture.size) // 400)
    height = max(12, max(picture.size) // 80)
    drawn = [found for found in result["detections"] if found["score"] >= min_score]
    colors = {id_: CLASS_COLORS[id_ % len(CLASS_COLORS)] for id_ in (found["category_id"] for found in drawn)}
    for found in reversed(drawn):
        x, y, w, h = (zoom * side for side in found["bbox"])
        draw_box(draw, (x, y, x + w, y + h), Stroke(colors[found["category_id"]], line))
    for found in reversed(drawn):  # above all boxes, and each above its own, which may be smaller than its label
        x, y = (zoom * side for side in found["bbox"][:2])
        text = f"{found['category']} {found['score']:.2f}"
        draw_label(draw, (x, y - line), text, colors[found["category_id"]], height, above=True)
    write_picture(path, picture)


def draw_focus(result: dict[str, Any], seen: Sequence[tuple[View, FocusMap | None]], path: Location) -> None:
    """Write a picture of the focus maps, redder where they are higher, and of the windows of the finer scales.

    Of two maps of a place the finer one is shown. A window has the factor of its scale as its label.
    """
    picture, zoom = _opened(result)
    shade = Image.new("L", picture.size)
    for view, found in sorted(seen, key=lambda item: -item[0].scale_index):
        if found is None:
            continue
        cells = zip(found.cell, found.values.shape, strict=True)
        high, wide = (max(1, round(cell * count * zoom / view.scale)) for cell, count in cells)
        red = (255 * np.sqrt(found.values)).astype("uint8")  # by the root, since thresholds are low
        patch = Image.fromarray(red).resize((wide, high), Image.Resampling.NEAREST)
        x, y = (round(zoom * side) for side in view.window[:2])
        shade.paste(patch, (x, y))
    picture = Image.blend(picture, picture.convert("L").convert("RGB"), 0.7)
    picture.paste((255, 40, 0), (0, 0), shade.point(lambda value: int(value * 0.7)))
    draw = ImageDraw.Draw(picture)
    line = max(2, max(picture.size) // 400)
    coarsest = max(view.scale_index for view, _ in seen)
    for view, _ in seen:
        if view.scale_index < coarsest:
            x1, y1, x2, y2 = (zoom * side for side in view.window)
            color = CLASS_COLORS[view.scale_index]
            draw_box(draw, (x1, y1, x2, y2), Stroke(color, line))
            draw_label(draw, (x1, y1), f"x {view.scale:.3g}", color, 6 * line)
    write_picture(path, picture)


def _opened(result: dict[str, Any]) -> tuple[Image.Image, float]:
    """Open the image of a result for drawing, and return its factor from source to picture pixels."""
    source = SourceImage(0, result["file"], result["width"], result["height"])
    opened = open_source(Path(), source, source.width * source.height)
    if isinstance(opened, Reject):
        raise ValueError(opened.message)
    zoom = 1.0
    if isinstance(opened, Large):
        zoom = LARGEST_DRAWN / max(source.width, source.height)
        size = max(1, int(source.width * zoom)), max(1, int(source.height * zoom))
        picture = Image.fromarray(cut_chip(opened, source.whole, zoom, *size))
    else:
        picture = opened.convert("RGB")
    return picture, zoom
