"""VisDrone-DET: a text file for each image, a line for each object.

A line is `left,top,width,height,score,category,truncation,occlusion`. A score of 0 says that the object is not
evaluated; category 0 are regions that nobody labelled, and 11 are other vehicles, which are not evaluated either.
All of these become regions of no class.
"""

from collections.abc import Iterator

from pipeline.exchange.formats.labels import (
    BadBoxError,
    Box,
    Images,
    Labelled,
    Notes,
    image_lines,
    numbers,
    read_boxes,
)
from pipeline.storage import Location
from schemas.codes import Reason

CATEGORIES = (
    *("pedestrian", "people", "bicycle", "car", "van"),
    *("truck", "tricycle", "awning-tricycle", "bus", "motor"),
)
IGNORED, OTHERS = 0, len(CATEGORIES) + 1


def read_visdrone(annotations: Location, images: Images, notes: Notes) -> Iterator[Labelled]:
    """Yield the images that have a text file, with their boxes.

    Args:
        annotations: folder of the text files.
        images: the images.
        notes: takes what is refused.
    """
    for file, name, size, lines in image_lines(annotations, images, notes):
        yield Labelled(name, *size, read_boxes(file, lines, _box, notes))


def _box(line: str) -> Box:
    fields = [field.strip() for field in line.strip().rstrip(",").split(",")]
    if len(fields) != 8:
        raise BadBoxError(f"expected 8 fields, found {len(fields)}")
    x, y, width, height, score, category = numbers(fields[:6])
    if category not in range(OTHERS + 1):
        raise BadBoxError(f"category {fields[5]} is none of 0 to {OTHERS}", Reason.UNKNOWN_CATEGORY)
    if score == 0 or category in (IGNORED, OTHERS):
        return Box(None, x, y, width, height, crowd=True)
    return Box(CATEGORIES[int(category) - 1], x, y, width, height)
