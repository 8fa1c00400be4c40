"""Plan chips, look at the plan, then cut them.

Run it as: python examples/plan_and_chips.py ANNOTATIONS.json IMAGES/ OUT/
"""

import sys
from pathlib import Path

import polars as pl

from sniper_chips import chips, load_settings


def main(annotations: Path, images: Path, out: Path) -> None:
    # Settings come from a YAML file, from assignments, or from both; what is not named keeps its default.
    settings = load_settings(None, ("chips.size=192", "chips.scales=[1.0, 0.5, {long_side: 192}]"))

    # The plan alone: no image is read, and what it would cost is known in seconds.
    planned = chips(annotations, None, out / "planned", settings, plan_only=True)
    print(f"planned: {planned.counts['chips']['total']} chips of {planned.counts['images']['kept']} images")

    # The chips themselves. Run it again after an interruption: what is finished is kept.
    report = chips(annotations, images, out / "chips", settings, workers=2, max_bad=0.01)
    print(f"cut: {report.num_made} shards; {len(report.rejects)} records refused")

    # What is in them is a question for Polars.
    manifest = pl.scan_parquet(sorted((out / "chips/positives").glob("chips-*.parquet")), glob=False)
    per_scale = manifest.group_by("scale_index").agg(pl.len().alias("chips"), pl.sum("num_valid"))
    print(per_scale.sort("scale_index").collect())


if __name__ == "__main__":  # worker processes import this file again
    main(*map(Path, sys.argv[1:]))
