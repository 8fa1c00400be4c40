"""The tables of a chip data set as lazy Polars frames, so that any question about it is one expression."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from pipeline.dataset.build_file import NAME, NEGATIVES, finished_builds
from pipeline.dataset.shards import shard_files
from pipeline.storage import Location, is_file, location, read_all

SIZE = ((pl.col("x2") - pl.col("x1")) * (pl.col("y2") - pl.col("y1"))).sqrt()


class Manifests(NamedTuple):
    """A chip data set as lazy frames. `schemas/tables.py` says what each column means.

    Attributes:
        chips: a row per chip, schema MANIFEST: positives, then the finished pool of negatives.
        boxes: a row per box of each chip, in chip pixels: `key`, `image_id`, `kind`, `scale_index` and `scale` of the
            chip, the fields of BOX, `category`, the name of its class, and `size`, sqrt(width * height) of what the
            chip shows of it.
        images: a row per image, schema IMAGES.
        annotations: a row per box of the annotation file, schema ANNOTATIONS, in source pixels, with its `category`
            and `size`.
    """

    chips: pl.LazyFrame
    boxes: pl.LazyFrame
    images: pl.LazyFrame
    annotations: pl.LazyFrame


def manifests(data: Location | str) -> Manifests:
    """Open the tables of a chip data set, on a disk or in a bucket. Nothing is read from a disk before `collect`.

    Args:
        data: folder that `sniper chips` wrote. Its name is taken literally, brackets and stars included.

    Raises:
        DataError: there are no finished chips in it, or its pool of negatives belongs to other chips.
        OSError: a bucket cannot be read.
    """
    data = location(data)
    builds = finished_builds(data, pool=is_file(data / NEGATIVES / NAME))
    chips = scan([file for folder in builds for file in shard_files(data / folder, ".parquet")])
    classes = scan([data / "categories.parquet"]).select(pl.col("id").alias("category_id"), category="name")
    return Manifests(
        chips=chips,
        boxes=chip_boxes(chips).join(classes, on="category_id", how="left", maintain_order="left"),
        images=scan([data / "images.parquet"]),
        annotations=scan([data / "annotations.parquet"])
        .join(classes, on="category_id", how="left", maintain_order="left")
        .with_columns(size=SIZE),
    )


def scan(files: Sequence[Location]) -> pl.LazyFrame:
    """Scan Parquet files of one schema as one lazy frame, in order.

    No name is taken for a pattern. Files of a bucket are read at once and kept as they are, since Polars would read
    the bucket with settings of its own.
    """
    on_disk = [file for file in files if isinstance(file, Path)]
    return pl.scan_parquet(on_disk or list(read_all(files)), glob=False, hive_partitioning=False)


def chip_boxes(chips: pl.LazyFrame) -> pl.LazyFrame:
    """Turn chips into a row per box of each chip, with its `size` in chip pixels."""
    return (
        chips.select("key", "image_id", "kind", "scale_index", "scale", "boxes")
        .filter(pl.col("boxes").list.len() > 0)
        .explode("boxes")
        .unnest("boxes")
        .with_columns(size=SIZE)
    )
