"""The commands that check data, cut chips and verify them."""

import sys
from pathlib import Path

import click

from pipeline.cli.options import (
    Share,
    annotation_files_option,
    engine_options,
    given_settings,
    made_shards,
    settings_options,
    tell_next,
    workers_option,
)
from pipeline.engines.tasks import cores
from pipeline.storage import Location, location
from schemas.errors import SniperError
from schemas.settings import Settings
from schemas.wording import counted, shell


@click.command()
@annotation_files_option
@click.option(
    "--images",
    type=location,
    multiple=True,
    help="folder that file_name is relative to, once or for each --annotations; without it only the file is checked",
)
@workers_option
@click.option("--report", type=location, help="file for all refused records, .parquet or .csv")
@settings_options
def check(
    annotations: tuple[Location, ...],
    images: tuple[Location, ...],
    workers: int,
    report: Location | None,
    settings: Settings,
) -> None:
    """Find everything that is wrong with the data. Nothing is changed."""
    from pipeline.coco.rejects import describe_rejects
    from pipeline.commands.check import check as run
    from pipeline.commands.check import check_report, write_report

    if report is not None:
        check_report(report)
    found = run(annotations, images or None, settings, workers=workers)
    if report is not None:
        write_report(found.rejects, report)  # before any line, since a reader such as `head` may end the command
    source = found.source
    click.echo(
        f"{source.num_images + len(source.refused_images):,} images, "
        f"{len(source.row) + len(source.refused_boxes):,} boxes, {len(source.categories)} categories; "
        f"{found.num_read:,} image files decoded; {source.num_clipped:,} boxes are clipped to their image"
    )
    for line in (*source.warnings, *source.notes, *found.notes, *describe_rejects(found.rejects)):
        click.echo(line)
    if report is not None:
        click.echo(f"{report}: all {len(found.rejects):,} refused records")
    if found.shortfall:
        click.echo(found.shortfall)
    if found.rejects or source.warnings or found.shortfall:
        sys.exit(1)
    click.echo("nothing wrong found")
    given = [word for file in annotations for word in ("--annotations", file)]
    given += [word for folder in images or (Path("IMAGES"),) for word in ("--images", folder)]
    tell_next(shell("sniper", "chips", *given, *given_settings(), "--out", "CHIPS"))


@click.command()
@annotation_files_option
@click.option(
    "--images",
    type=location,
    multiple=True,
    help="folder that file_name is relative to, once or for each --annotations; not needed with --plan-only",
)
@click.option(
    "--out", type=location, required=True, help="folder to write; resumed when it holds part of the same build"
)
@engine_options
@click.option("--plan-only", is_flag=True, help="write the manifest without chips, and say what they would cost")
@click.option("--overwrite", is_flag=True, help="replace a build made with other settings")
@click.option(
    "--max-bad",
    type=Share(),
    default=0.001,
    help="share of refused images that is still a success",
)
@click.option(
    "--max-bad-boxes",
    type=Share(),
    default=0.01,
    help="share of refused boxes that is still a success",
)
@settings_options
def chips(
    annotations: tuple[Location, ...],
    images: tuple[Location, ...],
    out: Location,
    workers: int | None,
    engine: str,
    address: str | None,
    plan_only: bool,
    overwrite: bool,
    max_bad: float,
    max_bad_boxes: float,
    settings: Settings,
) -> None:
    """Cut chips at several scales. Reads a COCO data set, and writes tar shards with Parquet manifests."""
    from pipeline.coco.rejects import describe_rejects
    from pipeline.commands.chips import chips as run
    from pipeline.dataset.ledger.summary import describe

    report = run(
        annotations,
        images or None,
        out,
        settings,
        workers=workers,
        engine=engine,
        address=address,
        plan_only=plan_only,
        overwrite=overwrite,
        max_bad=max_bad,
        max_bad_boxes=max_bad_boxes,
    )
    for line in (*report.notes, *describe_rejects(report.rejects)):
        click.echo(line)
    click.echo(describe(report.counts, (workers or cores()) if plan_only else None))
    if plan_only:
        click.echo(f"{out}/plan: planned {counted(report.num_shards, 'shard')}; no image was read")
    elif report.num_made:
        click.echo(made_shards(out, report.num_shards, report.num_made))
    else:
        click.echo(f"{out}: all {report.num_shards} shards are there already; nothing to do")
    if report.shortfall:
        raise SniperError(report.shortfall)
    if plan_only:
        tell_next("the same command without --plan-only")
    else:
        tell_next(
            shell("sniper", "show", out, "--out", "sheet.png"),
            shell("sniper", "negatives", "--data", out, *given_settings()),
        )


@click.command()
@click.argument("data", type=location)
@workers_option
def verify(data: Location, workers: int) -> None:
    """Name every bad shard and chip. Hashes all files of a chip data set."""
    from pipeline.commands.verify import verify as run

    report = run(data, workers=workers)
    for line in report.problems:
        click.echo(line)
    shards, chips = counted(report.num_shards, "shard"), counted(report.num_chips, "chip")
    click.echo(f"{data}: {shards}, {chips}, {counted(len(report.problems), 'problem')}")
    if report.problems:
        sys.exit(1)
    tell_next(shell("sniper", "train", "--data", data, "--out", "RUN"))


@click.command("settings")
@settings_options
def settings_command(settings: Settings) -> None:
    """Print every setting with its meaning. The output is a file for --config."""
    from schemas.settings.listing import as_config

    click.echo(as_config(settings), nl=False)
