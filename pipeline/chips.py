"""`sniper chips`: an annotation file and an image folder become shards of chips, resumable and reproducible."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import __version__
from pipeline.coco import Reject, Source, SourceImage, read_coco
from pipeline.cut import ShardJob, cut_shard
from pipeline.engines import run_local
from pipeline.images import codec
from pipeline.ledger import ledger_files
from pipeline.plan import Plan, plan_run
from pipeline.progress import Progress
from pipeline.shards import Record, read_record
from pipeline.storage import atomic_file, image_folder, locked, remove_temporary, write_atomic
from pipeline.summary import Summary
from schemas.codes import Reason
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings
from schemas.tables import FORMAT_VERSION, PLAN

FOLDER = "positives"
PLAN_FILE_CHIPS = 200_000  # chips per file of plan/


class Report(NamedTuple):
    """What a build did."""

    counts: dict[str, Any]  # see Summary.counts
    rejects: list[Reject]
    notes: list[str]
    num_shards: int
    num_made: int  # shards cut by this run; the others were there
    too_many_bad: str | None  # set when more images were refused than allowed


def chips(
    annotations: Path,
    images: Path | None,
    out: Path,
    settings: ChipSettings,
    *,
    workers: int = 1,
    plan_only: bool = False,
    overwrite: bool = False,
    max_bad: float = 0.001,
) -> Report:
    """Build the positive chips of a data set under `out`, doing only what is missing there.

    Args:
        annotations: COCO JSON file.
        images: folder that its file names are relative to; not needed with plan_only.
        workers: processes; changes nothing but the time.
        plan_only: write out/plan/ and no chips.
        overwrite: replace what an earlier build with other settings left.
        max_bad: largest share of refused images that still counts as success; everything good is written anyway.

    Raises:
        DataError: the annotation file cannot be trusted, or the output cannot be written.
        UsageError: `out` holds something else or is in use, or the image folder is missing.
    """
    if not plan_only:
        images = image_folder(images)
    source = read_coco(annotations, settings.max_pixels)
    with locked(out):
        if overwrite:
            _clear(out)
        remove_temporary(out)
        runs = _runs(source.num_images, settings.images_per_shard)
        if plan_only:
            return _write_plan(source, out, settings, runs, max_bad)
        assert images is not None
        return _build(source, images, out, settings, runs, workers, max_bad)


def _runs(num_images: int, length: int) -> dict[str, tuple[int, int]]:
    """Shard name -> its run of consecutive images [start, stop), decided before anything else."""
    starts = range(0, max(num_images, 1), length)  # a set without a usable image still has one, empty, shard
    return {f"chips-{i:05d}": (start, min(start + length, num_images)) for i, start in enumerate(starts)}


def _build(
    source: Source,
    images: Path,
    out: Path,
    settings: ChipSettings,
    runs: dict[str, tuple[int, int]],
    workers: int,
    max_bad: float,
) -> Report:
    shutil.rmtree(out / "plan", ignore_errors=True)
    target = Target(out, FOLDER, out / "run.json", images, settings, settings.model_dump(mode="json"))
    done = committed(target, runs.keys(), "chips")
    summary = Summary(source, settings)
    records: dict[str, Record] = {}
    plans: dict[str, Plan] = {}

    def planned() -> Iterator[PlannedShard]:
        for name, (start, stop) in runs.items():
            plans[name] = plan_run(source, start, stop, settings)
            yield PlannedShard(name, source.images(start, stop), plans[name].chips)

    def finish(name: str, record: Record) -> None:
        refused = {reject.id: Reason(reject.reason) for reject in record.rejects if reject.id is not None}
        start, stop = runs[name]
        summary.add(plans.pop(name), start, stop, refused)
        records[name] = record
        progress.add(stop - start)

    with Progress("chips", source.num_images, "images") as progress:
        num_made = make_shards(target, planned(), done, finish, workers)

    in_order = [records[name] for name in runs]
    rejects = [reject for record in in_order for reject in record.rejects]
    hashes = {image.image_id: image.hash for record in in_order for image in record.images}
    files = ledger_files(summary, hashes, rejects)
    counts = summary.counts()
    finish_run(target, {"chips": target.recorded}, files, counts, in_order, images=str(images))
    return Report(
        counts,
        [*source.rejects, *rejects],
        source.notes,
        len(runs),
        num_made,
        _too_many_bad(counts, max_bad),
    )


class Target(NamedTuple):
    """Where a build's shards go, and what all of them share."""

    out: Path  # the data set
    folder: str  # positives or negatives
    run_file: Path  # says, written last, that the build is finished
    image_root: Path
    settings: ChipSettings
    recorded: dict[str, Any]  # settings that every shard names; shards that name others are not of this build


class PlannedShard(NamedTuple):
    name: str
    images: list[SourceImage]
    chips: pa.Table  # schema PLAN, ordered by image


def committed(target: Target, names: Iterable[str], section: str) -> dict[str, Record]:
    """Records of a build's finished shards, by name; those not among `names` are deleted (the data set has shrunk).

    Raises:
        UsageError: they were made with other settings, all differences named, with the name of their section.
    """
    folder = target.out / target.folder
    folder.mkdir(exist_ok=True)
    done: dict[str, Record] = {}
    now = target.recorded
    for path in sorted(folder.glob("chips-*.parquet")):
        try:
            record = read_record(path)
        except DataError:
            continue  # damaged: made again
        if record.settings != now:
            changed = [
                f"{section}.{key}: {record.settings.get(key)!r} there, {now.get(key)!r} now"
                for key in sorted(record.settings.keys() | now.keys())
                if record.settings.get(key) != now.get(key)
            ]
            raise UsageError(
                f"{target.run_file.parent}: holds chips made with other settings:\n  "
                + "\n  ".join(changed)
                + "\nReplace them with --overwrite, or build in another folder"
            )
        tar = path.with_suffix(".tar")
        if tar.is_file() and tar.stat().st_size == record.tar_bytes:
            done[path.stem] = record
    for name in done.keys() - set(names):
        (folder / f"{name}.parquet").unlink()
        (folder / f"{name}.tar").unlink(missing_ok=True)
        del done[name]
    return done


