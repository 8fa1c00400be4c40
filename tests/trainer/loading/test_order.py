"""Properties of the epoch's order. Reference answers are plain Python."""

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrays import IntArray, Uint64Array
from trainer.loading.order import (
    Purpose,
    draw_pool,
    epoch_order,
    group_shards,
    mix,
    ragged_rows,
    rank_slice,
    repeat_factors,
    round_by_hash,
    shard_needs,
)

SEEDS = st.integers(0, 2**63 - 1)


def hashes_of(num: int) -> Uint64Array:
    return np.random.default_rng(num).integers(0, 2**64, num, np.uint64)


@st.composite
def pools(draw: st.DrawFn) -> IntArray:
    """Source images of a pool's chips, in any order."""
    return np.array(draw(st.lists(st.integers(0, 8), max_size=40)), np.int64)


def test_mix__same_everywhere() -> None:
    """Checkpoints of one machine go on at another: these numbers must never change."""
    mixed = mix(np.array([0, 1, 2**64 - 1], np.uint64), 7, 3, Purpose.FLIP)
    assert mixed.tolist() == [13823174316680232698, 18222646000614532448, 10955518146945732491]


def test_mix__purposes_seeds_and_epochs_differ() -> None:
    hashes = hashes_of(1000)
    streams = [mix(hashes, s, e, p) for s in (0, 1) for e in (0, 1) for p in Purpose]
    for i, one in enumerate(streams):
        for other in streams[:i]:
            agree = ((one >> np.uint64(63)) == (other >> np.uint64(63))).mean()
            assert 0.4 < agree < 0.6


@given(pools(), SEEDS, st.integers(0, 99), st.integers(0, 5))
def test_draw_pool__per_image_without_replacement(images: IntArray, seed: int, epoch: int, per_image: int) -> None:
    hashes = mix(hashes_of(len(images)), seed, epoch, Purpose.POOL)
    expected = []
    for image in set(images.tolist()):
        rows = [row for row in range(len(images)) if images[row] == image]
        expected += sorted(rows, key=lambda row: (int(hashes[row]), row))[:per_image]
    assert draw_pool(images, hashes, per_image).tolist() == sorted(expected)


def test_draw_pool__each_chip_equally_often() -> None:
    images = np.zeros(10, np.int64)
    hashes = hashes_of(10)
    drawn = Counter(
        row for epoch in range(2000) for row in draw_pool(images, mix(hashes, 0, epoch, Purpose.POOL), 2).tolist()
    )
    assert set(drawn) == set(range(10))
    assert all(abs(count - 400) < 100 for count in drawn.values())


@given(st.integers(1, 60), pools(), SEEDS, st.integers(0, 99), st.integers(0, 3))
def test_epoch_order__every_positive_and_the_draw_once(
    num: int, images: IntArray, seed: int, epoch: int, per_image: int
) -> None:
    hashes = hashes_of(num + len(images))
    order = epoch_order(hashes, images, seed, epoch, per_image)
    assert order.dtype == np.int64
    assert sorted(order[order < num].tolist()) == list(range(num))
    drawn = order[order >= num] - num
    assert len(set(drawn.tolist())) == len(drawn)
    assert Counter(images[drawn].tolist()) == {
        image: min(count, per_image) for image, count in Counter(images.tolist()).items() if per_image
    }


def test_epoch_order__differs_between_epochs_and_seeds() -> None:
    hashes, none = hashes_of(100), np.zeros(0, np.int64)
    orders = {tuple(epoch_order(hashes, none, seed, epoch, 0)) for seed in range(3) for epoch in range(5)}
    assert len(orders) == 15


