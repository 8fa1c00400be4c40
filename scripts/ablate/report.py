"""Turns the JSON lines of `python -m scripts.ablate` into the tables and the chart of docs/evidence.md.

Run it as: python -m scripts.ablate.report [docs/evidence/runs.jsonl] [--page docs/evidence.md]
Each table stands on the page between two comments, and only what is between them is written anew.
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from scripts.ablate.cuts import positives
from scripts.ablate.rows import MAIN, NUM_TRAIN, ROWS, STEPS

REFERENCE = "full"
ONE_STAGE = "one stage: full"
"""What the one-stage rows are compared with."""
SCORES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
RECALLS = ("AR", "AR50", "AR75", "AR_0-25", "AR_25-50", "AR_50-100", "AR_100-200", "AR_200-300")
KINDS = ("missed", "background", "class", "place", "duplicate", "both")
"""Of errors, by the names that the lines have."""
RECALL_ROWS = ("without negatives", "without negatives (equal passes)")
"""What the recall of the reference is compared with."""
EMPTY = "not measured"

T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""Student's t: 95 % of the distribution lie between -t and t, for 1 to 20 degrees of freedom."""

Line = dict[str, Any]
BySeed = dict[int, float]


class Estimate(NamedTuple):
    """A mean over seeds, and half the width of its 95 % interval; infinite for a single seed."""

    mean: float
    half: float
    seeds: int


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of some values and its 95 % interval, by Student's t."""
    count = len(values)
    if count < 2:
        return Estimate(statistics.fmean(values), math.inf, count)
    t = T_95[min(count - 1, len(T_95)) - 1]
    return Estimate(statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(count), count)


def paired(one: BySeed, other: BySeed) -> Estimate | None:
    """Return the mean difference, one less the other, over the seeds that both have; None where there is none."""
    both = sorted(one.keys() & other.keys())
    return estimate([one[seed] - other[seed] for seed in both]) if both else None


def by_seed(lines: list[Line], data: str, row: str, *keys: str) -> BySeed:
    """Pick a number of each seed's run of a row; runs whose number is missing are left out."""
    found: BySeed = {}
    for line in lines:
        if line["data"] == data and line["row"] == row:
            value: Any = line
            for key in keys:
                value = None if value is None else value.get(key)
            if value is not None:
                found[line["seed"]] = value
    return found


def difference(lines: list[Line], data: str, row: str) -> Estimate | None:
    """Return the AP of a row less that of the row that it is compared with; None for that one, and without runs."""
    against = ONE_STAGE if row.startswith("one stage") else REFERENCE
    if row == against:
        return None
    return paired(*(by_seed(lines, data, name, "scores", "AP") for name in (row, against)))


def score_table(lines: list[Line], data: str) -> str:
    """Write the scores of each row on a data set, in points, and the difference in AP on the same seeds."""
    head = ["row", "seeds", *(name.replace("_", " ") for name in SCORES), "difference in AP from full"]
    body = []
    for row in (row for row in ROWS if data in row.seeds):
        cells = [by_seed(lines, data, row.name, "scores", name) for name in SCORES]
        means = [f"{100 * statistics.fmean(cell.values()):.1f}" if cell else EMPTY for cell in cells]
        found = difference(lines, data, row.name)
        compared = points(found) if found else "" if row.name in (REFERENCE, ONE_STAGE) else EMPTY
        body.append([row.name, str(len(cells[0])), *means, compared])
    return markdown(head, body)


def points(value: Estimate) -> str:
    """Write an estimate in points: `+2.1 ± 0.9`; without an interval where there is one seed."""
    half = "" if math.isinf(value.half) else f" ± {100 * value.half:.1f}"
    return f"{100 * value.mean:+.1f}{half}"


def recall_table(lines: list[Line]) -> str:
    """Write the recall of the RPN's 300 proposals with and without negatives, by size, and the paired differences."""
    head = ["", *(name.replace("_", " ") for name in RECALLS)]
    cells = {
        row: [by_seed(lines, "scenes", row, "recall", name) for name in RECALLS] for row in (REFERENCE, *RECALL_ROWS)
    }
    body = [
        [row, *(f"{100 * statistics.fmean(cell.values()):.1f}" if cell else EMPTY for cell in of_row)]
        for row, of_row in cells.items()
    ]
    for other in RECALL_ROWS:
        pairs = [paired(one, two) for one, two in zip(cells[REFERENCE], cells[other], strict=True)]
        name = f"{REFERENCE} less {other}"
        body.append([name, *(EMPTY if pair is None else points(pair) for pair in pairs)])
    return markdown(head, body)


