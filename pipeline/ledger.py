"""The files that say what became of every image and box: images, annotations, categories and rejects.parquet."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.coco import Reject
from pipeline.summary import Summary, mask_to_scales
from schemas.codes import FATE_NAMES, Fate, Reason
from schemas.tables import ANNOTATIONS, CATEGORIES, IMAGES, REJECTS


def ledger_files(summary: Summary, hashes: dict[int, str | None], rejects: list[Reject]) -> dict[str, bytes]:
    """File name -> Parquet bytes, a pure function of its arguments.

    Args:
        hashes: content hash per image id.
        rejects: those found while cutting; those found while reading are in the source.
    """
    source = summary.source
    tables = {
        "images.parquet": _images(summary, hashes),
        "annotations.parquet": _annotations(summary),
        "categories.parquet": pa.Table.from_pylist(
            [{"id": i, "name": name, "label": label} for label, (i, name) in enumerate(source.categories, 1)],
            CATEGORIES,
        ),
        "rejects.parquet": pa.Table.from_pylist([reject._asdict() for reject in [*source.rejects, *rejects]], REJECTS),
    }
    return {name: _to_parquet(table) for name, table in tables.items()}


def _to_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _images(summary: Summary, hashes: dict[int, str | None]) -> pa.Table:
    """Kept images and those refused while cutting, by id; then the refused records in file order."""
    source = summary.source
    reasons = [summary.reason.get(i) for i in range(source.num_images)]
    refused = source.refused_images
    ids = source.image_id.tolist()
    columns = [
        [*ids, *(image.id for image in refused)],
        [*source.file_name, *(image.file_name for image in refused)],
        [*source.width.tolist(), *(image.width for image in refused)],
        [*source.height.tolist(), *(image.height for image in refused)],
        ["refused" if reason else "kept" for reason in reasons] + ["refused"] * len(refused),
        [*reasons, *(image.reason for image in refused)],
        [*(hashes.get(i) for i in ids), *(None for _ in refused)],
        [*np.diff(source.offsets).tolist(), *(0 for _ in refused)],
        [*summary.num_chips.tolist(), *(0 for _ in refused)],
    ]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, IMAGES, strict=True)], IMAGES)


def _annotations(summary: Summary) -> pa.Table:
    """One row per source box, in file order, with its fate."""
    source = summary.source
    image_of_box = np.repeat(np.arange(source.num_images), np.diff(source.offsets))
    reason = np.full(len(source.row), None, object)
    reason[summary.fate == Fate.UNCOVERED] = Reason.FITS_NO_CHIP.value
    for position, why in summary.reason.items():
        reason[source.offsets[position] : source.offsets[position + 1]] = why.value
    scales = pa.ListArray.from_arrays(*map(pa.array, mask_to_scales(summary.scale_mask, len(summary.settings.scales))))
    in_order = pa.table(
        [
            source.row,
            source.annotation_id,
            source.image_id[image_of_box],
            source.category_id,
            *(source.box[:, i] for i in range(4)),
            pa.DictionaryArray.from_arrays(summary.fate, FATE_NAMES).cast(pa.string()),
            pa.array(reason, pa.string()),
            scales,
        ],
        schema=ANNOTATIONS,
    )
    refused = pa.Table.from_pylist(
        [
            {
                "row": box.row,
                "annotation_id": box.annotation_id,
                "image_id": box.image_id,
                "category_id": box.category_id,
                "fate": FATE_NAMES[box.fate],
                "reason": box.reason.value,
                "scales": [],
            }
            for box in source.refused_boxes
        ],
        ANNOTATIONS,
    )
    return pa.concat_tables([in_order, refused]).sort_by("row")
