"""Reads annotation records into columns, in file order, without asking what their ids refer to."""

import math
from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.coco.checks.values import ABSENT, Seen, shown, whole, why_no_id
from pipeline.coco.rows import Rows
from schemas.codes import Reason
from schemas.errors import DataError

LARGEST = 1e12  # a bbox's number beyond this is none that pixels have
CROWD, ODD = 1, 2
"""Flags of a record: it is a crowd or ignore region; it is not in order by itself, and is in `odd`."""

NAMELESS = "{count} annotations have no id that is an integer (first {example}); their row is taken as the id"
IGNORED = "{count} boxes are marked by `ignore` (first {example}); read as crowd: neither targets nor background"
ROTATED = (
    "{count} boxes are rotated (attributes.rotation, first {example} degrees); read as the upright boxes about them"
)


class Odd(NamedTuple):
    """Why a record is not in order by itself."""

    reason: str  # schemas.codes.Reason
    message: str


ODD_SCHEMA = pa.schema([("reason", pa.string()), ("message", pa.string())])


class Annotations:
    """The records of all files so far, one after the other: 53 bytes each, 61 with the areas.

    Attributes:
        image_id: 64 bits, ABSENT where there is none; annotation_id: the same.
        category: position in `category_ids`; flags: 8 bits, CROWD and ODD.
        box: four columns, x y w h, zeros where the record is odd.
        area: the field `area`, NaN where there is none and -1 where it is no finite number; empty where it was not
            asked for.
        category_ids: id -> its position, in the order in which they were met.
        odd: one row per record with the flag ODD, in order.
    """

    def __init__(self, *, with_area: bool = False) -> None:
        """Start without any record.

        Args:
            with_area: read the field `area`, too.
        """
        self.with_area = with_area
        self.category_ids: dict[int, int] = {}
        self.odd: Rows[Odd] = Rows(Odd, ODD_SCHEMA)
        self.forget()

    def forget(self) -> None:
        """Let go of the columns; who has a view of one keeps it."""
        self.image_id, self.annotation_id = array("q"), array("q")
        self.category, self.flags = array("i"), array("B")
        self.box = [array("d") for _ in range(4)]
        self.area = array("d")

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.flags)

    def extend(self, records: Iterable[Any], seen: Seen) -> None:
        """Read records, given in file order.

        Raises:
            DataError: they are those of a panoptic file.
        """
        image_ids, annotation_ids, categories = self.image_id.append, self.annotation_id.append, self.category.append
        flags, xs, ys, ws, hs = self.flags.append, *(column.append for column in self.box)
        position_of = self.category_ids
        for record in records:
            flag, box = 0, None
            if type(record) is dict:
                get = record.get
                annotation_id = whole(get("id"), "ids of annotations", seen)
                image_id = whole(get("image_id"), "image_ids of annotations", seen)
                category_id = whole(get("category_id"), "category_ids of annotations", seen)
                flag = _crowd(record, seen)
                bbox: Any = get("bbox")
                if _is_bbox(bbox):
                    box = _upright(bbox, record["attributes"], seen) if "attributes" in record else bbox
                if annotation_id == ABSENT:
                    seen.add(NAMELESS, get("id"))
            else:
                annotation_id = image_id = category_id = ABSENT
            if box is None or flag & ODD or image_id == ABSENT or category_id == ABSENT:
                self.odd.append(_odd(record, image_id, category_id, flag))
                flag |= ODD
            x, y, w, h = box or (0, 0, 0, 0)
            image_ids(image_id)
            annotation_ids(annotation_id)
            categories(position_of.setdefault(category_id, len(position_of)))
            flags(flag)
            xs(x)
            ys(y)
            ws(w)
            hs(h)
            if self.with_area:
                self.area.append(_area(record))

    def mark(self) -> tuple[int, int]:
        """Return the state now, for `cut`."""
        return len(self), len(self.odd)

    def cut(self, mark: tuple[int, int]) -> None:
        """Forget the records that came after a mark."""
        columns: list[array[Any]] = [self.image_id, self.annotation_id, self.category, self.flags]
        for column in [*columns, *self.box, self.area]:
            del column[mark[0] :]
        self.odd = self.odd.first(mark[1])