def error_table(lines: list[Line]) -> str:
    """Write by how many points AP50 would rise on the scenes if a row made no errors of a kind."""
    body = []
    for row in ROWS:
        cells = [by_seed(lines, "scenes", row.name, "AP50_gains", kind) for kind in KINDS]
        means = [f"{100 * statistics.fmean(cell.values()):.1f}" if cell else EMPTY for cell in cells]
        body.append([row.name, str(len(cells[0])), *means])
    return markdown(["row", "seeds", *KINDS], body)


def cost_table(lines: list[Line]) -> str:
    """Write what each row costs: pixels of a pass over the training images, steps and time of it, time to detect."""
    head = [
        "row",
        "chips per pass",
        "10^6 pixels per pass",
        "of the pyramid",
        "passes",
        "ms per step",
        "core s per step",
    ]
    head += ["core s before the training", "images per core s in detection"]
    body = []
    for row in ROWS:
        of_row = [line for line in lines if line["data"] == "scenes" and line["row"] == row.name]
        if not of_row:
            body.append([row.name, *[EMPTY] * (len(head) - 1)])
            continue
        last = of_row[-1]
        passes = last.get("own_steps", last["steps"]) * last["batch"] / last["epoch_chips"]
        clock, cores, speed = (
            statistics.median([line[name] for line in of_row if name in line] or [math.nan])
            for name in ("step_s", "step_cpu_s", "images_per_core_s")
        )
        stages = [line["prepare_cpu_s"] for line in of_row]
        # the least: the first build on a machine also compiles kernels
        before = min(each["chips"] if row.cut is positives else sum(each.values()) for each in stages)
        cells = [f"{last['epoch_chips']:,}", f"{last['epoch_pixels'] / 1e6:.1f}"]
        cells += [f"{last['epoch_pixels'] / last['pyramid_pixels']:.0%}", f"{passes:.1f}"]
        cells += [f"{1000 * clock:.0f}", f"{cores:.2f}", f"{before:.0f}"]
        cells.append(EMPTY if math.isnan(speed) else f"{speed:.1f}")
        body.append([row.name, *cells])
    return markdown(head, body)


def markdown(head: list[str], body: list[list[str]]) -> str:
    """Write a table."""
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def fill(page: str, tables: dict[str, str]) -> str:
    """Put tables between `<!-- NAME -->` and `<!-- end of NAME -->` of a page."""
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        assert ended, f"the page has no place for {name}"
        page = f"{before}{begin}{table}\n{end}{after}"
    return page


def draw(lines: list[Line], path: Path) -> None:
    """Draw the differences in AP of the rows on the scenes, with intervals."""
    import matplotlib.pyplot as plt

    rows = [(row.name, difference(lines, "scenes", row.name)) for row in ROWS]
    found = [(name, pair) for name, pair in rows if pair and pair.seeds > 1]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.35 * len(found)), layout="constrained")
    names, pairs = [name for name, _ in found], [pair for _, pair in found]
    means, halves = [100 * pair.mean for pair in pairs], [100 * pair.half for pair in pairs]
    axes.errorbar(means, names, xerr=halves, fmt="o", capsize=3)
    axes.axvline(0, color="grey", linewidth=1)
    axes.margins(y=0.2)
    axes.invert_yaxis()
    axes.set(xlabel=f"AP less that of “{REFERENCE}” or “{ONE_STAGE}”, points, with 95 % intervals over seeds")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


@click.command(help="Write the tables of docs/evidence.md anew from the JSON lines of python -m scripts.ablate.")
@click.argument(
    "runs", type=click.Path(exists=True, path_type=Path), default=Path("docs/evidence/runs.jsonl"), required=False
)
@click.option("--page", type=click.Path(exists=True, path_type=Path), default=Path("docs/evidence.md"))
@click.option(
    "--chart", type=click.Path(path_type=Path), help="Also draw the differences to a picture, such as a PNG."
)
def main(runs: Path, page: Path, chart: Path | None) -> None:
    lines = [json.loads(line) for line in runs.read_text().splitlines()]
    lines = [line for line in lines if (line["steps"], line["num_train"]) == (STEPS, NUM_TRAIN)]
    tables = {data: score_table(lines, data) for data in MAIN}
    tables |= {"recall": recall_table(lines), "errors": error_table(lines), "cost": cost_table(lines)}
    page.write_text(fill(page.read_text(), tables))
    if chart is not None:
        draw(lines, chart)


if __name__ == "__main__":
    main()
