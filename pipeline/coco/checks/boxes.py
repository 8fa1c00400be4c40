"""Checks the annotation records of a COCO file and turns those in order into columns, sorted by image."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from pipeline.coco.checks.categories import Categories
from pipeline.coco.checks.grouping import group
from pipeline.coco.checks.ids import StringIds, id_or_none, is_id, shown
from pipeline.coco.checks.images import Images
from pipeline.coco.file import Annotation
from pipeline.coco.source import RefusedBox, Reject, find_ids
from schemas.arrays import BoolArray, FloatArray, IntArray
from schemas.codes import Fate, Reason

LARGEST = 1e12  # a bbox's number beyond this is none that pixels have
PARTS = 8  # of the ids, searched one after the other for those that occur twice
CHUNK = 1 << 16  # boxes

_CROWD, _CLIPPED, _AS_CORNERS = 1, 2, 4
"""Flags of a box: its crowd mark; it reached beyond its image; its w, h would also do as x2, y2."""


class Boxes(NamedTuple):
    """The annotation records of a file.

    Attributes:
        offsets: int64 [n + 1]; image i has boxes offsets[i] to offsets[i + 1].
        row, annotation_id, label, box, crowd: as in Source, those in order, by image and then by row.
        refused: the others, by row; rejects: for those that are refused themselves.
        num_clipped: of those in order.
        notes: remarks a user should see that refuse nothing.
        string_ids: lines about them. Where there are any, the file cannot be used, and the columns are empty.
        num_records: all of them.
    """

    offsets: IntArray
    row: npt.NDArray[Any]
    annotation_id: IntArray
    label: npt.NDArray[np.int32]
    box: FloatArray
    crowd: BoolArray
    refused: list[RefusedBox]
    rejects: list[Reject]
    num_clipped: int
    notes: list[str]
    string_ids: list[str]
    num_records: int


class _Fault(NamedTuple):
    """Why a box is not in order."""

    fate: Fate  # refused itself, or its image was
    reason: Reason
    message: str
    annotation_id: int | None  # as far as the record gives integers
    image_id: int | None
    category_id: int | None
    flags: int | None = None  # of a box whose bbox is four numbers, beside a known image and category


class _Known(NamedTuple):
    """What annotations may refer to."""

    images: Images
    refused: dict[int, Reason]  # images
    category_id: IntArray  # sorted


class _Columns:
    """Boxes in order so far, in file order; room for all is taken at once, and used only as far as it is filled.

    Attributes:
        row: uint32 or int64 [N]; image: the same, position of the box's image.
        annotation_id: int64 [N]; label: int32 [N], position of the category from 1; flags: uint8 [N].
        box: float64 [N, 4], clipped to the image.
    """

    def __init__(self, capacity: int) -> None:
        place = np.uint32 if capacity < 2**32 else np.int64
        self.size = 0
        self.row, self.image = np.empty(capacity, place), np.empty(capacity, place)
        self.annotation_id = np.empty(capacity, np.int64)
        self.label = np.empty(capacity, np.int32)
        self.flags = np.empty(capacity, np.uint8)
        self.box = np.empty((capacity, 4), np.float64)

    def add(self, *parts: npt.NDArray[Any], where: BoolArray) -> None:
        """Append row, image, annotation_id, label, flags and box of those boxes that `where` marks."""
        here = slice(self.size, self.size + int(np.count_nonzero(where)))
        columns: list[npt.NDArray[Any]] = [self.row, self.image, self.annotation_id, self.label, self.flags, self.box]
        for column, part in zip(columns, parts, strict=True):
            column[here] = part if where.all() else part[where]
        self.size = here.stop

    def shrink(self, size: int) -> None:
        """Keep the first `size`."""
        self.size = size
        for name in ("row", "image", "annotation_id", "label", "flags", "box"):
            setattr(self, name, getattr(self, name)[:size])


def check_boxes(runs: Iterable[list[Any]], most: int, images: Images, categories: Categories, usable: bool) -> Boxes:
    """Check annotation records, given in runs.

    Args:
        most: at least as many as there are.
        usable: False where the file cannot be used anyway: then only string ids are looked for.
    """
    refused_images = {image.id: image.reason for image in images.refused if image.id is not None}
    known = _Known(images, refused_images, np.array([category_id for category_id, _ in categories.known], np.int64))
    string_ids = [StringIds("annotations", key) for key in ("id", "image_id", "category_id")]
    columns = _Columns(most if usable else 0)
    faults: dict[int, _Fault] = {}
    num_records = 0
    for run in runs:
        numbers = _numbers(run)
        if numbers is None:  # some records are not in order
            for ids in string_ids:
                ids.look(run, num_records)
            usable = usable and not any(ids.count for ids in string_ids)
        if usable:
            _check_run(run, num_records, numbers, known, columns, faults)
        num_records += len(run)
    columns.shrink(columns.size if usable else 0)
    num_repeats = _refuse_repeats(columns, faults, known)
    num_images = len(images.image_id)
    # those that repeat an id go behind all images
    offsets = group(
        columns.image,
        num_images + 1,
        columns.row,
        columns.annotation_id,
        columns.label,
        columns.flags,
        columns.box,
    )
    columns.shrink(columns.size - num_repeats)
    refused, rejects = _refused(faults, known) if usable else ([], [])
    num_clipped = _count(columns.flags, _CLIPPED)
    notes = _notes(columns, num_clipped, faults)
    columns.flags &= _CROWD
    return Boxes(
        offsets[: num_images + 1],
        columns.row,
        columns.annotation_id,
        columns.label,
        columns.box,
        columns.flags.view(np.bool_),
        refused,
        rejects,
        num_clipped,
        notes,
        [line for ids in string_ids for line in ids.lines()],
        num_records,
    )


class _Numbers(NamedTuple):
    """Annotation records whose fields are as they should be: ids int64 [m], xywh float64 [m, 4], crowd bool [m]."""

    annotation_id: IntArray
    image_id: IntArray
    category_id: IntArray
    xywh: FloatArray
    crowd: BoolArray

    def where(self, mask: BoolArray) -> Self:
        return self._replace(**{name: column[mask] for name, column in self._asdict().items()})


def _numbers(records: list[Any]) -> _Numbers | None:
    """The records in columns; None where any is not as it should be, but for what its ids refer to."""
    if not set(map(type, records)) <= {Annotation}:
        return None
    ids = [[r.id for r in records], [r.image_id for r in records], [r.category_id for r in records]]
    if not set(map(type, chain.from_iterable(ids))) <= {int}:
        return None
    bboxes, crowds = [r.bbox for r in records], [r.iscrowd for r in records]
    if not (set(map(type, bboxes)) <= {list} and set(map(len, bboxes)) <= {4}):
        return None
    flat = list(chain.from_iterable(bboxes))
    if not set(map(type, flat)) <= {int, float}:
        return None
    try:
        if not set(crowds) <= {0, 1, None}:
            return None
        annotation_id, image_id, category_id = (np.array(values, np.int64) for values in ids)
        xywh = np.array(flat, np.float64).reshape(-1, 4)
    except (TypeError, OverflowError):  # a list for a crowd mark; beyond 64 bits
        return None
    if not (np.abs(xywh) < LARGEST).all():
        return None
    return _Numbers(annotation_id, image_id, category_id, xywh, np.array(crowds, np.bool_))


def _is_in_order(r: Any) -> bool:
    """Whether a record is as it should be, but for what its ids refer to."""
    return (
        isinstance(r, Annotation)
        and is_id(r.id)
        and is_id(r.image_id)
        and is_id(r.category_id)
        and r.iscrowd in (0, 1, None)
        and _is_bbox(r.bbox)
    )


def _is_bbox(value: Any) -> bool:
    """Four finite numbers of a size that pixels have."""
    if type(value) is not list or len(value) != 4:
        return False
    return all((type(number) is float or type(number) is int) and -LARGEST < number < LARGEST for number in value)


def _check_run(
    run: list[Any],
    first_row: int,
    numbers: _Numbers | None,
    known: _Known,
    columns: _Columns,
    faults: dict[int, _Fault],
) -> None:
    """Sort the records of a run, whose first is row `first_row`, into columns and faults by row.

    Args:
        numbers: of all its records, where they are as they should be.
    """
    place = np.arange(len(run))
    if numbers is None:
        is_in_order = np.array([_is_in_order(r) for r in run], np.bool_)
        for i in np.flatnonzero(~is_in_order).tolist():
            faults[first_row + i] = _fault(run[i], known)
        place = np.flatnonzero(is_in_order)
        numbers = _numbers([run[i] for i in place])
        assert numbers is not None
    image, has_image = find_ids(known.images.image_id, numbers.image_id)
    category, has_category = find_ids(known.category_id, numbers.category_id)
    is_known = has_image & has_category
    if not is_known.all():
        for i in place[~is_known].tolist():
            faults[first_row + i] = _fault(run[i], known)
        place, image, category = place[is_known], image[is_known], category[is_known]
        numbers = numbers.where(is_known)
    width, height = known.images.width[image], known.images.height[image]
    box, empty, outside, clipped = _clip(numbers.xywh, np.stack([width, height], axis=1).astype(np.float64))
    as_corners = (numbers.xywh[:, 2:] > numbers.xywh[:, :2]).all(1)
    flags = numbers.crowd * np.uint8(_CROWD) | clipped * np.uint8(_CLIPPED) | as_corners * np.uint8(_AS_CORNERS)
    in_order = ~(empty | outside)
    for j in np.flatnonzero(~in_order).tolist():
        r = run[place[j]]
        if empty[j]:
            reason, what = Reason.NO_AREA, "has no area; expected [x, y, width, height]"
        else:
            reason, what = Reason.OUTSIDE_IMAGE, f"lies outside its {width[j]}x{height[j]} image"
        faults[first_row + int(place[j])] = _Fault(
            Fate.REFUSED, reason, f"bbox {shown(r.bbox)} {what}", r.id, r.image_id, r.category_id, int(flags[j])
        )
    columns.add(first_row + place, image, numbers.annotation_id, category + 1, flags, box, where=in_order)


def _fault(r: Any, known: _Known) -> _Fault:
    """What is wrong with an annotation record, but for where its bbox lies, and an id that occurs before."""
    if not isinstance(r, Annotation):
        return _Fault(Fate.REFUSED, Reason.BAD_RECORD, f"is {shown(r)}; expected an object", None, None, None)
    ids = id_or_none(r.id), id_or_none(r.image_id), id_or_none(r.category_id)
    if ids[0] is None:
        reason, message = Reason.BAD_RECORD, f"id is {shown(r.id)}; expected an integer"
    elif ids[1] is not None and ids[1] in known.refused:
        return _Fault(Fate.IMAGE_REFUSED, known.refused[ids[1]], "", *ids)
    elif not _is_among(known.images.image_id, ids[1]):
        reason, message = Reason.UNKNOWN_IMAGE, f"image_id {shown(r.image_id)} is not among images"
    elif not _is_among(known.category_id, ids[2]):
        reason, message = Reason.UNKNOWN_CATEGORY, f"category_id {shown(r.category_id)} is not among categories"
    elif r.iscrowd not in (0, 1, None):
        reason, message = Reason.BAD_RECORD, f"iscrowd is {shown(r.iscrowd)}; expected 0 or 1"
    else:
        reason = Reason.BAD_NUMBERS
        message = f"bbox is {shown(r.bbox)}; expected four finite numbers [x, y, w, h]"
    return _Fault(Fate.REFUSED, reason, message, *ids)


def _is_among(ids: IntArray, value: int | None) -> bool:
    return value is not None and bool(find_ids(ids, np.array([value]))[1][0])


def _clip(xywh: FloatArray, size: FloatArray) -> tuple[FloatArray, BoolArray, BoolArray, BoolArray]:
    """Turn x y w h [N, 4] into x1 y1 x2 y2 inside images of `size` [N, 2] (width, height).

    Returns:
        boxes float64 [N, 4]; bool [N] each: no area as given, no area left inside the image, clipped.
    """
    low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    inner_low, inner_high = np.clip(low, 0, size), np.clip(high, 0, size)
    empty = ~_has_area(low, high)
    outside = ~empty & ~_has_area(inner_low, inner_high)
    clipped = np.any((inner_low != low) | (inner_high != high), axis=1)
    return np.concatenate([inner_low, inner_high], axis=1), empty, outside, clipped


def _has_area(low: FloatArray, high: FloatArray) -> BoolArray:
    """Whether boxes have an area; sides so short that their product is no number above zero have none."""
    width, height = (high - low).T
    has_area: BoolArray = (width > 0) & (height > 0) & (width * height > 0)
    return has_area


def _refuse_repeats(columns: _Columns, faults: dict[int, _Fault], known: _Known) -> int:
    """Refuse every box in columns whose id is that of one in an earlier row, by giving it the image behind the last.

    What is refused for another reason claims no id: it is in no chip.

    Returns:
        How many there are.
    """
    doubtful = _repeated_values(columns.annotation_id)
    if not len(doubtful):
        return 0
    starts = range(0, columns.size, CHUNK)
    found = [np.flatnonzero(np.isin(columns.annotation_id[s : s + CHUNK], doubtful)) + s for s in starts]
    place = np.concatenate([np.empty(0, np.int64), *found])
    ids = columns.annotation_id[place]
    order = np.argsort(ids, kind="stable")  # columns are in file order
    again = place[order[1:][ids[order[1:]] == ids[order[:-1]]]]
    for i in again.tolist():
        of_record = int(known.images.image_id[columns.image[i]]), int(known.category_id[columns.label[i] - 1])
        columns.image[i] = len(known.images.image_id)
        annotation_id = int(columns.annotation_id[i])
        message = f"id {annotation_id} occurs before; the first is kept"
        faults[int(columns.row[i])] = _Fault(Fate.REFUSED, Reason.DUPLICATE_ID, message, annotation_id, *of_record)
    return len(again)


def _repeated_values(ids: IntArray) -> IntArray:
    """The values that occur more than once in int64 ids [N], part by part, so that no second array of N is made."""
    if (ids[1:] > ids[:-1]).all():
        return np.empty(0, np.int64)
    values = []
    for part in range(PARTS):
        some = np.concatenate([chunk[_part_of(chunk) == part] for chunk in _chunks(ids)])
        some.sort()
        values.append(np.unique(some[1:][some[1:] == some[:-1]]))
    return np.concatenate(values)


def _part_of(ids: IntArray) -> npt.NDArray[np.uint64]:
    """0 to PARTS - 1; ids at any regular distance are spread over all."""
    return (ids.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) % np.uint64(PARTS)


def _chunks(column: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    return (column[start : start + CHUNK] for start in range(0, len(column), CHUNK))


def _count(flags: npt.NDArray[np.uint8], flag: int) -> int:
    return sum(int(np.count_nonzero(chunk & flag)) for chunk in _chunks(flags))


def _refused(faults: dict[int, _Fault], known: _Known) -> tuple[list[RefusedBox], list[Reject]]:
    """All that are not in order, by row; and rejects for those that are refused themselves."""
    refused: list[RefusedBox] = []
    rejects: list[Reject] = []
    for row, fault in sorted(faults.items()):
        ids = fault.annotation_id, fault.image_id, fault.category_id
        refused.append(RefusedBox(row, *ids, fault.fate, fault.reason))
        if fault.fate == Fate.REFUSED:
            file = None
            if fault.image_id is not None:
                position, is_kept = find_ids(known.images.image_id, np.array([fault.image_id]))
                file = known.images.file_name[position[0]].as_py() if is_kept[0] else None
            message = f"annotations[{row}]: {fault.message}"
            rejects.append(Reject("annotation", fault.annotation_id, file, fault.reason, message))
    return refused, rejects


def _notes(columns: _Columns, num_clipped: int, faults: dict[int, _Fault]) -> list[str]:
    """A remark when the boxes read better as corners than as x y w h, a frequent conversion mistake."""
    refused = [fault.flags for fault in faults.values() if fault.flags is not None]
    total = columns.size + len(refused)
    clipped = num_clipped + sum(flags & _CLIPPED != 0 for flags in refused)
    as_corners = _count(columns.flags, _AS_CORNERS) + sum(flags & _AS_CORNERS != 0 for flags in refused)
    if total and clipped / total > 0.2 and as_corners / total > 0.95:
        return [
            f"{clipped / total:.0%} of the boxes reach beyond their image and nearly all have width > x and "
            "height > y: the file seems to hold x1 y1 x2 y2 where COCO has x y width height"
        ]
    return []
