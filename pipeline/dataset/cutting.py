"""Make one shard: read its images, cut its chips, write its tar and its record. This knows nothing of processes."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.dataset.job import ShardJob
from pipeline.dataset.shards import ImageHash, Member, Record, TarWriter, chip_json, commit_shard
from pipeline.dataset.standing import image_stamps, is_limited, shard_fingerprint, standing_record
from pipeline.images.chip import Picture, codec, cut_chip, encode_jpeg
from pipeline.images.decode import ImageRefusedError, decoders
from pipeline.images.sources import Findings, open_sources
from pipeline.storage import atomic_file, remove
from schemas.errors import AGAIN, DataError
from schemas.settings import ChipSettings
from schemas.tables import STORAGE


class ShardResult(NamedTuple):
    """What became of a job.

    Attributes:
        name: the shard's name.
        record: what the shard says of itself.
        was_there: the shard stood already, made from the same, and nothing was done.
    """

    name: str
    record: Record
    was_there: bool


def make_shard(job: ShardJob) -> ShardResult:
    """Cut and commit one shard, or keep the one that stands if it was made from the same input.

    Raises:
        DataError: the output cannot be written, the store with the images gives no answer, or this worker's codecs
            are not those of the command.
    """
    if codec() != job.target.codec:
        raise DataError(
            f"{job.name}: this worker has {', '.join(map(str, codec()))}, the command was started with "
            f"{', '.join(map(str, job.target.codec))}: the bytes would differ; install the same on all nodes"
        )
    if decoders() != job.target.decoders:
        raise DataError(
            f"{job.name}: the Pillow of this worker reads other formats ({decoders()}) than that of the command "
            f"({job.target.decoders}), so other images would be refused; install the same on all nodes"
        )
    stamps = image_stamps(job)
    fingerprint = shard_fingerprint(job, stamps)
    record = standing_record(job, stamps, fingerprint)
    if record is not None:
        return ShardResult(job.name, record, True)
    remove(job.target.build_file)  # no longer a finished build
    remove(job.place(".parquet"))  # from here to the end the shard does not exist
    return ShardResult(job.name, cut_shard(job, fingerprint), False)


def cut_shard(job: ShardJob, fingerprint: str) -> Record:
    """Cut and commit one shard. An image that cannot be used costs its own chips and a row in the record.

    Args:
        job: what to cut.
        fingerprint: of the job; it goes into the record.

    Returns:
        The record as it was written.

    Raises:
        DataError: the output cannot be written, or the store with the images gives no answer.
    """
    target = job.target
    chips_of = _chips_by_image(job.chips)
    written: list[int] = []
    members: list[Member] = []
    hashes: list[ImageHash] = []
    findings = Findings()
    with atomic_file(job.place(".tar")) as file:
        tar = TarWriter(file)
        opened = open_sources(target.image_root, job.images, target.settings.max_pixels, findings, killers=job.killers)
        for source, image_hash, image in opened:
            hashes.append(ImageHash(source.image_id, image_hash))
            if image is None:
                continue
            first, count = chips_of.get(source.image_id, (0, 0))
            for row in job.chips.slice(first, count).to_pylist():  # of one image at a time: rows take much memory
                try:
                    members.append(_add_chip(tar, image, row, target.settings))
                except ImageRefusedError as error:  # of a large TIFF, whose blocks are read once more for the chips
                    message = f"{source.file_name}: {error.message}, which was in order when it was opened; {AGAIN}"
                    raise DataError(message) from error
            written += range(first, first + count)
        sha256 = tar.close()
    max_pixels = target.settings.max_pixels
    limit = {"max_pixels": max_pixels} if is_limited(job.images, findings.rejects, max_pixels) else {}
    record = Record(
        fingerprint=fingerprint,
        tar_bytes=tar.size,
        tar_sha256=sha256,
        settings=target.recorded | limit,
        images=hashes,
        rejects=findings.rejects,
        decoders=findings.decoders,
        num_ambiguous=findings.num_ambiguous,
        num_several=findings.num_several,
    )
    storage = zip([f"{target.folder}/{job.name}.tar"] * len(members), *zip(*members, strict=True), strict=True)
    chips = job.chips.take(pa.array(written, pa.int64()))
    for field, column in zip(STORAGE, _columns(storage, len(STORAGE)), strict=True):
        chips = chips.append_column(field, pa.array(column, field.type))
    commit_shard(job.place(".parquet"), chips, record)
    return record


def _chips_by_image(chips: pa.Table) -> dict[int, tuple[int, int]]:
    """Return the first row and the number of rows of each image; the rows are ordered by image."""
    groups = groupby(enumerate(chips["image_id"].to_pylist()), lambda item: item[1])
    places = ((image_id, [index for index, _ in group]) for image_id, group in groups)
    return {image_id: (rows[0], len(rows)) for image_id, rows in places}


def _columns(rows: Iterator[tuple[Any, ...]], width: int) -> list[tuple[Any, ...]]:
    """Turn rows of `width` values into as many columns, empty ones where there is no row."""
    columns = list(zip(*rows, strict=True))
    return columns or [()] * width


def _add_chip(tar: TarWriter, image: Picture, row: dict[str, Any], settings: ChipSettings) -> Member:
    """Cut one chip and append its JPEG and its JSON; returns where the JPEG lies."""
    window = (row["x1"], row["y1"], row["x2"], row["y2"])
    pixels = cut_chip(image, window, row["scale"], row["width"], row["height"])
    member = tar.add(f"{row['key']}.jpg", encode_jpeg(pixels, settings.quality, settings.subsampling))
    tar.add(f"{row['key']}.json", chip_json(row))
    return member