def test_epoch_order__mixes_well() -> None:
    """Neither the place of a chip in an epoch nor its shift between epochs depends on its row."""
    hashes, none = hashes_of(4000), np.zeros(0, np.int64)
    places = [np.argsort(epoch_order(hashes, none, 5, epoch, 0)) for epoch in range(3)]
    for one, other in ((np.arange(4000), places[0]), (places[0], places[1]), (places[1], places[2])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.06


@given(st.integers(1, 30), SEEDS, st.data())
def test_epoch_order__repeats(num: int, seed: int, data: st.DataObject) -> None:
    factors = np.array(data.draw(st.lists(st.floats(1, 4), min_size=num, max_size=num)))
    counts = Counter(epoch_order(hashes_of(num), np.zeros(0, np.int64), seed, 0, 0, factors).tolist())
    for row in range(num):
        assert np.floor(factors[row]) <= counts[row] <= np.ceil(factors[row])


@st.composite
def epochs(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of epoch_order: chips in runs, one per shard, positives and pool apart."""
    runs = draw(st.lists(st.integers(1, 8), min_size=1, max_size=12))
    pool_runs = draw(st.lists(st.integers(1, 8), max_size=12))
    num, in_pool = sum(runs), sum(pool_runs)
    return {
        "hashes": hashes_of(num + in_pool),
        "pool_images": np.array(draw(st.lists(st.integers(0, 9), min_size=in_pool, max_size=in_pool)), np.int64),
        "seed": draw(SEEDS),
        "epoch": draw(st.integers(0, 99)),
        "per_image": draw(st.integers(0, 3)),
        "factors": draw(st.none() | st.just(np.linspace(1, 3, num))),
        "shards": np.repeat(np.arange(len(runs) + len(pool_runs)), runs + pool_runs),
    }


@given(epochs(), st.integers(1, 30))
def test_epoch_order__a_window_of_shards_at_a_time(arguments: dict[str, Any], window: int) -> None:
    whole = epoch_order(**arguments)
    order = epoch_order(**arguments, window=window)
    assert sorted(order.tolist()) == sorted(whole.tolist())  # the same draw, the same repeats
    shards = arguments["shards"][order].tolist()
    first = {shard: i for i, shard in reversed(list(enumerate(shards)))}
    last = {shard: i for i, shard in enumerate(shards)}
    for i in range(len(shards)):
        assert sum(first[shard] <= i <= last[shard] for shard in first) <= window
    if window >= len(first):
        assert order.tolist() == whole.tolist()
    assert order.tolist() == epoch_order(**arguments, window=window).tolist()


def test_epoch_order__same_everywhere() -> None:
    """As test_mix: these numbers must never change."""
    hashes, pool, shards = hashes_of(12), np.array([0, 0, 0, 1, 1]), np.arange(12) // 2
    assert epoch_order(hashes, pool, 7, 3, 2).tolist() == [10, 0, 6, 7, 3, 5, 1, 2, 4, 8, 11]
    assert epoch_order(hashes, pool, 7, 3, 2, shards=shards, window=2).tolist() == [3, 2, 8, 0, 6, 7, 1, 10, 5, 4, 11]


@given(st.integers(0, 60), st.integers(0, 60), SEEDS, st.integers(1, 20))
def test_group_shards__even_groups_with_an_even_share_of_the_pool(num: int, pool: int, seed: int, window: int) -> None:
    is_pool = np.arange(num + pool) >= num
    groups = group_shards(is_pool, mix(hashes_of(num + pool), seed, 0, Purpose.SHARD), window)
    sizes = np.bincount(groups)
    assert len(sizes) == -(-(num + pool) // window)
    assert not len(sizes) or sizes.max() - sizes.min() <= 1
    assert sizes.max(initial=0) <= window
    expected = sizes * pool / max(num + pool, 1)
    assert np.abs(np.bincount(groups, is_pool, len(sizes)) - expected).max(initial=0) < 2


def test_group_shards__other_neighbours_each_epoch() -> None:
    hashes = hashes_of(64)
    is_pool = np.zeros(64, bool)
    groups = [group_shards(is_pool, mix(hashes, 0, epoch, Purpose.SHARD), 8) for epoch in range(200)]
    met = np.mean([groups[i][0] == groups[i][1] for i in range(200)])
    assert abs(met - 7 / 63) < 0.07


def test_round_by_hash__is_right_on_average() -> None:
    assert abs(round_by_hash(np.full(20000, 2.3), hashes_of(20000)).mean() - 2.3) < 0.02


def test_repeat_factors__against_the_formula() -> None:
    labels = [[1], [1, 1, 2], [1, 0], [], [1, 3, 0, 2], [1], [1], [1], [1], [1]]  # 0 is no target
    offsets = np.cumsum([0, *map(len, labels)])
    flat = np.array(sum(labels, []), np.int32)
    rare = {1: 1.0, 2: (0.5 / 0.2) ** 0.5, 3: (0.5 / 0.1) ** 0.5}
    expected = [max([1.0, *(rare[label] for label in chip if label)]) for chip in labels]
    np.testing.assert_allclose(repeat_factors(offsets, flat, 0.5), expected)
    assert repeat_factors(np.zeros(4, np.int64), np.zeros(0, np.int32), 0.5).tolist() == [1, 1, 1]


@given(
    length=st.integers(1, 200),
    batch_size=st.integers(1, 70),
    ranks=st.integers(1, 16),
    accumulation=st.integers(1, 4),
)
def test_part__ranks_share_every_batch(length: int, batch_size: int, ranks: int, accumulation: int) -> None:
    positions = np.arange(length)
    seen: list[int] = []
    for start in range(0, length, batch_size):
        parts = [
            positions[rank_slice(length, start, batch_size, i, ranks * accumulation)]
            for i in range(ranks * accumulation)
        ]
        together = sorted(np.concatenate(parts).tolist())
        assert together == list(range(start, min(start + batch_size, length)))
        sizes = [len(p) for p in parts]
        assert max(sizes) - min(sizes) <= 1
        seen += together
    assert seen == list(range(length))


@given(
    shards=st.lists(st.integers(0, 9), max_size=60),
    batch_size=st.integers(1, 20),
    ranks=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    prefetch=st.integers(0, 5),
)
def test_shard_needs__are_those_of_the_micro_batches_that_rank_slice_gives(
    shards: list[int], batch_size: int, ranks: int, accumulation: int, prefetch: int
) -> None:
    for rank in range(ranks):
        micros = [
            shards[rank_slice(len(shards), start, batch_size, micro * ranks + rank, ranks * accumulation)]
            for start in range(0, len(shards), batch_size)
            for micro in range(accumulation)
        ]
        needs = shard_needs(np.array(shards, np.int64), batch_size, rank, ranks, accumulation, prefetch)
        places: dict[int, list[int]] = {}
        for number, some in enumerate(micros):
            for shard in some:
                places.setdefault(shard, []).append(number)
        assert sorted(needs.shards) == sorted(places)
        firsts = [places[shard][0] for shard in needs.shards]
        assert firsts == sorted(firsts)
        assert sorted((n, shard) for n, some in needs.past.items() for shard in some) == sorted(
            (numbers[-1], shard) for shard, numbers in places.items()
        )
        held = [  # from when it is made, `prefetch` before the first micro-batch, to its last
            sum(numbers[0] - prefetch <= now <= numbers[-1] for numbers in places.values())
            for now in range(len(micros))
        ]
        assert needs.at_once == max(held, default=0)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 7)), max_size=20))
def test_ragged_rows__one_run_behind_the_other(runs: list[tuple[int, int]]) -> None:
    starts, counts = np.array(runs, np.int64).reshape(-1, 2).T
    assert ragged_rows(starts, counts).tolist() == [start + i for start, count in runs for i in range(count)]


def test_epoch_order__a_million_chips() -> None:
    order = epoch_order(hashes_of(1_000_000), np.arange(500_000) // 4, 0, 0, 2)
    assert len(order) == 500_000 + 250_000
