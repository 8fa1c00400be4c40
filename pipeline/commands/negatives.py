"""`sniper negatives`: mine proposals for background that fools a weak RPN, and cut it into a pool of chips.

The pool's shard i holds the images of the positives' shard i. Where windows go depends on the positives' manifest,
the proposals and the settings alone.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pipeline.commands.mine_shard import MinedShard, MineJob, extents, mine_shard
from pipeline.dataset.build import (
    clear_pool,
    clear_unfinished,
    prepare,
    recorded_mining,
    refuse_changes,
    remove_surplus,
    task_memory,
)
from pipeline.dataset.build_file import (
    NEGATIVES,
    POSITIVES,
    build_fingerprint,
    build_versions,
    find_build,
    former_names,
    read_build,
    refuse_other_chips,
    write_build,
)
from pipeline.dataset.job import Target
from pipeline.dataset.ledger.read import Kept, read_kept
from pipeline.dataset.proposals import Parts, find_parts, read_proposals, slice_pool
from pipeline.dataset.shards import read_record, shard_name
from pipeline.engines.progress import Progress
from pipeline.engines.run import run_tasks
from pipeline.engines.tasks import Engine, Task, check_engine
from pipeline.images.chip import codec
from pipeline.images.decode import decoders
from pipeline.planning.mine import PooledProposals
from pipeline.planning.scales import scale_name
from pipeline.storage import Location, ahead, is_folder, location, locked
from schemas.build import Build
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, NegativeSettings, Settings, settings_or_defaults


class NegativeReport(NamedTuple):
    """What a build did.

    Attributes:
        counts: those of the pool's run.json.
        num_shards: shards of the pool.
        num_made: shards that this call cut; the others were there.
    """

    counts: dict[str, Any]
    num_shards: int
    num_made: int


def negatives(
    data: Location | str,
    *,
    images: Location | str | None = None,
    proposals: Location | str | None = None,
    random: int | None = None,
    settings: Settings | None = None,
    workers: int | None = 1,
    engine: str = "local",
    address: str | None = None,
    overwrite: bool = False,
) -> NegativeReport:
    """Build the pool of negative chips beside the positives of `data`, doing only what is missing there.

    Args:
        data: the folder that `sniper chips` wrote.
        images: folder that file names are relative to; None: where the positives were cut from.
        proposals: a Parquet file, a folder of them or COCO results JSON.
        random: instead of proposals, draw this many background chips per image by seed.
        settings: the section `negatives` says how proposals are pooled and mined. What is given of `chips` must be as
            the chips were made.
        workers: number of processes, or of tasks on Ray at a time; None: all cores. It changes nothing but the time.
        engine: `local` for processes of this machine, or `ray`.
        address: of the Ray cluster; None: what RAY_ADDRESS says, else this machine.
        overwrite: replace a pool made with other settings.

    Returns:
        What the build did.

    Raises:
        UsageError: wrong arguments, or `data` is in use, or settings of chips were given that are not those of `data`.
        DataError: the positives are unfinished, proposals are malformed, an image file is not what the positives
            were cut from, or the output cannot be written.
    """
    if (proposals is None) == (random is None):
        raise UsageError("negatives: give either proposals or a number of random chips per image")
    if random is not None and random < 1:
        raise UsageError(f"--random {random}: expected at least one chip per image")
    data, images = location(data), None if images is None else location(images)
    proposals = None if proposals is None else location(proposals)
    settings = settings_or_defaults(settings)
    refuse_other_chips(data, read_build(data).settings["chips"], settings.chips)
    where = Engine(engine, workers, address)
    check_engine(where)
    with locked(data, "sniper negatives"):
        clear_unfinished(data)
        positives = read_build(data)
        root = image_root(positives, images)
        kept = read_kept(data, positives.files)
        found = None if proposals is None else _find(proposals, kept, positives)
        if overwrite:
            clear_pool(data)
        chips = ChipSettings.model_validate(positives.settings["chips"])
        recorded = recorded_mining(settings.negatives, random)
        target = Target(data, NEGATIVES, root, chips, recorded, codec(), decoders())
        return _build(target, positives, kept, found, settings.negatives, proposals, where)


def image_root(positives: Build, images: Location | None) -> Location:
    """Return the folder that the positives were cut from.

    Args:
        positives: their build record.
        images: the folder, where it is not the one that the record names.

    Raises:
        UsageError: it is not there.
    """
    root = location(positives.images or "") if images is None else images
    if not is_folder(root):
        raise UsageError(f"{root}: no such image folder; give the folder the positives were cut from as --images")
    return root


def _find(proposals: Location, kept: Kept, positives: Build) -> PooledProposals | Parts:
    """Find proposals: those of our own RPN stay where they are, for the workers; other files are read and checked."""
    parts = find_parts(proposals, positives.names, kept.source.num_images)
    return parts or read_proposals(proposals, extents(kept.source, kept.refused))


def _build(
    target: Target,
    positives: Build,
    kept: Kept,
    found: PooledProposals | Parts | None,
    settings: NegativeSettings,
    proposals: Location | None,
    engine: Engine,
) -> NegativeReport:
    names = [shard_name(index) for index in range(positives.num_shards)]
    prepare(target, NEGATIVES)
    standing = find_build(target.out, NEGATIVES)
    if standing is not None:  # how its chips are stored stands in no row of them
        now = {key: getattr(target.settings, key) for key in ("quality", "subsampling")}
        refuse_changes(target.out / NEGATIVES, "chips", standing.settings.get("chips", now), now)
    remove_surplus(target, len(names))  # after the refusal: it may delete the record that this one compares with
    mined: dict[str, MinedShard] = {}
    with Progress("negatives", kept.source.num_images, "images") as progress:
        for shard in run_tasks(mine_shard, _tasks(target, names, kept, found, settings), engine, progress):
            mined[shard.name] = shard
    in_order = [mined[name] for name in names]
    strange = [line for shard in in_order for line in shard.strange]
    if strange:
        raise DataError(
            f"{target.image_root}: {len(strange)} image files are not those the positives were cut from:\n"
            + "\n".join(strange[:20])
            + "\nGive their folder as --images, or run `sniper chips` first where they have changed for good. "
            "Finished shards are kept"
        )
    num_made = sum(not shard.was_there for shard in in_order)
    fingerprint = build_fingerprint([shard.fingerprint for shard in in_order])
    build = Build(
        fingerprint=fingerprint,
        settings={"chips": positives.settings["chips"], NEGATIVES: settings.model_dump(mode="json")},
        versions=build_versions(),
        num_shards=len(names),
        files={},
        counts=_counts(in_order, target.settings),
        formerly=former_names(standing, fingerprint, len(names), num_made),
        positives=positives.fingerprint,
        random=target.recorded["random"],
        proposals=None if proposals is None else str(proposals),
    )
    write_build(target.build_file, build)
    return NegativeReport(build.counts, len(names), num_made)


def _tasks(
    target: Target, names: list[str], kept: Kept, found: PooledProposals | Parts | None, settings: NegativeSettings
) -> Iterator[Task[MineJob]]:
    paths = [target.out / POSITIVES / f"{name}.parquet" for name in names]
    for name, record in zip(names, ahead(read_record, paths), strict=True):
        ids = [image.image_id for image in record.images] or [0]
        start = int(np.searchsorted(kept.source.image_id, ids[0]))
        stop = int(np.searchsorted(kept.source.image_id, ids[-1], "right"))
        source = kept.source.span(start, stop)
        proposals = (
            slice_pool(found, start, stop) if isinstance(found, PooledProposals) else found and found.of(start, stop)
        )
        job = MineJob(target, name, source, kept.hashes[start:stop].to_pylist(), proposals, settings)
        yield Task(name, job, task_memory(source.images(0, stop - start)), stop - start)


def _counts(shards: list[MinedShard], settings: ChipSettings) -> dict[str, Any]:
    """Sum the counts of run.json over the shards in their order, so that no rounding depends on the workers."""
    columns = np.sum([shard.scales for shard in shards], axis=0).T.tolist()
    per_scale = [(int(chips), int(proposals), score) for chips, proposals, score in columns]
    num_chips = sum(chips for chips, _, _ in per_scale)
    statuses = sum((shard.statuses for shard in shards), Counter[str]())
    num_images = sum(shard.images for shard in shards)
    with_chips = sum(shard.with_chips for shard in shards)
    return {
        "images": {"total": num_images, "with_chips": with_chips, "without_chips": num_images - with_chips},
        "proposals": {
            "read": sum(shard.read for shard in shards),
            "after_nms": sum(shard.pooled for shard in shards),
            "covered": sum(proposals for _, proposals, _ in per_scale),
        },
        "scales": [
            {
                "scale": scale_name(scale),
                "chips": chips,
                "proposals_covered": proposals,
                "mean_score": round(score / proposals, 6) if proposals else None,
            }
            for scale, (chips, proposals, score) in zip(settings.scales, per_scale, strict=True)
        ],
        "chips": {
            "total": num_chips,
            "per_image": round(num_chips / max(num_images, 1), 4),
            "boxes_by_status": dict(sorted(statuses.items())),
        },
    }


def describe(counts: dict[str, Any], *, random: bool = False) -> str:
    """Put the counts of a pool into text; a pool of random chips knows no proposals."""
    images, proposals, chips = counts["images"], counts["proposals"], counts["chips"]
    total = f"chips      {chips['total']:,}: {chips['per_image']:.2f} per image"
    lines = [
        f"images     {images['total']:,} = {images['with_chips']:,} with negative chips + "
        f"{images['without_chips']:,} without",
    ]
    if random:
        lines += [
            "",
            f"{'scale':<28}{'chips':>10}",
            *(f"{row['scale']:<28}{row['chips']:>10,}" for row in counts["scales"]),
        ]
        return "\n".join([*lines, "", total])
    lines += [
        f"proposals  {proposals['read']:,} read, {proposals['after_nms']:,} after pooling the scales, "
        f"{proposals['covered']:,} in negative chips (one may count at several scales)",
        "",
        f"{'scale':<28}{'chips':>10}{'covered':>12}{'per chip':>10}{'mean score':>12}",
    ]
    for row in counts["scales"]:
        per_chip = f"{row['proposals_covered'] / row['chips']:.1f}" if row["chips"] else "-"
        mean_score = "-" if row["mean_score"] is None else f"{row['mean_score']:.3f}"
        lines.append(
            f"{row['scale']:<28}{row['chips']:>10,}{row['proposals_covered']:>12,}{per_chip:>10}{mean_score:>12}"
        )
    return "\n".join([*lines, "", total])
