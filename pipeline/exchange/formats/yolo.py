"""YOLO: a text file of the image's name for each image, a line for each object, in shares of the image.

A line is `class x_centre y_centre width height`, or `class x1 y1 x2 y2 x3 y3 ...` for an outline, of which the box is
taken. An image without a file has no objects. The names of the classes stand in `data.yaml`, or one a line in a text.
Where `data.yaml` has `kpt_shape`, keypoints follow the box in a line; they are passed over.
"""

import math
import re
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import yaml

from pipeline.exchange.formats.labels import (
    BadBoxError,
    Box,
    Images,
    Labelled,
    Notes,
    around,
    label_files,
    numbers,
    read_boxes,
    read_lines,
    read_text,
    stem_of,
)
from pipeline.storage import Location
from schemas.codes import Reason
from schemas.errors import DataError

LARGEST_SHARE = 1.01  # of the image, for rounding


class _AsWritten(yaml.SafeLoader):
    """Reads words and numbers as the text that they are: a class may be called no, null, 1.0 or 007.

    Whole numbers without a leading zero are numbers all the same, since they are the keys of `names`.
    """


_AsWritten.yaml_implicit_resolvers = {}
_AsWritten.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"(0|[1-9][0-9]{0,17})$"), list("0123456789"))


class Classes(NamedTuple):
    """What is known of all label files.

    Attributes:
        names: of the classes, by their number.
        num_keypoint_fields: how many numbers of keypoints follow the box in a line; 0 where there are none.
    """

    names: list[str]
    num_keypoint_fields: int = 0


def read_classes(place: Location) -> Classes:
    """Read the names of the classes, and of data.yaml the shape of the keypoints.

    Raises:
        DataError: the file has no names.
    """
    text = read_text(place)
    if place.suffix.lower() not in (".yaml", ".yml"):
        classes = Classes([line.strip() for line in text.splitlines() if line.strip()])
    else:
        classes = _classes_of_yaml(place, text)
    if not classes.names:
        raise DataError(f"{place}: names no class; expected `names` in data.yaml, or a text with a class on each line")
    return classes


def _classes_of_yaml(place: Location, text: str) -> Classes:
    try:
        content = yaml.load(text, Loader=_AsWritten)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{place}: is not YAML: {error}") from error
    names: Any = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and set(names) == {*range(len(names))}:
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise DataError(f"{place}: expected `names`, a list of classes or one from 0 on, as in YOLO's data.yaml")
    match content.get("kpt_shape"):
        case None:
            num_keypoint_fields = 0
        case [int(points), int(fields)]:
            num_keypoint_fields = points * fields
        case other:
            raise DataError(f"{place}: expected `kpt_shape` such as [17, 3], found {other!r:.50}")
    return Classes([str(name) for name in names], num_keypoint_fields)


def read_yolo(annotations: Location, images: Images, classes: Classes, notes: Notes) -> Iterator[Labelled]:
    """Yield the images of the folder with their boxes.

    Args:
        annotations: folder of the label files.
        images: the images.
        classes: what `read_classes` gives.
        notes: takes the number of images without a label file, and what is refused, such as images that share their
            name and so a label file.
    """
    there = {stem_of(file.name): file for file in label_files(annotations, ".txt")}
    for name in images.names:
        stem = stem_of(name)
        file, alike = there.get(stem), images.called(stem)
        if file is not None and len(alike) > 1:
            notes.refuse_image(name, Reason.REPEATED_FILE, f"{file.name} may be that of any of {', '.join(alike)}")
            continue
        size = images.size(name, notes)
        where, lines = ("", []) if file is None else (file.name, read_lines(file, notes))
        if size is not None and lines is not None:
            notes.taken_as_empty += file is None
            yield Labelled(name, *size, read_boxes(where, lines, partial(_box, classes, size), notes))
    for stem, file in there.items():
        if file.name.lower() != "classes.txt" and not images.called(stem):
            images.of_stem(stem, notes, file.name)


def _box(classes: Classes, size: tuple[int, int], line: str) -> Box:
    fields = line.split()
    if len(fields) == 5 + classes.num_keypoint_fields:
        fields = fields[:5]
    outline = len(fields) >= 7 and len(fields) % 2 == 1
    if len(fields) != 5 and not outline:
        raise BadBoxError(
            f"expected `class x y width height`, or a class and the points of an outline, found {len(fields)} fields"
        )
    category = _class(classes.names, fields[0])
    shares = numbers(fields[1:])
    if max(map(abs, shares)) > LARGEST_SHARE:
        raise BadBoxError(
            f"expected shares of the image from 0 to 1, found {max(shares, key=abs):g}", Reason.BAD_NUMBERS
        )
    if outline:
        x, y, width, height = around(shares)
    else:
        width, height = shares[2:]
        x, y = shares[0] - width / 2, shares[1] - height / 2
    return Box(category, x * size[0], y * size[1], width * size[0], height * size[1])


def _class(names: list[str], field: str) -> str:
    """Return the name of a class by its number, which numpy.savetxt writes as 1.000000000000000000e+00."""
    try:
        number = float(field)
    except ValueError:
        number = math.nan
    if not number.is_integer() or not 0 <= number < len(names):
        raise BadBoxError(f"class {field!r:.20} is none of 0 to {len(names) - 1}", Reason.UNKNOWN_CATEGORY)
    return names[int(number)]
