"""`sniper chips`: turn an annotation file and an image folder into shards of chips, resumably and reproducibly."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.coco import Reject
from pipeline.coco.read import read_coco
from pipeline.coco.rows import Rows
from pipeline.coco.source import Source, no_rejects
from pipeline.commands.shortfall import Limits, find_shortfall
from pipeline.dataset.build import prepare, task_memory
from pipeline.dataset.build_file import COMMANDS, NEGATIVES, POSITIVES, read_build, write_build
from pipeline.dataset.cutting import ShardJob, Target, make_shard
from pipeline.dataset.ledger.summary import Summary
from pipeline.dataset.ledger.write import write_ledger
from pipeline.dataset.plan_files import PLAN_FILES, write_plan_files
from pipeline.engines.progress import Progress
from pipeline.engines.run import run
from pipeline.engines.tasks import Engine, Task
from pipeline.images.chip import codec
from pipeline.images.decode import decoders
from pipeline.images.sources import frame_notes, image_folder
from pipeline.planning.plan import Plan, plan_span
from pipeline.storage import (
    Location,
    files_in,
    location,
    locked,
    make_folder,
    remove,
    remove_files,
    remove_folder,
    remove_temporary,
)
from schemas.codes import Reason
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings


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
    annotations: Location,
    images: Location | None,
    out: Location,
    settings: ChipSettings,
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
        annotations: COCO JSON file.
        images: folder that its file names are relative to; not needed with plan_only.
        out: folder of the data set; it is made where there is none.
        settings: what a chip is and where chips go.
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
        UsageError: `out` holds something else or is in use, the image folder is missing, or plan_only and overwrite
            are given together.
    """
    if plan_only and overwrite:
        raise UsageError("--plan-only writes no chips, so --overwrite would delete a build for nothing; leave out one")
    out = location(out)
    if not plan_only:
        images = image_folder(None if images is None else location(images))
    source = read_coco(annotations, settings.max_pixels, settings.ignore_categories)
    limits = Limits(max_bad, max_bad_boxes)
    with locked(out):
        remove_temporary(out)  # first: they would keep their folders
        if overwrite:
            _clear(out)
        spans = _spans(source.num_images, settings.images_per_shard)
        if plan_only:
            return _write_plan(source, out, settings, spans, limits)
        assert images is not None
        return _build(source, images, out, settings, spans, Engine(engine, workers, address), limits)


def _spans(num_images: int, length: int) -> dict[str, tuple[int, int]]:
    """Decide, before anything else, which consecutive images [start, stop) each shard holds, by the shard's name."""
    starts = range(0, max(num_images, 1), length)  # a set without a usable image still has one, empty, shard
    return {f"chips-{i:05d}": (start, min(start + length, num_images)) for i, start in enumerate(starts)}


def _build(
    source: Source,
    image_root: Location,
    out: Location,
    settings: ChipSettings,
    spans: dict[str, tuple[int, int]],
    engine: Engine,
    limits: Limits,
) -> Report:
    remove_files(out / "plan", PLAN_FILES)
    recorded = settings.model_dump(mode="json")
    target = Target(out, POSITIVES, out / "run.json", image_root, settings, recorded, codec(), decoders())
    prepare(target, spans.keys(), "chips")
    ledgers = _recorded_ledgers(out)
    summary = Summary(source, settings)
    made: dict[str, tuple[str, Rows[Reject]]] = {}  # of each finished shard: fingerprint and rejects
    plans: dict[str, Plan] = {}

    num_made = num_ambiguous = num_several = 0

    def tasks() -> Iterator[Task[ShardJob]]:
        for name, (start, stop) in spans.items():
            plans[name] = plan_span(source, start, stop, settings)
            images = source.images(start, stop)
            yield Task(name, ShardJob(target, name, images, plans[name].chips), task_memory(images))

    with Progress("chips", source.num_images, "images") as progress:
        for name, record, was_there in run(make_shard, tasks(), engine):
            refused = {reject.id: Reason(reject.reason) for reject in record.rejects if reject.id is not None}
            start, stop = spans[name]
            summary.add(plans.pop(name), start, stop, refused, [image.hash for image in record.images])
            made[name] = record.fingerprint, no_rejects().plus(record.rejects)
            made[name][1].pack()
            num_made += not was_there
            num_ambiguous += record.num_ambiguous
            num_several += record.num_several
            progress.add(stop - start)

    rejects = no_rejects().plus(reject for name in spans for reject in made[name][1])
    ledgers = write_ledger(out, summary, rejects, ledgers)
    counts = summary.counts()
    fingerprints = [made[name][0] for name in spans]
    settings_said = {"chips": target.recorded}
    write_build(target.build_file, fingerprints, settings_said, ledgers, counts, images=str(image_root))
    return Report(
        counts,
        source.rejects.plus(rejects),
        [*source.warnings, *source.notes, *frame_notes(num_ambiguous, num_several)],
        len(spans),
        num_made,
        find_shortfall(source, counts, limits, "Everything good was written; rejects.parquet names the others"),
    )


def _recorded_ledgers(out: Location) -> dict[str, str]:
    """Return the SHA-256 of each ledger as a finished build's record has it; none where there is no such build."""
    try:
        digests = read_build(out, COMMANDS[POSITIVES])["files"]
    except DataError:
        return {}
    return digests if isinstance(digests, dict) else {}


def _write_plan(
    source: Source, out: Location, settings: ChipSettings, spans: dict[str, tuple[int, int]], limits: Limits
) -> Report:
    if files_in(out / POSITIVES, "chips-*"):
        raise UsageError(f"{out}: holds chips already; choose another --out for a plan")
    folder = out / "plan"
    remove_files(folder, PLAN_FILES)
    make_folder(folder)
    summary = Summary(source, settings)

    def planned(progress: Progress) -> Iterator[pa.Table]:
        for start, stop in spans.values():
            plan = plan_span(source, start, stop, settings)
            summary.add(plan, start, stop, {}, None)
            yield plan.chips
            progress.add(stop - start)

    with Progress("plan", source.num_images, "images") as progress:
        write_plan_files(folder, planned(progress))
    counts = summary.counts()
    shortfall = find_shortfall(source, counts, limits, "`sniper check` names them")
    return Report(counts, source.rejects, [*source.warnings, *source.notes], len(spans), 0, shortfall)


def _clear(out: Location) -> None:
    """Delete what builds write, and nothing else a user may keep there."""
    for name in ("run.json", *(f"{n}.parquet" for n in ("images", "annotations", "categories", "rejects"))):
        remove(out / name)
    remove(out / NEGATIVES / "run.json")
    for name in (NEGATIVES, POSITIVES):
        remove_files(out / name, "chips-*.tar", "chips-*.parquet")
    remove_folder(out / "proposals")
    remove_files(out / "plan", PLAN_FILES)
