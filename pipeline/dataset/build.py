"""What building positives and negatives has in common: the target folder, its shards, and who may resume it."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.coco import SourceImage
from pipeline.dataset.cutting import ShardJob
from pipeline.dataset.shards import read_record
from pipeline.engines.tasks import DEFAULT_MEMORY
from pipeline.images.chip import codec
from pipeline.storage import Location, files_in, make_folder, remove
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings

FOLDER = "positives"


class Target(NamedTuple):
    """Where a build's shards go, and what all of them share."""

    out: Location  # the data set
    folder: str  # positives or negatives
    build_file: Location  # says, written last, that the build is finished
    image_root: Location
    settings: ChipSettings
    recorded: dict[str, Any]  # settings that every shard names; shards that name others are not of this build


def prepare(target: Target, names: Iterable[str], section: str) -> None:
    """Delete the shards that are not among `names` (the data set has shrunk), unless all were made otherwise.

    Raises:
        UsageError: they were made with other settings, all differences named, with the name of their section.
    """
    folder = target.out / target.folder
    make_folder(folder)
    records = files_in(folder, "chips-*.parquet")
    _refuse_other_settings(target, records, section)
    wanted = set(names)
    surplus = [path for path in [*records, *files_in(folder, "chips-*.tar")] if path.stem not in wanted]
    if surplus:
        remove(target.build_file)  # first of all: it speaks of them
    for path in surplus:
        remove(path)


def _refuse_other_settings(target: Target, records: Sequence[Location], section: str) -> None:
    """By the first sound record: builds with other settings are refused, so all have the same."""
    for path in records:
        try:
            then, now = read_record(path).settings, target.recorded
        except DataError:
            continue  # damaged: made again
        if then != now:
            changed = [
                f"{section}.{key}: {then.get(key)!r} there, {now.get(key)!r} now"
                for key in sorted(then.keys() | now.keys())
                if then.get(key) != now.get(key)
            ]
            raise UsageError(
                f"{target.build_file.parent}: holds chips made with other settings:\n  "
                + "\n  ".join(changed)
                + "\nReplace them with --overwrite, or build in another folder"
            )
        return


def shard_job(target: Target, name: str, images: list[SourceImage], chips: pa.Table) -> ShardJob:
    """The job of a planned shard; `chips` as schema PLAN, ordered by image."""
    out, folder, build_file, root, settings, recorded = target
    return ShardJob(out, folder, name, root, images, chips, settings, recorded, build_file, codec())


def task_memory(images: Sequence[SourceImage]) -> int:
    """Bytes that cutting takes: the libraries and, of the largest image, its pixels as decoded and as converted."""
    return DEFAULT_MEMORY + 8 * max((image.width * image.height for image in images), default=0)
