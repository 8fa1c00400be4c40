"""Write what became of every image and box: images, annotations, categories and rejects.parquet.

They are written some thousand rows at a time, so that memory holds no whole table.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.coco import Reject
from pipeline.coco.source import RefusedBox, RefusedImage
from pipeline.dataset.build_file import NAME
from pipeline.dataset.ledger.summary import Summary, mask_to_scales
from pipeline.storage import HashingFile, Location, atomic_file, is_file, remove
from schemas.arrays import IntArray
from schemas.codes import FATE_NAMES, UNCOVERED, Fate
from schemas.tables import ANNOTATIONS, CATEGORIES, IMAGES, REJECTS

ROWS = 1 << 14  # of a row group


def write_ledger(
    folder: Location, summary: Summary, rejects: Iterable[Reject], known: dict[str, str]
) -> dict[str, str]:
    """Write the four files. Their bytes are a function of the summary and the rejects alone.

    Args:
        folder: the data set.
        summary: what the build did.
        rejects: those found while cutting; those found while reading are in the summary's source.
        known: SHA-256, hex, of the files that stand in the folder, by name. A file that comes out the same stays as
            it is. Before any other takes its name the build record goes, for it speaks of the old one.

    Returns:
        SHA-256, hex, of the files as they are now, by name.

    Raises:
        DataError: they cannot be written.
    """
    categories = pa.Table.from_pylist(
        [{"id": i, "name": name, "label": label} for label, (i, name) in enumerate(summary.source.categories, 1)],
        CATEGORIES,
    )
    contents: dict[str, tuple[pa.Schema, Iterable[pa.Table]]] = {
        "images.parquet": (IMAGES, _images(summary)),
        "annotations.parquet": (ANNOTATIONS, _annotations(summary)),
        "categories.parquet": (CATEGORIES, [categories]),
        "rejects.parquet": (REJECTS, _rejects(chain(summary.source.rejects, rejects))),
    }
    return {
        name: _write(folder / name, schema, tables, known.get(name), folder / NAME)
        for name, (schema, tables) in contents.items()
    }


class _UnchangedError(Exception):
    """Ends the writing of a file that stands already."""


def _write(
    place: Location, schema: pa.Schema, tables: Iterable[pa.Table], known: str | None, build_file: Location
) -> str:
    """Write a Parquet file, each table a row group, unless it stands already; return its SHA-256."""
    with suppress(_UnchangedError), atomic_file(place) as file:
        hashing = HashingFile(file)
        with pq.ParquetWriter(hashing, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table, row_group_size=ROWS)
                pa.default_memory_pool().release_unused()
        if hashing.hexdigest() == known and is_file(place):
            raise _UnchangedError
        remove(build_file)
    return hashing.hexdigest()


def _images(summary: Summary) -> Iterator[pa.Table]:
    """Yield kept images and those refused while cutting, by id; then the refused records in file order."""
    source = summary.source
    for start in range(0, source.num_images, ROWS):
        here = slice(start, min(start + ROWS, source.num_images))
        reasons = [summary.reason.get(i) for i in range(here.start, here.stop)]
        no_hash = ~summary.has_hash[here]
        digits = [bytes(digest).hex() for digest in summary.hash[here]]
        columns = [
            source.image_id[here],
            source.file_name[here].cast(pa.string()),
            source.width[here],
            source.height[here],
            ["refused" if reason else "kept" for reason in reasons],
            reasons,
            pa.array(digits, pa.string(), mask=no_hash),
            np.diff(source.offsets[here.start : here.stop + 1]),
            summary.num_chips[here],
        ]
        yield _table(columns, IMAGES)
    for some in _batches(source.refused_images):
        yield _table(list(zip(*map(_refused_image, some), strict=True)), IMAGES)


def _refused_image(image: RefusedImage) -> tuple[Any, ...]:
    """Return a row of images.parquet."""
    image_id, file_name, width, height, reason = image
    return image_id, file_name, width, height, "refused", reason, None, 0, 0


def _annotations(summary: Summary) -> Iterator[pa.Table]:
    """Yield one row per source box, with its fate: sound boxes by image and row, then the others by row."""
    source = summary.source
    for start in range(0, len(source.row), ROWS):
        here = slice(start, min(start + ROWS, len(source.row)))
        image = np.searchsorted(source.offsets, np.arange(here.start, here.stop), "right") - 1
        box = source.box[here]
        fate = summary.fate[here]
        columns = [
            source.row[here],
            source.annotation_id[here],
            source.image_id[image],
            source.category_of_label[source.label[here]],
            *(np.ascontiguousarray(box[:, i]) for i in range(4)),
            pa.DictionaryArray.from_arrays(fate, FATE_NAMES).cast(pa.string()),
            _reasons(summary, image, fate),
            _scales(summary.scale_mask[here], len(summary.settings.scales)),
        ]
        yield _table(columns, ANNOTATIONS)
    for some in _batches(source.refused_boxes):
        yield _table(list(zip(*map(_refused_box, some), strict=True)), ANNOTATIONS)


def _refused_box(box: RefusedBox) -> tuple[Any, ...]:
    """Return a row of annotations.parquet."""
    row, annotation_id, image_id, category_id, fate, reason = box
    return row, annotation_id, image_id, category_id, None, None, None, None, FATE_NAMES[fate], reason, []


def _reasons(summary: Summary, image: IntArray, fate: npt.NDArray[np.uint8]) -> pa.Array:
    """Return why each of some boxes is in no chip, or null; `image` is the position of its image in the source."""
    reason = np.full(len(fate), None, object)
    for uncovered in UNCOVERED:
        reason[fate == uncovered] = uncovered.name.lower()
    for i in np.flatnonzero(fate == Fate.IMAGE_REFUSED).tolist():
        reason[i] = summary.reason[int(image[i])].value
    return pa.array(reason, pa.string())


def _scales(mask: npt.NDArray[np.uint8], num_scales: int) -> pa.Array:
    return pa.ListArray.from_arrays(*map(pa.array, mask_to_scales(mask, num_scales)))


def _rejects(rejects: Iterable[Reject]) -> Iterator[pa.Table]:
    for some in _batches(rejects):
        yield _table(list(zip(*some, strict=True)), REJECTS)


def _batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    waiting = iter(rows)
    while some := list(islice(waiting, ROWS)):
        yield some


def _table(columns: list[Any], schema: pa.Schema) -> pa.Table:
    """Make a table of columns that are arrays, of Arrow or NumPy, or sequences of Python values."""
    arrays = []
    for column, field in zip(columns, schema, strict=True):
        is_array = isinstance(column, pa.Array | np.ndarray)
        arrays.append(pa.array(column).cast(field.type) if is_array else pa.array(column, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)
