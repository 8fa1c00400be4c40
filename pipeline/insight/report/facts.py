"""What a data set holds, in numbers: the content of the report's JSON file."""

from typing import Any

import numpy as np
import polars as pl

from pipeline.coco.records import class_names
from pipeline.dataset.build_file import NAME, NEGATIVES, POSITIVES, finished_builds
from pipeline.dataset.shards import shard_files
from pipeline.insight.manifests import SIZE, scan
from pipeline.insight.report.tally import BINS_PER_OCTAVE, CELL, SHARE_BINS, Tally, count_chips
from pipeline.insight.suggestion.scales import comfort
from pipeline.planning.scales import scale_factors, scale_name
from pipeline.storage import Location, is_file
from schemas.build import Build
from schemas.codes import STATUS_NAMES
from schemas.errors import DataError
from schemas.settings import ChipSettings
from schemas.wording import shell

EXAMPLES = 3  # of each cause of refusal

Facts = dict[str, Any]


def collect_facts(data: Location) -> Facts:
    """Count what a finished data set holds. Only the ledger and the manifests are read.

    Returns:
        Names and numbers as JSON has them, each explained in docs/report.md.

    Raises:
        DataError: there are no finished chips, or a file of theirs is missing or damaged.
    """
    builds = finished_builds(data, pool=is_file(data / NEGATIVES / NAME))
    try:
        return _collect(data, builds)
    except pl.exceptions.PolarsError as error:
        command = shell("sniper", "verify", data)
        raise DataError(f"{data}: a file is damaged or missing: {error}; `{command}` names it") from error


def _collect(data: Location, builds: dict[str, Build]) -> Facts:
    build = builds[POSITIVES]
    settings = ChipSettings.model_validate(build.settings["chips"])
    images = scan([data / "images.parquet"])
    sizes = images.filter(pl.col("state") == "kept").select("image_id", "width", "height").collect(engine="streaming")
    manifests = [file for folder in builds for file in shard_files(data / folder, ".parquet")]
    tally = count_chips(manifests, sizes)
    ledger = scan([data / "annotations.parquet"])
    facts: Facts = {
        "data": str(data),
        "fingerprint": build.fingerprint,
        "settings": build.settings["chips"],
        "images": _images(images),
        "boxes": _boxes(ledger),
        "scales": [_scale(tally, settings, index) for index in range(len(settings.scales))],
        "pixels": _pixels(build, tally),
        "classes": _classes(data, ledger, sizes, settings, tally),
        "negatives": _negatives(tally, builds.get(NEGATIVES), len(sizes)),
        "rejects": _rejects(data),
    }
    facts["mismatches"] = _mismatches(facts, builds)
    return facts


def _images(images: pl.LazyFrame) -> Facts:
    is_kept = pl.col("state") == "kept"
    (row,) = (
        images.select(
            total=pl.len(),
            kept=is_kept.sum(),
            without_boxes=(is_kept & (pl.col("num_boxes") == 0)).sum(),
            without_chips=(is_kept & (pl.col("num_chips") == 0)).sum(),
            chips=pl.col("num_chips").cast(pl.Int64).sum(),
            most_chips=pl.col("num_chips").max(),
        )
        .collect(engine="streaming")
        .to_dicts()
    )
    refused = images.filter(~is_kept).group_by("reason").len().sort("reason").collect(engine="streaming")
    return {**row, "refused": dict(refused.iter_rows())}


def _boxes(ledger: pl.LazyFrame) -> Facts:
    fates = ledger.group_by("fate", "reason").len().sort("fate", "reason").collect(engine="streaming")
    boxes: Facts = {"total": fates["len"].sum()}
    for fate in ("covered", "rescued", "crowd", "image_refused"):
        boxes[fate] = fates.filter(pl.col("fate") == fate)["len"].sum()
    for fate in ("uncovered", "refused"):
        boxes[fate] = dict(fates.filter(pl.col("fate") == fate).select("reason", "len").iter_rows())
    return boxes


def _scale(tally: Tally, settings: ChipSettings, index: int) -> Facts:
    low, high = settings.bounds()[index]
    frames = {name: frame for name, frame in tally._asdict().items() if "scale_index" in frame.columns}
    here = {name: frame.filter(pl.col("scale_index") == index) for name, frame in frames.items()}
    facts: Facts = {
        "scale": scale_name(settings.scales[index]),
        "range": [low, high if np.isfinite(high) else None],
    }
    for kind in ("positive", "negative"):
        rows = here["chips"].filter(pl.col("kind") == kind).drop("kind", "scale_index")
        statuses = dict(here["statuses"].filter(pl.col("kind") == kind).select("status", "count").iter_rows())
        counts = rows.row(0, named=True) if len(rows) else dict.fromkeys(rows.columns, 0)
        facts[f"{kind}s"] = counts | {"boxes": {name: statuses.get(name, 0) for name in STATUS_NAMES}}
    facts["sizes"] = _by_octave(here["sizes"])
    facts["chip_sizes"] = _by_octave(here["chip_sizes"])
    facts["targets_per_chip"] = here["targets"].sort("targets").select("targets", chips="count").to_dicts()
    facts["filled"] = _by_share(here["filled"])
    facts["negative_scores"] = _by_share(here["scores"])
    return facts


def _by_octave(bins: pl.DataFrame) -> list[Facts]:
    """Turn counts by status and bin into rows with the bin's ends, pixels."""
    return [
        {"from": 2 ** (b / BINS_PER_OCTAVE), "to": 2 ** ((b + 1) / BINS_PER_OCTAVE), "status": status, "boxes": count}
        for status, b, count in bins.sort("bin", "status").select("status", "bin", "count").iter_rows()
    ]


