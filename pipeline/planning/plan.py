"""Plans chips: from a span of source images to manifest rows, before any pixel is read."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.coco.source import Source
from pipeline.kernels import writable
from pipeline.planning.geometry import ChipBoxes, SpanColumns, Windows, chip_boxes, plan_windows
from pipeline.planning.scales import content_size, scale_factors
from schemas.arrays import BoolArray, IntArray
from schemas.codes import STATUS_NAMES, TARGETS
from schemas.settings import ChipSettings
from schemas.tables import BOX, PLAN


class Plan(NamedTuple):
    """The positive chips of a span of images and what they do to the span's boxes.

    Attributes:
        chips: Arrow table, schema PLAN, ordered by image, scale index, then choice.
        image: int64 [C], position of each chip's image in the span.
        for_rescue: bool [C], chips made only for boxes covered at no scale.
        fate: uint8 [N], schemas.codes.Fate of each box of the span: one of those that planning decides.
        scale_mask: uint8 [N], bit i set when the box is covered, or rescued, at scale index i.
    """

    chips: pa.Table
    image: IntArray
    for_rescue: BoolArray
    fate: npt.NDArray[np.uint8]
    scale_mask: npt.NDArray[np.uint8]


def plan_span(source: Source, start: int, stop: int, settings: ChipSettings) -> Plan:
    """Plan the positive chips of images [start, stop): a pure function of those images, their boxes and settings."""
    span = span_columns(source, start, stop, settings)
    min_side = float(settings.min_side)  # the default is an int, for which numba would compile another kernel
    planned = plan_windows(span, settings.size, settings.stride, min_side, settings.seed)
    chips = chip_rows(source, span, "positive", planned.windows, planned.rescue_chip, settings)
    return Plan(chips, planned.windows.image, planned.for_rescue, planned.fate, planned.scale_mask)


def span_columns(source: Source, start: int, stop: int, settings: ChipSettings) -> SpanColumns:
    """Return the columns of images [start, stop), as the kernels are compiled for."""
    first, last = int(source.offsets[start]), int(source.offsets[stop])
    widths, heights = source.width[start:stop], source.height[start:stop]
    return SpanColumns(
        first,
        source.offsets[start : stop + 1] - first,
        writable(source.box[first:last]),
        writable(source.crowd[first:last]),
        writable(source.image_id[start:stop]),
        writable(widths),
        writable(heights),
        scale_factors(settings, widths, heights),
        np.array(settings.bounds(), np.float64),
    )


def chip_rows(
    source: Source,
    span: SpanColumns,
    kind: str,
    windows: Windows,
    rescue_chip: IntArray,
    settings: ChipSettings,
    proposals: tuple[pa.Array, pa.Array] | None = None,
) -> pa.Table:
    """Return the manifest rows of chosen windows, with every box that a window meets and what it is there.

    Args:
        source: what the span is taken from.
        span: columns of its images and boxes.
        kind: positive or negative.
        windows: the C chips.
        rescue_chip: int64 [N], the chip (0..C-1) that rescues the box, or -1.
        settings: size of chips, and what makes a box too small.
        proposals: of negatives, the columns num_proposals and mean_score of schema PLAN, [C].

    Returns:
        A table of C rows, schema PLAN.
    """
    num_chips = len(windows.image)
    cut = chip_boxes(span, windows, rescue_chip, float(settings.min_visible), float(settings.min_side))
    trains = np.isin(cut.status, TARGETS)
    chip_of_box = np.repeat(np.arange(num_chips), np.diff(cut.offsets))
    num_proposals, mean_score = proposals or (pa.nulls(num_chips), pa.nulls(num_chips))
    scales = span.factors[windows.image, windows.scale_index]
    content = content_size(windows.window, scales, settings.size)
    image_ids = span.image_ids[windows.image]
    return pa.Table.from_arrays(
        [
            _keys(image_ids, windows.scale_index, kind[0]),
            pa.array(image_ids),
            pa.repeat(kind, num_chips),
            pa.array(windows.scale_index),
            pa.array(scales),
            *(pa.array(np.ascontiguousarray(windows.window[:, i])) for i in range(4)),
            pa.array(content[:, 0].copy()),
            pa.array(content[:, 1].copy()),
            *(pa.array(span.ranges[windows.scale_index, i].astype(np.float32)) for i in range(2)),
            pa.ListArray.from_arrays(pa.array(cut.offsets, pa.int32()), _box_structs(source, span, cut)),
            pa.array(np.bincount(chip_of_box[trains], minlength=num_chips)).cast(pa.int32()),
            pa.array(np.diff(cut.offsets)).cast(pa.int32()),
            num_proposals.cast(pa.int32()),
            mean_score.cast(pa.float32()),
        ],
        schema=PLAN,
    )


def _box_structs(source: Source, span: SpanColumns, cut: ChipBoxes) -> pa.StructArray:
    """Return the boxes of all chips, schema BOX."""
    rows = span.first + cut.source
    label = source.label[rows]
    return pa.StructArray.from_arrays(
        [
            pa.array(source.annotation_id[rows]),
            pa.array(source.category_of_label[label]),
            pa.array(label),
            *(pa.array(np.ascontiguousarray(cut.box[:, i])) for i in range(4)),
            pa.array(cut.visible),
            pa.DictionaryArray.from_arrays(cut.status, STATUS_NAMES).cast(pa.string()),
        ],
        fields=list(BOX),
    )


def _keys(image_ids: IntArray, scale_indices: npt.NDArray[np.int8], letter: str) -> pa.Array:
    """Return keys of image id, scale index, number within both, and p or n for the kind: unique by construction."""
    is_first = np.ones(len(image_ids), np.bool_)
    is_first[1:] = (image_ids[1:] != image_ids[:-1]) | (scale_indices[1:] != scale_indices[:-1])
    positions = np.arange(len(image_ids))
    number = positions - np.maximum.accumulate(np.where(is_first, positions, 0))
    return pc.binary_join_element_wise(
        _digits(image_ids, 12), pc.binary_join_element_wise(_digits(scale_indices, 1), _digits(number, 3), letter), "-"
    )


def _digits(numbers: npt.NDArray[np.integer[Any]], width: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")
