"""From annotation records in file order to boxes in order, sorted by image, and the refused ones with their reasons.

The columns are large, so that nothing here makes more than one of them again at a time: a sort key is written over the
image ids, and numpy sorts it in place.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.coco.checks.annotations import CROWD, ODD, Annotations, Odd
from pipeline.coco.checks.images import Images
from pipeline.coco.checks.values import ABSENT, id_or_none, shifted
from pipeline.coco.records import Reject
from pipeline.coco.rows import Rows
from pipeline.coco.source import AsWritten, RefusedBox, find_ids, no_refused_boxes
from schemas.arrays import BoolArray, FloatArray, IntArray
from schemas.codes import Fate, Reason
from schemas.errors import DataError

BLOCK = 1 << 14  # boxes that are looked at together

_LAST = np.uint64(2**64 - 1)  # sorts behind all boxes in order
_ROW = np.uint64(2**32 - 1)


class FileRecords(NamedTuple):
    """Which of all records are those of one file, and what they refer to.

    Attributes:
        start, stop: the file's rows among those of all files.
        images: its images; first_image: the position of the first among those of all files; shift: added to its ids.
        label_of_id: category id -> label.
        name: the file's name for messages, empty where there is but one.
    """

    start: int
    stop: int
    images: Images
    first_image: int
    shift: int
    label_of_id: dict[int, int]
    name: str


@dataclass
class Tally:
    """What was counted while boxes were checked, for remarks.

    Attributes:
        sound: boxes with a known image, a known category and four numbers.
        clipped: those that reach beyond their image.
        as_corners: those whose width and height would also do as x2 and y2.
        within_one: those that have an area and whose four numbers lie between 0 and 1.
    """

    sound: int = 0
    clipped: int = 0
    as_corners: int = 0
    within_one: int = 0

    def count(self, xywh: FloatArray, reach_beyond: BoolArray) -> None:
        """Count sound boxes, [m, 4], x y width height, and which of them reach beyond their image, [m]."""
        self.sound += len(xywh)
        self.clipped += int(np.count_nonzero(reach_beyond))
        self.as_corners += int(np.count_nonzero((xywh[:, 2:] > xywh[:, :2]).all(1)))
        has_area = _has_area(xywh[:, :2], xywh[:, :2] + xywh[:, 2:])
        self.within_one += int(np.count_nonzero(has_area & ((xywh >= 0) & (xywh <= 1.001)).all(1)))


class Boxes(NamedTuple):
    """The boxes in order and the refused ones.

    Attributes:
        offsets, row, annotation_id, label, box, crowd, as_written: as in Source.
        refused: the other records, by row.
        num_clipped: of the boxes in order, those that were clipped.
    """

    offsets: IntArray
    row: npt.NDArray[np.uint32]
    annotation_id: IntArray
    label: npt.NDArray[np.int32]
    box: FloatArray
    crowd: BoolArray
    refused: Rows[RefusedBox]
    num_clipped: int
    as_written: AsWritten | None


def check_boxes(records: Annotations, files: list[FileRecords], rejects: Rows[Reject], tally: Tally) -> Boxes:
    """Check all records against their files' images and categories, and sort those in order.

    Args:
        records: of all files; their columns are used up.
        files: each with its rows, which follow each other.
        rejects: takes a row for each record that is refused itself.
        tally: is counted up.

    Raises:
        DataError: there are more records than a number of 32 bits can count.
    """
    if len(records) > _ROW:
        raise DataError(
            f"there are {len(records):,} annotations in all, more than {int(_ROW):,}; make several data sets of them"
        )
    refused = no_refused_boxes()
    columns = _Columns(records)
    category_ids, odd = list(records.category_ids), iter(records.odd)
    num_clipped = 0
    for file in files:
        label_of = np.array([file.label_of_id.get(i, 0) for i in category_ids], np.int32)
        reasons = {fault.id: Reason(fault.reason) for fault in file.images.faults if fault.id is not None}
        for start in range(file.start, file.stop, BLOCK):
            here = slice(start, min(start + BLOCK, file.stop))
            block = _check_block(columns, here, file.images, label_of, tally)
            num_clipped += int(np.count_nonzero(block.clipped & block.kept))
            for i in np.flatnonzero(~block.kept).tolist():
                place = start + i
                record = _Record(
                    place,
                    id_or_none(int(columns.annotation_id[place])),
                    id_or_none(int(columns.image_id[place])),
                    id_or_none(category_ids[columns.category[place]]),
                    next(odd) if columns.flags[place] & ODD else None,
                )
                _refuse(record, i, block, file, reasons, refused, rejects)
            _write_keys(columns, here, block, file)
    num_images = sum(len(file.images.image_id) for file in files)
    return columns.sorted(num_images, refused, num_clipped)


class _Columns:
    """The records' columns as arrays over the same memory; what is taken from here is gone there."""

    def __init__(self, records: Annotations) -> None:
        self.image_id = np.frombuffer(records.image_id, np.int64)
        self.key = np.frombuffer(records.image_id, np.uint64)  # written over the ids
        self.annotation_id = np.frombuffer(records.annotation_id, np.int64)
        self.category = np.frombuffer(records.category, np.int32)  # then labels
        self.flags = np.frombuffer(records.flags, np.uint8)
        self.box = [np.frombuffer(column, np.float64) for column in records.box]  # x y w h, then corners
        self.written: list[FloatArray] = []  # x y w h and area, where the area was asked for
        if records.with_area:
            self.written = [*(column.copy() for column in self.box), np.frombuffer(records.area, np.float64)]
        records.forget()

    def sorted(self, num_images: int, refused: Rows[RefusedBox], num_clipped: int) -> Boxes:
        """Sort the boxes in order by their keys; each column goes as the sorted one comes."""
        key = self.key
        key.sort()
        size = len(key) - len(refused)
        starts = np.arange(num_images + 1, dtype=np.uint64) << np.uint64(32)
        offsets = np.searchsorted(key[:size], starts)
        del starts
        key &= _ROW
        row = key[:size].astype(np.uint32)
        del key, self.key, self.image_id
        annotation_id, self.annotation_id = _taken(self.annotation_id, row), np.empty(0, np.int64)
        label, self.category = _taken(self.category, row), np.empty(0, np.int32)
        crowd, self.flags = _taken(self.flags, row), np.empty(0, np.uint8)
        crowd &= CROWD
        written = None
        if self.written:
            xywh = _taken_all(self.written[:4], row)
            written = AsWritten(xywh, _taken(self.written.pop(), row))
        box = _taken_all(self.box, row)
        crowds = crowd.view(np.bool_)
        return Boxes(offsets, row, annotation_id, label, box, crowds, refused, num_clipped, written)


