"""The commands that take annotations of other formats in, and that part an annotation file."""

from typing import Literal

import click

from pipeline.cli.options import Share, tell_next
from pipeline.storage import Location, location
from schemas.errors import DataError
from schemas.wording import counted, shell


@click.command("import")
@click.argument("format", type=click.Choice(["yolo", "voc", "visdrone", "dota", "csv"]))
@click.option("--annotations", type=location, required=True, help="folder of the label files; for csv, the table")
@click.option("--images", type=location, required=True, help="folder of the images, which stay there")
@click.option("--out", type=location, required=True, help="COCO JSON file to write")
@click.option("--names", type=location, help="for yolo: data.yaml, or a text file with a class on each line")
@click.option("--max-bad", type=Share(), default=0.01, help="share of refused records that is still a success")
def import_command(
    format: Literal["yolo", "voc", "visdrone", "dota", "csv"],
    annotations: Location,
    images: Location,
    out: Location,
    names: Location | None,
    max_bad: float,
) -> None:
    """Write labels of another format as COCO JSON."""
    from pipeline.coco.rejects import describe_rejects
    from pipeline.exchange.import_labels import import_labels as run

    report = run(format, annotations, images, out, names=names)
    for line in describe_rejects(report.rejects):
        click.echo(line)
    if report.without_labels:
        click.echo(f"{counted(report.without_labels, 'image')} without labels left out")
    if report.taken_as_empty:
        click.echo(f"{counted(report.taken_as_empty, 'image')} without a label file taken as images without objects")
    click.echo(
        f"{out}: {counted(report.num_images, 'image')}, {counted(report.num_boxes, 'box', 'boxes')} of which "
        f"{report.num_crowds:,} are crowd, {counted(len(report.categories), 'category', 'categories')}"
    )
    if report.share_refused > max_bad:
        raise DataError(
            f"{len(report.rejects):,} records were refused, {report.share_refused:.1%} of all and more than --max-bad "
            f"{max_bad:g} allows; what is good stands in {out}"
        )
    tell_next(shell("sniper", "check", "--annotations", out, "--images", images))


@click.command()
@click.option("--annotations", type=location, required=True, help="COCO JSON file")
@click.option("--out", type=location, required=True, help="folder for train.json, val.json and test.json")
@click.option("--val", type=Share(), default=0.1, help="share of the images")
@click.option("--test", type=Share(), default=0.0, help="share of the images; 0: no test.json")
@click.option("--group", help="regular expression; images in whose names it matches the same text stay together")
@click.option("--images", type=location, help="folder of the images; those of the same content then stay together")
@click.option("--seed", type=click.IntRange(0), default=0, help="another seed draws other images")
def split(
    annotations: Location,
    out: Location,
    val: float,
    test: float,
    group: str | None,
    images: Location | None,
    seed: int,
) -> None:
    """Part an annotation file by image. The parts are train, val and, if asked for, test."""
    from pipeline.exchange.split import describe
    from pipeline.exchange.split import split as run

    report = run(annotations, out, val=val, test=test, group=group, images=images, seed=seed)
    click.echo(describe(report))
    tell_next(shell("sniper", "suggest", "--annotations", report.files["train"], "--out", "sniper.yaml"))
