"""`sniper export`: the chips as an ordinary data set of another format, for whatever trains on that.

A shard is the unit of work. What is done of it is noted in OUT/.export, so that an interrupted export goes on; a shard
of which a file is gone is exported again. The file that names all chips (annotations, data.yaml or the card) comes
last.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from pipeline.dataset.build_file import POSITIVES, finished_builds
from pipeline.dataset.ledger.read import read_categories
from pipeline.dataset.shards import read_rows, shard_files
from pipeline.engines.progress import Progress, log
from pipeline.engines.run import run_tasks
from pipeline.engines.tasks import Engine, Task
from pipeline.exchange import to_coco, to_hf, to_yolo
from pipeline.exchange.records import NOTES, Record, read_records, write_record
from pipeline.exchange.shard import ExportJob, Tally, total
from pipeline.exchange.written import Written, refuse_chips, refuse_others, remove_written
from pipeline.storage import (
    Location,
    location,
    locked,
    make_folder,
    names_in,
    read_bytes,
    remove_folder,
    write_atomic,
)
from schemas.errors import DataError, UsageError


class Writer(Protocol):
    """What the module of a format holds."""

    @property
    def CARD(self) -> str | None:  # noqa: N802  a constant of the module
        """The name of the file that names all splits; None where the format has none."""

    def prepare(self, out: Location, split: str) -> None:
        """Make the folders."""

    def written(self, out: Location, split: str) -> list[Written]:
        """Return what is written for a split."""

    def shard_names(self, job: ExportJob) -> dict[Location, list[str]]:
        """Return the names of the files that `write_shard` writes, by their folder."""

    def write_shard(self, job: ExportJob) -> tuple[int, Tally]:
        """Write the files of a shard; return its position and what it holds."""

    def finish(self, jobs: Sequence[ExportJob]) -> None:
        """Write what names all chips, last of all."""


FORMATS: dict[str, Writer] = {"coco": to_coco, "yolo": to_yolo, "hf": to_hf}


class ExportReport(NamedTuple):
    """What was exported.

    Attributes:
        tally: the counts over all shards.
        num_shards: how many shards there are.
        num_made: how many of them were exported by this call; the others were there already.
        chip_size: side of the chips, pixels.
    """

    tally: Tally
    num_shards: int
    num_made: int
    chip_size: int


def export(
    data: Location | str,
    out: Location | str,
    *,
    format: str = "coco",
    split: str = "train",
    kind: str = "all",
    blank: bool = False,
    workers: int | None = 1,
    overwrite: bool = False,
) -> ExportReport:
    """Write the chips of a data set as an ordinary data set of another format.

    Boxes of the status `valid`, `rescued`, `cut` and `out_of_range` are objects. `ignore` and `crowd` are regions that
    nothing is to be learnt from: `iscrowd` in COCO and Hugging Face files, and left out or blanked for YOLO.

    Args:
        data: what `sniper chips` wrote, with or without a pool of negatives.
        out: folder for the data set. Several splits of one format may lie in it.
        format: coco (images and one JSON file), yolo (images, labels and data.yaml) or hf (Parquet with the images in
            it, which Hugging Face's `datasets` loads).
        split: name of the split, such as train or val.
        kind: all, or positive to leave out the pool of negatives.
        blank: yolo: paint over the regions that nothing is to be learnt from, except where an object lies in them.
        workers: number of processes; None: all cores.
        overwrite: replace what was exported to the split before.

    Raises:
        UsageError: there is another export under the split, or something that no export wrote; `out` is a chip data
            set; another process writes there, or an option is wrong.
        DataError: the data set is unfinished or damaged, or holds no chip, or the record of an earlier export in `out`
            is damaged.
    """
    data, out = location(data), location(out)
    _check(format, split, kind, blank)
    writer = FORMATS[format]
    builds = finished_builds(data, pool=kind == "all")
    manifests = [path for folder in builds for path in shard_files(data / folder, ".parquet")]
    if not any(read_rows(manifest).num_rows for manifest in manifests):
        raise DataError(f"{data}: holds no chips to export; see rejects.parquet and annotations.parquet in it")
    categories = read_categories(data)
    fingerprints = {folder: build.fingerprint for folder, build in builds.items()}
    record = Record(format, kind, blank, fingerprints, categories)
    chips = builds[POSITIVES].settings["chips"]
    jpeg = chips["quality"], chips["subsampling"]
    _refuse_others(out, split, writer, format)
    with locked(out, "sniper export"):
        _claim(out, split, record, overwrite)
        notes = out / NOTES / split
        make_folder(notes)
        jobs = [
            ExportJob(data, manifest, out, split, categories, index, len(manifests), blank, jpeg)
            for index, manifest in enumerate(manifests)
        ]
        writer.prepare(out, split)
        tallies = _standing(notes, jobs, writer)
        todo = [Task(job.manifest.stem, job) for job in jobs if job.number not in tallies]
        with Progress("export", len(todo), "shards") as progress:
            for index, tally in run_tasks(writer.write_shard, todo, Engine(workers=workers), progress):
                tallies[index] = tally
                write_atomic(notes / _name(jobs[index]), msgspec.json.encode(tally))
        writer.finish(jobs)
    return ExportReport(total(tallies.values()), len(jobs), len(todo), chips["size"])


def _check(format: str, split: str, kind: str, blank: bool) -> None:
    if format not in FORMATS:
        raise UsageError(f"--format {format}: expected one of {', '.join(FORMATS)}")
    if kind not in ("all", "positive"):
        raise UsageError(f"--kind {kind}: expected all or positive")
    if not re.fullmatch(r"[A-Za-z0-9_]+", split):
        raise UsageError(f"--split {split}: expected a name of letters, digits and _, such as train or val")
    if blank and format != "yolo":
        raise UsageError(f"--blank: {format} files say which regions are ignored; only yolo needs them blanked")


def _refuse_others(out: Location, split: str, writer: Writer, format: str) -> None:
    """Refuse a split, and a file that names all splits, which no export wrote."""
    refuse_chips(out)
    formats = {name: record.format for name, record in read_records(out).items()}
    refuse_others(writer.written(out, split), "sniper export", recorded=formats.get(split) == format)
    if writer.CARD is not None:
        card = Written(out, re.escape(writer.CARD), alone=False)
        refuse_others([card], "sniper export", recorded=format in formats.values())


def _claim(out: Location, split: str, record: Record, overwrite: bool) -> None:
    """Note what is exported, and refuse or remove what another export has left under the split.

    Two splits of the same chips are no mistake in a trial, so there is a warning alone.
    """
    records = read_records(out)
    for other, found in records.items():
        if other != split and found.format == record.format and found.categories != record.categories:
            raise UsageError(
                f"{out}: the split {other!r} in it has other categories than these chips; choose another --out"
            )
        if other != split and found.builds[POSITIVES] == record.builds[POSITIVES]:
            log.warning(
                "%s: the splits %r and %r hold the same chips, and a score on what was trained on says little; make "
                "chips of the images of each part (`sniper split`), and export them as their split",
                *(out, other, split),
            )
    there = records.get(split)
    if there == record and not overwrite:
        return
    if there is not None:
        if not overwrite:
            raise UsageError(
                f"{out}: holds an export of other chips or with other options as the split {split!r}; choose another "
                "--out or --split, or replace it with --overwrite"
            )
        remove_folder(out / NOTES / split)  # before the files, so that no note outlives what it is of
        remove_written(FORMATS[there.format].written(out, split))
    write_record(out, split, record)


def _standing(notes: Location, jobs: Sequence[ExportJob], writer: Writer) -> dict[int, Tally]:
    """Return the counts, by position, of the shards that were exported and of which no file is gone."""
    folders = [written.folder for written in writer.written(jobs[0].out, jobs[0].split)]
    there = {folder: set(names_in(folder)) for folder in folders}
    return {
        job.number: tally
        for job in jobs
        if (tally := _read_note(notes / _name(job))) is not None
        and all(there[folder].issuperset(names) for folder, names in writer.shard_names(job).items())
    }


def _name(job: ExportJob) -> str:
    return f"{job.manifest.parent.name}-{job.manifest.stem}.json"


def _read_note(path: Location) -> Tally | None:
    """Read the counts of a shard that was exported; None where it was not."""
    try:
        return msgspec.json.decode(read_bytes(path), type=Tally)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def describe(report: ExportReport, out: Location, blank: bool) -> str:
    """Say what was exported, in one line."""
    tally = report.tally
    ignored = f"{tally.num_ignored:,} regions to ignore"
    if blank:
        ignored += f", blanked in {tally.num_blanked:,} chips"
    return f"{out}: {tally.num_chips:,} chips with {tally.num_objects:,} objects and {ignored}"
