"""Reads a COCO annotation file into flat columns and sorts out what is wrong with it. Polygons are never parsed."""

import json
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.codes import Fate, Reason
from schemas.errors import DataError

INT64_RANGE = range(-(2**63), 2**63)


class Reject(NamedTuple):
    """A refused image or box: one row of rejects.parquet."""

    kind: str  # image or annotation
    id: int | None
    file: str | None
    reason: Reason
    message: str


class RefusedBox(NamedTuple):
    """A source box that is not in order, for the ledger; ids are None where the record gives no integer."""

    row: int
    annotation_id: int | None
    image_id: int | None
    category_id: int | None
    fate: Fate  # refused itself, or its image was
    reason: Reason


class SourceImage(NamedTuple):
    image_id: int
    file_name: str
    width: int  # as annotated, pixels
    height: int


@dataclass(frozen=True)
class Source:
    """An annotation file as flat columns. Images are sorted by id, boxes by image and then by row.

    Attributes:
        image_id: int64 [n]; file_name: n strings; width, height: int64 [n], pixels as annotated.
        offsets: int64 [n + 1]; image i has boxes offsets[i] to offsets[i + 1].
        row: int64 [N], position in the file's list of annotations, from 0.
        annotation_id, category_id: int64 [N]; label: int32 [N], 1..K in the order of category_id.
        box: float64 [N, 4], x1 y1 x2 y2, source pixels, clipped to the image; crowd: bool [N].
        categories: (id, name) sorted by id; label is the position from 1.
        rejects: rows for rejects.parquet found while reading, in file order, images first.
        refused_images: (id, file_name, width, height, reason) of image records that are not in order.
        refused_boxes: boxes that are not in order, or belong to a refused image record.
        num_clipped: boxes that reached beyond the image and were clipped.
        notes: remarks a user should see that refuse nothing.
    """

    image_id: npt.NDArray[np.int64]
    file_name: list[str]
    width: npt.NDArray[np.int64]
    height: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    annotation_id: npt.NDArray[np.int64]
    category_id: npt.NDArray[np.int64]
    label: npt.NDArray[np.int32]
    box: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]
    categories: list[tuple[int, str]]
    rejects: list[Reject] = field(default_factory=list)
    refused_images: list["RefusedImage"] = field(default_factory=list)
    refused_boxes: list[RefusedBox] = field(default_factory=list)
    num_clipped: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        return len(self.image_id)

    def images(self, start: int, stop: int) -> list[SourceImage]:
        """The records of images [start, stop)."""
        return [
            SourceImage(int(self.image_id[i]), self.file_name[i], int(self.width[i]), int(self.height[i]))
            for i in range(start, stop)
        ]


class RefusedImage(NamedTuple):
    id: int | None
    file_name: str | None
    width: int | None
    height: int | None
    reason: Reason


class _Image(msgspec.Struct, gc=False):
    id: Any = None
    file_name: Any = None
    width: Any = None
    height: Any = None


class _Annotation(msgspec.Struct, gc=False):
    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    iscrowd: Any = 0


class _Category(msgspec.Struct, gc=False):
    id: Any = None
    name: Any = None


# A record that is not an object is read as what it is and refused alone, like any other bad record.
_NotAnObject = bool | int | float | str | list[Any] | None


class _File(msgspec.Struct):
    images: list[_Image | _NotAnObject] | None = None
    annotations: list[_Annotation | _NotAnObject] | None = None
    categories: list[_Category | _NotAnObject] | None = None


class _Fault(NamedTuple):
    """Why a box is not in order."""

    fate: Fate  # refused itself, or its image was
    reason: Reason
    message: str


def read_coco(path: Path, max_pixels: int | None = None) -> Source:
    """Read and check a COCO annotation file.

    Single records that are wrong are refused with a reason and lose nothing else.

    Args:
        max_pixels: refuse images annotated with more; their files would be refused, and planning them costs memory.

    Raises:
        DataError: when the file as a whole cannot be trusted: unreadable, not JSON, a list missing, no images,
            boxes but no categories, string ids, or an image or category id that occurs twice; all that is wrong
            in the lists is named at once.
    """
    return _check(_parse(path), path, max_pixels)


def _parse(path: Path) -> _File:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such annotation file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data.strip():
        raise DataError(f"{path}: the annotation file is empty; expected COCO JSON")
    if data.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: is a Git-LFS pointer, not the annotation file itself; fetch it with `git lfs pull`")
    try:
        return msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # NaN and Infinity are not JSON but occur in the wild; so do a byte-order mark, 1e999 and lone surrogates
    try:
        return msgspec.convert(json.loads(data), type=_File)
    except msgspec.ValidationError as error:
        raise DataError(
            f"{path}: expected a COCO object with the lists images, annotations and categories: {error}. "
            "Convert other formats to COCO first."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: is not valid JSON (truncated, or another format?): {error}. Expected a COCO annotation file."
        ) from error


