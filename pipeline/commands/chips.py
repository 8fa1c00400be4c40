"""`sniper chips`: turn an annotation file and an image folder into shards of chips, resumably and reproducibly."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from pipeline.coco import Reject
from pipeline.coco.rows import Rows
from pipeline.coco.source import Source, no_rejects
from pipeline.commands.inputs import Places, hints_on_missing, read_inputs
from pipeline.commands.shortfall import Limits, find_shortfall
from pipeline.dataset.build import (
    LEDGERS,
    UNDER_WAY,
    UnderWay,
    clear_build,
    clear_unfinished,
    prepare,
    read_under_way,
    recorded_settings,
    refuse_changes,
    remove_surplus,
    task_memory,
)
from pipeline.dataset.build_file import (
    NAME,
    POSITIVES,
    build_fingerprint,
    build_versions,
    find_build,
    former_names,
    write_build,
)
from pipeline.dataset.cutting import make_shard
from pipeline.dataset.job import ShardJob, Target, without_image
from pipeline.dataset.ledger.compare import find_missing, find_vanished
from pipeline.dataset.ledger.summary import Summary
from pipeline.dataset.ledger.write import write_ledger
from pipeline.dataset.plan_files import remove_plan, write_plan_files
from pipeline.dataset.shards import shard_name
from pipeline.dataset.spans import PlannedSpan, plan_spans, span_length
from pipeline.engines.progress import Progress, showing
from pipeline.engines.run import run_tasks
from pipeline.engines.tasks import Engine, Task, check_engine
from pipeline.images.chip import codec
from pipeline.images.decode import decoders
from pipeline.images.sources import frame_notes
from pipeline.storage import (
    Location,
    files_in,
    is_file,
    is_folder,
    lies_in,
    location,
    locked,
    make_folder,
    probe_writable,
    remove,
    write_atomic,
)
from schemas.build import Build
from schemas.codes import Reason
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, Settings, settings_or_defaults

VANISHING = 0.05
"""Largest share of a finished build's images or boxes that another annotation file, or image folder, may lack."""


class Report(NamedTuple):
    """What a build did.

    Attributes:
        counts: those of run.json.
        rejects: the refused images and boxes.
        notes: remarks that a user should see and that refuse nothing.
        num_shards: shards of the build.
        num_made: shards that this call cut; the others were there.
        shortfall: why this is no success: too much was refused, or there is no target; None where it is one.
    """

    counts: dict[str, Any]
    rejects: Rows[Reject]
    notes: list[str]
    num_shards: int
    num_made: int
    shortfall: str | None


def chips(
    annotations: Places,
    images: Places | None,
    out: Location | str,
    settings: Settings | None = None,
    *,
    workers: int | None = 1,
    engine: str = "local",
    address: str | None = None,
    plan_only: bool = False,
    overwrite: bool = False,
    max_bad: float = 0.001,
    max_bad_boxes: float = 0.01,
) -> Report:
    """Build the positive chips of a data set under `out`, doing only what is missing there.

    Args:
        annotations: COCO JSON file, or several that become one data set: categories of one name are one.
        images: folder that the file names are relative to, one for all files or one for each; not needed with
            plan_only. Of several, the nearest folder above all of them is the one that the data set names.
        out: folder of the data set; it is made where there is none.
        settings: the section `chips` is used: what a chip is and where chips go.
        workers: number of processes, or of tasks on Ray at a time; None: all cores. It changes nothing but the time.
        engine: `local` for processes of this machine, or `ray`.
        address: of the Ray cluster; None: what RAY_ADDRESS says, else this machine.
        plan_only: write out/plan/ and no chips.
        overwrite: replace what an earlier build with other settings left.
        max_bad: largest share of refused images that still counts as success; everything good is written anyway.
        max_bad_boxes: the same of boxes that are refused themselves.

    Returns:
        What the build did.

    Raises:
        DataError: the annotation file cannot be trusted, or the output cannot be written.
        UsageError: `out` holds something else or is in use, the image folder is missing or lacks images of the
            finished build, no category has one of the names in chips.ignore_categories, or plan_only and overwrite are
            given together.
    """
    if plan_only and overwrite:
        raise UsageError("--plan-only writes no chips, so --overwrite would delete a build for nothing; leave out one")
    where = Engine(engine, workers, address)
    check_engine(where)
    out = location(out)
    probe_writable(out)
    if not plan_only and images is None:
        raise UsageError("--images is missing; give the folder that file_name is relative to")
    options = settings_or_defaults(settings).chips
    source, image_root = read_inputs(annotations, images, options.max_pixels, options.ignore_categories)
    if image_root is not None and lies_in(image_root, out) and lies_in(out, image_root):
        raise UsageError(f"{out}: is the folder of the images; choose another --out")
    limits = Limits(max_bad, max_bad_boxes)
    _refuse_foreign(out)
    with locked(out, "sniper chips"):
        clear_unfinished(out)  # first: they would keep their folders
        if overwrite:
            clear_build(out)
        if plan_only:
            return _write_plan(source, out, options, limits)
        assert image_root is not None
        standing = find_build(out)
        if standing is not None:
            _refuse_vanishing(out, annotations, source)
            _refuse_missing(out, image_root, standing)
        target = Target(out, POSITIVES, image_root, options, recorded_settings(options), codec(), decoders())
        return _build(source, target, standing, where, limits)


