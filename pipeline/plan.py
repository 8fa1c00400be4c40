"""Plans chips: from a run of source images to manifest rows, before any pixel is read."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.coco import Source
from pipeline.geometry import chip_boxes, plan_windows
from pipeline.scales import content_size, scale_factors
from schemas.codes import STATUS_NAMES, Status
from schemas.settings import ChipSettings
from schemas.tables import BOX, PLAN


@dataclass(frozen=True)
class Plan:
    """The positive chips of a run of images and what they do to the run's boxes.

    Attributes:
        chips: Arrow table, schema PLAN, ordered by image, scale index, then choice.
        image: int64 [C], position of each chip's image in the run.
        for_rescue: bool [C], chips made only for boxes covered at no scale.
        fate: uint8 [N], schemas.codes.Fate of each box of the run: covered, rescued, uncovered or crowd.
        scale_mask: uint8 [N], bit i set when the box is covered, or rescued, at scale index i.
    """

    chips: pa.Table
    image: npt.NDArray[np.int64]
    for_rescue: npt.NDArray[np.bool_]
    fate: npt.NDArray[np.uint8]
    scale_mask: npt.NDArray[np.uint8]


def plan_run(source: Source, start: int, stop: int, settings: ChipSettings) -> Plan:
    """Plan the positive chips of images [start, stop): a pure function of those images, their boxes and settings."""
    first, last = source.offsets[start], source.offsets[stop]
    offsets = source.offsets[start : stop + 1] - first
    boxes, crowd = source.box[first:last], source.crowd[first:last]
    image_ids = source.image_id[start:stop]
    widths, heights = source.width[start:stop], source.height[start:stop]
    factors = scale_factors(settings, widths, heights)
    ranges = np.array(settings.bounds(), np.float64)
    windows = plan_windows(
        offsets,
        boxes,
        crowd,
        image_ids,
        widths,
        heights,
        factors,
        ranges,
        settings.size,
        settings.stride,
        settings.seed,
    )
    scales = factors[windows.image, windows.scale_index]
    cut = chip_boxes(
        offsets,
        boxes,
        crowd,
        windows.image,
        windows.window,
        scales,
        ranges[windows.scale_index],
        windows.rescue_chip,
        settings.min_visible,
        settings.min_side,
    )
    struct = pa.StructArray.from_arrays(
        [
            pa.array(source.annotation_id[first:last][cut.source]),
            pa.array(source.category_id[first:last][cut.source]),
            pa.array(source.label[first:last][cut.source]),
            *(pa.array(np.ascontiguousarray(cut.box[:, i])) for i in range(4)),
            pa.array(cut.visible),
            pa.DictionaryArray.from_arrays(cut.status, STATUS_NAMES).cast(pa.string()),
        ],
        fields=list(BOX),
    )
    chip_of_box = np.repeat(np.arange(len(scales)), np.diff(cut.offsets))
    trains = (cut.status == Status.VALID) | (cut.status == Status.RESCUED)
    content = content_size(windows.window, scales, settings.size)
    chips = pa.Table.from_arrays(
        [
            _keys(image_ids[windows.image], windows.scale_index),
            pa.array(image_ids[windows.image]),
            pa.repeat("positive", len(scales)),
            pa.array(windows.scale_index),
            pa.array(scales),
            *(pa.array(np.ascontiguousarray(windows.window[:, i])) for i in range(4)),
            pa.array(content[:, 0].copy()),
            pa.array(content[:, 1].copy()),
            *(pa.array(ranges[windows.scale_index, i].astype(np.float32)) for i in range(2)),
            pa.ListArray.from_arrays(pa.array(cut.offsets, pa.int32()), struct),
            pa.array(np.bincount(chip_of_box[trains], minlength=len(scales))).cast(pa.int16()),
            pa.array(np.diff(cut.offsets)).cast(pa.int16()),
            pa.nulls(len(scales), pa.int16()),
        ],
        schema=PLAN,
    )
    return Plan(chips, windows.image, windows.for_rescue, windows.fate, windows.scale_mask)


def _keys(image_ids: npt.NDArray[np.int64], scale_indices: npt.NDArray[np.int8]) -> pa.Array:
    """Image id, scale index, p for positive, number within the image and scale: unique by construction."""
    is_first = np.ones(len(image_ids), np.bool_)
    is_first[1:] = (image_ids[1:] != image_ids[:-1]) | (scale_indices[1:] != scale_indices[:-1])
    positions = np.arange(len(image_ids))
    number = positions - np.maximum.accumulate(np.where(is_first, positions, 0))
    return pc.binary_join_element_wise(
        _digits(image_ids, 12), pc.binary_join_element_wise(_digits(scale_indices, 1), _digits(number, 3), "p"), "-"
    )


def _digits(numbers: npt.NDArray[np.integer[Any]], width: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")