def _by_share(bins: pl.DataFrame) -> list[Facts]:
    """Turn counts of chips by bin into rows with the bin's ends, 0 to 1."""
    return [
        {"from": b / SHARE_BINS, "to": (b + 1) / SHARE_BINS, "chips": count}
        for b, count in bins.sort("bin").select("bin", "count").iter_rows()
    ]


def _pixels(build: Build, tally: Tally) -> Facts:
    """Return the pixels of all chips, and those of whole images that the build's record counted, where it did."""
    recorded = build.counts.get("pixels", {})
    by_kind = dict(tally.chips.group_by("kind").agg(pl.col("pixels").sum()).iter_rows())
    return {
        "positives": by_kind.get("positive", 0),
        "negatives": by_kind.get("negative", 0),
        **{name: recorded.get(name) for name in ("source", "single_scale_800x1333", "full_pyramid")},
    }


def _classes(
    data: Location, ledger: pl.LazyFrame, sizes: pl.DataFrame, settings: ChipSettings, tally: Tally
) -> list[Facts]:
    """Count boxes, chips and boxes of a comfortable size in some chip by class, the most frequent class first."""
    widths, heights = (sizes[name].to_numpy().astype(np.int64) for name in ("width", "height"))
    factors = scale_factors(settings, widths, heights)
    names = [f"factor_{index}" for index in range(len(settings.scales))]
    of_image = sizes.select("image_id").with_columns(pl.Series(name, factors[:, i]) for i, name in enumerate(names))
    low, high = comfort(settings.size)
    is_comfortable = pl.any_horizontal(
        pl.col("scales").list.contains(index) & (SIZE * pl.col(name)).is_between(low, high)
        for index, name in enumerate(names)
    )
    is_covered = pl.col("fate").is_in(["covered", "rescued"])
    counted = (
        ledger.filter(is_covered | pl.col("fate").is_in(["uncovered", "crowd"]))
        .join(of_image.lazy(), on="image_id")
        .group_by("category_id")
        .agg(
            boxes=(pl.col("fate") != "crowd").sum(),
            whole=is_covered.sum(),
            comfortable=((pl.col("fate") == "covered") & is_comfortable).sum(),  # in range, so none that is rescued
            crowd=(pl.col("fate") == "crowd").sum(),
        )
        .collect(engine="streaming")
    )
    categories = scan([data / "categories.parquet"]).select("id", "name").collect()
    return (
        categories.with_columns(name=pl.Series(class_names(categories.rows()), dtype=pl.String))
        .join(counted, left_on="id", right_on="category_id", how="left")
        .join(tally.classes.rename({"sum_targets": "targets"}), left_on="id", right_on="category_id", how="left")
        .with_columns(pl.col("boxes", "whole", "comfortable", "crowd", "targets", "chips").fill_null(0))
        .sort("boxes", "id", descending=[True, False])
        .to_dicts()
    )


def _negatives(tally: Tally, pool: Build | None, num_images: int) -> Facts | None:
    if pool is None:
        return None
    per_image = dict(tally.per_image.select("negatives", "count").iter_rows())
    per_image[0] = num_images - sum(per_image.values())
    places = tally.negatives.select(
        "scale_index",
        **{"% from left": pl.col("column") * CELL, "% from top": pl.col("row") * CELL, "chips": pl.col("count")},
    )
    return {
        "random_per_image": pool.random,
        "chips": tally.chips.filter(pl.col("kind") == "negative")["chips"].sum(),
        "images_by_number": [{"negatives": n, "images": count} for n, count in sorted(per_image.items())],
        "places": places.to_dicts(),
    }


def _rejects(data: Location) -> list[Facts]:
    """Group what was refused by its cause, the most frequent first, each with some examples."""
    name = pl.coalesce("file", pl.format("id {}", "id"), pl.lit("no id"))
    message = pl.col("message")
    is_named = message.str.starts_with(pl.concat_str(name, pl.lit(": ")))  # as of images refused while they were cut
    return (
        scan([data / "rejects.parquet"])
        .group_by("kind", "reason")
        .agg(
            count=pl.len(),
            examples=pl.when(is_named)
            .then(message)
            .otherwise(pl.concat_str(name, message, separator=": "))
            .head(EXAMPLES),
        )
        .sort("count", "kind", "reason", descending=[True, False, False])
        .collect(engine="streaming")
        .to_dicts()
    )


def _mismatches(facts: Facts, builds: dict[str, Build]) -> list[str]:
    """Compare the sums of all files of a data set with each other and with the build's record."""
    images, boxes, counts = facts["images"], facts["boxes"], builds[POSITIVES].counts
    positives = sum(scale["positives"]["chips"] for scale in facts["scales"])
    refused = sum(images["refused"].values())
    uncovered, unread = sum(boxes["uncovered"].values()), sum(boxes["refused"].values())
    parts = boxes["covered"] + boxes["rescued"] + boxes["crowd"] + boxes["image_refused"] + uncovered + unread
    pairs = [
        ("images: kept and refused against all", images["kept"] + refused, images["total"]),
        ("boxes: the sum of all fates against all", parts, boxes["total"]),
        ("positive chips: manifests against images.parquet", positives, images["chips"]),
        ("images: images.parquet against run.json", images["total"], counts["images"]["total"]),
        ("boxes: annotations.parquet against run.json", boxes["total"], counts["boxes"]["total"]),
        ("positive chips: manifests against run.json", positives, counts["chips"]["total"]),
    ]
    if facts["negatives"] is not None and "chips" in builds[NEGATIVES].counts:
        found = facts["negatives"]["chips"]
        pairs.append(("negative chips: manifests against run.json", found, builds[NEGATIVES].counts["chips"]["total"]))
    return [f"{what}: {found:,} and {expected:,}" for what, found, expected in pairs if found != expected]
