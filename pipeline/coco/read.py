"""Reads COCO annotation files of any size into columns, in one pass, and checks every list to its end."""

import posixpath
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.coco.checks import remarks
from pipeline.coco.checks.annotations import Annotations
from pipeline.coco.checks.boxes import FileRecords, Tally, check_boxes
from pipeline.coco.checks.categories import Categories, check_categories, merged
from pipeline.coco.checks.images import Images, check_images
from pipeline.coco.checks.values import ABSENT, Seen
from pipeline.coco.records import Reject
from pipeline.coco.source import Source, no_refused_images, no_rejects
from pipeline.coco.stream import JsonText, NotJsonError
from pipeline.coco.text import NO_TEXT, blocks, encodings, opened
from pipeline.storage import Location, local_copy
from schemas.errors import DataError, MissingError, UsageError

LISTS = ("images", "annotations", "categories")
NOT_COCO = "expected a COCO object with the lists images, annotations and categories"


class _Lists(NamedTuple):
    """What one file holds; its annotations are rows start to stop of those of all files."""

    images: Images
    categories: Categories
    start: int
    stop: int


def read_coco(
    places: Location | Sequence[Location],
    max_pixels: int | None = None,
    ignore_categories: Collection[str] = (),
    *,
    folders: Sequence[str] = (),
    as_written: bool = False,
    of_training: bool = False,
) -> Source:
    """Read and check COCO annotation files as one data set.

    Single records that are wrong are refused with a reason and lose nothing else. Files may be packed by gzip or zip,
    in UTF-8, UTF-16, UTF-32 or GB18030.

    Of several files, categories are joined by name, rows count through all files, and image ids are kept apart: those
    of file k (from 0) have k times a power of ten added, the least that keeps them apart.

    Memory: 57 bytes per box and some 100 per image with its name; some 150 for every refused record.

    Args:
        places: annotation files.
        max_pixels: refuse images annotated with more; their files would be refused, and planning them costs memory.
        ignore_categories: names of categories whose boxes are regions that nobody labelled; read as crowd.
        folders: for each file the folder below the image folder that its file names are relative to, such as
            `day/front`, or "" for the image folder itself; without any, all names are relative to the image folder.
        as_written: keep the boxes as their records give them, with the field `area`: 80 more bytes per box.
        of_training: ignore_categories are those of chips that were trained on, and the file may lack them.

    Raises:
        DataError: a file as a whole cannot be trusted: it cannot be read, is no JSON, lacks a list or has one twice,
            has no images, has boxes and no categories, or has two images or categories that differ and have one id.
            All that is wrong in the lists is named at once. Or two files name the same image.
        UsageError: no category has one of the names in ignore_categories, and they are not those of a training.
    """
    places = places if isinstance(places, Sequence) else [places]
    records, seen = Annotations(with_area=as_written), Seen()
    found = [_read_file(place, records, max_pixels, seen) for place in places]
    if folders:
        pairs = zip(found, folders, strict=True)
        found = [lists._replace(images=lists.images.below(folder)) for lists, folder in pairs]
    categories = merged([lists.categories for lists in found])
    files = _files(found, places, categories)
    file_name = pa.concat_arrays([file.images.file_name for file in files])
    if len(files) > 1:
        _refuse_shared(file_name)
    rejects = no_rejects()
    for file in files:
        for fault in file.images.faults:
            message = f"{file.name}images[{fault.row}]: {fault.message}"
            refused = fault.refused(file.shift)
            rejects.append(Reject("image", refused.id, refused.file_name, refused.reason, message))
    tally = Tally()
    boxes = check_boxes(records, files, rejects, tally)
    if not of_training:
        _refuse_unknown(ignore_categories, categories)
    is_ignored = np.array([False, *(name in ignore_categories for _, name in categories)])
    if is_ignored.any():
        boxes.crowd[:] |= is_ignored[boxes.label]
    used = records.category_ids.keys() - {ABSENT} if len(files) == 1 else ()
    return Source(
        image_id=_joined([file.images.image_id + file.shift for file in files]),
        file_name=file_name,
        width=_joined([file.images.width for file in files]),
        height=_joined([file.images.height for file in files]),
        offsets=boxes.offsets,
        row=boxes.row,
        annotation_id=boxes.annotation_id,
        label=boxes.label,
        box=boxes.box,
        crowd=boxes.crowd,
        categories=categories,
        rejects=rejects,
        refused_images=no_refused_images().plus(
            fault.refused(file.shift) for file in files for fault in file.images.faults
        ),
        refused_boxes=boxes.refused,
        num_clipped=boxes.num_clipped,
        notes=[*seen.lines(), *remarks.notes(categories, boxes, files)],
        warnings=remarks.warnings(categories, used, ignore_categories, boxes, tally),
        as_written=boxes.as_written,
        ignored=[id_ for id_, name in categories if name in ignore_categories],
    )


def _refuse_shared(file_name: pa.Array) -> None:
    """Refuse files that name the same image: each would take the boxes of the other for background."""
    counts = pc.value_counts(pa.array(map(posixpath.normpath, file_name.to_pylist()), pa.large_string()))
    shared = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(shared):
        raise DataError(
            f"{len(shared):,} images are named by more than one of the annotation files, first {shared[0]}; merge the "
            "records of those files, or give the image folder of each, --images beside --annotations"
        )


