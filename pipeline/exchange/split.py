"""`sniper split`: part an annotation file into train, val and test by image, with each class in each part."""

import posixpath
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.coco.checks.images import less_common_folder, url_path
from pipeline.coco.checks.values import ABSENT, Seen, whole
from pipeline.coco.read import LISTS
from pipeline.coco.records import class_names
from pipeline.coco.text import NO_TEXT, blocks, encodings, opened
from pipeline.exchange.stratify import joined_groups, stratify
from pipeline.images.contents import hash_images
from pipeline.images.sources import image_folder
from pipeline.storage import Location, is_file, local_copy, location, refuse_foreign, write_atomic
from schemas.arrays import IntArray
from schemas.errors import DataError, MissingError, UsageError
from schemas.wording import counted


class SplitReport(NamedTuple):
    """What a split did.

    Attributes:
        files: written, by part.
        images: number of images, by part.
        boxes: number of boxes of each category, by part and name, as `class_names` tells equal names apart.
        num_groups: groups of images that had to stay together; images alone count, too.
        num_equal: images that have the same content as another one, and were kept with it.
        without_image: annotations of no image of the file; they are in the training part.
    """

    files: dict[str, Location]
    images: dict[str, int]
    boxes: dict[str, dict[str, int]]
    num_groups: int
    num_equal: int
    without_image: int


class _Key:
    """A key of a JSON object; two of one name are two here, and not one."""

    def __init__(self, _: type, name: str) -> None:
        """Take what msgspec calls its hook with."""
        self.name = name


class _Image(msgspec.Struct):
    id: int | str | float
    file_name: str | None = None
    coco_url: Any = None


class _Annotation(msgspec.Struct):
    image_id: int | str | float | None = None
    category_id: int | str | float | None = None


class _Category(msgspec.Struct, frozen=True):
    id: int | str | float
    name: str | int | float | None = None


def split(
    annotations: Location | str,
    out: Location | str,
    *,
    val: float = 0.1,
    test: float = 0.0,
    group: str | None = None,
    images: Location | str | None = None,
    seed: int = 0,
) -> SplitReport:
    """Part a COCO JSON file by image into OUT/train.json, val.json and, if asked for, test.json.

    Records are copied as they are, byte for byte; from a file in another encoding than UTF-8 into UTF-8. Each part has
    all categories. Image records of one id, and those that name one file, stay in one part.

    Args:
        annotations: COCO JSON file, packed and encoded as `read_coco` takes it; without NaN and Infinity, which are no
            JSON.
        out: folder for the parts.
        val, test: share of the images.
        group: regular expression that is searched in file names. Images in which it matches the same text, of its
            first group where it has one, stay in one part, such as the frames of a video.
        images: folder of the images; where given, images of the same content stay in one part.
        seed: of the draw where several images would do.

    Raises:
        DataError: the file is no COCO file or has no images, an image lacks an id or a name, or one cannot be read.
        UsageError: the shares or the pattern cannot be used, a part is there already, or `out` cannot be written to.
    """
    shares = {"train": 1 - val - test, "val": val, "test": test}
    if not (val >= 0 and test >= 0 and 0 < val + test < 1):  # so that NaN is refused, too
        raise UsageError(f"split: expected --val and --test from 0 on, below 1 together, found {val:g} and {test:g}")
    shares = {part: share for part, share in shares.items() if share > 0}
    place, out = location(annotations), location(out)
    files = {part: out / f"{part}.json" for part in shares}
    if there := [file for file in files.values() if is_file(file)]:
        raise UsageError(f"{there[0]}: is there already; choose another --out, or remove it")
    content = _read(place)
    records: list[_Image] = _decoded(place, content, "images", _Image)
    names = _file_names(place, records)
    ids = [_id(image.id) for image in records]
    keys: list[list[Any]] = [ids, [posixpath.normpath(name) for name in names]]
    if group is not None:
        keys.append(_group_keys(group, names))
    refuse_foreign(files["train"], is_file, "`sniper split`")  # before images are hashed
    contents = [] if images is None else _contents(image_folder(location(images)), names)
    groups = joined_groups(len(records), [*keys, contents] if contents else keys)

    marks: list[_Annotation] = _decoded(place, content, "annotations", _Annotation)
    categories = [*dict.fromkeys(_decoded(place, content, "categories", _Category))]  # a repeated one once
    classes = class_names([(category.id, _name(category)) for category in categories])
    image_of = _positions(ids, [_id(mark.image_id) for mark in marks])
    category_of = _positions([_id(category.id) for category in categories], [_id(mark.category_id) for mark in marks])
    known = (image_of >= 0) & (category_of >= 0)
    shown = np.unique(np.stack([image_of[known], category_of[known]], axis=1), axis=0)  # once for image and class
    part_of_image = _deal(place, groups, shown, len(categories), shares, seed)
    part_of_mark = np.where(image_of >= 0, part_of_image[image_of], 0)

    boxes = {}
    for number, part in enumerate(shares):
        of_part = {"images": part_of_image == number, "annotations": part_of_mark == number}
        chosen = {name: [content[name][i] for i in np.flatnonzero(rows)] for name, rows in of_part.items()}
        write_atomic(files[part], msgspec.json.encode({**content, **chosen}))
        tally = np.bincount(category_of[known & (part_of_mark == number)], minlength=len(categories)).tolist()
        boxes[part] = dict(zip(classes, tally, strict=True))
    return SplitReport(
        files=files,
        images={part: int((part_of_image == number).sum()) for number, part in enumerate(shares)},
        boxes=boxes,
        num_groups=len(np.unique(groups)),
        num_equal=len(contents) - len(set(contents)),
        without_image=int((image_of < 0).sum()),
    )


