"""Mine one shard: from the images, boxes and proposals of a positives' shard to its negative chips."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.coco.source import Source
from pipeline.dataset.build_file import POSITIVES
from pipeline.dataset.cutting import make_shard
from pipeline.dataset.job import ShardJob, Target
from pipeline.dataset.proposals import Extents, read_parts
from pipeline.dataset.shards import Record
from pipeline.kernels import writable
from pipeline.planning.geometry import SpanColumns, Windows
from pipeline.planning.mine import Mined, PooledProposals, merge_scales, mine_span, random_span
from pipeline.planning.plan import chip_rows, span_columns
from pipeline.storage import Location
from pipeline.storage.parquet import read_table
from schemas.arrays import FloatArray, IntArray
from schemas.settings import ChipSettings, NegativeSettings
from schemas.tables import CORNERS


class MineJob(NamedTuple):
    """What mining one shard needs.

    Attributes:
        target: the build of the pool.
        name: of the shard, which is also the name of the positives' shard of the same images.
        source: the images of that shard and their boxes, and no others.
        hashes: XXH3-128 of the images' files when the positives were cut, hex.
        proposals: those of the images, or the files that hold them; None draws windows by seed.
        settings: how proposals are pooled and mined.
    """

    target: Target
    name: str
    source: Source
    hashes: list[str]
    proposals: PooledProposals | list[Location] | None
    settings: NegativeSettings


class MinedShard(NamedTuple):
    """One shard in numbers.

    Attributes:
        name: of the shard.
        fingerprint: of the shard.
        was_there: the shard stood already, and nothing was done.
        strange: a line for each image whose file is not the one that the positives were cut from.
        scales: float64 [3, S], per scale: chips, proposals newly covered, sum of these proposals' scores.
        images: number of images of the shard.
        with_chips: number of images with at least one chip.
        read: number of proposals.
        pooled: number of proposals that NMS left.
        statuses: number of boxes of each status in the chips.
    """

    name: str
    fingerprint: str
    was_there: bool
    strange: list[str]
    scales: FloatArray
    images: int
    with_chips: int
    read: int
    pooled: int
    statuses: Counter[str]


def mine_shard(job: MineJob) -> MinedShard:
    """Mine the images of one shard and cut what was found. Only images that give a chip are read.

    Raises:
        DataError: the positives' manifest or the proposals cannot be read, the output cannot be written, or the store
            with the images gives no answer.
    """
    target, source, settings = job.target, job.source, job.settings
    chips = target.settings
    columns = span_columns(source, 0, source.num_images, chips)
    num_read = num_pooled = 0
    if job.proposals is None:
        mined = random_span(columns, target.recorded["random"], chips.size, chips.seed)
    else:
        found = (
            job.proposals
            if isinstance(job.proposals, PooledProposals)
            else read_parts(job.proposals, extents(source, None))
        )
        found = PooledProposals(writable(found.offsets), writable(found.boxes), writable(found.score))
        pooled = merge_scales(found, settings.nms)
        num_read, num_pooled = len(found.score), len(pooled.score)
        least = np.full(len(chips.scales), settings.min_others)
        least[0] = settings.min_finest
        positives = _positives(target.out / POSITIVES / f"{job.name}.parquet", source)
        mined = mine_span(columns, pooled, positives, least, chips.size, chips.stride)
    rows = _rows(source, columns, mined, chips)
    images = source.images(0, source.num_images)
    with_chips = np.unique(mined.windows.image).tolist()
    hashes = [job.hashes[i] for i in with_chips]
    made = make_shard(ShardJob(target, job.name, [images[i] for i in with_chips], rows, hashes))
    return MinedShard(
        job.name,
        made.record.fingerprint,
        made.was_there,
        _strange(made.record, hashes),
        _per_scale(mined, len(chips.scales)),
        source.num_images,
        len(with_chips),
        num_read,
        num_pooled,
        Counter(rows["boxes"].combine_chunks().flatten().field("status").to_pylist()),
    )


def extents(source: Source, others: IntArray | None) -> Extents:
    """Return the images of a source as those whose proposals are wanted.

    Args:
        source: the images.
        others: int64 [r], ids of images whose proposals are left out without being a fault; None: of all others.
    """
    return Extents(source.image_id, np.stack([source.width, source.height], axis=1).astype(np.float64), others)


def _strange(record: Record, hashes: list[str]) -> list[str]:
    """Return a line per image whose file was another one, or none, when the negatives were cut."""
    why = {reject.id: reject.message for reject in record.rejects}
    return [
        f"  image {image.image_id}: {why.get(image.image_id, 'the bytes of its file have changed')}"
        for image, expected in zip(record.images, hashes, strict=True)
        if image.image_id in why or image.hash != expected
    ]


def _per_scale(mined: Mined, num_scales: int) -> FloatArray:
    """Return float64 [3, S]: chips, proposals newly covered, and the sum of these proposals' scores."""
    score = np.where(mined.num_proposals > 0, mined.mean_score, 0) * mined.num_proposals
    weights = (np.ones(len(score)), mined.num_proposals, score)
    return np.stack(
        [np.bincount(mined.windows.scale_index, weight, num_scales) for weight in weights], dtype=np.float64
    )


def _positives(path: Location, source: Source) -> Windows:
    """Return the chips of a positives' shard, with the position of each one's image in the source."""
    rows = read_table(path, ["image_id", "scale_index", *CORNERS])
    image = np.searchsorted(source.image_id, rows["image_id"].to_numpy())
    window = np.stack([rows[name].to_numpy() for name in CORNERS], axis=1)
    return Windows(image, rows["scale_index"].to_numpy(), window)


def _rows(source: Source, columns: SpanColumns, mined: Mined, chips: ChipSettings) -> pa.Table:
    rescue_chip = np.full(len(columns.boxes), -1, np.int64)  # a box is rescued in its positive chip alone
    mean_score = pa.array(mined.mean_score, from_pandas=True)  # NaN becomes null
    proposals = (pa.array(mined.num_proposals), mean_score)
    return chip_rows(source, columns, "negative", mined.windows, rescue_chip, chips, proposals)
