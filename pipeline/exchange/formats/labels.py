"""What every reader of a format gives and takes: labelled images, refusals, and the images of a folder."""

import contextlib
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple, TypeVar

from pipeline.coco import Reject
from pipeline.coco.text import encodings
from pipeline.images.decode import ImageRefusedError, open_image
from pipeline.images.names import unicode_form
from pipeline.images.sources import SUFFIXES, is_litter
from pipeline.storage import Location, files_in, is_folder, open_binary, read_bytes
from schemas.codes import Reason
from schemas.errors import DataError, MissingError

Record = TypeVar("Record")

_XML_ENCODING = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.-]+)""")


class Box(NamedTuple):
    """A box as it will stand in the COCO file.

    Attributes:
        category: its name; None for a region of no class, in which no detection counts.
        x, y, width, height: source pixels.
        crowd: whether it is neither a target nor background, such as an object marked as difficult.
    """

    category: str | None
    x: float
    y: float
    width: float
    height: float
    crowd: bool = False


class Labelled(NamedTuple):
    """An image with its boxes.

    Attributes:
        file_name: relative to the image folder.
        width, height: of the image as a viewer shows it, pixels.
        boxes: those that could be read.
    """

    file_name: str
    width: int
    height: int
    boxes: list[Box]


class Notes:
    """What a reader refuses, and what it leaves out.

    Attributes:
        rejects: refused images and boxes.
        without_labels: images of the folder that no label file belongs to, and which are left out.
        taken_as_empty: images of yolo that no label file belongs to, and which are taken as images without objects.
    """

    def __init__(self) -> None:
        self.rejects: list[Reject] = []
        self.without_labels = 0
        self.taken_as_empty = 0

    def refuse_image(self, file: str, reason: Reason, message: str) -> None:
        """Note an image that cannot be used."""
        self.rejects.append(Reject("image", None, file, reason, f"{file}: {message}"))

    def refuse_box(self, file: str, where: str, reason: Reason, message: str) -> None:
        """Note a box that cannot be used; `where` is its line or number in the file."""
        self.rejects.append(Reject("annotation", None, file, reason, f"{file}, {where}: {message}"))


class BadBoxError(Exception):
    """A record is no box; the text says why."""

    def __init__(self, message: str, reason: Reason = Reason.BAD_RECORD) -> None:
        super().__init__(message)
        self.reason = reason


def stem_of(name: str) -> str:
    """Return the name of a file without its suffix, in one Unicode form."""
    return unicode_form(PurePosixPath(name).stem)


class Images:
    """The images of a folder, found by name or by stem: those that `find_images` takes, of the folder alone."""

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        names = [place.name for place in files_in(folder, "*") if place.suffix.lower() in SUFFIXES]
        self.names = sorted(name for name in names if not is_litter(name))
        self._of_stem: dict[str, list[str]] = {}
        for name in self.names:
            self._of_stem.setdefault(stem_of(name), []).append(name)
        if not self.names:
            raise DataError(f"{folder}: holds no image file; give the folder in which the images lie, as --images")

    def called(self, stem: str) -> list[str]:
        """Return all images of this name without its suffix, as `stem_of` gives it."""
        return self._of_stem.get(stem, [])

    def of_stem(self, stem: str, notes: Notes, file: str) -> str | None:
        """Return the one image of this name without its suffix; refuse the file that wants it where there is none."""
        found = self.called(stem)
        if len(found) == 1:
            return found[0]
        what = f"{len(found)} images are called {stem}" if found else f"no image is called {stem}"
        notes.refuse_image(file, Reason.MISSING_FILE, f"{what} in {self.folder}")
        return None

    def size(self, name: str, notes: Notes) -> tuple[int, int] | None:
        """Return width and height of an image as a viewer shows it, from its header; refuse it where that fails."""
        try:
            with open_binary(self.folder / name) as file:
                return open_image(file).frames.turned
        except ImageRefusedError as refused:
            notes.refuse_image(name, refused.reason, refused.message)
        except FileNotFoundError:
            notes.refuse_image(name, Reason.MISSING_FILE, f"no such file in {self.folder}")
        except OSError as error:
            notes.refuse_image(name, Reason.UNREADABLE_FILE, error.strerror or str(error))
        except ValueError as error:  # a name that no file can have, such as one with a zero byte
            notes.refuse_image(name, Reason.MISSING_FILE, f"no such file in {self.folder}: {error}")
        return None


def read_text(place: Location) -> str:
    """Return the text of a label file: UTF-8, or what a byte order mark or an XML declaration says.

    Raises:
        DataError: it is missing, cannot be read, or is no text in such an encoding.
    """
    try:
        data = read_bytes(place)
    except FileNotFoundError as error:
        raise MissingError(f"{place}: no such file") from error
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error.strerror or error}") from error
    encoding = encodings(io.BytesIO(data))[0]
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if (declared := _XML_ENCODING.match(data)) is not None:
            with contextlib.suppress(LookupError, UnicodeDecodeError):
                return data.decode(declared[1].decode("ascii"))
        raise DataError(
            f"{place}: is no text in {encoding.upper()}: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error


def label_files(folder: Location, suffix: str) -> list[Location]:
    """Return the label files of a folder, in order of their names, without what systems and editors leave there.

    The suffix may stand in capitals, as that of an image may.

    Raises:
        DataError: there is no such folder, none in it, or two whose names differ in the capitals of the suffix alone.
    """
    if not is_folder(folder):
        raise MissingError(f"{folder}: no such folder; give the folder of the label files, as --annotations")
    found = [place for place in files_in(folder, "*") if place.suffix.lower() == suffix and not is_litter(place.name)]
    if not found:
        raise DataError(f"{folder}: holds no {suffix} file; give the folder of the label files, as --annotations")
    found.sort(key=lambda place: place.name)
    first: dict[str, Location] = {}
    for place in found:
        if (other := first.setdefault(stem_of(place.name), place)) is not place:
            raise DataError(f"{folder}: {other.name} and {place.name} belong to one image; join them, or remove one")
    return found


def per_image(folder: Location, suffix: str, images: Images, notes: Notes) -> Iterator[tuple[Location, str]]:
    """Yield the label files that have an image of their name, with that image; count images without such a file."""
    files = label_files(folder, suffix)
    notes.without_labels = len({*map(stem_of, images.names)} - {stem_of(file.name) for file in files})
    for file in files:
        name = images.of_stem(stem_of(file.name), notes, file.name)
        if name is not None:
            yield file, name


def read_lines(file: Location, notes: Notes) -> list[tuple[str, str]] | None:
    """Return the lines that are not blank, each with where it stands; None for a file that is no text and refused."""
    try:
        lines = read_text(file).splitlines()
    except DataError as error:
        notes.refuse_image(file.name, Reason.BAD_RECORD, str(error))
        return None
    return [(f"line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def image_lines(
    folder: Location, images: Images, notes: Notes
) -> Iterator[tuple[str, str, tuple[int, int], list[tuple[str, str]]]]:
    """Yield of each text file its name, its image, the size of that, and the lines as `read_lines` gives them.

    A file is refused where it is no text, or its image is missing or cannot be read.
    """
    for file, name in per_image(folder, ".txt", images, notes):
        size, lines = images.size(name, notes), read_lines(file, notes)
        if size is not None and lines is not None:
            yield file.name, name, size, lines


def read_boxes(
    file: str, records: Iterable[tuple[str, Record]], parse: Callable[[Record], Box], notes: Notes
) -> list[Box]:
    """Return the boxes of records, each given with where it stands in the file, and refuse those that are none."""
    boxes = []
    for where, record in records:
        try:
            boxes.append(parse(record))
        except BadBoxError as bad:
            notes.refuse_box(file, where, bad.reason, str(bad))
    return boxes


def numbers(fields: list[str]) -> list[float]:
    """Return fields as finite numbers.

    Raises:
        BadBoxError: one is none.
    """
    try:
        found = [float(field) for field in fields]
    except ValueError as error:
        raise BadBoxError(f"expected numbers, found {' '.join(fields)!r}", Reason.BAD_NUMBERS) from error
    if not all(map(math.isfinite, found)):
        raise BadBoxError(f"expected finite numbers, found {' '.join(fields)!r}", Reason.BAD_NUMBERS)
    return found


def around(points: list[float]) -> tuple[float, float, float, float]:
    """Return x, y, width and height of the box around points x1 y1 x2 y2 ..."""
    xs, ys = points[::2], points[1::2]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
