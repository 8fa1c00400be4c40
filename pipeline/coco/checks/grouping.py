"""Sorts the columns of boxes by image where they are: a sort by numpy would take memory for all of them again."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel
from schemas.arrays import FloatArray, IntArray


@kernel
def group(
    of_group: npt.NDArray[Any],
    num_groups: int,
    row: npt.NDArray[Any],
    annotation_id: IntArray,
    label: npt.NDArray[np.int32],
    flags: npt.NDArray[np.uint8],
    box: FloatArray,
) -> IntArray:
    """Sort columns of N boxes by group, in place; within a group they keep their order.

    Args:
        of_group: unsigned or int64 [N], 0 to num_groups - 1, of a type that holds N too; used up.
        row, annotation_id, label, flags: [N]; box: float64 [N, 4].

    Returns:
        offsets: int64 [num_groups + 1]; group g is now offsets[g] to offsets[g + 1].
    """
    offsets = np.zeros(num_groups + 1, np.int64)
    for i in range(len(of_group)):
        offsets[of_group[i] + 1] += 1
    for g in range(num_groups):
        offsets[g + 1] += offsets[g]
    following = offsets[:-1].copy()
    for i in range(len(of_group)):  # from here on of_group is where each box belongs
        g = of_group[i]
        of_group[i] = following[g]
        following[g] += 1
    for i in range(len(of_group)):
        while of_group[i] != i:  # every exchange brings one box to its place
            j = of_group[i]
            of_group[i], of_group[j] = of_group[j], of_group[i]
            row[i], row[j] = row[j], row[i]
            annotation_id[i], annotation_id[j] = annotation_id[j], annotation_id[i]
            label[i], label[j] = label[j], label[i]
            flags[i], flags[j] = flags[j], flags[i]
            for k in range(4):
                box[i, k], box[j, k] = box[j, k], box[i, k]
    return offsets
