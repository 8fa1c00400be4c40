"""Pascal VOC: an XML file for each image. Corners are whole pixels, counted from 1, and belong to the box.

An object that is marked as difficult counts in no score, so it becomes a crowd.
"""

from collections.abc import Iterator
from xml.etree import ElementTree

from pipeline.exchange.formats.labels import (
    BadBoxError,
    Box,
    Images,
    Labelled,
    Notes,
    numbers,
    per_image,
    read_boxes,
    read_text,
)
from pipeline.storage import Location
from schemas.codes import Reason
from schemas.errors import DataError


def read_voc(annotations: Location, images: Images, notes: Notes) -> Iterator[Labelled]:
    """Yield the images that have an XML file, with their boxes.

    Args:
        annotations: folder of the XML files.
        images: the images; the one of the XML file's own name is taken, whatever the file says.
        notes: takes what is refused.
    """
    for file, name in per_image(annotations, ".xml", images, notes):
        try:
            root = ElementTree.fromstring(read_text(file))
        except (DataError, ElementTree.ParseError) as error:
            notes.refuse_image(file.name, Reason.BAD_RECORD, f"is not XML: {error}")
            continue
        size = _size(root) or images.size(name, notes)
        if size is None:
            continue
        records = [(f"object {number}", record) for number, record in enumerate(root.iter("object"), 1)]
        yield Labelled(name, *size, read_boxes(file.name, records, _box, notes))


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Return the width and height that the file gives; None for none, or zeros, as some tools write."""
    sides = [(root.findtext(f"size/{side}") or "").strip() for side in ("width", "height")]
    if not all(side.isdecimal() and len(side) < 10 and int(side) > 0 for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _box(record: ElementTree.Element) -> Box:
    name = (record.findtext("name") or "").strip()
    if not name:
        raise BadBoxError("has no name", Reason.UNKNOWN_CATEGORY)
    corners = [record.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
    if None in corners:
        raise BadBoxError("has no `bndbox` with xmin, ymin, xmax and ymax")
    x1, y1, x2, y2 = numbers([corner or "" for corner in corners])
    difficult = (record.findtext("difficult") or "0").strip() == "1"
    return Box(name, x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1, difficult)
