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


class _File(msgspec.Struct):
    images: list[_Image] | None = None
    annotations: list[_Annotation] | None = None
    categories: list[_Category] | None = None


def read_coco(path: Path) -> Source:
    """Read and check a COCO annotation file.

    Single records that are wrong are refused with a reason and lose nothing else.

    Raises:
        DataError: when the file as a whole cannot be trusted: unreadable, not JSON, a list missing, string ids,
            or an image or category id that occurs twice.
    """
    return _check(_parse(path), path)


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
    except msgspec.ValidationError as error:
        raise DataError(_wrong_shape(path, error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # NaN and Infinity are not JSON but occur in the wild, so does a byte-order mark
    try:
        return msgspec.convert(json.loads(data), type=_File)
    except msgspec.ValidationError as error:
        raise DataError(_wrong_shape(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON (truncated?): {error}") from error


def _wrong_shape(path: Path, error: Exception) -> str:
    return (
        f"{path}: expected a COCO object with the lists images, annotations and categories: {error}. "
        "Convert other formats to COCO first."
    )


def _check(file: _File, path: Path) -> Source:
    for name in ("images", "annotations", "categories"):
        if getattr(file, name) is None:
            raise DataError(f"{path}: has no `{name}`; a COCO file needs images, annotations and categories")
    assert file.images is not None
    assert file.annotations is not None
    assert file.categories is not None
    _refuse_untrustworthy(file.images, file.annotations, file.categories, path)
    categories = sorted((c.id, c.name if isinstance(c.name, str) else str(c.id)) for c in file.categories)
    rejects: list[Reject] = []
    images, refused_images = _check_images(file.images, rejects)
    return _check_boxes(file.annotations, images, refused_images, categories, rejects)


def _refuse_untrustworthy(
    images: list[_Image], annotations: list[_Annotation], categories: list[_Category], path: Path
) -> None:
    """Raise where ids cannot be believed: to drop single records would pair boxes with wrong images or classes."""
    for name, records, keys in (
        ("images", images, ("id",)),
        ("annotations", annotations, ("id", "image_id", "category_id")),
        ("categories", categories, ("id",)),
    ):
        for row, record in enumerate(records):
            for key in keys:
                value = getattr(record, key)
                if isinstance(value, str):
                    raise DataError(
                        f"{path}: {name}[{row}].{key} is the string {value!r}; ids must be integers. "
                        "Renumber the file; pycocotools would not match such ids either."
                    )
    for name, ids in (("images", [i.id for i in images]), ("categories", [c.id for c in categories])):
        seen: dict[Any, int] = {}
        for row, value in enumerate(ids):
            if not _is_id(value):
                if name == "categories":
                    raise DataError(f"{path}: categories[{row}].id is {value!r}; expected an integer")
                continue
            if value in seen:
                raise DataError(
                    f"{path}: {name}[{seen[value]}] and {name}[{row}] both have id {value}; ids must be unique. "
                    "If files were merged, renumber one of them."
                )
            seen[value] = row


def _check_images(
    records: list[_Image], rejects: list[Reject]
) -> tuple[list[tuple[int, str, int, int]], list[RefusedImage]]:
    """Split image records into (id, file_name, width, height) sorted by id, and the refused."""
    kept: list[tuple[int, str, int, int]] = []
    refused: list[RefusedImage] = []
    first_with: dict[str, int] = {}
    for row, r in enumerate(records):
        reason = message = None
        if not _is_id(r.id):
            reason, message = Reason.BAD_RECORD, f"id is {r.id!r}; expected an integer"
        elif not isinstance(r.file_name, str) or not r.file_name:
            reason, message = Reason.BAD_RECORD, f"file_name is {r.file_name!r}; expected a path"
        elif not (_is_side(r.width) and _is_side(r.height)):
            reason = Reason.BAD_RECORD
            message = f"width, height are {r.width!r}, {r.height!r}; expected whole numbers of pixels"
        elif not _is_safe(r.file_name):
            reason = Reason.UNSAFE_PATH
            message = f"file_name {r.file_name!r} is absolute or leaves the image folder; make it relative to it"
        elif (earlier := first_with.setdefault(posixpath.normpath(r.file_name), row)) != row:
            reason = Reason.REPEATED_FILE
            message = f"file_name {r.file_name!r} is that of images[{earlier}] too; the first is kept"
        if reason is None:
            kept.append((r.id, r.file_name, int(r.width), int(r.height)))
            continue
        image_id = _id(r.id)
        file_name = r.file_name if isinstance(r.file_name, str) else None
        rejects.append(Reject("image", image_id, file_name, reason, f"images[{row}]: {message}"))
        width = int(r.width) if _is_side(r.width) else None
        height = int(r.height) if _is_side(r.height) else None
        refused.append(RefusedImage(image_id, file_name, width, height, reason))
    return sorted(kept), refused


def _check_boxes(
    records: list[_Annotation],
    images: list[tuple[int, str, int, int]],
    refused_images: list[RefusedImage],
    categories: list[tuple[int, str]],
    rejects: list[Reject],
) -> Source:
    position = {image[0]: i for i, image in enumerate(images)}
    refused = {image.id: image for image in refused_images if image.id is not None}
    label = {category_id: i + 1 for i, (category_id, _) in enumerate(categories)}
    seen: set[int] = set()
    refused_boxes: list[RefusedBox] = []
    rows, owners, ids, category_ids, bboxes, crowds = [], [], [], [], [], []

    def refuse(row: int, r: _Annotation, reason: Reason, message: str) -> None:
        file = None
        if _is_id(r.image_id) and r.image_id in position:
            file = images[position[r.image_id]][1]
        refused_boxes.append(RefusedBox(row, _id(r.id), _id(r.image_id), _id(r.category_id), Fate.REFUSED, reason))
        rejects.append(Reject("annotation", _id(r.id), file, reason, f"annotations[{row}]: {message}"))

    for row, r in enumerate(records):
        if not _is_id(r.id):
            refuse(row, r, Reason.BAD_RECORD, f"id is {r.id!r}; expected an integer")
        elif r.id in seen:
            refuse(row, r, Reason.DUPLICATE_ID, f"id {r.id} occurs before; the first is kept")
        else:
            seen.add(r.id)
            owner = position.get(r.image_id) if _is_id(r.image_id) else None
            if owner is None and _is_id(r.image_id) and r.image_id in refused:
                category_id = _id(r.category_id)
                reason = refused[r.image_id].reason
                refused_boxes.append(RefusedBox(row, r.id, r.image_id, category_id, Fate.IMAGE_REFUSED, reason))
            elif owner is None:
                refuse(row, r, Reason.UNKNOWN_IMAGE, f"image_id {r.image_id!r} is not among images")
            elif not _is_id(r.category_id) or r.category_id not in label:
                refuse(row, r, Reason.UNKNOWN_CATEGORY, f"category_id {r.category_id!r} is not among categories")
            elif r.iscrowd not in (0, 1, None):
                refuse(row, r, Reason.BAD_RECORD, f"iscrowd is {r.iscrowd!r}; expected 0 or 1")
            elif (message := _bbox_fault(r.bbox)) is not None:
                refuse(row, r, Reason.BAD_NUMBERS, message)
            else:
                rows.append(row)
                owners.append(owner)
                ids.append(r.id)
                category_ids.append(r.category_id)
                bboxes.append(r.bbox)
                crowds.append(bool(r.iscrowd))

    owner_of = np.array(owners, np.int64)
    xywh = np.array(bboxes, np.float64).reshape(-1, 4)
    size = np.array([(w, h) for _, _, w, h in images], np.float64).reshape(-1, 2)
    box, empty, outside, clipped = _clip(xywh, size[owner_of])
    for i in np.flatnonzero(empty | outside):
        r = records[rows[i]]
        if empty[i]:
            refuse(rows[i], r, Reason.NO_AREA, f"bbox {r.bbox} has no area; expected [x, y, width, height]")
        else:
            width, height = size[owner_of[i]].astype(int)
            refuse(rows[i], r, Reason.OUTSIDE_IMAGE, f"bbox {r.bbox} lies outside its {width}x{height} image")
    keep = ~(empty | outside)
    # rows ascend already, so a stable sort by image leaves them ascending within each image
    order = np.flatnonzero(keep)[np.argsort(owner_of[keep], kind="stable")]
    category_id = np.array(category_ids, np.int64)[order]
    known = np.array([c for c, _ in categories], np.int64)
    refused_boxes.sort()
    rejects.sort(key=lambda reject: reject.kind != "image")
    return Source(
        image_id=np.array([i[0] for i in images], np.int64),
        file_name=[i[1] for i in images],
        width=np.array([i[2] for i in images], np.int64),
        height=np.array([i[3] for i in images], np.int64),
        offsets=np.searchsorted(owner_of[order], np.arange(len(images) + 1)).astype(np.int64),
        row=np.array(rows, np.int64)[order],
        annotation_id=np.array(ids, np.int64)[order],
        category_id=category_id,
        label=(np.searchsorted(known, category_id) + 1).astype(np.int32),
        box=box[order],
        crowd=np.array(crowds, np.bool_)[order],
        categories=categories,
        rejects=rejects,
        refused_images=refused_images,
        refused_boxes=refused_boxes,
        num_clipped=int(clipped[keep].sum()),
        notes=_notes(xywh, clipped),
    )


def _clip(
    xywh: npt.NDArray[np.float64], size: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Turn x y w h [N, 4] into x1 y1 x2 y2 inside images of `size` [N, 2] (width, height).

    Returns:
        boxes float64 [N, 4]; bool [N] each: no area as given, no area left inside the image, clipped.
    """
    low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    inner_low, inner_high = np.clip(low, 0, size), np.clip(high, 0, size)
    empty = np.any(xywh[:, 2:] <= 0, axis=1)
    outside = ~empty & np.any(inner_high <= inner_low, axis=1)
    clipped = np.any((inner_low != low) | (inner_high != high), axis=1)
    return np.concatenate([inner_low, inner_high], axis=1), empty, outside, clipped


def _notes(xywh: npt.NDArray[np.float64], clipped: npt.NDArray[np.bool_]) -> list[str]:
    """A remark when the boxes read better as corners than as x y w h, a frequent conversion mistake."""
    if len(xywh) and clipped.mean() > 0.2 and (xywh[:, 2:] > xywh[:, :2]).all(1).mean() > 0.95:
        return [
            f"{clipped.mean():.0%} of the boxes reach beyond their image and nearly all have width > x and "
            "height > y: the file seems to hold x1 y1 x2 y2 where COCO has x y width height"
        ]
    return []


def _bbox_fault(bbox: Any) -> str | None:
    """What keeps a bbox from being four finite numbers, or None."""
    if type(bbox) is list and len(bbox) == 4:
        for value in bbox:
            if (type(value) is not float and type(value) is not int) or not -1e12 < value < 1e12:
                break
        else:
            return None
    return f"bbox is {bbox!r:.80}; expected four finite numbers [x, y, width, height]"


def _is_id(value: Any) -> bool:
    return type(value) is int and value in INT64_RANGE


def _id(value: Any) -> int | None:
    return value if _is_id(value) else None


def _is_side(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 2**31 and value == int(value)


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
