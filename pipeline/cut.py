"""Cuts the chips of one shard: reads its images, writes its tar and its record. Knows nothing of processes."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import xxhash
from PIL import Image

from pipeline.coco import Reject, SourceImage
from pipeline.images import ImageRefusedError, cut_chip, encode_jpeg, read_image
from pipeline.shards import ImageHash, Member, Record, TarWriter, commit_shard
from pipeline.storage import atomic_file
from schemas.codes import Reason
from schemas.settings import ChipSettings
from schemas.tables import STORAGE


class ShardJob(NamedTuple):
    """Everything one shard needs, decided before any worker starts."""

    out: Path
    folder: str  # positives or negatives
    name: str  # such as chips-00000
    image_root: Path
    images: list[SourceImage]
    chips: pa.Table  # schema PLAN, ordered by image
    settings: ChipSettings
    fingerprint: str
    recorded: dict[str, Any] | None = None  # settings that the record names, where they are not those above


class ShardResult(NamedTuple):
    name: str
    record: Record
    num_chips: int


def cut_shard(job: ShardJob) -> ShardResult:
    """Cut and commit one shard. An image that cannot be used costs its own chips and a row in the record.

    Raises:
        DataError: the output cannot be written.
    """
    folder = job.out / job.folder
    record_path = folder / f"{job.name}.parquet"
    record_path.unlink(missing_ok=True)  # from here to the end the shard does not exist
    rows = job.chips.to_pylist()
    chips_of = {image_id: list(group) for image_id, group in groupby(enumerate(rows), lambda r: r[1]["image_id"])}
    tar_path = folder / f"{job.name}.tar"
    written: list[int] = []
    members: list[Member] = []
    hashes: list[ImageHash] = []
    rejects: list[Reject] = []
    with atomic_file(tar_path) as file:
        tar = TarWriter(file)
        for source in job.images:
            image_hash, image = open_source(job.image_root, source, job.settings.max_pixels, rejects)
            hashes.append(ImageHash(source.image_id, image_hash))
            if image is None:
                continue
            for index, row in chips_of.get(source.image_id, ()):
                members.append(_add_chip(tar, image, row, job.settings))
                written.append(index)
        sha256 = tar.close()
    record = Record(
        fingerprint=job.fingerprint,
        tar_bytes=tar.size,
        tar_sha256=sha256,
        settings=job.settings.model_dump(mode="json") if job.recorded is None else job.recorded,
        images=hashes,
        rejects=rejects,
    )
    storage = zip([f"{job.folder}/{job.name}.tar"] * len(members), *zip(*members, strict=True), strict=True)
    chips = job.chips.take(pa.array(written, pa.int64()))
    for field, column in zip(STORAGE, _columns(storage, len(STORAGE)), strict=True):
        chips = chips.append_column(field, pa.array(column, field.type))
    commit_shard(record_path, chips, record)
    return ShardResult(job.name, record, len(written))


def _columns(rows: Iterator[tuple[Any, ...]], width: int) -> list[tuple[Any, ...]]:
    columns = list(zip(*rows, strict=True))
    return columns or [()] * width


def open_source(
    image_root: Path, source: SourceImage, max_pixels: int, rejects: list[Reject]
) -> tuple[str | None, Image.Image | None]:
    """Hash of the file's bytes (None when it cannot be read) and the decoded image.

    An image that cannot be used is None, and a row is added to `rejects`.
    """
    image_hash = None
    try:
        data = _read_file(image_root / source.file_name)
        image_hash = xxhash.xxh3_128_hexdigest(data)
        return image_hash, read_image(data, source.width, source.height, max_pixels)
    except ImageRefusedError as refused:
        message = f"{source.file_name}: {refused.message}"
        rejects.append(Reject("image", source.image_id, source.file_name, refused.reason, message))
        return image_hash, None


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageRefusedError(Reason.MISSING_FILE, "no such file in the image folder") from error
    except OSError as error:
        raise ImageRefusedError(Reason.UNREADABLE_FILE, error.strerror or str(error)) from error


def _add_chip(tar: TarWriter, image: Image.Image, row: dict[str, Any], settings: ChipSettings) -> Member:
    window = (row["x1"], row["y1"], row["x2"], row["y2"])
    pixels = cut_chip(image, window, row["scale"], row["width"], row["height"])
    member = tar.add(f"{row['key']}.jpg", encode_jpeg(pixels, settings.quality, settings.subsampling))
    # JSON has no infinity; msgspec writes null for it
    tar.add(f"{row['key']}.json", msgspec.json.encode(row))
    return member
