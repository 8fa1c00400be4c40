"""What building positives and negatives has in common: the target folder, its shards, and who may resume it."""

from collections.abc import Sequence
from typing import Any

import msgspec

from pipeline.coco import SourceImage
from pipeline.dataset.build_file import NAME, NEGATIVES, POSITIVES
from pipeline.dataset.job import Target
from pipeline.dataset.plan_files import remove_plan
from pipeline.dataset.shards import SUFFIXES, read_record, shard_files, shard_name
from pipeline.dataset.standing import DEFAULTS
from pipeline.engines.progress import log
from pipeline.engines.tasks import DEFAULT_MEMORY
from pipeline.images.sources import pixels_held
from pipeline.storage import (
    Location,
    files_in,
    is_file,
    make_folder,
    read_bytes,
    remove,
    remove_all,
    remove_files,
    remove_temporary,
)
from schemas.build import Build
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, NegativeSettings
from schemas.settings.section import differing

UNDER_WAY = ".building"
"""File of a data set that holds an UnderWay as JSON while a build is made, when run.json may be gone."""
LEDGERS = ("images.parquet", "annotations.parquet", "categories.parquet", "rejects.parquet")
RPN_FILES = {
    "proposals/rpn/pictures": ("step-*.png",),
    "proposals/rpn/tensorboard": ("events.out.tfevents.*",),
    "proposals/rpn": ("*.pt", "log.jsonl", "training-images.parquet", "non-finite-rank*.json", ".lock"),
    "proposals": ("part-*.parquet", "network.json"),
}
"""What the run of the RPN and the extraction of its proposals write, by folder."""
WRITTEN_IN = (".", POSITIVES, NEGATIVES, "proposals", "proposals/rpn", "plan")
"""Folders of a data set in which a build may leave unfinished files. All else below it is the user's."""
OF_FEW_SHARDS = {"stride", "max_pixels", "images_per_shard", "ignore_categories"}
"""Settings that act on some shards only, or on none. What they do to a shard stands in its rows and images, so another
value makes only those shards anew that it changes."""


class UnderWay(msgspec.Struct, omit_defaults=True):
    """What a build of positives that was stopped has to know when it goes on.

    Attributes:
        images_per_shard: of the settings, where they or the build before said it.
        images: the folder of the images that every shard there was cut from; None where some may be of another.
    """

    images_per_shard: int | None = None
    images: str | None = None


def read_under_way(out: Location) -> UnderWay:
    """Read what a build that was stopped has noted; where there is no note, or it is damaged, nothing is known."""
    path = out / UNDER_WAY
    try:
        return msgspec.json.decode(read_bytes(path), type=UnderWay) if is_file(path) else UnderWay()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return UnderWay()


def recorded_settings(settings: ChipSettings) -> dict[str, Any]:
    """Return the settings that act on every shard of positives. A standing build with others is refused."""
    return settings.model_dump(mode="json", exclude=OF_FEW_SHARDS)


def recorded_mining(settings: NegativeSettings, random: int | None) -> dict[str, Any]:
    """Return the settings that act on every shard of a pool: those of mining, or the number of random chips alone."""
    if random is not None:
        return {"random": random}
    return {**settings.model_dump(mode="json", exclude={"rpn_epochs"}), "random": None}


def prepare(target: Target, section: str, standing: Build | None = None) -> bool:
    """Make the target folder ready, and tell whether shards stand there.

    Args:
        target: the build.
        section: the section of the settings in question, for the message.
        standing: the record of the finished build there, if there is one.

    Raises:
        UsageError: the shards there were made with other settings; all that differ are named.
    """
    folder = target.out / target.folder
    if standing is not None and section in standing.settings:
        refuse_changes(target.build_file.parent, section, standing.settings[section], target.recorded)
    make_folder(folder)
    manifests = shard_files(folder, ".parquet")
    for path in manifests:
        try:
            record = read_record(path)
        except DataError:
            continue  # damaged: it is made again
        refuse_changes(target.build_file.parent, section, record.settings, target.recorded)
        break  # builds with other settings are refused, so all shards have the same
    return bool(manifests)


def refuse_changes(folder: Location, section: str, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse a build in a folder whose chips were made with other settings.

    Args:
        folder: where the build stands.
        section: of the settings.
        then: the settings of the chips there. It may lack some that the program of then did not have, and have more.
        now: the settings that would be recorded.

    Raises:
        UsageError: some differ; all are named.
    """
    if changed := sorted(differing(then, now, DEFAULTS)):
        raise UsageError(
            f"{folder}: holds chips made with other settings:\n  "
            + "\n  ".join(f"{section}.{key}: {before!r} there, {after!r} now" for key, before, after in changed)
            + "\nReplace them with --overwrite, or build in another folder"
        )


def remove_surplus(target: Target, num_shards: int) -> None:
    """Delete the shards beyond the first `num_shards`: the data set has shrunk."""
    folder = target.out / target.folder
    names = {shard_name(index) for index in range(num_shards)}
    surplus = [path for suffix in SUFFIXES for path in shard_files(folder, suffix) if path.stem not in names]
    if surplus:
        remove(target.build_file)  # first of all: it speaks of them
    for path in surplus:
        remove(path)


def clear_unfinished(out: Location) -> None:
    """Delete the unfinished files that an interrupted build left in a data set, whose lock the caller holds."""
    for folder in WRITTEN_IN:
        remove_temporary(out / folder)


def clear_build(out: Location) -> None:
    """Delete the positives of a data set and all that was made of them. Files that no build writes stay."""
    remove(out / NAME)  # first of all: it speaks of the rest
    clear_pool(out)
    clear_proposals(out)
    for name in (*LEDGERS, UNDER_WAY):  # before the shards, by which a rerun knows that they are of a build
        remove(out / name)
    _clear_shards(out / POSITIVES)
    remove_plan(out / "plan")


def clear_pool(out: Location) -> None:
    """Delete the pool of negatives of a data set. Files that no build writes stay."""
    remove(out / NEGATIVES / NAME)
    _clear_shards(out / NEGATIVES)


def clear_proposals(out: Location) -> None:
    """Delete the run of the RPN of a data set and its proposals. Files that no build writes stay."""
    for name, patterns in RPN_FILES.items():
        _clear(out / name, *patterns)


def _clear_shards(folder: Location) -> None:
    """Delete the shards of a folder, and the folder where nothing else is in it, and say so."""
    files = [file for suffix in SUFFIXES for file in shard_files(folder, suffix)]
    if files:
        log.info(f"{folder}: --overwrite removes {len(files)} files (chips-*)")
    remove_all(files)
    remove_files(folder)


def _clear(folder: Location, *patterns: str) -> None:
    """Delete the files of a folder that match, and the folder where nothing else is in it, and say so."""
    count = sum(len(files_in(folder, pattern)) for pattern in patterns)
    if count:
        log.info(f"{folder}: --overwrite removes {count} files ({', '.join(patterns)})")
    remove_files(folder, *patterns)


def task_memory(images: Sequence[SourceImage]) -> int:
    """Return the bytes that cutting these images takes.

    They are those of the libraries and, of the largest image, of its pixels as decoded and as converted.
    """
    return DEFAULT_MEMORY + 8 * max(map(pixels_held, images), default=0)
