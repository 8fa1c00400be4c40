"""Draw a run's losses and, where it validated, AP over the steps: python scripts/plot_losses.py RUN OUT.png"""

import json
from pathlib import Path

import click
import matplotlib.pyplot as plt

PARTS = ("loss", "rpn_class", "rpn_box", "roi_class", "roi_box", "focus")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(run: Path, out: Path) -> None:
    """Read RUN/log.jsonl, write a picture."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name in PARTS:
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=2 if name == "loss" else 1)
    axes.set(xlabel="step", ylabel="loss", title=f"training of {run}", ylim=(0, None))
    axes.grid(alpha=0.3)
    scored = [(line["step"], line["AP50"]) for line in lines if "AP50" in line]
    if scored:
        right = axes.twinx()
        right.plot(*zip(*scored, strict=True), "k--o", label="AP50 (validation)", markersize=4)
        right.set(ylabel="AP50", ylim=(0, 1))
        right.legend(loc="upper center")
    axes.legend(loc="upper right")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main()