def _refuse_foreign(out: Location) -> None:
    """Refuse a folder that holds files of the names that a build writes, and no build, finished or not."""
    there = [name for name in (NAME, *LEDGERS) if is_file(out / name)]
    if there and not is_folder(out / POSITIVES) and find_build(out) is None:
        raise UsageError(
            f"{out}: holds {there[0]}, which `sniper chips` did not write and would replace; choose another --out, or "
            "move that away"
        )


def _refuse_vanishing(out: Location, annotations: Places, source: Source) -> None:
    """Refuse to shrink a finished build by much: it was most likely the wrong annotation file.

    Raises:
        UsageError: more than VANISHING of its images or boxes are not in the source.
    """
    try:
        gone = find_vanished(out, source)
    except DataError:
        return  # the ledger is lost, and is written anew
    if gone.share > VANISHING:
        files = " and ".join(map(str, annotations)) if isinstance(annotations, list | tuple) else annotations
        raise UsageError(
            f"{out}: {gone.images:,} of {gone.total_images:,} images and {gone.boxes:,} of {gone.total_boxes:,} boxes "
            f"of the finished build there are not in {files}, more than {VANISHING:.0%}. If it is the right "
            "file, replace the build with --overwrite; else choose another --out"
        )


def _refuse_missing(out: Location, image_root: Location, standing: Build) -> None:
    """Refuse to replace a finished build by one without most of its images: it was most likely the wrong image folder.

    Raises:
        UsageError: more than VANISHING of the image files that it kept are not in the image folder.
    """
    if not is_file(out / "images.parquet"):
        return  # the ledger is lost, and is written anew
    missing, looked_for = find_missing(out, image_root)
    if missing > VANISHING * looked_for:
        then = f" (it was made from {standing.images})" if standing.images else ""
        raise UsageError(
            f"{out}: {missing:,} of {looked_for:,} images of the finished build there{then} that were looked for are "
            f"not in {image_root}, more than {VANISHING:.0%}. Give the folder that holds them as --images; if they "
            "are gone for good, replace the build with --overwrite"
        )