def _check(file: _File, path: Path, max_pixels: int | None) -> Source:
    lists = {"images": file.images, "annotations": file.annotations, "categories": file.categories}
    missing = [f"`{name}`" for name, records in lists.items() if records is None]
    if missing:
        raise DataError(
            f"{path}: has no {' and no '.join(missing)}; a COCO file needs images, annotations and categories"
        )
    images, annotations, categories = file.images or [], file.annotations or [], file.categories or []
    if not images:
        raise DataError(f"{path}: `images` is empty; expected one record per image file")
    if annotations and not categories:
        raise DataError(f"{path}: `categories` is empty but there are annotations; expected their categories")
    _refuse_untrustworthy(images, annotations, categories, path)
    known = sorted((c.id, _category_name(c)) for c in categories if isinstance(c, _Category))
    rejects: list[Reject] = []
    kept, refused = _check_images(images, max_pixels, rejects)
    return _check_boxes(annotations, kept, refused, known, rejects)


def _refuse_untrustworthy(images: list[Any], annotations: list[Any], categories: list[Any], path: Path) -> None:
    """Raise where ids cannot be believed: to drop single records would pair boxes with wrong images or classes."""
    faults = [
        *_string_ids("images", images, "id"),
        *_string_ids("categories", categories, "id"),
        *_string_ids("annotations", annotations, "id"),
        *_string_ids("annotations", annotations, "image_id"),
        *_string_ids("annotations", annotations, "category_id"),
        *_repeated_ids("images", images),
        *_repeated_ids("categories", categories),
    ]
    for row, record in enumerate(categories):
        if not isinstance(record, _Category):
            faults.append(f"categories[{row}] is {_shown(record)}; expected an object")
        elif not _is_id(record.id) and not isinstance(record.id, str):
            faults.append(f"categories[{row}].id is {_shown(record.id)}; expected an integer")
    if faults:
        raise DataError(f"{path}: cannot be used as a whole:\n" + "\n".join(f"  {fault}" for fault in faults))


def _string_ids(name: str, records: list[Any], key: str) -> list[str]:
    """At most one line: the first string where an integer id should be, and how many there are."""
    rows = [row for row, record in enumerate(records) if isinstance(getattr(record, key, None), str)]
    if not rows:
        return []
    first = getattr(records[rows[0]], key)
    return [
        f"{name}[{rows[0]}].{key} is the string {_shown(first)}{_and_more(rows)}; ids must be integers. "
        "Renumber the file; pycocotools would not match such ids either."
    ]


def _repeated_ids(name: str, records: list[Any]) -> list[str]:
    """At most one line: the first id that occurs twice, and how many do."""
    first_with: dict[int, int] = {}
    rows = []
    for row, record in enumerate(records):
        value: Any = getattr(record, "id", None)
        if _is_id(value) and first_with.setdefault(value, row) != row:
            rows.append(row)
    if not rows:
        return []
    value = records[rows[0]].id
    return [
        f"{name}[{first_with[value]}] and {name}[{rows[0]}] both have id {value}{_and_more(rows)}; "
        "ids must be unique. If files were merged, renumber one of them."
    ]


def _and_more(rows: list[int]) -> str:
    return f" (and {len(rows) - 1} more such)" if len(rows) > 1 else ""


def _category_name(category: _Category) -> str:
    if not isinstance(category.name, str):
        return str(category.id)
    return category.name.encode("utf-8", "replace").decode()  # lone surrogates cannot be stored


def _check_images(
    records: list[Any], max_pixels: int | None, rejects: list[Reject]
) -> tuple[list[tuple[int, str, int, int]], list[RefusedImage]]:
    """Split image records into (id, file_name, width, height) sorted by id, and the refused."""
    kept: list[tuple[int, str, int, int]] = []
    refused: list[RefusedImage] = []
    first_with: dict[str, int] = {}
    for row, record in enumerate(records):
        fault = _image_fault(record, row, max_pixels, first_with)
        r = record if isinstance(record, _Image) else _Image()
        if fault is None:
            kept.append((r.id, r.file_name, int(r.width), int(r.height)))
            continue
        reason, message = fault
        image_id = _id(r.id)
        file_name = r.file_name if _is_text(r.file_name) else None
        rejects.append(Reject("image", image_id, file_name, reason, f"images[{row}]: {message}"))
        width = int(r.width) if _is_side(r.width) else None
        height = int(r.height) if _is_side(r.height) else None
        refused.append(RefusedImage(image_id, file_name, width, height, reason))
    return sorted(kept), refused


