"""Make one shard: read its images, cut its chips, write its tar and its record. This knows nothing of processes."""

import hashlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from pipeline.coco import SourceImage
from pipeline.dataset.shards import ImageHash, Member, Record, TarWriter, commit_shard, read_record
from pipeline.images.chip import Codec, Picture, codec, cut_chip, encode_jpeg
from pipeline.images.decode import decoders
from pipeline.images.sources import Findings, image_place, open_sources
from pipeline.storage import Location, ahead, atomic_file, remove, size_of
from schemas.codes import Reason
from schemas.errors import AGAIN, DataError
from schemas.settings import ChipSettings
from schemas.tables import FORMAT_VERSION, PLAN, STORAGE


class Target(NamedTuple):
    """Where a build's shards go, and what all of them share.

    Attributes:
        out: the data set.
        folder: `positives` or `negatives`.
        build_file: the build record. It says that the build is finished, so it goes when a shard is made anew.
        image_root: the folder that file names are relative to.
        settings: the settings of the positives.
        recorded: the settings that every shard's record names; a shard that names others is not of this build.
        codec: what is in use where the command was started; a worker with another one makes other bytes.
        decoders: of the formats whose decoder a build of Pillow may lack, those there are where the command was
            started (images.decode.decoders); a worker with others refuses other images.
    """

    out: Location
    folder: str
    build_file: Location
    image_root: Location
    settings: ChipSettings
    recorded: dict[str, Any]
    codec: Codec
    decoders: dict[str, str]


class ShardJob(NamedTuple):
    """Everything one shard needs, decided before any worker starts.

    Attributes:
        target: the build that it is a shard of.
        name: such as `chips-00000`.
        images: the images of the shard, by id.
        chips: the planned chips, schema PLAN, ordered by image.
        hashes: XXH3-128 that each image file must have, where chips of it exist already.
    """

    target: Target
    name: str
    images: list[SourceImage]
    chips: pa.Table
    hashes: list[str] | None = None

    def place(self, suffix: str) -> Location:
        """Return where a file of the shard lies: its tar (`.tar`) or its manifest (`.parquet`)."""
        return self.target.out / self.target.folder / f"{self.name}{suffix}"


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
    fingerprint = shard_fingerprint(job)
    record = _standing(job, fingerprint)
    if record is not None:
        return ShardResult(job.name, record, True)
    remove(job.target.build_file)  # no longer a finished build
    remove(job.place(".parquet"))  # from here to the end the shard does not exist
    return ShardResult(job.name, cut_shard(job, fingerprint), False)


def _standing(job: ShardJob, fingerprint: str) -> Record | None:
    """Return the record of the shard as it is, if it is what would be made now."""
    try:
        record = read_record(job.place(".parquet"))
    except DataError:
        return None
    if record.fingerprint != fingerprint or record.settings != job.target.recorded:
        return None
    if size_of(job.place(".tar")) != record.tar_bytes:
        return None
    if not record.decoders.items() <= job.target.decoders.items():
        return None  # a decoder of a format that it met has come or gone since
    if any(reject.reason == Reason.UNREADABLE_FILE for reject in record.rejects):
        return None  # the disk may have had a bad moment
    if job.hashes is not None and [image.hash for image in record.images] != job.hashes:
        return None
    return record


def shard_fingerprint(job: ShardJob) -> str:
    """Hash what decides the shard's bytes: the planned rows, the image files' sizes, the settings and the versions.

    Returns:
        SHA-256, hex.

    Raises:
        DataError: the store with the images gives no answer.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, PLAN) as stream:
        stream.write_table(job.chips)
    digest = hashlib.sha256(sink.getvalue())
    sizes = list(ahead(_file_size, [image_place(job.target.image_root, image.file_name) for image in job.images]))
    versions = [FORMAT_VERSION, *codec()]
    settings = job.target.settings.model_dump(mode="json")
    digest.update(msgspec.json.encode([job.images, sizes, settings, versions]))
    return digest.hexdigest()


def _file_size(place: Location) -> int:
    """Return the bytes of an image file; -1 where it is missing or cannot be read: it is refused when it is read."""
    try:
        size = size_of(place)
    except OSError as error:
        if not isinstance(place, Path):
            raise DataError(f"{error}; {AGAIN}") from error
        size = None
    return -1 if size is None else size


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
    rows = job.chips.to_pylist()
    chips_of = {image_id: list(group) for image_id, group in groupby(enumerate(rows), lambda r: r[1]["image_id"])}
    written: list[int] = []
    members: list[Member] = []
    hashes: list[ImageHash] = []
    findings = Findings()
    with atomic_file(job.place(".tar")) as file:
        tar = TarWriter(file)
        opened = open_sources(target.image_root, job.images, target.settings.max_pixels, findings)
        for source, image_hash, image in opened:
            hashes.append(ImageHash(source.image_id, image_hash))
            if image is None:
                continue
            for index, row in chips_of.get(source.image_id, ()):
                members.append(_add_chip(tar, image, row, target.settings))
                written.append(index)
        sha256 = tar.close()
    record = Record(
        fingerprint=fingerprint,
        tar_bytes=tar.size,
        tar_sha256=sha256,
        settings=target.recorded,
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


def _columns(rows: Iterator[tuple[Any, ...]], width: int) -> list[tuple[Any, ...]]:
    """Turn rows of `width` values into as many columns, empty ones where there is no row."""
    columns = list(zip(*rows, strict=True))
    return columns or [()] * width


def _add_chip(tar: TarWriter, image: Picture, row: dict[str, Any], settings: ChipSettings) -> Member:
    """Cut one chip and append its JPEG and its JSON; returns where the JPEG lies."""
    window = (row["x1"], row["y1"], row["x2"], row["y2"])
    pixels = cut_chip(image, window, row["scale"], row["width"], row["height"])
    member = tar.add(f"{row['key']}.jpg", encode_jpeg(pixels, settings.quality, settings.subsampling))
    # JSON has no infinity: msgspec writes null for it
    tar.add(f"{row['key']}.json", msgspec.json.encode(row))
    return member
