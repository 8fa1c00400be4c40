"""Score a network with a focus head twice, on the whole pyramid and from coarse to fine, and say what focus saves.

python scripts/compare_focus.py RUN VAL.json VAL/
"""

import time
from pathlib import Path

import click

from schemas.settings import load_settings
from trainer.evaluation.coco_scores import describe_scores
from trainer.evaluation.evaluate import evaluate


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("annotations", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="file for what is found on the whole pyramid")
def main(run: Path, annotations: Path, images: Path, out: Path | None) -> None:
    """Print the scores on the whole pyramid, then AP, time and share of the pixels of both ways."""
    seconds, lines = {}, []
    for focus, name in (("off", "the whole pyramid"), ("auto", "from coarse to fine")):
        began = time.perf_counter()
        settings = load_settings(None, (f"detect.focus={focus}",))
        report = evaluate(run, annotations, images, settings, out=out if focus == "off" else None, allow_seen=True)
        seconds[focus] = time.perf_counter() - began
        assert report is not None
        if focus == "off":
            click.echo(describe_scores(report.summary, report.notes))
        lines.append(
            f"{name:<20} AP {report.summary['AP'] or 0:.3f}, {seconds[focus]:5.1f} s, "
            f"{report.searched.share:4.0%} of the pyramid's pixels"
        )
    lines.append(
        f"the search from coarse to fine is {seconds['off'] / seconds['auto']:.1f} times as fast (docs/focus.md)"
    )
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
