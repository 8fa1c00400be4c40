"""CSV: one table for all images, a row for each object, with or without a line that names the columns.

Named columns may stand in any order; other columns are passed over. The box is given by its corners, or as `x, y, w,
h`. Without names the columns are `file, x1, y1, x2, y2, class`. A row with a file alone is an image without objects.

Semicolons or tabs may stand between the columns, as Excel writes them in many countries; numbers may then have a
decimal comma.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import PurePosixPath

from pipeline.exchange.formats.labels import BadBoxError, Box, Images, Labelled, Notes, numbers, read_text
from pipeline.images.names import unicode_form
from pipeline.storage import Location, is_file
from schemas.codes import Reason
from schemas.errors import DataError

FILE = ("file_name", "filename", "file", "image", "image_name", "image_path", "path")
CLASS = ("class", "class_name", "label", "category", "name")
CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"))
SIDES = (
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
    ("left", "top", "width", "height"),
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"),
)

_decimal_comma = re.compile(r"\s*([+-]?\d+),(\d+)\s*").fullmatch


def read_table(annotations: Location, images: Images, notes: Notes) -> Iterator[Labelled]:
    """Yield the images that the table names, in order of their first rows, with their boxes.

    Args:
        annotations: the table.
        images: the images; where there is no file of a name with folders, it is looked up without them.
        notes: takes what is refused.

    Raises:
        DataError: the table cannot be read, or a column is missing.
    """
    rows = _rows(annotations)
    file, box, category, has_sides, first = _columns(annotations, rows)
    known = {unicode_form(name): name for name in images.names}
    name_of = cache(partial(_name_of, images, known))
    paths = {_path(row[file]) for row in rows[first:] if len(row) > file}
    owner_of = _owners(sorted(paths), name_of, images.folder.name)
    boxes: dict[str, list[Box]] = {}
    for number, row in enumerate(rows[first:], first + 1):
        path = _path(row[file]) if len(row) > file else PurePosixPath()
        name = name_of(path)
        if not name:
            if any(field.strip() for field in row):
                notes.refuse_box(annotations.name, f"row {number}", Reason.BAD_RECORD, "names no file")
            continue
        if owner_of.get(name, path) != path:
            message = (
                f"names {path}, and other rows name another folder's {name}; import the images of each folder "
                "on their own, each with its rows"
            )
            notes.refuse_box(annotations.name, f"row {number}", Reason.REPEATED_FILE, message)
            continue
        of_image = boxes.setdefault(name, [])
        fields = [row[column].strip() if column < len(row) else "" for column in (*box, category)]
        if not any(fields):
            continue
        try:
            of_image.append(_box(fields, has_sides))
        except BadBoxError as bad:
            notes.refuse_box(annotations.name, f"row {number}", bad.reason, str(bad))
    notes.without_labels = len(set(images.names) - boxes.keys())
    for name, found in boxes.items():
        size = images.size(name, notes)
        if size is not None:
            yield Labelled(name, *size, found)


def _rows(place: Location) -> list[list[str]]:
    """Return the fields of all rows; a quote that is never closed would take the rest of the table into one."""
    text = read_text(place)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        return [*reader] if delimiter == "," else [[*map(_with_point, row)] for row in reader]
    except csv.Error as error:
        raise DataError(
            f"{place}, line {reader.line_num}: is no row of CSV: {error}; is a quote there, or before, not closed?"
        ) from error


def _with_point(field: str) -> str:
    """Return a number with a decimal comma as one with a point, and any other text as it is."""
    found = _decimal_comma(field)
    return f"{found[1]}.{found[2]}" if found else field


def _path(written: str) -> PurePosixPath:
    return PurePosixPath(written.strip().replace("\\", "/"))


def _owners(
    paths: list[PurePosixPath], name_of: Callable[[PurePosixPath], str], folder: str
) -> dict[str, PurePosixPath | None]:
    """Decide which path is that of the image, where several paths of the table come down to one name.

    It is the one that is the name itself, else the only one whose folder has the name of the image folder. In a table
    of several folders with files of the same names there may be no such path; then it is not known which one is meant.

    Args:
        paths: all paths of the table, each once.
        name_of: gives the name, relative to the image folder, that a path comes down to.
        folder: name of the image folder.

    Returns:
        For each name of several paths the path that means the image; None where that is not known.
    """
    of_name: dict[str, list[PurePosixPath]] = {}
    for path in paths:
        of_name.setdefault(name_of(path), []).append(path)
    owners: dict[str, PurePosixPath | None] = {}
    for name, alike in of_name.items():
        if len(alike) > 1:
            exact = [path for path in alike if unicode_form(str(path)) == unicode_form(name)]
            found = exact or [path for path in alike if path.parent.name == folder]
            owners[name] = found[0] if len(found) == 1 else None
    return owners


def _name_of(images: Images, known: dict[str, str], path: PurePosixPath) -> str:
    """Return the name of an image relative to the folder, as the table writes it or without its folders."""
    here = known.get(unicode_form(path.name))
    is_elsewhere = path.is_absolute() or ".." in path.parts
    if len(path.parts) < 2 or is_elsewhere or (here is not None and not _is_there(images.folder / path)):
        return here or path.name
    return str(path)


def _is_there(place: Location) -> bool:
    try:
        return is_file(place)
    except (OSError, ValueError):  # a name that no file can have
        return False


def _columns(place: Location, rows: list[list[str]]) -> tuple[int, list[int], int, bool, int]:
    """Return the columns of the file, the box and the class, whether the box has sides, and the first row of data."""
    if not rows:
        raise DataError(f"{place}: is empty; expected a row for each object")
    heads = [field.strip().lower() for field in rows[0]]
    if len(heads) == 6 and (any(map(_is_number, heads[1:5])) or not any(heads[1:5])):
        return 0, [1, 2, 3, 4], 5, False, 0
    files, classes = ([heads.index(name) for name in names if name in heads] for names in (FILE, CLASS))
    for names, has_sides in [*((names, False) for names in CORNERS), *((names, True) for names in SIDES)]:
        if files and classes and set(names) <= set(heads):
            return files[0], [heads.index(name) for name in names], classes[0], has_sides, 1
    raise DataError(
        f"{place}: expected columns such as file_name, x1, y1, x2, y2, class, or six columns without names; found "
        f"{', '.join(heads)}"
    )


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _box(fields: list[str], has_sides: bool) -> Box:
    if not fields[4]:
        raise BadBoxError("has no class", Reason.UNKNOWN_CATEGORY)
    x, y, third, fourth = numbers(fields[:4])
    width, height = (third, fourth) if has_sides else (third - x, fourth - y)
    return Box(fields[4], x, y, width, height)
