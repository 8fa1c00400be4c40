"""The commands that show what a data set holds, and that choose settings for it."""

from typing import Any, Literal

import click

from pipeline.cli.options import Share, annotation_files_option, settings_options, tell_next
from pipeline.storage import Location, is_file, location, refuse_foreign, write_atomic
from schemas.codes import STATUS_NAMES
from schemas.errors import UsageError
from schemas.settings import Settings
from schemas.wording import counted, shell


@click.command()
@click.argument("data", type=location)
@click.option("--out", type=location, required=True, help="picture to write")
@click.option(
    "--kind", type=click.Choice(["positive", "negative"]), show_default="positive; both with --image", help="of chips"
)
@click.option("--image", type=int, help="id of one image: draw it with its windows, and its chips below it")
@click.option("--images", type=location, help="folder of the images, for --image; default: as run.json records it")
@click.option(
    "--class", "classes", multiple=True, help="only boxes of this class, and chips that hold one; may be repeated"
)
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice(STATUS_NAMES),
    help="only boxes of this status, and chips that hold one; may be repeated",
)
@click.option("--columns", type=click.IntRange(1, 50), default=6, help="chips side by side")
@click.option("--seed", type=click.IntRange(0), default=0, help="another seed draws other chips")
def show(data: Location, out: Location, **options: Any) -> None:
    """Draw chips with their boxes. With --image it draws an image and the windows of its chips."""
    from pipeline.insight.show import show as run

    number = run(data, out, **options)
    click.echo(f"{out}: {counted(number, 'chip')}")


@click.command()
@annotation_files_option
@click.option("--out", type=location, help="YAML file to write, for --config; without this option its text is printed")
@click.option(
    "--proposal",
    type=click.Choice(["lean", "balanced", "dense"]),
    default="balanced",
    help="which one is written: fewer, as many or more scales than the paper would take",
)
@click.option(
    "--device",
    type=click.Choice(["gpu", "cpu"]),
    default="gpu",
    help="what trains; for cpu chips, network and schedule are small",
)
@click.option(
    "--max-nowhere",
    type=Share(),
    default=0.01,
    help="share of boxes that may be valid in no chip",
)
@settings_options
def suggest(
    annotations: tuple[Location, ...],
    out: Location | None,
    proposal: Literal["lean", "balanced", "dense"],
    device: Literal["gpu", "cpu"],
    max_nowhere: float,
    settings: Settings,
) -> None:
    """Suggest settings for a data set. Gives the reason for each, and tells what they cost."""
    from pipeline.insight.suggest import describe
    from pipeline.insight.suggest import suggest as run

    if out is not None:
        if is_file(out):
            raise UsageError(f"{out}: is there already, maybe changed by you; delete it or choose another --out")
        refuse_foreign(out, is_file, "`sniper suggest`")
    found = run(annotations, settings, proposal=proposal, device=device, max_nowhere=max_nowhere)
    click.echo(describe(found))
    if out is None:
        click.echo(f"\n{found.text}", nl=False)
        return
    write_atomic(out, found.text.encode())
    click.echo(f"{out}: the settings of `{found.chosen}`")
    given = [word for file in annotations for word in ("--annotations", file)]
    tell_next(
        shell("sniper", "chips", *given, "--images", "IMAGES", "--out", "CHIPS", "--config", out),
        shell("sniper", "negatives", "--data", "CHIPS", "--config", out),
        shell("sniper", "train", "--data", "CHIPS", "--out", "RUN", "--config", out),
    )
