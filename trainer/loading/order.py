"""Which chips an epoch holds, in which order, and which rank reads them from which shards. Arrays in, arrays out.

Every draw is a sort or a comparison of 64-bit hashes of (seed, epoch, purpose, chip key), so it depends on nothing
else: not on the number of ranks or threads, not on the version of a random generator, not on the machine
(docs/method.md, 12.2).
"""

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.arrays import BoolArray, FloatArray, IntArray, Uint64Array


class State(NamedTuple):
    """Where loading stands: `position` chips of the global order of `epoch` have been handed out to all ranks."""

    seed: int
    epoch: int = 0
    position: int = 0


GOLDEN = 0x9E3779B97F4A7C15


class Purpose(IntEnum):
    """Keeps the draws of one epoch apart from each other."""

    POSITION = 0
    POOL = 1
    REPEAT = 2
    FLIP = 3
    SHARD = 4
    VERTICAL = 5
    TURN = 6
    BRIGHTNESS = 7
    CONTRAST = 8
    SATURATION = 9
    SCALE = 10
    DOWN = 11
    ACROSS = 12


def mix(hashes: Uint64Array, seed: int, epoch: int, purpose: Purpose) -> Uint64Array:
    """Return new hashes, uint64 [N], for one seed, epoch and purpose, of keys whose hashes, uint64 [N], are given."""
    state = np.zeros(1, np.uint64)
    for number in (seed, epoch, purpose):
        state = _splitmix(state + np.uint64((number + 1) * GOLDEN % 2**64))
    return _splitmix(hashes ^ state)


def _splitmix(x: Uint64Array) -> Uint64Array:
    """Apply the finaliser of splitmix64, a bijection of 64-bit words (docs/method.md, 12.2); arrays wrap silently."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draw_pool(image_ids: IntArray, hashes: Uint64Array, per_image: int) -> IntArray:
    """Draw the pool chips of one epoch: of every image those with the lowest hashes (docs/method.md, 5.5).

    Args:
        image_ids: int64 [N], the source image of each pool chip.
        hashes: uint64 [N], mixed for this epoch.
        per_image: chips of one image that are drawn at most.

    Returns:
        Rows of the pool, int64, ascending.
    """
    order = np.lexsort((hashes, image_ids))  # [N]: image by image, within one by hash; ties by row
    ids = image_ids[order]
    first = np.ones(len(ids), bool)
    first[1:] = ids[1:] != ids[:-1]
    starts = np.flatnonzero(first)  # [images]
    rank = np.arange(len(ids)) - np.repeat(starts, np.diff(starts, append=len(ids)))  # [N] within the image
    return np.sort(order[rank < per_image])


def repeat_factors(offsets: IntArray, labels: npt.NDArray[np.integer[Any]], threshold: float) -> FloatArray:
    """Compute how often each chip should appear per epoch so that rare classes are seen more (docs/method.md, 9.1).

    A class in a share f of the chips has the factor max(1, sqrt(threshold / f)). A chip has the largest of its
    classes.

    Args:
        offsets: int64 [N + 1]; chip i has labels[offsets[i]:offsets[i + 1]].
        labels: integer [M], 1..K; boxes with 0 do not count.
        threshold: share of the chips below which a class counts as rare.

    Returns:
        float64 [N], at least 1.
    """
    num = len(offsets) - 1
    chip = np.repeat(np.arange(num), np.diff(offsets))  # [M]
    counted = labels > 0
    width = int(labels.max(initial=0)) + 1
    pairs = np.unique(chip[counted] * width + labels[counted])  # each (chip, class) once
    chips_with = np.bincount(pairs % width, minlength=width)  # [classes + 1]
    share = np.maximum(chips_with, 1) / max(num, 1)
    factors = np.ones(num)
    np.maximum.at(factors, pairs // width, np.sqrt(threshold / share)[pairs % width])
    return factors


def round_by_hash(factors: FloatArray, hashes: Uint64Array) -> IntArray:
    """Round each factor, float64 [N], to int64 [N]: up with the probability of its fraction, as its hash decides."""
    whole = np.floor(factors)
    return whole.astype(np.int64) + (hashes / 2.0**64 < factors - whole)


def epoch_order(
    hashes: Uint64Array,
    pool_images: IntArray,
    seed: int,
    epoch: int,
    per_image: int,
    factors: FloatArray | None = None,
    *,
    shards: npt.NDArray[np.integer[Any]] | None = None,
    window: int | None = None,
) -> IntArray:
    """Order all chips of one epoch: every positive, and the epoch's draw from the pool.

    Args:
        hashes: uint64 [P + N], of the keys; the P positives first, then the N chips of the pool.
        pool_images: int64 [N], source images of the pool.
        seed: of the run.
        epoch: from 0.
        per_image: pool chips of one image that an epoch holds at most.
        factors: float64 [P], repeats of the positives; None is once each.
        shards: integer [P + N], the shard of each chip; needed with a window. Positives and pool share no shard.
        window: shards at a time: their chips, in the order they would have without a window, come before those of any
            other shard. See group_shards. None: one permutation of all.

    Returns:
        int64 [T]: rows of `hashes`. Without factors no row comes twice.
    """
    num_positives = len(hashes) - len(pool_images)
    rows = np.arange(num_positives)
    if factors is not None:
        rows = np.repeat(rows, round_by_hash(factors, mix(hashes[:num_positives], seed, epoch, Purpose.REPEAT)))
    drawn = draw_pool(pool_images, mix(hashes[num_positives:], seed, epoch, Purpose.POOL), per_image)
    rows = np.concatenate([rows, num_positives + drawn])
    copies = np.arange(len(rows)) - np.searchsorted(rows, rows)  # rows ascend, so the copies of a chip are neighbours
    places = mix(copy_hashes(hashes[rows], copies), seed, epoch, Purpose.POSITION)
    groups = np.zeros(len(rows), np.int64)
    if window is not None:
        assert shards is not None
        present, first, shard = np.unique(shards[rows], return_index=True, return_inverse=True)
        shard_hashes = mix(present.astype(np.uint64), seed, epoch, Purpose.SHARD)
        groups = group_shards(rows[first] >= num_positives, shard_hashes, window)[shard]
    order: IntArray = rows[np.lexsort((places, groups))]  # stable
    return order


def copy_numbers(order: IntArray) -> IntArray:
    """Count the copies of each row in an epoch's order, from 0 in the order in which they come; int64 [T]."""
    by_row = np.argsort(order, kind="stable")  # copies of a row become neighbours, in their order
    ascending = order[by_row]
    copies = np.empty(len(order), np.int64)
    copies[by_row] = np.arange(len(order)) - np.searchsorted(ascending, ascending)
    return copies


