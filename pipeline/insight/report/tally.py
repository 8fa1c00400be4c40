"""Count what the manifests hold, some shards at a time: every count is a sum over shards, so memory stays flat."""

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from pipeline.engines.progress import Progress
from pipeline.insight.manifests import chip_boxes, scan
from pipeline.storage import Location

SHARDS = 16  # manifests in memory at a time
BINS_PER_OCTAVE = 4  # of histograms of sizes: a bin ends 19 % above its start
CELL = 10  # of the map of negatives, per cent of an image's side
SHARE_BINS = 20  # of shares and scores, 0 to 1
TARGETS = ("valid", "rescued")

COUNT = pl.len().cast(pl.Int64).alias("count")
PIXELS = pl.col("width").cast(pl.Int64) * pl.col("height")
IS_TARGET = pl.col("status").is_in(TARGETS)
SUMS = ("count", "pixels", "bytes", "without_targets", "sum_targets", "chips")
"""Columns that are summed over shards. All others are keys."""


class Tally(NamedTuple):
    """Counts over all chips of a data set. Each frame has the columns named here.

    Attributes:
        chips: kind, scale_index -> chips, pixels, bytes, without_targets.
        statuses: kind, scale_index, status -> count of boxes.
        sizes: scale_index, status, bin -> count of the boxes of positives by their full size, source pixels.
        chip_sizes: scale_index, status, bin -> the same by the full size in chip pixels.
        targets: scale_index, targets -> count of positive chips that hold so many.
        filled: scale_index, bin -> count of positive chips by the share of their pixels that targets fill.
        classes: category_id -> sum_targets in positive chips, and the chips that hold one.
        negatives: scale_index, column, row -> count of negative chips by the cell of the image their centre lies in.
        scores: scale_index, bin -> count of negative chips by the mean score of their proposals.
        per_image: negatives -> count of images that have so many negatives, at least one.
    """

    chips: pl.DataFrame
    statuses: pl.DataFrame
    sizes: pl.DataFrame
    chip_sizes: pl.DataFrame
    targets: pl.DataFrame
    filled: pl.DataFrame
    classes: pl.DataFrame
    negatives: pl.DataFrame
    scores: pl.DataFrame
    per_image: pl.DataFrame


def count_chips(files: Sequence[Location], images: pl.DataFrame) -> Tally:
    """Count what the manifests of a data set hold.

    Args:
        files: the manifests, at least one. All chips of one image and kind stand in one of them.
        images: image_id, width and height of every image.
    """
    total: list[pl.DataFrame] = []
    with Progress("report", len(files), "shards") as progress:
        for start in range(0, len(files), SHARDS):
            some = files[start : start + SHARDS]
            counted = pl.collect_all([*_of_boxes(scan(some)), *_of_chips(scan(some), images.lazy())])
            parts = zip(total, counted, strict=True) if total else ((frame,) for frame in counted)
            total = [_sum(pl.concat(frames)) for frames in parts]
            progress.add(len(some))
    return Tally(**dict(zip((*_BOX_FRAMES, *_CHIP_FRAMES), total, strict=True)))


def _sum(frame: pl.DataFrame) -> pl.DataFrame:
    keys = [column for column in frame.columns if column not in SUMS]
    return frame.group_by(keys).agg(pl.all().sum()).sort(keys)


_BOX_FRAMES = ("statuses", "sizes", "chip_sizes", "classes")
_CHIP_FRAMES = ("chips", "targets", "filled", "negatives", "scores", "per_image")


def _of_boxes(chips: pl.LazyFrame) -> list[pl.LazyFrame]:
    """Return the counts of boxes of some shards, in the order of _BOX_FRAMES."""
    boxes = chip_boxes(chips)
    positives = boxes.filter(pl.col("kind") == "positive", pl.col("size") > 0).with_columns(
        full=pl.col("size") / pl.col("visible").sqrt()  # of the whole box, not only of what the chip shows
    )
    return [
        boxes.group_by("kind", "scale_index", "status").agg(COUNT),
        positives.group_by("scale_index", "status", bin=_octave(pl.col("full") / pl.col("scale"))).agg(COUNT),
        positives.group_by("scale_index", "status", bin=_octave(pl.col("full"))).agg(COUNT),
        positives.filter(IS_TARGET)
        .group_by("category_id")
        .agg(COUNT.alias("sum_targets"), pl.col("key").n_unique().cast(pl.Int64).alias("chips")),
    ]


def _of_chips(chips: pl.LazyFrame, images: pl.LazyFrame) -> list[pl.LazyFrame]:
    """Return the counts of chips of some shards, in the order of _CHIP_FRAMES."""
    targets = chip_boxes(chips).filter(IS_TARGET)
    areas = targets.group_by("key").agg(COUNT.alias("targets"), area=pl.col("size").pow(2).sum())
    positives = (
        chips.filter(pl.col("kind") == "positive")
        .join(areas, on="key", how="left")
        .with_columns(pl.col("targets", "area").fill_null(0))
    )
    negatives = chips.filter(pl.col("kind") == "negative")
    middle = [
        _bin((pl.col(f"{axis}1") + pl.col(f"{axis}2")) / 2 / pl.col(f"{side}_right"), 100 // CELL).alias(name)
        for name, axis, side in (("column", "x", "width"), ("row", "y", "height"))
    ]
    return [
        chips.group_by("kind", "scale_index").agg(
            COUNT.alias("chips"),
            pixels=PIXELS.sum(),
            bytes=pl.col("size").cast(pl.Int64).sum(),
            without_targets=(pl.col("num_valid") == 0).sum().cast(pl.Int64),
        ),
        positives.group_by("scale_index", "targets").agg(COUNT),
        positives.group_by("scale_index", bin=_bin(pl.col("area") / PIXELS, SHARE_BINS)).agg(COUNT),
        negatives.join(images, on="image_id").group_by("scale_index", *middle).agg(COUNT),
        negatives.drop_nulls("mean_score")
        .group_by("scale_index", bin=_bin(pl.col("mean_score"), SHARE_BINS))
        .agg(COUNT),
        negatives.group_by("image_id").agg(COUNT.alias("negatives")).group_by("negatives").agg(COUNT),
    ]


def _octave(size: pl.Expr) -> pl.Expr:
    """Return the number of the bin of a size: bin b is [2^(b/4), 2^((b+1)/4))."""
    return (size.cast(pl.Float64).log(2) * BINS_PER_OCTAVE).floor().cast(pl.Int32)


def _bin(share: pl.Expr, bins: int) -> pl.Expr:
    """Return the number of the bin of a share, 0 to 1; 1 and what is above go into the last."""
    return (share.cast(pl.Float64) * bins).floor().clip(0, bins - 1).cast(pl.Int32)
