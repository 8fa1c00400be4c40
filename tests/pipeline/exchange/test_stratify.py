import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.exchange.stratify import joined_groups, stratify
from schemas.arrays import IntArray

COUNTS = arrays.arrays(np.int64, st.tuples(st.integers(30, 200), st.integers(0, 6)), elements=st.integers(0, 1))


@settings(max_examples=30)
@given(COUNTS, st.sampled_from([(0.9, 0.1), (0.7, 0.2, 0.1), (0.5, 0.5)]), st.integers(0, 5))
def test_stratify__each_part_gets_its_share_of_images_and_classes(
    counts: IntArray, shares: tuple[float, ...], seed: int
) -> None:
    part = stratify(counts, np.ones(len(counts), np.int64), shares, seed)
    assert set(part.tolist()) <= set(range(len(shares)))
    for number, share in enumerate(shares):
        assert abs((part == number).sum() - share * len(counts)) <= 2 + counts.shape[1]
        got, wanted = counts[part == number].sum(axis=0), share * counts.sum(axis=0)
        assert (np.abs(got - wanted) <= 2 + 0.25 * counts.sum(axis=0)).all()
        rarest = np.argsort(counts.sum(axis=0))[:1]
        assert (np.abs(got - wanted)[rarest] <= 1.5).all()  # it is dealt out first


KEYS = st.integers(0, 12).flatmap(lambda n: st.lists(st.lists(st.integers(0, 8), min_size=n, max_size=n), max_size=3))


@given(KEYS)
def test_joined_groups__are_those_that_keys_connect(keys: list[list[int]]) -> None:
    count = len(keys[0]) if keys else 4
    near = [{j for column in keys for j in range(count) if column[i] == column[j]} | {i} for i in range(count)]
    for _ in range(count):
        near = [set().union(*(near[j] for j in some)) for some in near]
    firsts = sorted({min(some) for some in near})
    assert joined_groups(count, keys).tolist() == [firsts.index(min(some)) for some in near]
