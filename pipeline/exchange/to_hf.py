"""Chips as a data set of Hugging Face: OUT/data/SPLIT-00000-of-00042.parquet, each with its images in it."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.coco.records import class_names
from pipeline.exchange.shard import ExportJob, Row, Tally, read_chips, tally_of, total, xywh
from pipeline.exchange.written import Written
from pipeline.storage import Location, atomic_file, files_in, make_folder, write_atomic
from schemas.codes import IGNORED_NAMES

CARD = "README.md"  # names all splits
ROWS = 100  # chips of a row group: what a reader holds at a time

OBJECTS = pa.struct(
    [
        ("id", pa.list_(pa.int64())),
        ("category", pa.list_(pa.int64())),  # from 0, in the order of the names
        ("bbox", pa.list_(pa.list_(pa.float32()))),  # x y width height, pixels of the chip
        ("area", pa.list_(pa.float32())),
        ("iscrowd", pa.list_(pa.bool_())),  # nothing is to be learnt from it
        ("status", pa.list_(pa.string())),
    ]
)
SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image_id", pa.int64()),  # of the source image
        ("key", pa.string()),
        ("kind", pa.string()),
        ("scale", pa.float64()),
        ("window", pa.list_(pa.float64())),  # x1 y1 x2 y2, pixels of the source image
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("objects", OBJECTS),
    ]
)


def prepare(out: Location, split: str) -> None:
    """Make the folder."""
    make_folder(out / "data")


def written(out: Location, split: str) -> list[Written]:
    """Return what is written for a split."""
    return [Written(out / "data", rf"{split}-\d{{5,}}-of-\d{{5,}}\.parquet", alone=False)]


def shard_names(job: ExportJob) -> dict[Location, list[str]]:
    """Return the name of the file that `write_shard` writes, by its folder."""
    return {job.out / "data": [f"{job.split}-{job.number:05d}-of-{job.num_shards:05d}.parquet"]}


def write_shard(job: ExportJob) -> tuple[int, Tally]:
    """Write the Parquet file of a shard, a few chips at a time; return its position and what it holds."""
    ((folder, (name,)),) = shard_names(job).items()
    features = _features(class_names(job.categories))
    schema = SCHEMA.with_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})
    tallies: list[Tally] = []
    with atomic_file(folder / name) as file, pq.ParquetWriter(file, schema) as writer:
        for rows in _groups(job):
            tallies += map(tally_of, rows)
            writer.write_table(pa.Table.from_pylist([_record(row) for row in rows], schema))
    return job.number, total(tallies)


def finish(jobs: Sequence[ExportJob]) -> None:
    """Write the card of the data set, which says where its files are."""
    card = "---\ntask_categories:\n- object-detection\nconfigs:\n- config_name: default\n  data_files:\n"
    out = jobs[0].out
    splits = sorted({path.name.rsplit("-", 3)[0] for path in files_in(out / "data", "*-of-*.parquet")})
    for split in splits:
        card += f"  - split: {split}\n    path: data/{split}-*\n"
    write_atomic(out / CARD, f"{card}---\n\nChips, made by `sniper export`.\n".encode())


def _groups(job: ExportJob) -> Iterator[list[Row]]:
    """Yield the rows of a shard, ROWS at a time, each with the bytes of its image."""
    rows: list[Row] = []
    for row, content in read_chips(job):
        rows.append(row | {"content": content})
        if len(rows) == ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


def _record(row: Row) -> dict[str, Any]:
    boxes = row["boxes"]
    places = [xywh(box) for box in boxes]
    return {
        "image": {"bytes": row["content"], "path": f"{row['key']}.jpg"},
        "image_id": row["image_id"],
        "key": row["key"],
        "kind": row["kind"],
        "scale": row["scale"],
        "window": [row[name] for name in ("x1", "y1", "x2", "y2")],
        "width": row["width"],
        "height": row["height"],
        "objects": {
            "id": [box["annotation_id"] for box in boxes],
            "category": [box["label"] - 1 for box in boxes],
            "bbox": places,
            "area": [width * height for _, _, width, height in places],
            "iscrowd": [box["status"] in IGNORED_NAMES for box in boxes],
            "status": [box["status"] for box in boxes],
        },
    }


def _features(names: Sequence[str]) -> dict[str, Any]:
    """Describe the columns as `datasets` keeps them in the metadata of a Parquet file."""

    def value(dtype: str) -> dict[str, Any]:
        return {"dtype": dtype, "_type": "Value"}

    def several(feature: dict[str, Any]) -> dict[str, Any]:
        return {"feature": feature, "_type": "Sequence"}

    return {
        "image": {"_type": "Image"},
        "image_id": value("int64"),
        "key": value("string"),
        "kind": value("string"),
        "scale": value("float64"),
        "window": several(value("float64")),
        "width": value("int64"),
        "height": value("int64"),
        "objects": {
            "id": several(value("int64")),
            "category": several({"names": list(names), "_type": "ClassLabel"}),
            "bbox": several(several(value("float32"))),
            "area": several(value("float32")),
            "iscrowd": several(value("bool")),
            "status": several(value("string")),
        },
    }