def _crowd(record: dict[str, Any], seen: Seen) -> int:
    """Return the flags that iscrowd and ignore give; ODD where one of them is no mark."""
    flag = _mark(record, "iscrowd", seen)
    if "ignore" not in record or flag == ODD:
        return flag
    ignore = _mark(record, "ignore", seen)
    if ignore == CROWD:
        seen.add(IGNORED, record["ignore"])
    return ignore or flag


def _mark(record: dict[str, Any], name: str, seen: Seen) -> int:
    """Return the flag that a field gives which is 0 or 1, or 0 where it is missing or null."""
    mark = record.get(name, 0)
    if type(mark) is not int:
        mark = bool(mark) if mark is None or type(mark) is bool else whole(mark, f"{name} marks", seen)
    return int(mark) if mark in (0, 1) else ODD


def _area(record: Any) -> float:
    """Return the field `area`: NaN where there is none, -1 where it is no finite number."""
    area = record.get("area") if type(record) is dict else None
    if area is None:
        return math.nan
    return area if type(area) in (int, float) and abs(area) < LARGEST else -1.0


def _odd(record: Any, image_id: int, category_id: int, flag: int) -> Odd:
    """Return the first fault of a record that has one."""
    if type(record) is not dict:
        return Odd(Reason.BAD_RECORD, f"is {shown(record)}; expected an object")
    if "segments_info" in record and "bbox" not in record:
        raise DataError("is a panoptic file, whose records are images; take the file of instances")
    if image_id == ABSENT:
        return Odd(Reason.UNKNOWN_IMAGE, f"image_id is {why_no_id(record.get('image_id'))}")
    if category_id == ABSENT:
        return Odd(Reason.UNKNOWN_CATEGORY, f"category_id is {why_no_id(record.get('category_id'))}")
    if flag & ODD:
        name = "iscrowd" if _mark(record, "iscrowd", Seen()) == ODD else "ignore"
        return Odd(Reason.BAD_RECORD, f"{name} is {shown(record.get(name))}; expected 0 or 1")
    return Odd(Reason.BAD_NUMBERS, _why_no_bbox(record))


def _is_bbox(value: Any) -> bool:
    """Tell whether a value is a list of four finite numbers, none of them beyond LARGEST."""
    if type(value) is not list or len(value) != 4:
        return False
    for number in value:  # noqa: SIM110  a generator would take twice the time, and this is asked of every box
        if not ((type(number) is float or type(number) is int) and -LARGEST < number < LARGEST):
            return False
    return True


def _why_no_bbox(record: dict[str, Any]) -> str:
    bbox = record.get("bbox")
    message = f"bbox is {shown(bbox)}; expected four finite numbers [x, y, w, h]"
    if isinstance(bbox, list) and len(bbox) == 5:
        return f"{message}. Five numbers are a rotated box, in a form that differs from tool to tool"
    return message


def _upright(box: list[float], attributes: Any, seen: Seen) -> list[float]:
    """Return the upright box x y w h around a rotated one, in source pixels; a box that is not rotated as it is.

    CVAT writes a rotated box as it was before it was turned about its centre, and the angle, in degrees, in
    attributes.rotation.
    """
    angle: Any = attributes.get("rotation") if isinstance(attributes, dict) else None
    if type(angle) not in (int, float) or not abs(angle) < LARGEST or angle % 360 == 0:
        return box
    seen.add(ROTATED, angle)
    x, y, w, h = box
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    width, height = w * cos + h * sin, w * sin + h * cos
    return [x + (w - width) / 2, y + (h - height) / 2, width, height]
