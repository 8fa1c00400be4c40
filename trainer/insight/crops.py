"""Pictures of what went wrong: the surest false detections, and the largest objects that were missed."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from pipeline.coco.source import Source
from pipeline.images.chip import Picture as Opened
from pipeline.images.chip import cut_chip
from pipeline.images.drawing import DETECTION_COLOR, PROPOSAL_COLOR, STATUS_COLORS, draw_label
from pipeline.images.pictures import Stroke, draw_box
from pipeline.images.sources import Findings, open_sources
from pipeline.pages.blocks import Picture
from pipeline.storage import Location
from schemas.arrays import FloatArray
from trainer.evaluation.errors import Kind
from trainer.evaluation.matching import NONE
from trainer.insight.findings import Judged, object_sizes

SHOWN = 4  # of each kind of error, and misses of each range
SIDE = 262  # of a picture, pixels
CONTEXT = 2.0  # sides of a box that a picture shows around its centre
LEAST = 48  # source pixels that a picture shows
OBJECT, FALSE, MISSED = Stroke(STATUS_COLORS["valid"], 2), Stroke(DETECTION_COLOR, 2), Stroke(PROPOSAL_COLOR, 3)


class Crop(NamedTuple):
    """What one picture is of: a detection or an object, by its row; NONE for the other."""

    title: str
    image_id: int
    detection: int
    object: int


def choose_false(found: Judged, kind: Kind) -> list[Crop]:
    """Choose the detections of a kind of error with the best scores, of different images first."""
    rows = np.flatnonzero(found.errors.kind == kind)
    rows = rows[np.argsort(-found.results.scores[rows], kind="stable")]
    images = found.results.image_id
    return [
        Crop(kind.name.lower(), int(images[row]), row, NONE) for row in _spread(rows.tolist(), images[rows].tolist())
    ]


def choose_missed(found: Judged, low: float, high: float) -> list[Crop]:
    """Choose the largest missed objects of a range of sizes, [low, high) source pixels, of different images first."""
    sizes = object_sizes(found.objects)
    rows = np.flatnonzero(found.errors.missed & (sizes >= low) & (sizes < high))
    rows = rows[np.argsort(-sizes[rows], kind="stable")]
    images = found.objects.image_id
    return [Crop("missed", int(images[row]), NONE, row) for row in _spread(rows.tolist(), images[rows].tolist())]


def _spread(rows: Sequence[int], images: Sequence[int]) -> list[int]:
    """Take SHOWN rows in order, the first of each image before any other."""
    first = {image: row for row, image in zip(reversed(rows), reversed(images), strict=True)}
    ordered = [row for row in rows if row in set(first.values())]
    return (ordered + [row for row in rows if row not in set(ordered)])[:SHOWN]


def draw_crops(
    crops: Sequence[Crop], found: Judged, source: Source, names: dict[int, str], images: Location, max_pixels: int
) -> dict[Crop, Picture]:
    """Draw the surroundings of errors: what was detected in orange, what was missed in red, other objects in green.

    Args:
        crops: what is drawn.
        found: the detections and objects.
        source: the annotation file.
        names: names of the classes by category id.
        images: folder that its file names are relative to.
        max_pixels: a file that has to be decoded whole is left out if it has more.

    Returns:
        The pictures; images that cannot be read have none.
    """
    position = {id_: i for i, id_ in enumerate(source.image_id.tolist())}
    wanted = sorted({crop.image_id for crop in crops if crop.image_id in position}, key=position.__getitem__)
    records = [source.images(position[id_], position[id_] + 1)[0] for id_ in wanted]
    drawn: dict[Crop, Picture] = {}
    for record, _, opened in open_sources(images, records, max_pixels, Findings(), thorough=False):
        if opened is not None:
            of_image = [crop for crop in crops if crop.image_id == record.image_id]
            size = record.width, record.height
            drawn |= {crop: _draw(crop, found, names, opened, size) for crop in of_image}
    return {crop: drawn[crop] for crop in crops if crop in drawn}


def _draw(crop: Crop, found: Judged, names: dict[int, str], opened: Opened, size: tuple[int, int]) -> Picture:
    """Draw one crop with the detection it is about and all objects in it."""
    xywh = found.results.xywh()[crop.detection] if crop.object == NONE else found.objects.boxes[crop.object]
    x1, y1, x2, y2 = _window(xywh, size)
    zoom = SIDE / max(x2 - x1, y2 - y1)
    shape = max(1, round((x2 - x1) * zoom)), max(1, round((y2 - y1) * zoom))
    picture = Image.fromarray(cut_chip(opened, (x1, y1, x2, y2), zoom, *shape)[:, :, :3].copy())
    draw = ImageDraw.Draw(picture)

    def corners(box: FloatArray) -> list[float]:
        left, top = (box[0] - x1) * zoom, (box[1] - y1) * zoom
        return [left, top, left + max(1.0, box[2] * zoom - 1), top + max(1.0, box[3] * zoom - 1)]

    here = np.flatnonzero(found.objects.image_id == crop.image_id)
    for row in here.tolist():
        place = corners(found.objects.boxes[row])
        stroke = MISSED if row == crop.object else OBJECT
        draw_box(draw, place, stroke)
        if place[2] > 0 and place[3] > 0 and place[0] < picture.width and place[1] < picture.height:
            name = names.get(int(found.objects.category_id[row]), "?")
            draw_label(draw, (max(0.0, place[0]) + 2, max(0.0, place[1]) + 2), name, stroke.color, 11)
    if crop.object != NONE:
        name = names.get(int(found.objects.category_id[crop.object]), "?")
        return Picture(picture, f"{name} of {object_sizes(found.objects)[crop.object]:.0f} px, image {crop.image_id}")
    assert found.results.category_id is not None, "errors are of detections with classes"
    name = names.get(int(found.results.category_id[crop.detection]), "?")
    place = corners(xywh)
    draw_box(draw, place, FALSE)
    score = float(found.results.scores[crop.detection])
    draw_label(draw, (place[0] + 2, place[3] - 16), f"{name} {score:.2f}", FALSE.color, 11)
    return Picture(picture, f"{name} {score:.2f}, image {crop.image_id}")


def _window(xywh: FloatArray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return a square around a box, x1 y1 x2 y2, moved and cut so that it lies in the image."""
    side = max(float(max(xywh[2], xywh[3])) * CONTEXT, float(LEAST))
    edges: Iterator[tuple[float, float]] = (
        (low := max(0.0, min(float(xywh[i] + xywh[i + 2] / 2) - side / 2, size[i] - side)), min(low + side, size[i]))
        for i in range(2)
    )
    (x1, x2), (y1, y2) = edges
    return x1, y1, x2, y2
