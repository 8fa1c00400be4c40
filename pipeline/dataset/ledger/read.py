"""Read back from its ledger what `sniper chips` kept of its input, by row groups."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.coco import SourceImage
from pipeline.coco.source import Source, find_ids
from pipeline.storage import Location, local_copy
from pipeline.storage.parquet import read_frame
from schemas.arrays import IntArray
from schemas.codes import Fate
from schemas.errors import DataError, MissingError
from schemas.tables import CORNERS

IMAGE_COLUMNS = ["image_id", "file_name", "width", "height", "state", "hash"]
BOX_COLUMNS = ["image_id", "row", "annotation_id", "category_id", *CORNERS, "fate"]


class Kept(NamedTuple):
    """The kept images of a data set and their boxes.

    Attributes:
        source: the images and boxes as columns, without what was refused.
        hashes: string [n], XXH3-128 of the file that each image's chips were cut from, hex.
        refused: int64 [r], ids of refused images.
    """

    source: Source
    hashes: pa.StringArray
    refused: IntArray


def read_kept(data: Location, digests: dict[str, str] | None = None) -> Kept:
    """Read images.parquet, annotations.parquet and categories.parquet of a finished data set.

    Args:
        data: the data set.
        digests: SHA-256, hex, that each file must have, by name, as its build record gives it; None: any.

    Raises:
        DataError: a file is missing or damaged, or is not the one that the build wrote. OSError: it cannot be read.
    """
    with _opened(data / "categories.parquet", digests) as file:
        categories = file.read()
    known, labels = categories["id"].to_numpy(), categories["label"].to_numpy()
    images, refused = _images(data / "images.parquet", digests)
    image_id = images["image_id"].to_numpy()
    path = data / "annotations.parquet"
    with _opened(path, digests) as file:
        room = file.metadata.num_rows
        row, annotation_id, label = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int32)
        box, crowd = np.empty((room, 4)), np.empty(room, np.bool_)
        num_boxes = np.zeros(len(image_id), np.int64)
        stop = last = 0
        for rows in _groups(file, BOX_COLUMNS):
            at, some = _of_images(rows.filter(rows["x1"].is_valid()), image_id)  # a refused box has no place
            if (np.diff(at, prepend=last) < 0).any():
                raise DataError(f"{path}: is not ordered by image; delete it and run `sniper chips`")
            here = slice(stop, stop + len(at))
            row[here], annotation_id[here] = some["row"].to_numpy(), some["annotation_id"].to_numpy()
            label[here] = labels[np.searchsorted(known, some["category_id"].to_numpy())]
            for i, name in enumerate(CORNERS):
                box[here, i] = some[name].to_numpy()
            crowd[here] = pc.equal(some["fate"], Fate.CROWD.name.lower()).to_numpy()
            positions, counts = np.unique(at, return_counts=True)
            num_boxes[positions] += counts
            stop, last = here.stop, at[-1] if len(at) else last
    source = Source(
        image_id=image_id,
        file_name=images["file_name"].cast(pa.large_string()).combine_chunks(),
        width=images["width"].to_numpy().astype(np.int64),
        height=images["height"].to_numpy().astype(np.int64),
        offsets=np.append(0, np.cumsum(num_boxes)),
        row=row[:stop],
        annotation_id=annotation_id[:stop],
        label=label[:stop],
        box=box[:stop],
        crowd=crowd[:stop],
        categories=list(zip(known.tolist(), categories["name"].to_pylist(), strict=True)),
    )
    return Kept(source, images["hash"].combine_chunks(), refused)


def read_categories(data: Location) -> list[tuple[int, str]]:
    """Read the categories of a data set, (id, name), by label from 1.

    Raises:
        DataError: categories.parquet is missing or damaged. OSError: it cannot be read.
    """
    table = read_frame(data / "categories.parquet").sort("label")
    return list(table.select("id", "name").iter_rows())


def _images(path: Location, digests: dict[str, str] | None) -> tuple[pa.Table, IntArray]:
    """Read the kept images, by id, and the ids of the refused ones."""
    with _opened(path, digests) as file:
        kept, refused = [file.schema_arrow.empty_table().select(IMAGE_COLUMNS)], [np.empty(0, np.int64)]
        for rows in _groups(file, IMAGE_COLUMNS):
            is_kept = pc.equal(rows["state"], "kept")
            kept.append(rows.filter(is_kept))
            refused.append(rows["image_id"].filter(pc.invert(is_kept)).drop_null().to_numpy())
    return pa.concat_tables(kept), np.concatenate(refused)


def _groups(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.Table]:
    """Read a file by its row groups: less stays in memory than with iter_batches, and than with threads."""
    for index in range(file.num_row_groups):
        yield file.read_row_group(index, columns=columns, use_threads=False)
        pa.default_memory_pool().release_unused()


def _of_images(boxes: pa.Table, image_id: IntArray) -> tuple[IntArray, pa.Table]:
    """Return the boxes of known images alone, and for each the position of its image among the sorted ids."""
    at, is_known = find_ids(image_id, boxes["image_id"].to_numpy())
    return at[is_known], boxes.filter(pa.array(is_known))


@contextmanager
def _opened(path: Location, digests: dict[str, str] | None) -> Iterator[pq.ParquetFile]:
    try:
        with local_copy(path) as copy:
            with copy.open("rb") as content:  # a missing file is refused here
                digest = hashlib.file_digest(content, "sha256").hexdigest() if digests is not None else None
            if digests is not None and digest != digests.get(path.name):
                raise DataError(
                    f"{path}: is not the file that the chips were made with (its SHA-256 is not the one in run.json); "
                    "delete it and run `sniper chips`"
                )
            try:
                with pq.ParquetFile(copy) as file:
                    yield file
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{path}: is damaged: {error}; delete it and run `sniper chips`") from error
    except FileNotFoundError as error:
        raise MissingError(f"{path}: is missing; run `sniper chips`") from error


def kept_images(data: Location) -> list[SourceImage]:
    """Read the images of a data set that were not refused, by id.

    Raises:
        DataError: images.parquet is missing or damaged. OSError: it cannot be read.
    """
    table = read_frame(data / "images.parquet").filter(pl.col("state") == "kept").sort("image_id")
    return [SourceImage(*row) for row in table.select("image_id", "file_name", "width", "height").iter_rows()]
