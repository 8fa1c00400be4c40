"""What `sniper detect` found, as one flat file for other programs: COCO results, JSON lines or CSV by the suffix.

    .json   COCO results: a list of image_id, category_id, bbox and score
    .jsonl  the same records with file and category behind them, one a line
    .csv    the columns COLUMNS

Boxes are x, y, width and height in source pixels. The ids are those of an annotation file where one is given, else
`image_id` is the file as the results name it, and `category_id` the id of the class in training.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.coco.records import SourceImage
from pipeline.engines.progress import log
from pipeline.storage import Location, atomic_file, read_range, refuse_foreign
from schemas.errors import UsageError
from trainer.inference.output import FINAL, LINES, Result

COCO_KEYS = ("image_id", "category_id", "bbox", "score")
COLUMNS = ("image_id", "category_id", "x", "y", "width", "height", "score", "file", "category")
"""Of a CSV file."""
BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    ".json": (b'[\n{"image_id": ', b"[\n]"),
    ".jsonl": (b'{"image_id": ',),
    ".csv": (",".join(COLUMNS).encode() + b"\n",),
}
"""How the files begin that are written here, by their suffixes; those of JSON lines may also be empty."""


def check_results(path: Location, out: Location | None) -> None:
    """Look, before any work, whether results can be written to a place.

    Args:
        path: file for the results.
        out: folder that `sniper detect` writes besides; None where it writes none.

    Raises:
        UsageError: the name has none of the suffixes, its folder cannot be written to, a file or folder of another
            origin is there, or the name is one that `out` has for a file of its own.
    """
    if path.suffix.lower() not in BEGINNINGS:
        raise UsageError(f"{path}: results are written as {', '.join(BEGINNINGS)}; give a name that ends so")
    if out is not None and path in (out / FINAL, out / LINES):
        raise UsageError(f"{path}: is a file of --out itself, one result for each image; choose another --results")
    refuse_foreign(path, _is_results, "`sniper detect --results`")


def _is_results(path: Location) -> bool:
    """Tell whether a file begins as those that are written here."""
    there = read_range(path, 0, 100)
    suffix = path.suffix.lower()
    return there.startswith(BEGINNINGS[suffix]) or (suffix == ".jsonl" and not there)


class Ids(NamedTuple):
    """What an annotation file calls images and classes.

    Attributes:
        images: id of each image, by its path as text.
        categories: id of each class, by its id in training; what the file does not have is missing.
    """

    images: dict[str, int]
    categories: dict[int, int]


def read_ids(annotations: Location, files: Sequence[Path], known: Sequence[tuple[int, str]]) -> Ids:
    """Find the ids that an annotation file gives to image files and to the classes of a network.

    A record is of a file whose path ends with the record's `file_name`; of several such records, the longest counts.
    Classes go by their names, as `sniper evaluate` takes them; a file without categories leaves their ids as they are.

    Args:
        annotations: COCO JSON file.
        files: the images.
        known: (source id, name) of the network's classes.

    Raises:
        DataError: the annotation file cannot be read, or has categories and none that the network knows.
        UsageError: it has no record of a file, or one record is of two files.
    """
    from pipeline.coco.read import read_coco  # detection without ids does without
    from trainer.inference.categories import match_categories

    source = read_coco(annotations)
    images = _image_ids(annotations, source.images(0, source.num_images), files)
    if not source.categories:
        return Ids(images, {id_: id_ for id_, _ in known})
    there, notes = match_categories(known, source.categories, annotations)
    pairs = list(zip(known, there, strict=True))
    if lacking := [f"{id_} ({name})" for (id_, name), found in pairs if found is None]:
        notes.append(f"has no category {', '.join(lacking)}: what is found of it is left out of --results")
    for note in notes:
        log.warning("%s: %s", annotations, note)
    return Ids(images, {id_: found for (id_, _), found in pairs if found is not None})


def _image_ids(annotations: Location, images: Sequence[SourceImage], files: Sequence[Path]) -> dict[str, int]:
    """Return the id of each file, by its path as text."""
    known = {Path(image.file_name).parts: image.image_id for image in images}
    longest = max(map(len, known), default=0)
    ids: dict[str, int] = {}
    owners: dict[int, Path] = {}
    missing = []
    for file in files:
        parts = file.parts
        ends = (parts[-length:] for length in range(min(longest, len(parts)), 0, -1))
        image_id = next((known[end] for end in ends if end in known), None)
        if image_id is None:
            missing.append(file)
            continue
        if owners.setdefault(image_id, file) != file:
            raise UsageError(
                f"{annotations}: the record of image {image_id} is of {owners[image_id]} and of {file}; give the "
                "folder that its file names are relative to, and no other"
            )
        ids[str(file)] = image_id
    if missing:
        raise UsageError(
            f"{annotations}: has no usable record of {len(missing):,} of {len(files):,} images, such as {missing[0]}; "
            "give the annotation file that lists them, or leave out --annotations: results then name the files"
        )
    return ids


def write_results(path: Location, results: Iterable[Result], ids: Ids | None) -> None:
    """Write the detections of images to a place that `check_results` has looked at, whole or not at all.

    Args:
        path: file to write; its suffix decides the form.
        results: of the images, as `trainer.inference.detect.detect` returns them; those with an error add nothing.
        ids: of the images and classes. A class that has none there is left out. None: the file stands for the id of
            the image, and classes have their ids of training.
    """
    records = _records(results, ids)
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        if path.suffix.lower() == ".csv":
            table = csv.writer(text, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows(
                (image_id, category_id, *bbox, *rest)
                for image_id, category_id, bbox, *rest in map(dict.values, records)
            )
        else:
            is_list = path.suffix.lower() == ".json"
            text.write("[\n" if is_list else "")
            number = 0
            for number, record in enumerate(records, start=1):
                written = {key: record[key] for key in COCO_KEYS} if is_list else record
                line = json.dumps(written, ensure_ascii=False)
                text.write((",\n" if number > 1 and is_list else "") + line + ("" if is_list else "\n"))
            text.write(("\n" if number else "") + "]\n" if is_list else "")
        text.detach()  # whoever has opened the file closes it


def _records(results: Iterable[Result], ids: Ids | None) -> Iterator[dict[str, Any]]:
    """Yield a record for each detection: those of COCO results, with the file and the class behind them."""
    for result in results:
        for found in result.get("detections", ()):
            file, category_id = result["file"], found["category_id"]
            if ids is not None and category_id not in ids.categories:
                continue
            yield {
                "image_id": file if ids is None else ids.images[file],
                "category_id": category_id if ids is None else ids.categories[category_id],
                "bbox": found["bbox"],
                "score": found["score"],
                "file": file,
                "category": found["category"],
            }