def _refuse_unknown(ignored: Collection[str], known: list[tuple[int, str]]) -> None:
    """Refuse names of ignore categories that no category has: their boxes would become targets or background.

    Raises:
        UsageError: there are such names.
    """
    names = {name for _, name in known}
    if strange := sorted(set(ignored) - names):
        raise UsageError(
            f"chips.ignore_categories names {', '.join(map(repr, strange))}, which no category is called; "
            f"there are {', '.join(map(repr, sorted(names))) or 'none'}"
        )


def _joined(columns: list[Any]) -> Any:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


def _files(found: list[_Lists], places: Sequence[Location], categories: list[tuple[int, str]]) -> list[FileRecords]:
    """Return the files with what keeps them apart."""
    label_of_name = {name: label for label, (_, name) in enumerate(categories, 1)}
    label_of_id = {category_id: label for label, (category_id, _) in enumerate(categories, 1)}
    ids = [abs(int(i)) for lists in found for i in _ends(lists.images.image_id)]
    refused = [abs(fault.id) for lists in found for fault in lists.images.faults if fault.id is not None]
    ids += [i for i in refused if i * 100 * len(found) < -ABSENT]  # an id beyond that may be what is wrong
    step = 10 ** (len(str(max(ids, default=0))) + 1)
    if len(found) > 1 and step * len(found) > -ABSENT:
        raise DataError(
            f"{places[0]} and others: image ids are too large to keep those of {len(found)} files apart; give the "
            f"images smaller ids, the largest is {max(ids)}"
        )
    files, first_image = [], 0
    for k, (lists, place) in enumerate(zip(found, places, strict=True)):
        name = f"{place}: " if len(found) > 1 else ""
        labels = label_of_id if len(found) == 1 else {i: label_of_name[name] for i, name in lists.categories.known}
        files.append(FileRecords(lists.start, lists.stop, lists.images, first_image, k * step, labels, name))
        first_image += len(lists.images.image_id)
    return files


def _ends(ids: Any) -> Any:
    return ids[[0, -1]] if len(ids) else ids


def _read_file(place: Location, records: Annotations, max_pixels: int | None, seen: Seen) -> _Lists:
    mark = records.mark()
    try:
        with local_copy(place) as path, opened(path) as file:
            for encoding in encodings(file):
                records.cut(mark)
                of_file = Seen()
                with suppress(UnicodeDecodeError):
                    found = _read_lists(blocks(file, encoding), records, max_pixels, of_file)
                    seen.update(of_file)
                    break
            else:
                raise DataError(NO_TEXT)
            if encoding == "gb18030":
                seen.add("{count} file is not in UTF-8; its text was read as GBK (GB18030)")
            return found
    except NotJsonError as error:
        raise DataError(
            f"{place}: is not valid JSON (truncated, or another format?): {error}. Expected a COCO annotation file."
        ) from error
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    except FileNotFoundError as error:
        raise MissingError(f"{place}: no such annotation file") from error
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error.strerror or error}") from error


def _read_lists(text: Iterator[str], records: Annotations, max_pixels: int | None, seen: Seen) -> _Lists:
    """Read the three lists, each to its end: whether the file is JSON at all is known only then."""
    first = next(text)
    if not first.strip():
        raise DataError(f"is empty; {NOT_COCO}")
    if first.startswith("version https://git-lfs"):
        raise DataError("is a Git-LFS pointer, not the annotation file itself; fetch it with `git lfs pull`")
    start = records.mark()
    present: dict[str, Any] = {}
    keys = []
    for key, value in JsonText(chain([first], text)).members():
        if key in LISTS and key in keys:
            raise DataError(f"the key `{key}` stands twice at the top level; merge both lists into one")
        keys.append(key)
        if key not in LISTS or value is None:
            continue
        if not isinstance(value, Iterator):
            raise DataError(f"{NOT_COCO}: {key} is no list")
        if key == "images":
            present[key] = check_images(value, max_pixels, seen)
        elif key == "categories":
            present[key] = check_categories(value, seen)
        else:
            records.extend(value, seen)
            present[key] = None  # they are in the records
    _check_lists(keys, present, len(records) - start[0])
    return _Lists(present["images"], present["categories"], start[0], len(records))


def _check_lists(keys: list[str], present: dict[str, Any], num_annotations: int) -> None:
    """Raise DataError where the lists cannot be used as a whole."""
    if keys == [""]:
        raise DataError(
            f"{NOT_COCO}, found something else, such as a list of detections. Convert other formats to COCO first."
        )
    if missing := [f"`{name}`" for name in LISTS if name not in present]:
        raise DataError(
            f"has no {' and no '.join(missing)}; a COCO file needs images, annotations and categories"
            + ("; it looks like an image_info file, which names images alone" if missing == ["`annotations`"] else "")
        )
    images, categories = present["images"], present["categories"]
    if not images.num_records:
        raise DataError("`images` is empty; expected one record per image file")
    if num_annotations and not categories.num_records:
        raise DataError("`categories` is empty but there are annotations; expected their categories")
    if faults := [*images.repeated, *categories.faults]:
        # to drop single records would pair boxes with wrong images or classes
        raise DataError("cannot be used as a whole:\n" + "\n".join(f"  {fault}" for fault in faults))
    if not len(images.image_id) and all(fault.id is None for fault in images.faults):
        fault = next(iter(images.faults))
        raise DataError(f"none of its {images.num_records} images can be used; images[{fault.row}] {fault.message}")
