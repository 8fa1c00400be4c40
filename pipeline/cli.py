"""The command line: options and the data commands.

Each command has a Python function of the same name, which is imported when the command is called. The commands of
other packages are found by the entry-point group `sniper.commands`.
"""

import functools
import io
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click

from pipeline import __version__
from pipeline.engines.progress import log, show_log
from pipeline.engines.tasks import cores
from pipeline.storage import Location, location
from schemas.errors import SniperError
from schemas.settings import Settings, load_settings
from schemas.wording import counted

COMMAND_SETTINGS = {"max_content_width": 110, "help_option_names": ["-h", "--help"], "show_default": True}


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from pipeline.images.chip import codec
    from pipeline.images.decode import format_names

    used = codec()
    simd = "SIMD" if used.simd else "not SIMD"
    click.echo(f"sniper {__version__}  (JPEG: {used.jpeg}; resize: {used.resize}, {simd})")
    click.echo(f"image formats: {', '.join(format_names())}")
    context.exit()


@click.group(context_settings=COMMAND_SETTINGS)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="with codecs and image formats",
)
def cli() -> None:
    """SNIPER chips: train detectors on objects of very different sizes."""


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --config and --set; the command receives `settings`."""

    @click.option(
        "--config", type=click.Path(path_type=Path), help="YAML file of settings, in sections such as chips:"
    )
    @click.option("--set", "assignments", multiple=True, metavar="A.B=C", help="one setting; may be repeated")
    @functools.wraps(command)
    def wrapped(config: Path | None, assignments: tuple[str, ...], **options: Any) -> None:
        command(settings=load_settings(config, assignments), **options)

    return wrapped


def tell_next(*commands: str) -> None:
    """Say which commands come next."""
    for command in commands:
        log.info(f"next: {command}")


annotations_option = click.option("--annotations", type=location, required=True, help="COCO JSON file")
annotation_files_option = click.option(
    "--annotations",
    type=location,
    required=True,
    multiple=True,
    help="COCO JSON file; several, by repeating it, become one data set",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(1),
    default=cores(),
    show_default="all cores",
    help="processes",
)


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --workers, --engine and --address."""
    command = click.option("--address", help="of the Ray cluster; default: RAY_ADDRESS, else this machine")(command)
    command = click.option(
        "--engine", type=click.Choice(["local", "ray"]), default="local", help="processes of this machine, or Ray"
    )(command)
    return click.option(
        "--workers",
        type=click.IntRange(1),
        show_default="all cores; on Ray twice the cluster's",
        help="processes, or Ray tasks",
    )(command)


@cli.command()
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
    """List everything that is wrong with the data, before any work."""
    from pipeline.coco.rejects import describe_rejects
    from pipeline.commands.check import check as run
    from pipeline.commands.check import report_suffix, write_report

    if report is not None:
        report_suffix(report)  # a wrong one is told before any work
    options = settings.chips
    found = run(
        annotations,
        images or None,
        max_pixels=options.max_pixels,
        ignore_categories=options.ignore_categories,
        workers=workers,
    )
    source = found.source
    click.echo(
        f"{source.num_images + len(source.refused_images):,} images, "
        f"{len(source.row) + len(source.refused_boxes):,} boxes, {len(source.categories)} categories; "
        f"{found.num_read:,} image files decoded; {source.num_clipped:,} boxes are clipped to their image"
    )
    for line in (*source.warnings, *source.notes, *found.notes, *describe_rejects(found.rejects)):
        click.echo(line)
    if report is not None:
        write_report(found.rejects, report)
        click.echo(f"{report}: all {len(found.rejects):,} refused records")
    if found.rejects or source.warnings:
        sys.exit(1)
    click.echo("nothing wrong found")
    given = [f"--annotations {file}" for file in annotations] + [f"--images {folder}" for folder in images]
    given += [] if images else ["--images IMAGES"]
    tell_next(f"sniper chips {' '.join(given)} --out CHIPS")


@cli.command()
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
    type=click.FloatRange(0, 1),
    default=0.001,
    help="share of refused images that is still a success",
)
@click.option(
    "--max-bad-boxes",
    type=click.FloatRange(0, 1),
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
    """Cut multi-scale chips out of a COCO data set, into tar shards with Parquet manifests."""
    from pipeline.coco.rejects import describe_rejects
    from pipeline.commands.chips import chips as run
    from pipeline.dataset.ledger.summary import describe

    report = run(
        annotations,
        images or None,
        out,
        settings.chips,
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
        there = report.num_shards - report.num_made
        already = f"; {counted(there, 'was', 'were')} there already" if there else ""
        click.echo(f"{out}: made {counted(report.num_made, 'shard')}{already}")
    else:
        click.echo(f"{out}: all {report.num_shards} shards are there already; nothing to do")
    if report.shortfall:
        raise SniperError(report.shortfall)
    if plan_only:
        tell_next("the same command without --plan-only")
    else:
        tell_next(f"sniper show {out} --out sheet.png", f"sniper negatives --data {out}")


@cli.command()
@click.argument("data", type=location)
@workers_option
def verify(data: Location, workers: int) -> None:
    """Re-hash a chip data set; name every bad shard and chip."""
    from pipeline.commands.verify import verify as run

    report = run(data, workers=workers)
    for line in report.problems:
        click.echo(line)
    shards, chips = counted(report.num_shards, "shard"), counted(report.num_chips, "chip")
    click.echo(f"{data}: {shards}, {chips}, {counted(len(report.problems), 'problem')}")
    if report.problems:
        sys.exit(1)
    tell_next(f"sniper train --data {data} --out RUN")


@cli.command()
@click.argument("data", type=location)
@click.option("--out", type=location, required=True, help="picture to write")
@click.option("--kind", type=click.Choice(["positive", "negative"]), default="positive")
@click.option("--columns", type=click.IntRange(1, 50), default=6, help="chips per scale")
@click.option("--seed", type=int, default=0, help="another seed draws other chips")
def show(data: Location, out: Location, kind: str, columns: int, seed: int) -> None:
    """Draw a contact sheet of chips with their boxes, read back from the shards."""
    from pipeline.commands.show import show as run

    number = run(data, out, kind=kind, columns=columns, seed=seed)
    click.echo(f"{out}: {counted(number, 'chip')}")


@cli.command("settings")
@settings_options
def settings_command(settings: Settings) -> None:
    """Print every setting with its meaning and value, as a file for --config."""
    from schemas.settings.listing import as_config

    click.echo(as_config(settings), nl=False)


def main() -> None:
    """Entry point: prints what a user can mend as one message, without a traceback."""
    show_log()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold what a terminal cannot show
    try:
        for entry in entry_points(group="sniper.commands"):
            cli.add_command(entry.load())
        cli(standalone_mode=True)
    except SniperError as error:
        click.echo(f"sniper: {error}", err=True)
        sys.exit(error.exit_status)
    except BrokenPipeError:  # `sniper ... | head`
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        click.echo(f"sniper: {where}{error.strerror or error}; check that it can be read or written", err=True)
        sys.exit(1)
    except MemoryError:
        click.echo("sniper: out of memory; use fewer --workers or a lower chips.max_pixels", err=True)
        sys.exit(1)