def _deal(
    place: Location, groups: IntArray, shown: IntArray, num_classes: int, shares: dict[str, float], seed: int
) -> IntArray:
    """Deal the images out to the parts, whole groups of them, each class by the same shares.

    Args:
        place: the annotation file, for the message.
        groups: int64 [images], the group of each image, numbered from 0.
        shown: int64 [n, 2], image and class of all classes that each image shows.
        num_classes: of the file.
        shares: of the images, by part.
        seed: of the draw where several images would do.

    Returns:
        int64 [images], the number of each image's part.

    Raises:
        DataError: a part would get no image.
    """
    counts = np.zeros((groups.max(initial=-1) + 1, num_classes), np.int64)
    np.add.at(counts, (groups[shown[:, 0]], shown[:, 1]), 1)
    part_of_image = stratify(counts, np.bincount(groups), [*shares.values()], seed)[groups]
    if missing := [part for number, part in enumerate(shares) if not (part_of_image == number).any()]:
        there_are = f"{counted(len(groups), 'image')} in {counted(len(counts), 'group')}"
        raise DataError(
            f"{place}: {there_are} are too few: {missing[0]} would get none; ask for a larger share, or for smaller "
            "groups"
        )
    return part_of_image


def describe(report: SplitReport) -> str:
    """Put what a split did into a table: images, and boxes of each class, by part."""
    parts = list(report.files)
    classes = list(next(iter(report.boxes.values())))
    width = max(12, *(len(name) + 2 for name in classes)) if classes else 12
    rows = {"images": report.images} | {name: {part: report.boxes[part][name] for part in parts} for name in classes}
    lines = [f"{'':<{width}}" + "".join(f"{part:>12}" for part in parts)]
    lines += [f"{name:<{width}}" + "".join(f"{row[part]:>12,}" for part in parts) for name, row in rows.items()]
    total = sum(report.images.values())
    lines.append(f"{counted(total, 'image')} in {counted(report.num_groups, 'group')}; a group stays together")
    if report.num_equal:
        lines.append(f"{report.num_equal:,} images have the content of another one, and are in its part")
    if report.without_image:
        lines.append(f"{report.without_image:,} annotations belong to no image; they are in train.json")
    return "\n".join([*lines, *(f"{file}" for file in report.files.values())])