def make_shards(
    target: Target,
    planned: Iterable[PlannedShard],
    done: dict[str, Record],
    finish: Callable[[str, Record], None],
    workers: int,
) -> int:
    """Cut the planned shards, but for those of `done` that were made from the same; returns how many were cut.

    Args:
        planned: drawn from as workers become free.
        finish: called once per shard, in any order, with its name and record.
    """

    def jobs() -> Iterator[ShardJob]:
        for name, sources, chips in planned:
            fingerprint = _shard_fingerprint(chips, sources, target.image_root, target.settings)
            if name in done and done[name].fingerprint == fingerprint:
                finish(name, done[name])
                continue
            target.run_file.unlink(missing_ok=True)  # no longer a finished build
            yield ShardJob(
                target.out,
                target.folder,
                name,
                target.image_root,
                sources,
                chips,
                target.settings,
                fingerprint,
                target.recorded,
            )

    num_made = 0
    for result in run_local(cut_shard, jobs(), workers):
        finish(result.name, result.record)
        num_made += 1
    return num_made


def _shard_fingerprint(chips: pa.Table, sources: list[SourceImage], images: Path, settings: ChipSettings) -> str:
    """SHA-256 over the planned rows, the image files' sizes, the settings and the versions that decide the bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, PLAN) as stream:
        stream.write_table(chips)
    digest = hashlib.sha256(sink.getvalue())
    sizes = [_file_size(images / image.file_name) for image in sources]
    versions = [FORMAT_VERSION, *codec()]
    digest.update(msgspec.json.encode([sources, sizes, settings.model_dump(mode="json"), versions]))
    return digest.hexdigest()


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # refused when it is read


def finish_run(
    target: Target,
    settings: dict[str, Any],
    files: dict[str, bytes],
    counts: dict[str, Any],
    records: list[Record],
    *,
    made_from: dict[str, Any] | None = None,
    **places: str | None,
) -> None:
    """Write the ledgers and, last, run.json; nothing is written that is there already.

    Args:
        settings: by section.
        files: ledgers, name -> content.
        made_from: further content of run.json; its fingerprint covers all but the `places`.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    content: dict[str, Any] = {
        **(made_from or {}),
        "settings": settings,
        "versions": {"sniper-chips": __version__, "format": FORMAT_VERSION, **codec()._asdict()},
        "num_shards": len(records),
        "shards": [record.fingerprint for record in records],
        "files": digests,
        "counts": counts,
    }
    fingerprint = hashlib.sha256(msgspec.json.encode(content)).hexdigest()
    del content["shards"]  # each shard carries its own
    run = {"fingerprint": fingerprint, **content, **places}
    data = msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n"
    out, path = target.run_file.parent, target.run_file
    if path.is_file() and path.read_bytes() == data and all((out / name).is_file() for name in files):
        return
    path.unlink(missing_ok=True)
    for name, file in files.items():
        write_atomic(out / name, file)
    write_atomic(path, data)


def _write_plan(
    source: Source, out: Path, settings: ChipSettings, runs: dict[str, tuple[int, int]], max_bad: float
) -> Report:
    if any((out / FOLDER).glob("chips-*")):
        raise UsageError(f"{out}: holds chips already; choose another --out for a plan")
    folder = out / "plan"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    summary = Summary(source, settings)
    waiting: list[pa.Table] = []
    num_files = 0

    def flush() -> None:
        nonlocal num_files
        with atomic_file(folder / f"plan-{num_files:05d}.parquet") as file:
            pq.write_table(pa.concat_tables(waiting), file, compression="zstd")
        num_files += 1
        waiting.clear()

    for start, stop in runs.values():
        plan = plan_run(source, start, stop, settings)
        summary.add(plan, start, stop, {})
        waiting.append(plan.chips)
        if sum(table.num_rows for table in waiting) >= PLAN_FILE_CHIPS:
            flush()
    if waiting or not num_files:
        waiting.append(PLAN.empty_table())
        flush()
    counts = summary.counts()
    return Report(counts, source.rejects, source.notes, len(runs), 0, _too_many_bad(counts, max_bad))


def _too_many_bad(counts: dict[str, Any], max_bad: float) -> str | None:
    refused, total = sum(counts["images"]["refused"].values()), counts["images"]["total"]
    if refused / max(total, 1) <= max_bad:
        return None
    return (
        f"{refused} of {total} images were refused, more than --max-bad {max_bad:g} allows. Everything good was "
        "written; rejects.parquet names the others"
    )


def _clear(out: Path) -> None:
    """Delete what builds write, and nothing else a user may keep there."""
    for name in ("run.json", *(f"{n}.parquet" for n in ("images", "annotations", "categories", "rejects"))):
        (out / name).unlink(missing_ok=True)
    for name in (FOLDER, "negatives", "proposals", "plan"):
        shutil.rmtree(out / name, ignore_errors=True)
