"""The commands that show what a data set holds."""

import click

from pipeline.storage import Location, location
from schemas.wording import counted


@click.command()
@click.argument("data", type=location)
@click.option("--out", type=location, required=True, help="picture to write")
@click.option("--kind", type=click.Choice(["positive", "negative"]), default="positive")
@click.option("--columns", type=click.IntRange(1, 50), default=6, help="chips per scale")
@click.option("--seed", type=int, default=0, help="another seed draws other chips")
def show(data: Location, out: Location, kind: str, columns: int, seed: int) -> None:
    """Draw a contact sheet of chips with their boxes, read back from the shards."""
    from pipeline.insight.show import show as run

    number = run(data, out, kind=kind, columns=columns, seed=seed)
    click.echo(f"{out}: {counted(number, 'chip')}")
