"""Which images stay together, and which part each of these groups goes to. Arrays in, arrays out; no I/O."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from schemas.arrays import IntArray


def joined_groups(count: int, keys: list[list[Any]]) -> IntArray:
    """Return the groups of images that have a key in common, directly or through others.

    Args:
        count: of images.
        keys: lists of a key for each image.

    Returns:
        int64 [count], the group of each image, from 0 in order of their first images.
    """
    parent = [*range(count)]

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for column in keys:
        first: dict[Any, int] = {}
        for i, key in enumerate(column):
            a, b = sorted((root(i), root(first.setdefault(key, i))))
            parent[b] = a
    roots = np.array([root(i) for i in range(count)], np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def stratify(counts: IntArray, sizes: IntArray, shares: Sequence[float], seed: int) -> IntArray:
    """Deal groups of images out to parts so that each class is in each part by its share.

    This is iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data",
    2011), with groups in place of single examples: the class with the fewest images left is dealt out first, its
    largest groups first, each to the part that wants most of this class, then to the one that wants most images.

    Args:
        counts: int64 [G, K], images of each group that show each class.
        sizes: int64 [G], images of each group.
        shares: of the parts; together 1.
        seed: of the order among groups of one size, and of the choice among parts that want as much.

    Returns:
        int64 [G], the part of each group.
    """
    rng = np.random.default_rng(seed)
    part = np.full(len(sizes), -1, np.int64)
    wanted = np.array(shares)[:, None] * np.append(counts.sum(axis=0), sizes.sum())  # [P, K + 1]; last: images
    every = np.column_stack([counts, sizes])
    left = counts.sum(axis=0)
    while (part < 0).any():
        rarest = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin()) if (left > 0).any() else -1
        waiting = np.flatnonzero((part < 0) & (every[:, rarest] > 0) if rarest >= 0 else part < 0)
        waiting = rng.permutation(waiting)
        waiting = waiting[np.argsort(-every[waiting, rarest], kind="stable")]
        for group in waiting.tolist():
            order = np.lexsort((rng.random(len(shares)), wanted[:, -1], wanted[:, rarest]))
            part[group] = chosen = order[-1]
            wanted[chosen] -= every[group]
            left -= counts[group]
    return part
