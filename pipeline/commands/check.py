"""`sniper check`: everything that is wrong with the data, listed at once, before any work. Changes nothing."""

import io
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from pipeline.coco import Reject, SourceImage
from pipeline.coco.rows import Rows
from pipeline.coco.source import Source, no_rejects
from pipeline.commands.inputs import Places, hints_on_missing, read_inputs
from pipeline.commands.shortfall import foresee_no_target
from pipeline.dataset.build import task_memory
from pipeline.engines.progress import Progress
from pipeline.engines.run import run_tasks
from pipeline.engines.tasks import Engine, Task
from pipeline.images.sources import Findings, frame_notes, open_sources
from pipeline.storage import Location, make_folder, read_bytes, refuse_foreign, write_atomic
from schemas.errors import UsageError
from schemas.settings import Settings, settings_or_defaults

BATCH = 64  # images per work item


class CheckReport(NamedTuple):
    """What a check found."""

    source: Source
    rejects: Rows[Reject]
    num_read: int  # image files decoded, in full
    notes: list[str]  # what is worth saying about the images that were read
    shortfall: str | None  # why nothing could be trained on; None where something can


class _Job(NamedTuple):
    image_root: Location
    images: list[SourceImage]
    max_pixels: int
    killers: dict[int, str]  # why an image kills its worker, by position


def check(
    annotations: Places,
    images: Places | None,
    settings: Settings | None = None,
    *,
    workers: int | None = 1,
) -> CheckReport:
    """Check an annotation file and, where `images` is given, decode every image it names as a build would.

    Args:
        annotations: COCO JSON file, or several that become one data set.
        images: folder that the file names are relative to, one for all files or one for each; None: no image is
            opened.
        settings: the section `chips` is used.
        workers: number of processes; None: all cores.

    Raises:
        DataError: the annotation file as a whole cannot be trusted.
        UsageError: a folder is missing, there are neither one nor as many folders as annotation files, two folders
            lie in different stores, or no category has one of the names in chips.ignore_categories.
    """
    options = settings_or_defaults(settings).chips
    source, image_root = read_inputs(annotations, images, options.max_pixels, options.ignore_categories)
    shortfall = foresee_no_target(source, options)
    if image_root is None:
        return CheckReport(source, source.rejects, 0, [], shortfall)
    jobs = _jobs(source, image_root, options.max_pixels)
    with Progress("check", source.num_images, "images") as progress:
        found: dict[int, Rows[Reject]] = {}
        num_ambiguous = num_several = 0
        for first_id, findings in run_tasks(_check_images, jobs, Engine(workers=workers), progress):
            if findings.rejects:
                found[first_id] = no_rejects().plus(findings.rejects)
                found[first_id].pack()
            num_ambiguous += findings.num_ambiguous
            num_several += findings.num_several
    num_bad = sum(map(len, found.values()))  # one reject per image that was not decoded
    in_order = (reject for first_id in sorted(found) for reject in found[first_id])
    rejects = source.rejects.plus(in_order)
    notes = [*frame_notes(num_ambiguous, num_several), *hints_on_missing(image_root, rejects)]
    return CheckReport(source, rejects, source.num_images - num_bad, notes, shortfall)


def _jobs(source: Source, images: Location, max_pixels: int) -> Iterator[Task[_Job]]:
    for start in range(0, source.num_images, BATCH):
        batch = source.images(start, min(start + BATCH, source.num_images))
        job = _Job(images, batch, max_pixels, {})
        yield Task(f"images from {batch[0].file_name}", job, task_memory(batch), len(batch), _without)


def _without(job: _Job, position: int, why: str) -> _Job:
    """Return the job with an image refused, since it kills the worker that decodes it."""
    return job._replace(killers=job.killers | {position: why})


def _check_images(job: _Job) -> tuple[int, Findings]:
    findings = Findings()
    for _ in open_sources(job.image_root, job.images, job.max_pixels, findings, killers=job.killers):
        pass
    return job.images[0].image_id, findings


def check_report(place: Location) -> None:
    """Look, before any work, whether refused records can be written to a place.

    Raises:
        UsageError: the name ends neither in .parquet nor in .csv, its folder cannot be written to, or a file or folder
            of another origin is there.
    """
    if place.suffix.lower() not in (".parquet", ".csv"):
        raise UsageError(f"{place}: name the report with the suffix .parquet or .csv, for that is what it will be")
    refuse_foreign(place, _is_report, "`sniper check --report`")


def _is_report(place: Location) -> bool:
    """Tell whether a file is a table of refused records."""
    content, columns = read_bytes(place), no_rejects().table().column_names
    if place.suffix.lower() == ".csv":
        return content.startswith(",".join(f'"{column}"' for column in columns).encode())
    try:
        return bool(pq.read_schema(io.BytesIO(content)).names == columns)
    except pa.ArrowInvalid:
        return False


def write_report(rejects: Rows[Reject], place: Location) -> None:
    """Write all refused records to a place that `check_report` has looked at, in the columns of rejects.parquet.

    Args:
        rejects: the records.
        place: file to write, Parquet or CSV by its suffix.

    Raises:
        DataError: it cannot be written.
    """
    table, buffer = rejects.table(), io.BytesIO()
    if place.suffix.lower() == ".parquet":
        pq.write_table(table, buffer)
    else:
        csv.write_csv(table, buffer)
    make_folder(place.parent)
    write_atomic(place, buffer.getvalue())