def _read(place: Location) -> dict[str, Any]:
    """Return the members of a COCO file, with the records of its lists undecoded."""
    try:
        members = msgspec.json.decode(_text(place), type=dict[_Key, msgspec.Raw], dec_hook=_Key)
        content: dict[str, Any] = {key.name: value for key, value in members.items()}
        for name in LISTS:
            if sum(key.name == name for key in members) > 1:
                raise DataError(f"{place}: the key `{name}` stands twice at the top level; merge both lists into one")
            if name in content:
                content[name] = msgspec.json.decode(content[name], type=list[msgspec.Raw])
    except FileNotFoundError as error:
        raise MissingError(f"{place}: no such annotation file") from error
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{place}: is no COCO JSON file: {error}; expected an object with the lists images, annotations and "
            "categories, without NaN, Infinity and halves of characters (\\ud800), which are no JSON"
        ) from error
    if missing := [name for name in ("images", "annotations") if name not in content]:
        raise DataError(f"{place}: has no list `{missing[0]}`; expected a COCO JSON file")
    if not content["images"]:
        raise DataError(f"{place}: `images` is empty; expected one record per image file")
    return content


def _text(place: Location) -> bytes:
    """Return the text of an annotation file in UTF-8, whatever it is packed and encoded in.

    Raises:
        DataError: it is no text, or a damaged archive.
        OSError: it cannot be read.
    """
    try:
        with local_copy(place) as path, opened(path) as file:
            for encoding in encodings(file):
                with suppress(UnicodeDecodeError):
                    return b"".join(block.encode("utf-8", "surrogatepass") for block in blocks(file, encoding))
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    raise DataError(f"{place}: {NO_TEXT}")


def _decoded(place: Location, content: dict[str, Any], name: str, kind: type[Any]) -> list[Any]:
    """Return what is needed of the records of a list."""
    found = []
    for number, record in enumerate(content.get(name, [])):
        try:
            found.append(msgspec.json.decode(record, type=kind))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{place}: {name}[{number}]: {error}; `sniper check` names all such records") from error
    return found


def _file_names(place: Location, images: list[_Image]) -> list[str]:
    """Return the file name of each image; of one without, the path of its coco_url, as `check_images` takes it.

    Raises:
        DataError: an image has neither.
    """
    names = []
    for number, image in enumerate(images):
        name = image.file_name
        if name is None and isinstance(image.coco_url, str):
            name = url_path(image.coco_url)
        if not name:
            raise DataError(
                f"{place}: images[{number}]: has no file_name and no coco_url; `sniper check` names all such records"
            )
        names.append(name)
    if all(image.file_name is None for image in images):
        names = less_common_folder(pa.array(names, pa.large_string())).to_pylist()
    return names


def _id(value: Any) -> Any:
    """Return an id as a whole number, however it is written; one that is no number as it is."""
    number = whole(value, "ids", Seen())
    return value if number == ABSENT else number


def _name(category: _Category) -> str:
    return str(category.id if category.name is None else category.name)


def _positions(known: Sequence[Any], wanted: Sequence[Any]) -> IntArray:
    """Return where each wanted id stands among the known ones, int64; -1 where it does not."""
    position = {id_: number for number, id_ in enumerate(known)}
    return np.array([position.get(id_, -1) for id_ in wanted], np.int64)


def _group_keys(pattern: str, file_names: list[str]) -> list[str]:
    """Return what the pattern, or its first group that took part, matches in each file name; else the name itself.

    Raises:
        UsageError: it is no regular expression, or matches in no name.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"split: --group {pattern!r} is no regular expression: {error}") from error
    found = [compiled.search(name) for name in file_names]
    if not any(found):
        raise UsageError(
            f"split: --group {pattern!r} matches in no file name, such as {file_names[0]!r}; give another pattern, or "
            "leave it out"
        )
    keys = []
    for match, name in zip(found, file_names, strict=True):
        found_text = match and (match[1] if compiled.groups and match[1] is not None else match[0])
        keys.append(f"name {name}" if found_text is None else f"text {found_text}")
    return keys


def _contents(folder: Location, names: list[str]) -> list[str]:
    """Return a hash of the content of each image file.

    Raises:
        DataError: one cannot be read.
    """
    found = hash_images(folder, names)
    missing = [name for name, digest in zip(names, found, strict=True) if digest is None]
    if missing:
        raise DataError(
            f"{folder}: {len(missing):,} of {len(names):,} images cannot be read, such as {missing[0]}; "
            "`sniper check` names all of them"
        )
    return [digest for digest in found if digest is not None]
