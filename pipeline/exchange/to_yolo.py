"""Chips as a YOLO data set: OUT/images/SPLIT/KEY.jpg, OUT/labels/SPLIT/KEY.txt and OUT/data.yaml."""

import io
from collections.abc import Iterator, Sequence

import numpy as np
import yaml
from PIL import Image

from pipeline.coco.records import class_names
from pipeline.engines.progress import log
from pipeline.exchange.records import read_records
from pipeline.exchange.shard import KEY, ExportJob, Row, Tally, read_chips, read_keys, split_boxes, tally_of, total
from pipeline.exchange.written import Written
from pipeline.images.chip import encode_jpeg
from pipeline.storage import Location, is_folder, make_folder, write_atomic, write_together

CARD = "data.yaml"  # names all splits
GREY = 114  # of blanked pixels, with which YOLO pads images, too
NEEDED = ("train", "val")  # splits without which YOLO refuses a data.yaml


def prepare(out: Location, split: str) -> None:
    """Make the folders."""
    make_folder(out / "images" / split)
    make_folder(out / "labels" / split)


def written(out: Location, split: str) -> list[Written]:
    """Return what is written for a split."""
    return [Written(out / "images" / split, rf"{KEY}\.jpg"), Written(out / "labels" / split, rf"{KEY}\.txt")]


def shard_names(job: ExportJob) -> dict[Location, list[str]]:
    """Return the names of the files that `write_shard` writes, by their folder."""
    keys = read_keys(job)
    return {
        job.out / "images" / job.split: [f"{key}.jpg" for key in keys],
        job.out / "labels" / job.split: [f"{key}.txt" for key in keys],
    }


def write_shard(job: ExportJob) -> tuple[int, Tally]:
    """Write images and labels of a shard; return its position and what it holds."""
    tallies = []

    def files() -> Iterator[tuple[Location, bytes]]:
        for row, content in read_chips(job):
            objects, ignored = split_boxes(row)
            blanked = bool(ignored) and job.blank
            if blanked:
                content = _blank(content, ignored, objects, job.jpeg)
            lines = [_label(box, row["width"], row["height"]) for box in objects]
            tallies.append(tally_of(row, blanked=blanked))
            yield job.out / "images" / job.split / f"{row['key']}.jpg", content
            yield job.out / "labels" / job.split / f"{row['key']}.txt", "".join(lines).encode()

    write_together(files())
    return job.number, total(tallies)


def finish(jobs: Sequence[ExportJob]) -> None:
    """Write data.yaml with all splits that are there. Its paths are relative to it."""
    out = jobs[0].out
    exported = [split for split, record in read_records(out).items() if record.format == "yolo"]
    splits = sorted((split for split in exported if is_folder(out / "images" / split)), key=_rank)
    paths = {split: f"images/{split}" for split in splits}
    for needed in NEEDED:
        if needed not in splits:
            log.info("%s: there is no split %s yet; data.yaml names %s for it", out, needed, splits[0])
            paths[needed] = f"images/{splits[0]}"
    names = dict(enumerate(class_names(jobs[0].categories)))
    content = yaml.safe_dump(paths | {"names": names}, sort_keys=False, allow_unicode=True)
    write_atomic(out / CARD, content.encode())


def _rank(split: str) -> int:
    """Put test last: no model is to be trained on its images, or chosen by them, while there are others."""
    return {"train": 0, "val": 1, "test": 3}.get(split, 2)


def _label(box: Row, width: int, height: int) -> str:
    """Return the line of a box: class from 0, then centre and size as shares of the image."""
    x1, y1, x2, y2 = (box[name] for name in ("x1", "y1", "x2", "y2"))
    shares = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
    return " ".join([str(box["label"] - 1), *(f"{share:.7f}" for share in shares)]) + "\n"


def _blank(content: bytes, regions: Sequence[Row], objects: Sequence[Row], jpeg: tuple[int, str]) -> bytes:
    """Paint over regions of a chip, except where an object lies in them, and encode it anew."""
    picture = Image.open(io.BytesIO(content))
    pixels = np.array(picture.convert("RGB"))
    is_blank = np.zeros(pixels.shape[:2], np.bool_)
    for boxes, value in ((regions, True), (objects, False)):
        for box in boxes:
            low_x, low_y = int(box["x1"]), int(box["y1"])
            is_blank[low_y : int(np.ceil(box["y2"])), low_x : int(np.ceil(box["x2"]))] = value
    pixels[is_blank] = GREY
    return encode_jpeg(pixels, *jpeg)
