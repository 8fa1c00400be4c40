"""Decide whether a shard that stands is what would be made now, by its fingerprint, its settings and its images."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from pipeline.coco import Reject, SourceImage
from pipeline.dataset.job import ShardJob
from pipeline.dataset.shards import Record, read_record
from pipeline.images.chip import codec
from pipeline.images.sources import hash_content, image_place
from pipeline.storage import Location, Stamp, ahead, open_binary, size_of, stamp_of, touch
from schemas.codes import Reason
from schemas.errors import AGAIN, DataError
from schemas.settings import ChipSettings, NegativeSettings
from schemas.settings.section import differing
from schemas.tables import FORMAT_VERSION, PLAN

LIMITED = {Reason.TOO_MANY_PIXELS, Reason.SIZE_MISMATCH}
"""Refusals that another `chips.max_pixels` could turn into others."""

DEFAULTS = ChipSettings().model_dump(mode="json") | NegativeSettings().model_dump(mode="json")
"""What a setting was before the program had it."""

VERSION_2_SETTINGS = (
    "size",
    "scales",
    "ranges",
    "stride",
    "min_visible",
    "min_side",
    "quality",
    "subsampling",
    "images_per_shard",
    "max_pixels",
    "seed",
)
VERSION_2_IMAGES_PER_SHARD = 128  # the default of then


def image_stamps(job: ShardJob) -> list[Stamp | None]:
    """Ask for size and time of each image file; None where it is missing or cannot be read and so is refused later.

    Raises:
        DataError: the store with the images gives no answer.
    """
    return find_stamps(job.target.image_root, [image.file_name for image in job.images])


def find_stamps(image_root: Location, file_names: Sequence[str]) -> list[Stamp | None]:
    """Ask for size and time of image files in a folder; None where one is missing or cannot be read.

    Raises:
        DataError: the store with the images gives no answer.
    """
    return list(ahead(_stamp, [image_place(image_root, name) for name in file_names]))


def _stamp(place: Location) -> Stamp | None:
    try:
        return stamp_of(place)
    except OSError as error:
        if isinstance(place, Path):
            return None
        raise DataError(f"{error}; {AGAIN}") from error


def shard_fingerprint(job: ShardJob, stamps: Sequence[Stamp | None]) -> str:
    """Hash what decides a shard's bytes: planned rows, sizes of the image files, settings that act, and versions.

    Where a setting acts through the rows alone, as `chips.stride` does, only the rows count.

    Args:
        job: the shard.
        stamps: of its image files. Their times are left out.

    Returns:
        SHA-256, hex.
    """
    return _fingerprint(job, stamps, job.target.recorded, FORMAT_VERSION)


def _version_2_fingerprint(job: ShardJob, stamps: Sequence[Stamp | None], record: Record) -> str:
    """Hash the same as format 2 did, which took all settings of the positives, whether they acted or not."""
    now = job.target.settings.model_dump(mode="json")
    now["images_per_shard"] = now["images_per_shard"] or VERSION_2_IMAGES_PER_SHARD
    return _fingerprint(job, stamps, {key: record.settings.get(key, now[key]) for key in VERSION_2_SETTINGS}, 2)


def _fingerprint(job: ShardJob, stamps: Sequence[Stamp | None], settings: dict[str, Any], version: int) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, PLAN) as stream:
        stream.write_table(job.chips)
    digest = hashlib.sha256(sink.getvalue())
    sizes = [-1 if stamp is None else stamp.size for stamp in stamps]
    digest.update(msgspec.json.encode([job.images, sizes, settings, [version, *codec()]]))
    return digest.hexdigest()


def standing_record(job: ShardJob, stamps: Sequence[Stamp | None], fingerprint: str) -> Record | None:
    """Return the record of the shard as it stands, if it is what would be made now.

    A shard of format 2 that was made from the same stays as it is.

    Args:
        job: the shard.
        stamps: of its image files.
        fingerprint: of the job.

    Raises:
        DataError: the store with the images gives no answer. OSError: the shard's store gives none.
    """
    path = job.place(".parquet")
    try:
        record = read_record(path)
    except DataError:
        return None
    if differing(record.settings, job.target.recorded, DEFAULTS):
        return None
    if record.fingerprint != fingerprint and record.fingerprint != _version_2_fingerprint(job, stamps, record):
        return None
    if size_of(job.place(".tar")) != record.tar_bytes:
        return None
    if not record.decoders.items() <= job.target.decoders.items():
        return None  # a decoder of a format that it met has come or gone since
    if any(reject.reason == Reason.UNREADABLE_FILE for reject in record.rejects):
        return None  # the disk may have had a bad moment
    if not _limit_stands(job, record):
        return None
    if job.hashes is not None and [image.hash for image in record.images] != job.hashes:
        return None
    return record if _images_stand(job, stamps, record) else None


def is_limited(images: Sequence[SourceImage], rejects: Sequence[Reject], max_pixels: int) -> bool:
    """Tell whether `chips.max_pixels` acts on a shard: on an image that is larger, or on why one is refused."""
    return any(image.width * image.height > max_pixels for image in images) or any(
        reject.reason in LIMITED for reject in rejects
    )


def _limit_stands(job: ShardJob, record: Record) -> bool:
    """Tell whether a shard would be the same with the `chips.max_pixels` of now."""
    now, then = job.target.settings.max_pixels, record.settings.get("max_pixels")
    if is_limited(job.images, record.rejects, now):
        return bool(then == now)
    return then is None or "images_per_shard" in record.settings  # format 2 recorded it for every shard


def _images_stand(job: ShardJob, stamps: Sequence[Stamp | None], record: Record) -> bool:
    """Tell whether the image files are those that the shard was cut from.

    Their sizes are in the fingerprint. A file that was touched since the shard was written, or that lies in another
    folder than it did then, is hashed anew; where all are as they were, the shard's time is set to now, so that this
    is done once.
    """
    path = job.place(".parquet")
    written = stamp_of(path)
    assert written is not None, path
    touched = [
        (image_place(job.target.image_root, image.file_name), known.hash)
        for image, stamp, known in zip(job.images, stamps, record.images, strict=True)
        if stamp is not None and (job.target.is_moved or stamp.touched >= written.modified)
    ]
    if any(_file_hash(place) != known for place, known in touched):
        return False
    if touched:
        touch(path)
    return True


def _file_hash(place: Location) -> str | None:
    try:
        with open_binary(place) as file:
            return hash_content(file)
    except OSError as error:
        if isinstance(place, Path):
            return None
        raise DataError(f"{error}; {AGAIN}") from error
