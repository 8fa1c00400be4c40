"""DOTA: a text file for each image, a line for each object: the four corners of a turned box, its class, a mark.

The upright box around the corners is taken. An object that is marked as difficult becomes a crowd, since it counts in
no score. Lines such as `imagesource:GoogleEarth` and `gsd:0.14` at the head of a file are passed over.
"""

from collections.abc import Iterator

from pipeline.exchange.formats.labels import (
    BadBoxError,
    Box,
    Images,
    Labelled,
    Notes,
    around,
    image_lines,
    numbers,
    read_boxes,
)
from pipeline.storage import Location

HEADS = ("imagesource:", "gsd:")


def read_dota(annotations: Location, images: Images, notes: Notes) -> Iterator[Labelled]:
    """Yield the images that have a text file, with their boxes.

    Args:
        annotations: folder of the text files, labelTxt.
        images: the images.
        notes: takes what is refused.
    """
    for file, name, size, lines in image_lines(annotations, images, notes):
        objects = [(where, line) for where, line in lines if not line.startswith(HEADS)]
        yield Labelled(name, *size, read_boxes(file, objects, _box, notes))


def _box(line: str) -> Box:
    fields = line.split()
    if len(fields) not in (9, 10):
        raise BadBoxError(f"expected four corners, a class and a mark, found {len(fields)} fields")
    return Box(fields[8], *around(numbers(fields[:8])), crowd=fields[9:] not in ([], ["0"]))
