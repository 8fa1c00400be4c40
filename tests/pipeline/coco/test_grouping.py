"""Sorting in place against numpy's stable sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.coco.checks.grouping import group


@settings(max_examples=100, deadline=None)
@given(groups=st.lists(st.integers(0, 9), max_size=60))
def test_group_is_a_stable_sort_of_all_columns(groups: list[int]) -> None:
    check(np.array(groups, np.uint32), 10)


@pytest.mark.parametrize("order", ["random", "descending", "sorted", "one"])
def test_group_many(order: str) -> None:
    groups = np.random.default_rng(0).integers(0, 300, 5000).astype(np.uint32)
    if order in ("sorted", "descending"):
        groups.sort()
    if order == "descending":
        groups = groups[::-1].copy()
    check(groups * (order != "one"), 300)


def check(groups: np.ndarray, num_groups: int) -> None:
    n = len(groups)
    row, annotation_id, label = np.arange(n, dtype=np.uint32), np.arange(n) * 3, np.arange(n, dtype=np.int32) * 5
    flags, box = (np.arange(n) % 251).astype(np.uint8), np.arange(4.0 * n).reshape(n, 4)
    order = np.argsort(groups, kind="stable")
    expected = [column[order] for column in (row, annotation_id, label, flags, box)]
    offsets = group(groups.copy(), num_groups, row, annotation_id, label, flags, box)
    for column, want in zip((row, annotation_id, label, flags, box), expected, strict=True):
        assert np.array_equal(column, want)
    assert offsets.tolist() == np.searchsorted(groups[order], np.arange(num_groups + 1)).tolist()