def _image_fault(r: Any, row: int, max_pixels: int | None, first_with: dict[str, int]) -> tuple[Reason, str] | None:
    """What is wrong with an image record; `first_with` collects which row has each file first."""
    if not isinstance(r, _Image):
        return Reason.BAD_RECORD, f"is {_shown(r)}; expected an object"
    if not _is_id(r.id):
        return Reason.BAD_RECORD, f"id is {_shown(r.id)}; expected an integer"
    if not _is_text(r.file_name) or not r.file_name:
        return Reason.BAD_RECORD, f"file_name is {_shown(r.file_name)}; expected a path"
    if not (_is_side(r.width) and _is_side(r.height)):
        found = f"{_shown(r.width)}, {_shown(r.height)}"
        return Reason.BAD_RECORD, f"width, height are {found}; expected whole numbers of pixels"
    if max_pixels is not None and r.width * r.height > max_pixels:
        return (
            Reason.TOO_MANY_PIXELS,
            f"is annotated as {r.width}x{r.height}, more than {max_pixels:,} pixels; "
            "raise it with --set chips.max_pixels=N",
        )
    if not _is_safe(r.file_name):
        return (
            Reason.UNSAFE_PATH,
            f"file_name {r.file_name!r} is absolute or has `..` in it; make it relative to the image folder",
        )
    earlier = first_with.setdefault(posixpath.normpath(r.file_name), row)
    if earlier != row:
        return Reason.REPEATED_FILE, f"file_name {r.file_name!r} is that of images[{earlier}] too; the first is kept"
    return None


def _check_boxes(
    records: list[Any],
    images: list[tuple[int, str, int, int]],
    refused_images: list[RefusedImage],
    categories: list[tuple[int, str]],
    rejects: list[Reject],
) -> Source:
    position = {image[0]: i for i, image in enumerate(images)}
    faults, rows = _annotation_faults(records, position, refused_images, categories)
    kept = [records[row] for row in rows]
    owner_of = np.array([position[r.image_id] for r in kept], np.int64)
    xywh = np.array([r.bbox for r in kept], np.float64).reshape(-1, 4)
    size = np.array([(w, h) for _, _, w, h in images], np.float64).reshape(-1, 2)
    box, empty, outside, clipped = _clip(xywh, size[owner_of])
    for i in np.flatnonzero(empty | outside).tolist():
        bbox = _shown(kept[i].bbox)
        if empty[i]:
            message = f"bbox {bbox} has no area; expected [x, y, width, height]"
            faults[rows[i]] = _Fault(Fate.REFUSED, Reason.NO_AREA, message)
        else:
            _, _, width, height = images[owner_of[i]]
            message = f"bbox {bbox} lies outside its {width}x{height} image"
            faults[rows[i]] = _Fault(Fate.REFUSED, Reason.OUTSIDE_IMAGE, message)
    in_order = ~(empty | outside)
    refused_boxes: list[RefusedBox] = []
    for row, fault in sorted(faults.items()):
        r = records[row] if isinstance(records[row], _Annotation) else _Annotation()
        annotation_id, image_id, category_id = _id(r.id), _id(r.image_id), _id(r.category_id)
        refused_boxes.append(RefusedBox(row, annotation_id, image_id, category_id, fault.fate, fault.reason))
        if fault.fate == Fate.REFUSED:
            file = images[position[image_id]][1] if image_id in position else None
            message = f"annotations[{row}]: {fault.message}"
            rejects.append(Reject("annotation", annotation_id, file, fault.reason, message))
    # rows ascend already, so a stable sort by image leaves them ascending within each image
    order = np.flatnonzero(in_order)[np.argsort(owner_of[in_order], kind="stable")]
    category_ids = np.array([r.category_id for r in kept], np.int64)[order]
    known = np.array([c for c, _ in categories], np.int64)
    return Source(
        image_id=np.array([i[0] for i in images], np.int64),
        file_name=[i[1] for i in images],
        width=np.array([i[2] for i in images], np.int64),
        height=np.array([i[3] for i in images], np.int64),
        offsets=np.searchsorted(owner_of[order], np.arange(len(images) + 1)).astype(np.int64),
        row=np.array(rows, np.int64)[order],
        annotation_id=np.array([r.id for r in kept], np.int64)[order],
        category_id=category_ids,
        label=(np.searchsorted(known, category_ids) + 1).astype(np.int32),
        box=box[order],
        crowd=np.array([bool(r.iscrowd) for r in kept], np.bool_)[order],
        categories=categories,
        rejects=rejects,
        refused_images=refused_images,
        refused_boxes=refused_boxes,
        num_clipped=int(clipped[in_order].sum()),
        notes=_notes(xywh, clipped),
    )


