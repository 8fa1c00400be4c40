"""Makes one shard: reads its images, cuts its chips, writes its tar and its record. Knows nothing of processes."""

import hashlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
from PIL import Image

from pipeline.coco import Reject, SourceImage
from pipeline.dataset.shards import ImageHash, Member, Record, TarWriter, commit_shard, read_record
from pipeline.images.chip import Codec, codec, cut_chip, encode_jpeg
from pipeline.images.sources import image_place, open_sources
from pipeline.storage import Location, ahead, atomic_file, remove, size_of
from schemas.codes import Reason
from schemas.errors import AGAIN, DataError
from schemas.settings import ChipSettings
from schemas.tables import FORMAT_VERSION, PLAN, STORAGE


class ShardJob(NamedTuple):
    """Everything one shard needs, decided before any worker starts."""

    out: Location
    folder: str  # positives or negatives
    name: str  # such as chips-00000
    image_root: Location
    images: list[SourceImage]
    chips: pa.Table  # schema PLAN, ordered by image
    settings: ChipSettings
    recorded: dict[str, Any]  # settings that the record names
    build_file: Location  # says that the build is finished; goes when a shard of it is made anew
    codec: Codec  # in use where the build was started
    hashes: list[str] | None = None  # what the image files must be, where chips of them exist already


class ShardResult(NamedTuple):
    name: str
    record: Record
    was_there: bool


def make_shard(job: ShardJob) -> ShardResult:
    """Cut and commit one shard, unless it is there already, made from the same.

    Raises:
        DataError: the output cannot be written, or the store with the images gives no answer.
    """
    if codec() != job.codec:
        raise DataError(
            f"{job.name}: this worker has {', '.join(map(str, codec()))}, the command was started with "
            f"{', '.join(map(str, job.codec))}: the bytes would differ; install the same on all nodes"
        )
    fingerprint = shard_fingerprint(job)
    record_path = job.out / job.folder / f"{job.name}.parquet"
    record = _standing(record_path, job, fingerprint)
    if record is not None:
        return ShardResult(job.name, record, True)
    remove(job.build_file)  # no longer a finished build
    remove(record_path)  # from here to the end the shard does not exist
    return ShardResult(job.name, cut_shard(job, fingerprint), False)


def _standing(record_path: Location, job: ShardJob, fingerprint: str) -> Record | None:
    """The record of the shard as it is, where it is what would be made now."""
    try:
        record = read_record(record_path)
    except DataError:
        return None
    if record.fingerprint != fingerprint or record.settings != job.recorded:
        return None
    if size_of(record_path.with_suffix(".tar")) != record.tar_bytes:
        return None
    if any(reject.reason == Reason.UNREADABLE_FILE for reject in record.rejects):
        return None  # the disk may have had a bad moment
    if job.hashes is not None and [image.hash for image in record.images] != job.hashes:
        return None
    return record


def shard_fingerprint(job: ShardJob) -> str:
    """SHA-256 over the planned rows, the image files' sizes, the settings and the versions that decide the bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, PLAN) as stream:
        stream.write_table(job.chips)
    digest = hashlib.sha256(sink.getvalue())
    sizes = list(ahead(_file_size, [image_place(job.image_root, image.file_name) for image in job.images]))
    versions = [FORMAT_VERSION, *codec()]
    digest.update(msgspec.json.encode([job.images, sizes, job.settings.model_dump(mode="json"), versions]))
    return digest.hexdigest()


def _file_size(place: Location) -> int:
    try:
        size = size_of(place)
    except OSError as error:
        if not isinstance(place, Path):
            raise DataError(f"{error}; {AGAIN}") from error
        size = None
    return -1 if size is None else size  # refused when it is read


def cut_shard(job: ShardJob, fingerprint: str) -> Record:
    """Cut and commit one shard. An image that cannot be used costs its own chips and a row in the record.

    Raises:
        DataError: as make_shard.
    """
    rows = job.chips.to_pylist()
    chips_of = {image_id: list(group) for image_id, group in groupby(enumerate(rows), lambda r: r[1]["image_id"])}
    tar_path = job.out / job.folder / f"{job.name}.tar"
    written: list[int] = []
    members: list[Member] = []
    hashes: list[ImageHash] = []
    rejects: list[Reject] = []
    with atomic_file(tar_path) as file:
        tar = TarWriter(file)
        for source, image_hash, image in open_sources(job.image_root, job.images, job.settings.max_pixels, rejects):
            hashes.append(ImageHash(source.image_id, image_hash))
            if image is None:
                continue
            for index, row in chips_of.get(source.image_id, ()):
                members.append(_add_chip(tar, image, row, job.settings))
                written.append(index)
        sha256 = tar.close()
    record = Record(
        fingerprint=fingerprint,
        tar_bytes=tar.size,
        tar_sha256=sha256,
        settings=job.recorded,
        images=hashes,
        rejects=rejects,
    )
    storage = zip([f"{job.folder}/{job.name}.tar"] * len(members), *zip(*members, strict=True), strict=True)
    chips = job.chips.take(pa.array(written, pa.int64()))
    for field, column in zip(STORAGE, _columns(storage, len(STORAGE)), strict=True):
        chips = chips.append_column(field, pa.array(column, field.type))
    commit_shard(tar_path.with_suffix(".parquet"), chips, record)
    return record


def _columns(rows: Iterator[tuple[Any, ...]], width: int) -> list[tuple[Any, ...]]:
    columns = list(zip(*rows, strict=True))
    return columns or [()] * width


def _add_chip(tar: TarWriter, image: Image.Image, row: dict[str, Any], settings: ChipSettings) -> Member:
    window = (row["x1"], row["y1"], row["x2"], row["y2"])
    pixels = cut_chip(image, window, row["scale"], row["width"], row["height"])
    member = tar.add(f"{row['key']}.jpg", encode_jpeg(pixels, settings.quality, settings.subsampling))
    # JSON has no infinity; msgspec writes null for it
    tar.add(f"{row['key']}.json", msgspec.json.encode(row))
    return member