def _taken_all(columns: list[FloatArray], row: npt.NDArray[np.uint32]) -> FloatArray:
    """Return the values of four columns in rows `row`, [N, 4]. The columns are taken off their list, to save memory.

    The result is stored column by column, so that each old column can be freed before the next is copied.
    """
    taken = np.empty((4, len(row)), np.float64)
    for i in range(4):
        _taken(columns.pop(0), row, taken[i])
    return taken.T


def _taken(
    column: npt.NDArray[Any], row: npt.NDArray[np.uint32], out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """Return column[row], [N], in `out` where it is given.

    It is taken block by block, since numpy makes indices of 8 bytes of `row` meanwhile.
    """
    out = np.empty(len(row), column.dtype) if out is None else out
    for start in range(0, len(row), BLOCK):
        np.take(column, row[start : start + BLOCK], out=out[start : start + BLOCK], mode="clip")
    return out


class _Block(NamedTuple):
    """What was found of some records; arrays [m]. image: position of the image in its file."""

    image: IntArray
    label: npt.NDArray[np.int32]
    has_image: BoolArray
    empty: BoolArray
    kept: BoolArray
    clipped: BoolArray
    given: FloatArray  # [m, 4] x y w h


def _check_block(
    columns: _Columns, here: slice, images: Images, label_of: npt.NDArray[np.int32], tally: Tally
) -> _Block:
    """Check some records and write their boxes' corners, clipped to the image, over x y w h."""
    image, has_image = find_ids(images.image_id, columns.image_id[here])
    label = label_of[columns.category[here]]
    xywh = np.stack([column[here] for column in columns.box], axis=1)
    sound = has_image & (label > 0) & (columns.flags[here] & ODD == 0)
    image = np.where(has_image, image, 0)
    size = np.zeros((len(image), 2))
    if len(images.image_id):
        size = np.stack([images.width[image], images.height[image]], axis=1).astype(np.float64)
    low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    inner_low, inner_high = np.clip(low, 0, size), np.clip(high, 0, size)
    empty = ~_has_area(low, high)
    clipped = ((inner_low != low) | (inner_high != high)).any(1)
    for i in range(2):
        columns.box[i][here], columns.box[i + 2][here] = inner_low[:, i], inner_high[:, i]
    tally.count(xywh[sound], clipped[sound])
    kept = sound & ~empty & _has_area(inner_low, inner_high)
    return _Block(image, label, has_image, empty, kept, clipped, xywh)


def _has_area(low: FloatArray, high: FloatArray) -> BoolArray:
    """Tell whether boxes have an area; sides so short that their product is no number above zero have none."""
    width, height = (high - low).T
    has_area: BoolArray = (width > 0) & (height > 0) & (width * height > 0)
    return has_area


def _write_keys(columns: _Columns, here: slice, block: _Block, file: FileRecords) -> None:
    """Write what was found of a block over the columns that it was found from, which saves memory.

    `category` gets the labels, and `annotation_id` the row within the file where a record has no id. `key`, which lies
    over the image ids, gets numbers that sort boxes by image and then by row, and refused ones behind all others.
    """
    columns.category[here] = block.label
    rows = np.arange(here.start, here.stop)
    nameless = columns.annotation_id[here] == ABSENT
    columns.annotation_id[here][nameless] = rows[nameless] - file.start
    image = (block.image + file.first_image).astype(np.uint64) << np.uint64(32)
    columns.key[here] = np.where(block.kept, image | rows.astype(np.uint64), _LAST)


class _Record(NamedTuple):
    """A refused record; place: its row among those of all files; odd: its own fault, if it has one."""

    place: int
    annotation_id: int | None
    image_id: int | None
    category_id: int | None
    odd: Odd | None


def _refuse(
    record: _Record,
    i: int,
    block: _Block,
    file: FileRecords,
    reasons: dict[int, Reason],
    refused: Rows[RefusedBox],
    rejects: Rows[Reject],
) -> None:
    """Write down record i of a block, with the reason, and a line where it is refused itself."""
    fate, reason, message = _fault(record, i, block, file.images, reasons)
    image_id = shifted(record.image_id, file.shift)
    refused.append(RefusedBox(record.place, record.annotation_id, image_id, record.category_id, fate, reason))
    if fate == Fate.REFUSED:
        file_name = file.images.file_name[block.image[i]].as_py() if block.has_image[i] else None
        message = f"{file.name}annotations[{record.place - file.start}]: {message}"
        rejects.append(Reject("annotation", record.annotation_id, file_name, reason, message))


def _fault(
    record: _Record, i: int, block: _Block, images: Images, reasons: dict[int, Reason]
) -> tuple[Fate, Reason, str]:
    """Return why record i of a block is refused: for its image, else the first of its own faults.

    Args:
        reasons: refused image id -> why.
    """
    image_id, category_id = record.image_id, record.category_id
    if image_id is not None and image_id in reasons:
        return Fate.IMAGE_REFUSED, reasons[image_id], ""
    if image_id is not None and not block.has_image[i]:
        return Fate.REFUSED, Reason.UNKNOWN_IMAGE, f"image_id {image_id} is not among images"
    if image_id is not None and category_id is not None and not block.label[i]:
        return Fate.REFUSED, Reason.UNKNOWN_CATEGORY, f"category_id {category_id} is not among categories"
    if record.odd is not None:
        return Fate.REFUSED, Reason(record.odd.reason), record.odd.message
    bbox = "[" + ", ".join(f"{value:.15g}" for value in block.given[i]) + "]"
    if block.empty[i]:
        return Fate.REFUSED, Reason.NO_AREA, f"bbox {bbox} has no area; expected [x, y, width, height]"
    size = f"{images.width[block.image[i]]}x{images.height[block.image[i]]}"
    return Fate.REFUSED, Reason.OUTSIDE_IMAGE, f"bbox {bbox} lies outside its {size} image"


def count_twins(boxes: Boxes) -> tuple[int, int]:
    """Return how many boxes have the image, label and corners of one before, and the row of the first of them."""
    count, first = 0, -1
    starts = boxes.offsets
    i = 0
    while i < len(starts) - 1:
        j = max(i + 1, int(np.searchsorted(starts, starts[i] + BLOCK, "right")) - 1)
        here = slice(int(starts[i]), int(starts[j]))
        image = np.repeat(np.arange(j - i), np.diff(starts[i : j + 1]))
        keys = [*boxes.box[here].T, boxes.label[here], image]
        order = np.lexsort(keys)
        same = np.ones(max(len(order) - 1, 0), np.bool_)
        for key in keys:
            same &= key[order[1:]] == key[order[:-1]]
        if same.any() and not count:
            first = int(boxes.row[here][order[1:][same]].min())
        count += int(np.count_nonzero(same))
        i = j
    return count, first
