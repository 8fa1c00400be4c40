"""Count what the manifests hold, some shards at a time: every count is a sum over shards, so memory stays flat."""

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from pipeline.engines.progress import Progress
from pipeline.insight.manifests import chip_boxes, scan
from pipeline.storage import Location
from schemas.codes import TARGET_NAMES

SHARDS = 16  # manifests in memory at a time
BINS_PER_OCTAVE = 4  # of histograms of sizes: a bin ends 19 % above its start
CELL = 10  # of the map of negatives, per cent of an image's side
SHARE_BINS = 20  # of shares and scores, 0 to 1

COUNT = pl.len().cast(pl.Int64).alias("count")
PIXELS = pl.col("width").cast(pl.Int64) * pl.col("height")
IS_TARGET = pl.col("status").is_in(TARGET_NAMES)
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
    total: dict[str, pl.DataFrame] = {}
    with Progress("report", len(files), "shards") as progress:
        for start in range(0, len(files), SHARDS):
            some = files[start : start + SHARDS]
            chips = scan(some)
            counts = _of_boxes(chips) | _of_chips(chips, images.lazy())
            for name, frame in zip(counts, pl.collect_all(list(counts.values())), strict=True):
                total[name] = _sum(pl.concat([total[name], frame]) if name in total else frame)
            progress.add(len(some))
    return Tally(**total)


def _sum(frame: pl.DataFrame) -> pl.DataFrame:
    keys = [column for column in frame.columns if column not in SUMS]
    return frame.group_by(keys).agg(pl.all().sum()).sort(keys)


def _of_boxes(chips: pl.LazyFrame) -> dict[str, pl.LazyFrame]:
    """Return the counts of boxes of some shards, by their names in a Tally."""
    boxes = chip_boxes(chips)
    positives = boxes.filter(pl.col("kind") == "positive", pl.col("size") > 0).with_columns(
        full=pl.col("size") / pl.col("visible").sqrt()  # of the whole box, not only of what the chip shows
    )
    source, chip = _octave(pl.col("full") / pl.col("scale")), _octave(pl.col("full"))
    return {
        "statuses": boxes.group_by("kind", "scale_index", "status").agg(COUNT),
        "sizes": positives.group_by("scale_index", "status", bin=source).agg(COUNT),
        "chip_sizes": positives.group_by("scale_index", "status", bin=chip).agg(COUNT),
        "classes": positives.filter(IS_TARGET)
        .group_by("category_id")
        .agg(COUNT.alias("sum_targets"), pl.col("key").n_unique().cast(pl.Int64).alias("chips")),
    }


def _of_chips(chips: pl.LazyFrame, images: pl.LazyFrame) -> dict[str, pl.LazyFrame]:
    """Return the counts of chips of some shards, by their names in a Tally."""
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
    filled, score = _bin(pl.col("area") / PIXELS, SHARE_BINS), _bin(pl.col("mean_score"), SHARE_BINS)
    of_images = negatives.group_by("image_id").agg(COUNT.alias("negatives"))
    return {
        "chips": chips.group_by("kind", "scale_index").agg(
            COUNT.alias("chips"),
            pixels=PIXELS.sum(),
            bytes=pl.col("size").cast(pl.Int64).sum(),
            without_targets=(pl.col("num_valid") == 0).sum().cast(pl.Int64),
        ),
        "targets": positives.group_by("scale_index", "targets").agg(COUNT),
        "filled": positives.group_by("scale_index", bin=filled).agg(COUNT),
        "negatives": negatives.join(images, on="image_id").group_by("scale_index", *middle).agg(COUNT),
        "scores": negatives.drop_nulls("mean_score").group_by("scale_index", bin=score).agg(COUNT),
        "per_image": of_images.group_by("negatives").agg(COUNT),
    }


def _octave(size: pl.Expr) -> pl.Expr:
    """Return the number of the bin of a size: bin b is [2^(b/4), 2^((b+1)/4))."""
    return (size.cast(pl.Float64).log(2) * BINS_PER_OCTAVE).floor().cast(pl.Int32)


def _bin(share: pl.Expr, bins: int) -> pl.Expr:
    """Return the number of the bin of a share, 0 to 1; 1 and what is above go into the last."""
    return (share.cast(pl.Float64) * bins).floor().clip(0, bins - 1).cast(pl.Int32)
