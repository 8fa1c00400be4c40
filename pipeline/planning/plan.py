"""Plans chips: from a run of source images to manifest rows, before any pixel is read."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.coco import Source
from pipeline.planning.geometry import chip_boxes, plan_windows
from pipeline.planning.scales import content_size, scale_factors
from schemas.arrays import FloatArray, IntArray
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


def plan_span(source: Source, start: int, stop: int, settings: ChipSettings) -> Plan:
    """Plan the positive chips of images [start, stop): a pure function of those images, their boxes and settings."""
    run = span_columns(source, start, stop, settings)
    windows = plan_windows(
        run.offsets,
        run.boxes,
        run.crowd,
        run.image_ids,
        run.widths,
        run.heights,
        run.factors,
        run.ranges,
        settings.size,
        settings.stride,
        settings.seed,
    )
    none = pa.nulls(len(windows.image))
    placed = Placed("positive", windows.image, windows.scale_index, windows.window, windows.rescue_chip, none, none)
    chips = chip_rows(source, run, placed, settings)
    return Plan(chips, windows.image, windows.for_rescue, windows.fate, windows.scale_mask)


class SpanColumns(NamedTuple):
    """What planning needs of a run of n images with N boxes.

    Attributes:
        rows: the boxes' place among those of the source.
        offsets: int64 [n + 1], image i has boxes offsets[i] to offsets[i + 1].
        boxes: float64 [N, 4], source pixels; crowd: bool [N].
        image_ids, widths, heights: int64 [n]; factors: float64 [n, S]; ranges: float64 [S, 2], [lo, hi).
    """

    rows: slice
    offsets: IntArray
    boxes: FloatArray
    crowd: npt.NDArray[np.bool_]
    image_ids: IntArray
    widths: IntArray
    heights: IntArray
    factors: FloatArray
    ranges: FloatArray


def span_columns(source: Source, start: int, stop: int, settings: ChipSettings) -> SpanColumns:
    """The columns of images [start, stop)."""
    rows = slice(int(source.offsets[start]), int(source.offsets[stop]))
    widths, heights = source.width[start:stop], source.height[start:stop]
    return SpanColumns(
        rows,
        source.offsets[start : stop + 1] - rows.start,
        source.box[rows],
        source.crowd[rows],
        source.image_id[start:stop],
        widths,
        heights,
        scale_factors(settings, widths, heights),
        np.array(settings.bounds(), np.float64),
    )


class Placed(NamedTuple):
    """C chosen windows of a run, ordered by image, scale index, then choice.

    Attributes:
        kind: positive or negative.
        image: int64 [C], position of the image in the run; scale_index: int8 [C].
        window: float64 [C, 4], source pixels.
        rescue_chip: int64 [N], the chip (0..C-1) that rescues the box, or -1.
        num_proposals, mean_score: [C], as in schema PLAN, null where they do not apply.
    """

    kind: str
    image: IntArray
    scale_index: npt.NDArray[np.int8]
    window: FloatArray
    rescue_chip: IntArray
    num_proposals: pa.Array
    mean_score: pa.Array


def chip_rows(source: Source, run: SpanColumns, placed: Placed, settings: ChipSettings) -> pa.Table:
    """Manifest rows of chosen windows, schema PLAN, with every box that a window meets and what it is there."""
    scales = run.factors[placed.image, placed.scale_index]
    cut = chip_boxes(
        run.offsets,
        run.boxes,
        run.crowd,
        placed.image,
        placed.window,
        scales,
        run.ranges[placed.scale_index],
        placed.rescue_chip,
        settings.min_visible,
        settings.min_side,
    )
    label = source.label[run.rows][cut.source]
    struct = pa.StructArray.from_arrays(
        [
            pa.array(source.annotation_id[run.rows][cut.source]),
            pa.array(source.category_of_label[label]),
            pa.array(label),
            *(pa.array(np.ascontiguousarray(cut.box[:, i])) for i in range(4)),
            pa.array(cut.visible),
            pa.DictionaryArray.from_arrays(cut.status, STATUS_NAMES).cast(pa.string()),
        ],
        fields=list(BOX),
    )
    chip_of_box = np.repeat(np.arange(len(scales)), np.diff(cut.offsets))
    trains = (cut.status == Status.VALID) | (cut.status == Status.RESCUED)
    content = content_size(placed.window, scales, settings.size)
    image_ids = run.image_ids[placed.image]
    return pa.Table.from_arrays(
        [
            _keys(image_ids, placed.scale_index, placed.kind[0]),
            pa.array(image_ids),
            pa.repeat(placed.kind, len(scales)),
            pa.array(placed.scale_index),
            pa.array(scales),
            *(pa.array(np.ascontiguousarray(placed.window[:, i])) for i in range(4)),
            pa.array(content[:, 0].copy()),
            pa.array(content[:, 1].copy()),
            *(pa.array(run.ranges[placed.scale_index, i].astype(np.float32)) for i in range(2)),
            pa.ListArray.from_arrays(pa.array(cut.offsets, pa.int32()), struct),
            pa.array(np.bincount(chip_of_box[trains], minlength=len(scales))).cast(pa.int32()),
            pa.array(np.diff(cut.offsets)).cast(pa.int32()),
            placed.num_proposals.cast(pa.int32()),
            placed.mean_score.cast(pa.float32()),
        ],
        schema=PLAN,
    )


def _keys(image_ids: IntArray, scale_indices: npt.NDArray[np.int8], letter: str) -> pa.Array:
    """Image id, scale index, p or n for the kind, number within the image and scale: unique by construction."""
    is_first = np.ones(len(image_ids), np.bool_)
    is_first[1:] = (image_ids[1:] != image_ids[:-1]) | (scale_indices[1:] != scale_indices[:-1])
    positions = np.arange(len(image_ids))
    number = positions - np.maximum.accumulate(np.where(is_first, positions, 0))
    return pc.binary_join_element_wise(
        _digits(image_ids, 12), pc.binary_join_element_wise(_digits(scale_indices, 1), _digits(number, 3), letter), "-"
    )


def _digits(numbers: npt.NDArray[np.integer[Any]], width: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")
