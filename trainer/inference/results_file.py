"""What `sniper detect` found, as one flat file for other programs: COCO results, JSON lines or CSV by the suffix.

    .json   COCO results: a list of image_id, category_id, bbox and score
    .jsonl  the same records with file and category behind them, one a line
    .csv    the columns COLUMNS

Boxes are x, y, width and height in source pixels. `image_id` is that of an annotation file where one is given, else
the file as the results name it.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.storage import Location, atomic_file, read_range, refuse_foreign
from schemas.errors import UsageError
from trainer.inference.output import FINAL, LINES, Result

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


def image_ids(annotations: Location, files: Sequence[Path]) -> dict[str, int]:
    """Find the ids that an annotation file gives to image files.

    A record is of a file whose path ends with the record's `file_name`; of several such records, the longest counts.

    Args:
        annotations: COCO JSON file.
        files: the images.

    Returns:
        The id of each file, by its path as text.

    Raises:
        DataError: the annotation file cannot be read.
        UsageError: it has no record of a file, or one record is of two files.
    """
    from pipeline.coco.read import read_coco  # detection without ids does without

    source = read_coco(annotations)
    images = source.images(0, source.num_images)
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


def write_results(path: Location, results: Iterable[Result], ids: Mapping[str, int] | None) -> None:
    """Write the detections of images to a place that `check_results` has looked at, whole or not at all.

    Args:
        path: file to write; its suffix decides the form.
        results: of the images, as `trainer.inference.detect.detect` returns them; those with an error add nothing.
        ids: of the images, by their files; None: the file stands for the id.
    """
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        if path.suffix.lower() == ".csv":
            table = csv.writer(text, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows(_row(result, found, ids) for result in results for found in result.get("detections", ()))
        else:
            is_list = path.suffix.lower() == ".json"
            text.write("[\n" if is_list else "")
            number = 0
            for result in results:
                for found in result.get("detections", ()):
                    record = json.dumps(_record(result, found, ids, named=not is_list), ensure_ascii=False)
                    text.write((",\n" if number and is_list else "") + record + ("" if is_list else "\n"))
                    number += 1
            text.write(("\n" if number else "") + "]\n" if is_list else "")
        text.detach()  # whoever has opened the file closes it


def _record(result: Result, found: dict[str, Any], ids: Mapping[str, int] | None, *, named: bool) -> dict[str, Any]:
    """Return a detection as a record of COCO results; with `named` the file and the class stand behind it."""
    record = {"image_id": _id(result, ids), "category_id": found["category_id"]}
    record |= {"bbox": found["bbox"], "score": found["score"]}
    return record | ({"file": result["file"], "category": found["category"]} if named else {})


def _row(result: Result, found: dict[str, Any], ids: Mapping[str, int] | None) -> tuple[Any, ...]:
    numbers = _id(result, ids), found["category_id"], *found["bbox"], found["score"]
    return *numbers, result["file"], found["category"]


def _id(result: Result, ids: Mapping[str, int] | None) -> int | str:
    file: str = result["file"]
    return file if ids is None else ids[file]