def _build(source: Source, target: Target, standing: Build | None, engine: Engine, limits: Limits) -> Report:
    remove_plan(target.out / "plan")
    settings = _settled(target.settings, standing, source, target.out)
    has_shards = prepare(target, "chips", standing)
    folder = str(target.image_root)
    before = standing.images if standing is not None else read_under_way(target.out).images
    target = target._replace(is_moved=has_shards and before != folder)
    under_way = UnderWay(settings.images_per_shard, None if target.is_moved else folder)
    write_atomic(target.out / UNDER_WAY, msgspec.json.encode(under_way))
    summary = Summary(source, settings)
    spans: dict[str, PlannedSpan] = {}  # by the shard's name, until it is made
    made: dict[str, tuple[str, Rows[Reject]]] = {}  # of each finished shard: fingerprint and rejects
    num_made = num_ambiguous = num_several = 0

    def tasks() -> Iterator[Task[ShardJob]]:
        for index, span in enumerate(plan_spans(source, settings)):
            name = shard_name(index)
            spans[name] = span
            images = source.images(span.start, span.stop)
            job = ShardJob(target, name, images, span.plan.chips)
            yield Task(name, job, task_memory(images), len(images), without_image)

    with Progress("chips", source.num_images, "images") as progress:
        for name, record, was_there in run_tasks(make_shard, tasks(), engine, progress):
            refused = {reject.id: Reason(reject.reason) for reject in record.rejects if reject.id is not None}
            start, stop, plan = spans.pop(name)
            summary.add(plan, start, stop, refused, [image.hash for image in record.images])
            made[name] = record.fingerprint, no_rejects().plus(record.rejects)
            made[name][1].pack()
            num_made += not was_there
            num_ambiguous += record.num_ambiguous
            num_several += record.num_several

    remove_surplus(target, len(made))
    in_order = [made[shard_name(index)] for index in range(len(made))]
    rejects = no_rejects().plus(reject for _, some in in_order for reject in some)
    with showing("writing the ledgers"):
        ledgers = write_ledger(target.out, summary, rejects, standing.files if standing else {})
    fingerprint = build_fingerprint([shard for shard, _ in in_order])
    build = Build(
        fingerprint=fingerprint,
        settings={"chips": settings.model_dump(mode="json")},
        versions=build_versions(),
        num_shards=len(made),
        files=ledgers,
        counts=summary.counts(),
        formerly=former_names(standing, fingerprint, len(made), num_made),
        images=str(target.image_root),
    )
    write_build(target.build_file, build)
    remove(target.out / UNDER_WAY)
    shortfall = find_shortfall(
        source,
        build.counts,
        limits,
        "Everything good was written; annotations.parquet and rejects.parquet name the others",
    )
    notes = [*source.warnings, *source.notes, *frame_notes(num_ambiguous, num_several)]
    notes += hints_on_missing(target.image_root, rejects)
    return Report(build.counts, source.rejects.plus(rejects), notes, len(made), num_made, shortfall)


def _settled(settings: ChipSettings, standing: Build | None, source: Source, out: Location) -> ChipSettings:
    """Let a standing build keep the length of its shards where the settings leave it open.

    Raises:
        UsageError: the settings ask for another length.
    """
    if standing is None:  # never finished, or stopped while some shards are made anew
        noted = read_under_way(out).images_per_shard
        return settings.model_copy(update={"images_per_shard": settings.images_per_shard or noted})
    then, now = standing.settings.get("chips", {}).get("images_per_shard"), settings.images_per_shard
    if now is None:
        return settings.model_copy(update={"images_per_shard": then})
    lengths = {min(span_length(source.num_images, number), source.num_images) for number in (then, now)}
    if len(lengths) > 1:
        refuse_changes(out, "chips", {"images_per_shard": then}, {"images_per_shard": now})
    return settings


def _write_plan(source: Source, out: Location, settings: ChipSettings, limits: Limits) -> Report:
    if files_in(out / POSITIVES, "chips-*"):
        raise UsageError(f"{out}: holds chips already; choose another --out for a plan")
    folder = out / "plan"
    remove_plan(folder)
    make_folder(folder)
    summary = Summary(source, settings)
    num_spans = 0

    def planned(progress: Progress) -> Iterator[pa.Table]:
        nonlocal num_spans
        for start, stop, plan in plan_spans(source, settings):
            summary.add(plan, start, stop, {}, None)
            yield plan.chips
            num_spans += 1
            progress.add(stop - start)

    with Progress("plan", source.num_images, "images") as progress:
        files = write_plan_files(folder, planned(progress))
    build = Build(
        fingerprint=build_fingerprint([*files.values()]),
        settings={"chips": settings.model_dump(mode="json")},
        versions=build_versions(),
        num_shards=num_spans,
        files=files,
        counts=summary.counts(),
    )
    write_build(folder / NAME, build)  # last of all: a plan without it is not finished
    shortfall = find_shortfall(source, build.counts, limits, "`sniper check` names them")
    return Report(build.counts, source.rejects, [*source.warnings, *source.notes], num_spans, 0, shortfall)
