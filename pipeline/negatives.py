"""`sniper negatives`: mines proposals for background that fools a weak RPN, and cuts it into a pool of chips.

The pool's shard i holds the images of the positives' shard i. Where windows go depends on the positives' manifest,
the proposals and the settings alone.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.chips import FOLDER as POSITIVES
from pipeline.chips import PlannedShard, Target, committed, finish_run, make_shards
from pipeline.coco import Source
from pipeline.mine import Mined, Pool, mine_run, pool_scales, random_run
from pipeline.plan import Placed, RunColumns, chip_rows, run_columns
from pipeline.progress import Progress
from pipeline.proposals import Extents, read_proposals, slice_pool
from pipeline.scales import FloatArray, IntArray, scale_name
from pipeline.shards import Record, read_record
from pipeline.storage import locked, remove_temporary
from schemas.codes import Fate
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, NegativeSettings

FOLDER = "negatives"
WINDOW = ["x1", "y1", "x2", "y2"]


class NegativeReport(NamedTuple):
    """What a build did."""

    counts: dict[str, Any]
    num_shards: int
    num_made: int  # shards cut by this run; the others were there


class _Ledger(NamedTuple):
    """What `sniper chips` left of its input.

    Attributes:
        source: the kept images and their boxes.
        hashes: per kept image id, XXH3-128 of the file that its positives were cut from.
        refused: int64 [r], ids of refused images.
    """

    source: Source
    hashes: dict[int, str]
    refused: IntArray


class _Tally(NamedTuple):
    """One shard in numbers."""

    scales: FloatArray  # float64 [3, S]: chips, proposals newly covered, sum of their scores
    images: int  # with at least one chip
    pooled: int  # proposals that NMS left
    statuses: Counter[str]


def negatives(
    data: Path,
    *,
    images: Path | None = None,
    proposals: Path | None = None,
    random: int | None = None,
    settings: NegativeSettings | None = None,
    workers: int = 1,
    overwrite: bool = False,
) -> NegativeReport:
    """Build the pool of negative chips beside the positives of `data`, doing only what is missing there.

    Args:
        data: the folder that `sniper chips` wrote.
        images: folder that file names are relative to; where the positives' run.json says, if not given.
        proposals: a Parquet file, a folder of them or COCO results JSON; see pipeline.proposals.
        random: instead of proposals, draw this many background chips per image by seed.
        workers: processes; changes nothing but the time.
        overwrite: replace a pool made with other settings.

    Raises:
        UsageError: wrong arguments, or `data` is in use.
        DataError: the positives are unfinished, proposals are malformed, an image file is not what the positives
            were cut from, or the output cannot be written.
    """
    if (proposals is None) == (random is None):
        raise UsageError("negatives: give either proposals or a number of random chips per image")
    if random is not None and random < 1:
        raise UsageError(f"--random {random}: expected at least one chip per image")
    _read_run(data)
    with locked(data):
        if overwrite:
            shutil.rmtree(data / FOLDER, ignore_errors=True)
        remove_temporary(data)
        run = _read_run(data)
        root = image_root(data, images)
        chips = ChipSettings.model_validate(run["settings"]["chips"])
        ledger = _read_ledger(data)
        pool = None if proposals is None else _read_pool(proposals, ledger)
        recorded = {**(settings or NegativeSettings()).model_dump(mode="json"), "random": random}
        target = Target(data, FOLDER, data / FOLDER / "run.json", root, chips, recorded)
        return _build(target, run, ledger, pool, settings or NegativeSettings(), proposals, workers)


def image_root(data: Path, images: Path | None) -> Path:
    """The folder the positives were cut from: `images`, or where their run.json says.

    Raises:
        UsageError: it is not there; DataError: the positives are unfinished.
    """
    root = Path(_read_run(data)["images"]) if images is None else images
    if not root.is_dir():
        raise UsageError(f"{root}: no such image folder; give the folder the positives were cut from as --images")
    return root


def _read_run(data: Path) -> dict[str, Any]:
    path = data / "run.json"
    try:
        run: dict[str, Any] = json.loads(path.read_bytes())
        run["fingerprint"], run["num_shards"], run["settings"]["chips"], run["images"]  # noqa: B018
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing: no finished chips here; run `sniper chips` first") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({error!r}); run `sniper chips` again") from error
    return run


def _read_ledger(data: Path) -> _Ledger:
    """Kept images sorted by id, their boxes by image and row, as read_coco gives them."""
    images, annotations, categories = (
        _read_table(data / f"{name}.parquet") for name in ("images", "annotations", "categories")
    )
    refused = images.filter(pc.field("state") != "kept")["image_id"].drop_null().to_numpy()
    images = images.filter(pc.field("state") == "kept").sort_by("image_id")
    image_id = images["image_id"].to_numpy()
    boxes = annotations.filter(pc.field("x1").is_valid() & pc.is_in(pc.field("image_id"), pa.array(image_id)))
    boxes = boxes.sort_by([("image_id", "ascending"), ("row", "ascending")])
    known = categories["id"].to_numpy()
    category_id = boxes["category_id"].to_numpy()
    source = Source(
        image_id=image_id,
        file_name=images["file_name"].to_pylist(),
        width=images["width"].to_numpy().astype(np.int64),
        height=images["height"].to_numpy().astype(np.int64),
        offsets=np.searchsorted(boxes["image_id"].to_numpy(), np.append(image_id, np.iinfo(np.int64).max)),
        row=boxes["row"].to_numpy(),
        annotation_id=boxes["annotation_id"].to_numpy(),
        category_id=category_id,
        label=categories["label"].to_numpy()[np.searchsorted(known, category_id)],
        box=np.stack([boxes[name].to_numpy() for name in WINDOW], axis=1),
        crowd=pc.equal(boxes["fate"], Fate.CROWD.name.lower()).to_numpy(),
        categories=list(zip(known.tolist(), categories["name"].to_pylist(), strict=True)),
    )
    hashes = dict(zip(image_id.tolist(), images["hash"].to_pylist(), strict=True))
    return _Ledger(source, hashes, refused)


def _read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read: {error}; run `sniper chips` again") from error


def _read_pool(proposals: Path, ledger: _Ledger) -> Pool:
    source = ledger.source
    size = np.stack([source.width, source.height], axis=1).astype(np.float64)
    return read_proposals(proposals, Extents(source.image_id, size, ledger.refused))


def _build(
    target: Target,
    run: dict[str, Any],
    ledger: _Ledger,
    pool: Pool | None,
    settings: NegativeSettings,
    proposals: Path | None,
    workers: int,
) -> NegativeReport:
    names = [f"chips-{i:05d}" for i in range(run["num_shards"])]
    done = {name: record for name, record in committed(target, names, FOLDER).items() if not _strange(record, ledger)}
    tallies: dict[str, _Tally] = {}
    records: dict[str, Record] = {}
    num_images: dict[str, int] = {}
    strange: list[str] = []

    def planned() -> Iterator[PlannedShard]:
        for name in names:
            start, stop, positives = _positives(target.out / POSITIVES / f"{name}.parquet", ledger.source)
            shard, tallies[name] = _plan(name, ledger.source, start, stop, positives, pool, target, settings)
            num_images[name] = stop - start
            yield shard

    def finish(name: str, record: Record) -> None:
        records[name] = record
        strange.extend(_strange(record, ledger))
        progress.add(num_images[name])

    with Progress("negatives", ledger.source.num_images, "images") as progress:
        num_made = make_shards(target, planned(), done, finish, workers)
    if strange:
        raise DataError(
            f"{target.image_root}: {len(strange)} image files are not those the positives were cut from:\n"
            + "\n".join(sorted(strange)[:20])
            + "\nGive their folder as --images, or run `sniper chips` again where they have changed for good. "
            "Finished shards are kept"
        )
    counts = _counts([tallies[name] for name in names], ledger.source.num_images, target.settings, pool)
    finish_run(
        target,
        {"chips": run["settings"]["chips"], FOLDER: settings.model_dump(mode="json")},
        {},
        counts,
        [records[name] for name in names],
        made_from={POSITIVES: run["fingerprint"], "random": target.recorded["random"]},
        proposals=None if proposals is None else str(proposals),
    )
    return NegativeReport(counts, len(names), num_made)


def _strange(record: Record, ledger: _Ledger) -> list[str]:
    """A line per image of a shard whose file was another one, or none, when it was cut."""
    why = {reject.id: reject.message for reject in record.rejects}
    return [
        f"  image {image.image_id}: {why.get(image.image_id, 'the bytes of its file have changed')}"
        for image in record.images
        if image.image_id in why or image.hash != ledger.hashes.get(image.image_id)
    ]


Positives = tuple[IntArray, npt.NDArray[np.int8], FloatArray]


def _positives(path: Path, source: Source) -> tuple[int, int, Positives]:
    """The kept images [start, stop) of a positives' shard; its chips' image in that run, scale index and window."""
    ids = [image.image_id for image in read_record(path).images]
    start, stop = np.searchsorted(source.image_id, [ids[0], ids[-1] + 1]).tolist()
    rows = _read_table(path, ["image_id", "scale_index", *WINDOW])
    image = np.searchsorted(source.image_id[start:stop], rows["image_id"].to_numpy())
    window = np.stack([rows[name].to_numpy() for name in WINDOW], axis=1)
    return start, stop, (image, rows["scale_index"].to_numpy(), window)


def _plan(
    name: str,
    source: Source,
    start: int,
    stop: int,
    positives: Positives,
    pool: Pool | None,
    target: Target,
    settings: NegativeSettings,
) -> tuple[PlannedShard, _Tally]:
    """The chips of one shard; only images that give any are read."""
    chips = target.settings
    run = run_columns(source, start, stop, chips)
    if pool is None:
        num_pooled = 0
        mined = random_run(run, target.recorded["random"], chips.size, chips.seed)
    else:
        pooled = pool_scales(slice_pool(pool, start, stop), settings.nms)
        num_pooled = len(pooled.score)
        least = np.full(len(chips.scales), settings.min_others)
        least[0] = settings.min_finest
        mined = mine_run(run, pooled, positives, least, chips.size, chips.stride)
    rows = _rows(source, run, mined, chips)
    images = source.images(start, stop)
    with_chips = [images[i] for i in np.unique(mined.image).tolist()]
    statuses = rows["boxes"].combine_chunks().flatten().field("status").to_pylist()
    score = np.where(mined.num_proposals > 0, mined.mean_score, 0) * mined.num_proposals
    weights = (np.ones(len(score)), mined.num_proposals, score)
    per_scale = [np.bincount(mined.scale_index, weight, len(chips.scales)) for weight in weights]
    scales = np.stack(per_scale, dtype=np.float64)
    return PlannedShard(name, with_chips, rows), _Tally(scales, len(with_chips), num_pooled, Counter(statuses))


def _rows(source: Source, run: RunColumns, mined: Mined, chips: ChipSettings) -> pa.Table:
    placed = Placed(
        "negative",
        mined.image,
        mined.scale_index,
        mined.window,
        np.full(len(run.boxes), -1, np.int64),  # a box is rescued in its positive chip alone
        pa.array(mined.num_proposals),
        pa.array(mined.mean_score, from_pandas=True),  # NaN becomes null
    )
    return chip_rows(source, run, placed, chips)


def _counts(tallies: list[_Tally], num_images: int, settings: ChipSettings, pool: Pool | None) -> dict[str, Any]:
    """The counts for run.json; sums over shards in their order, so that no rounding depends on the workers."""
    columns = np.sum([tally.scales for tally in tallies], axis=0).T.tolist()
    per_scale = [(int(chips), int(proposals), score) for chips, proposals, score in columns]
    num_chips = sum(chips for chips, _, _ in per_scale)
    statuses = sum((tally.statuses for tally in tallies), Counter[str]())
    with_chips = sum(tally.images for tally in tallies)
    return {
        "images": {"total": num_images, "with_chips": with_chips, "without_chips": num_images - with_chips},
        "proposals": {
            "read": 0 if pool is None else len(pool.score),
            "after_nms": sum(tally.pooled for tally in tallies),
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


def describe(counts: dict[str, Any]) -> str:
    """The report in text."""
    images, proposals, chips = counts["images"], counts["proposals"], counts["chips"]
    lines = [
        f"images     {images['total']:,} = {images['with_chips']:,} with negative chips + "
        f"{images['without_chips']:,} without",
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
    return "\n".join([*lines, "", f"chips      {chips['total']:,}: {chips['per_image']:.2f} per image"])
