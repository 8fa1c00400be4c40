"""Chips as a COCO data set: OUT/SPLIT/KEY.jpg and OUT/annotations/instances_SPLIT.json."""

import json
from collections.abc import Iterator, Sequence
from itertools import count
from typing import IO, Any

from pipeline.dataset.shards import read_rows
from pipeline.exchange.shard import KEY, ExportJob, Row, Tally, read_chips, read_keys, tally_of, total, xywh
from pipeline.exchange.written import Written
from pipeline.storage import Location, atomic_file, make_folder, write_together
from schemas.codes import IGNORED_NAMES
from schemas.tables import STORAGE

CARD = None  # no file names all splits


def prepare(out: Location, split: str) -> None:
    """Make the folders."""
    make_folder(out / split)
    make_folder(out / "annotations")


def written(out: Location, split: str) -> list[Written]:
    """Return what is written for a split."""
    return [
        Written(out / "annotations", rf"instances_{split}\.json", alone=False),
        Written(out / split, rf"{KEY}\.jpg"),
    ]


def shard_names(job: ExportJob) -> dict[Location, list[str]]:
    """Return the names of the files that `write_shard` writes, by their folder."""
    return {job.out / job.split: [f"{key}.jpg" for key in read_keys(job)]}


def write_shard(job: ExportJob) -> tuple[int, Tally]:
    """Write the images of a shard; return its position and what it holds."""
    tallies = []

    def images() -> Iterator[tuple[Location, bytes]]:
        for row, content in read_chips(job):
            tallies.append(tally_of(row))
            yield job.out / job.split / f"{row['key']}.jpg", content

    write_together(images())
    return job.number, total(tallies)


def finish(jobs: Sequence[ExportJob]) -> None:
    """Write the annotation file, reading the manifests one after the other, so that memory holds one shard's."""
    first = jobs[0]
    categories = [{"id": id_, "name": name} for id_, name in first.categories]
    with atomic_file(_annotations(first.out, first.split)) as file:
        file.write(b'{"info": {"description": "SNIPER chips"},\n"categories": ')
        file.write(json.dumps(categories).encode())
        _write_list(file, "images", _images(jobs))
        _write_list(file, "annotations", _boxes(jobs))
        file.write(b"}\n")


def _annotations(out: Location, split: str) -> Location:
    return out / "annotations" / f"instances_{split}.json"


def _write_list(file: IO[bytes], name: str, records: Iterator[dict[str, Any]]) -> None:
    file.write(f',\n"{name}": ['.encode())
    for number, record in enumerate(records):
        file.write((b",\n" if number else b"\n") + json.dumps(record).encode())
    file.write(b"]")


def _rows(jobs: Sequence[ExportJob]) -> Iterator[tuple[int, Row]]:
    """Yield every chip with its id, from 1 in the order of the shards."""
    ids = count(1)
    for job in jobs:
        for row in read_rows(job.manifest).drop_columns([field.name for field in STORAGE]).to_pylist():
            yield next(ids), row


def _images(jobs: Sequence[ExportJob]) -> Iterator[dict[str, Any]]:
    for id_, row in _rows(jobs):
        window = [row[name] for name in ("x1", "y1", "x2", "y2")]
        about = {"source_image_id": row["image_id"], "kind": row["kind"], "scale": row["scale"], "window": window}
        record = {"id": id_, "file_name": f"{row['key']}.jpg", "width": row["width"], "height": row["height"]}
        yield record | about


def _boxes(jobs: Sequence[ExportJob]) -> Iterator[dict[str, Any]]:
    ids = count(1)
    for image_id, row in _rows(jobs):
        for box in row["boxes"]:
            bbox = xywh(box)
            yield {
                "id": next(ids),
                "image_id": image_id,
                "category_id": box["category_id"],
                "bbox": bbox,
                "area": round(bbox[2] * bbox[3], 4),
                "iscrowd": int(box["status"] in IGNORED_NAMES),
                "status": box["status"],
                "visible": round(box["visible"], 4),
                "source_annotation_id": box["annotation_id"],
            }