def copy_hashes(hashes: Uint64Array, copies: IntArray) -> Uint64Array:
    """Return the hash of each copy, uint64 [T], from the hash of its key and its number; copy 0 has the key's."""
    return hashes + copies.astype(np.uint64) * np.uint64(GOLDEN)


def group_shards(is_pool: BoolArray, hashes: Uint64Array, window: int) -> IntArray:
    """Group the shards whose chips are mixed with each other.

    The groups are as even as can be, and so is the share of the pool's shards in each: positives and pool are each
    shuffled by their hashes and then spread over the epoch.

    Args:
        is_pool: bool [S], shards of the pool.
        hashes: uint64 [S], mixed for this epoch.
        window: shards of a group at most.

    Returns:
        int64 [S], the number of each shard's group; there are as few groups as `window` allows.
    """
    num = len(hashes)
    places = np.zeros(num)
    for kind in (False, True):
        members = np.flatnonzero(is_pool == kind)
        shuffled = members[np.argsort(hashes[members], kind="stable")]
        places[shuffled] = (np.arange(len(members)) + 0.5) / max(len(members), 1)
    groups = np.zeros(num, np.int64)
    groups[np.argsort(places, kind="stable")] = np.arange(num) * -(-num // window) // max(num, 1)
    return groups


def rank_slice(length: int, start: int, batch_size: int, index: int, num_slices: int) -> slice:
    """Return the positions of one micro-batch of one rank in the epoch's global order.

    Every num_slices-th position belongs to one slice, so slices differ by at most one chip, in the last, short batch
    too; there a slice may be empty.

    Args:
        length: chips of the epoch.
        start: position of the global batch's first chip.
        batch_size: chips of the global batch.
        index: of the slice: that of micro-batch index // ranks of rank index % ranks.
        num_slices: ranks times micro-batches per rank.
    """
    stop = min(start + batch_size, length)
    return slice(min(start + index, stop), stop, num_slices)


class ShardNeeds(NamedTuple):
    """The shards that a rank reads in the rest of an epoch.

    Attributes:
        shards: in the order of first need.
        past: micro-batch of this rank, counted from the rest's first -> shards that no later one needs.
        at_once: most shards that `prefetch` + 1 micro-batches need together.
    """

    shards: list[int]
    past: dict[int, list[int]]
    at_once: int


def shard_needs(
    shards: npt.NDArray[np.integer[Any]], batch_size: int, rank: int, ranks: int, accumulation: int, prefetch: int
) -> ShardNeeds:
    """Find the shards that a rank reads in the rest of an epoch, whose chips are dealt out as by `rank_slice`.

    Args:
        shards: integer [R], the shard of each chip that is left, in the epoch's global order.
        batch_size: chips of the global batch.
        rank: number of the rank, from 0.
        ranks: how many there are.
        accumulation: micro-batches per step and rank.
        prefetch: micro-batches that are in the making beside the one in use.
    """
    step, place = np.divmod(np.arange(len(shards)), batch_size)  # [R]
    place %= accumulation * ranks  # the slice of its batch that a chip belongs to
    own = place % ranks == rank
    micro = (step * accumulation + place // ranks)[own]
    present, of_shard = np.unique(shards[own], return_inverse=True)
    first, last = np.full(len(present), len(shards)), np.zeros(len(present), np.int64)
    np.minimum.at(first, of_shard, micro)
    np.maximum.at(last, of_shard, micro)
    past: dict[int, list[int]] = {}
    for shard, number in zip(present.tolist(), last.tolist(), strict=True):
        past.setdefault(number, []).append(shard)
    change = np.zeros(last.max(initial=0) + 2, np.int64)
    np.add.at(change, np.maximum(first - prefetch, 0), 1)
    np.add.at(change, last + 1, -1)
    return ShardNeeds(present[np.argsort(first, kind="stable")].tolist(), past, int(change.cumsum().max()))


def ragged_rows(starts: IntArray, counts: IntArray) -> IntArray:
    """Return the spans starts[i] .. starts[i] + counts[i] - 1 one behind the other, int64 [sum of counts]."""
    before = np.cumsum(counts) - counts
    rows: IntArray = np.arange(int(counts.sum())) + np.repeat(starts - before, counts)
    return rows