def _annotation_faults(
    records: list[Any],
    position: dict[int, int],
    refused_images: list[RefusedImage],
    categories: list[tuple[int, str]],
) -> tuple[dict[int, _Fault], list[int]]:
    """What is wrong with each annotation record but for where its box lies, by row; and the rows in order so far."""
    refused = {image.id: image.reason for image in refused_images if image.id is not None}
    known = {category_id for category_id, _ in categories}
    seen: set[int] = set()
    faults: dict[int, _Fault] = {}
    rows: list[int] = []
    for row, r in enumerate(records):
        if not isinstance(r, _Annotation):
            reason, message = Reason.BAD_RECORD, f"is {_shown(r)}; expected an object"
        elif not _is_id(r.id):
            reason, message = Reason.BAD_RECORD, f"id is {_shown(r.id)}; expected an integer"
        elif r.id in seen:
            reason, message = Reason.DUPLICATE_ID, f"id {r.id} occurs before; the first is kept"
        else:
            seen.add(r.id)
            if _is_id(r.image_id) and r.image_id in refused:
                faults[row] = _Fault(Fate.IMAGE_REFUSED, refused[r.image_id], "")
                continue
            if not _is_id(r.image_id) or r.image_id not in position:
                reason, message = Reason.UNKNOWN_IMAGE, f"image_id {_shown(r.image_id)} is not among images"
            elif not _is_id(r.category_id) or r.category_id not in known:
                found = _shown(r.category_id)
                reason, message = Reason.UNKNOWN_CATEGORY, f"category_id {found} is not among categories"
            elif r.iscrowd not in (0, 1, None):
                reason, message = Reason.BAD_RECORD, f"iscrowd is {_shown(r.iscrowd)}; expected 0 or 1"
            elif not _is_bbox(r.bbox):
                found = _shown(r.bbox)
                reason, message = Reason.BAD_NUMBERS, f"bbox is {found}; expected four finite numbers [x, y, w, h]"
            else:
                rows.append(row)
                continue
        faults[row] = _Fault(Fate.REFUSED, reason, message)
    return faults, rows


def _clip(
    xywh: npt.NDArray[np.float64], size: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
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


def _has_area(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether boxes have an area; sides so short that their product is no number above zero have none."""
    width, height = (high - low).T
    has_area: npt.NDArray[np.bool_] = (width > 0) & (height > 0) & (width * height > 0)
    return has_area


def _notes(xywh: npt.NDArray[np.float64], clipped: npt.NDArray[np.bool_]) -> list[str]:
    """A remark when the boxes read better as corners than as x y w h, a frequent conversion mistake."""
    if len(xywh) and clipped.mean() > 0.2 and (xywh[:, 2:] > xywh[:, :2]).all(1).mean() > 0.95:
        return [
            f"{clipped.mean():.0%} of the boxes reach beyond their image and nearly all have width > x and "
            "height > y: the file seems to hold x1 y1 x2 y2 where COCO has x y width height"
        ]
    return []


def _is_bbox(value: Any) -> bool:
    """Four finite numbers of a size that pixels have."""
    if type(value) is not list or len(value) != 4:
        return False
    return all((type(number) is float or type(number) is int) and -1e12 < number < 1e12 for number in value)


def _shown(value: Any) -> str:
    """A found value, for a message."""
    return f"{value!r:.80}"


def _is_id(value: Any) -> bool:
    return type(value) is int and value in INT64_RANGE


def _id(value: Any) -> int | None:
    return value if _is_id(value) else None


def _is_side(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 2**31 and value == int(value)


def _is_text(value: Any) -> bool:
    """A string that can be stored: JSON may hold half of a surrogate pair."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))


def _is_safe(file_name: str) -> bool:
    parts = file_name.replace("\\", "/").split("/")
    return not (parts[0] == "" or parts[0].endswith(":") or ".." in parts or "\0" in file_name)


def describe_rejects(rejects: Iterable[Reject], limit: int = 5) -> list[str]:
    """Lines for a person: each reason with its count and up to `limit` examples."""
    groups: dict[tuple[str, str], list[Reject]] = {}
    for reject in rejects:
        groups.setdefault((reject.kind, reject.reason), []).append(reject)
    lines = []
    for (kind, reason), group in sorted(groups.items(), key=lambda item: (item[0][0] != "image", -len(item[1]))):
        lines.append(f"{len(group)} {kind}{'s' if len(group) > 1 else ''}: {reason}")
        lines += [f"    {reject.message}" for reject in group[:limit]]
        if len(group) > limit:
            lines.append(f"    ... and {len(group) - limit} more")
    return lines
