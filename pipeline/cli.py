"""The command line: thin. Each command has a Python function of the same name; its imports happen when called."""

import functools
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline import __version__
from pipeline.engines.extras import needed
from pipeline.engines.tasks import cores
from pipeline.storage import Location, location
from schemas.errors import SniperError, UsageError
from schemas.settings import Settings, load_settings

COMMAND_SETTINGS = {"max_content_width": 110, "help_option_names": ["-h", "--help"], "show_default": True}


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from pipeline.images.chip import codec

    used = codec()
    simd = "SIMD" if used.simd else "not SIMD"
    click.echo(f"sniper {__version__}  (JPEG: {used.jpeg}; resize: {used.resize}, {simd})")
    context.exit()


@click.group(context_settings=COMMAND_SETTINGS)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="and codecs")
def cli() -> None:
    """SNIPER chips: train detectors on objects of very different sizes."""


def _settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --config and --set; the command receives `settings`."""

    @click.option(
        "--config", type=click.Path(path_type=Path), help="YAML file of settings, in sections such as chips:"
    )
    @click.option("--set", "assignments", multiple=True, metavar="A.B=C", help="one setting; may be repeated")
    @functools.wraps(command)
    def wrapped(config: Path | None, assignments: tuple[str, ...], **options: Any) -> None:
        command(settings=load_settings(config, assignments), **options)

    return wrapped


_annotations = click.option("--annotations", type=location, required=True, help="COCO JSON file")
_workers = click.option(
    "--workers",
    type=click.IntRange(1),
    default=cores(),
    show_default="all cores",
    help="processes",
)


def _engine_options(command: Callable[..., None]) -> Callable[..., None]:
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
@_annotations
@click.option(
    "--images", type=location, help="folder that file_name is relative to; without it only the file is checked"
)
@_workers
@_settings_options
def check(annotations: Location, images: Location | None, workers: int, settings: Settings) -> None:
    """List everything that is wrong with the data, before any work."""
    from pipeline.coco import describe_rejects
    from pipeline.commands.check import check as run

    report = run(annotations, images, max_pixels=settings.chips.max_pixels, workers=workers)
    source = report.source
    click.echo(
        f"{source.num_images + len(source.refused_images):,} images, "
        f"{len(source.row) + len(source.refused_boxes):,} boxes, {len(source.categories)} categories; "
        f"{report.num_read:,} image files decoded; {source.num_clipped:,} boxes are clipped to their image"
    )
    for line in (*source.notes, *describe_rejects(report.rejects, limit=None)):
        click.echo(line)
    if report.rejects or source.notes:
        sys.exit(1)
    click.echo("nothing wrong found")


@cli.command()
@_annotations
@click.option("--images", type=location, help="folder that file_name is relative to; not needed with --plan-only")
@click.option(
    "--out", type=location, required=True, help="folder to write; resumed when it holds part of the same build"
)
@_engine_options
@click.option("--plan-only", is_flag=True, help="write the manifest without chips, and say what they would cost")
@click.option("--overwrite", is_flag=True, help="replace a build made with other settings")
@click.option(
    "--max-bad",
    type=click.FloatRange(0, 1),
    default=0.001,
    help="share of refused images that is still a success",
)
@_settings_options
def chips(
    annotations: Location,
    images: Location | None,
    out: Location,
    workers: int | None,
    engine: str,
    address: str | None,
    plan_only: bool,
    overwrite: bool,
    max_bad: float,
    settings: Settings,
) -> None:
    """Cut multi-scale chips out of a COCO data set, into tar shards with Parquet manifests."""
    from pipeline.coco import describe_rejects
    from pipeline.commands.chips import chips as run
    from pipeline.dataset.ledger.summary import describe

    report = run(
        annotations,
        images,
        out,
        settings.chips,
        workers=workers,
        engine=engine,
        address=address,
        plan_only=plan_only,
        overwrite=overwrite,
        max_bad=max_bad,
    )
    for line in (*report.notes, *describe_rejects(report.rejects)):
        click.echo(line)
    click.echo(describe(report.counts, (workers or cores()) if plan_only else None))
    if plan_only:
        click.echo(f"{out}/plan: planned {report.num_shards} shards; no image was read")
    elif report.num_made:
        there = report.num_shards - report.num_made
        click.echo(f"{out}: made {report.num_made} shards" + (f"; {there} were there already" if there else ""))
    else:
        click.echo(f"{out}: all {report.num_shards} shards are there already; nothing to do")
    if report.shortfall:
        raise SniperError(report.shortfall)


@cli.command()
@click.argument("data", type=location)
@_workers
def verify(data: Location, workers: int) -> None:
    """Re-hash a chip data set; name every bad shard and chip."""
    from pipeline.commands.verify import verify as run

    report = run(data, workers=workers)
    for line in report.problems:
        click.echo(line)
    click.echo(f"{data}: {report.num_shards} shards, {report.num_chips:,} chips, {len(report.problems)} problems")
    if report.problems:
        sys.exit(1)


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
    click.echo(f"{out}: {number} chips")


@cli.command()
@click.option("--data", type=location, required=True, help="folder that `sniper chips` wrote")
@click.option("--images", type=location, help="folder the positives were cut from; default: as run.json records it")
@click.option(
    "--proposals", type=location, help="ready ones, Parquet or COCO results JSON; without, an RPN is trained"
)
@click.option("--random", type=click.IntRange(1), help="draw this many background chips per image instead")
@_engine_options
@click.option("--overwrite", is_flag=True, help="replace a pool made with other settings")
@_settings_options
def negatives(
    data: Location,
    images: Location | None,
    proposals: Location | None,
    random: int | None,
    workers: int | None,
    engine: str,
    address: str | None,
    overwrite: bool,
    settings: Settings,
) -> None:
    """Mine background that fools a weak RPN, and cut it into a pool of negative chips."""
    from pipeline.commands.negatives import describe, image_root
    from pipeline.commands.negatives import negatives as run
    from pipeline.dataset.run_file import read_run

    if proposals is None and random is None:
        with needed("train"):
            from trainer.training.make_proposals import make_proposals
        root = image_root(read_run(data, "sniper chips"), images)
        proposals = make_proposals(data, root, settings, overwrite=overwrite)
    if int(os.environ.get("RANK", 0)) > 0:
        return  # under torchrun the first process mines and cuts
    report = run(
        data,
        images=images,
        proposals=proposals,
        random=random,
        settings=settings.negatives,
        workers=workers,
        engine=engine,
        address=address,
        overwrite=overwrite,
    )
    click.echo(describe(report.counts))
    there = report.num_shards - report.num_made
    click.echo(f"{data}/negatives: made {report.num_made} shards" + (f"; {there} were there already" if there else ""))


@cli.command()
@click.option("--data", type=location, required=True, help="chip data set, as `sniper chips` wrote it")
@click.option("--out", type=location, required=True, help="folder of the run: checkpoints, log, pictures")
@click.option("--batch-size", type=click.IntRange(1), help="chips of the global batch  [default: 128]")
@click.option("--epochs", type=click.IntRange(1), help="passes over the chips  [default: 12]")
@click.option("--precision", type=click.Choice(["bf16", "fp16", "fp32"]), help="[default: bf16 on a GPU, else fp32]")
@click.option("--resume", is_flag=True, help="go on from the last checkpoint in --out")
@click.option("--val-annotations", type=location, help="COCO JSON file to score on every train.evaluate_every epochs")
@click.option("--val-images", type=location, help="its images")
@_settings_options
def train(
    data: Location,
    out: Location,
    resume: bool,
    val_annotations: Location | None,
    val_images: Location | None,
    settings: Settings,
    **options: Any,
) -> None:
    """Train a Faster R-CNN on chips; under torchrun, one process per GPU."""

    with needed("train"):
        from trainer.training.train import train as run
    given = {name: value for name, value in options.items() if value is not None}
    settings = settings.model_copy(update={"train": settings.train.model_copy(update=given)})
    if (val_annotations is None) != (val_images is None):
        raise UsageError("train: give --val-annotations and --val-images together")
    validation = (val_annotations, val_images) if val_annotations and val_images else None
    click.echo(run(data, out, settings, resume=resume, validation=validation))


@cli.command()
@click.option(
    "--checkpoint", type=location, required=True, help="file that `sniper train` wrote, or the folder of its run"
)
@_annotations
@click.option("--images", type=location, required=True, help="folder that file_name is relative to")
@click.option("--out", type=location, help="what is found as COCO results JSON; the summary goes beside it")
@click.option(
    "--proposals", is_flag=True, help="score the RPN's proposals alone: recall by size, as the paper's Table 1"
)
@click.option(
    "--max-dets",
    type=click.IntRange(1),
    show_default="100, with --proposals 300",
    help="detections per image and class, or proposals per image, for every line",
)
@_settings_options
def evaluate(
    checkpoint: Location,
    annotations: Location,
    images: Location,
    out: Location | None,
    proposals: bool,
    max_dets: int | None,
    settings: Settings,
) -> None:
    """Score a checkpoint on whole, original images with COCO's AP and AR."""
    from pipeline.coco import describe_rejects

    with needed("train"):
        from trainer.evaluation.evaluate import describe
        from trainer.evaluation.evaluate import evaluate as score_detections
        from trainer.evaluation.recall import evaluate_proposals
    run = evaluate_proposals if proposals else score_detections
    max_dets = max_dets or (300 if proposals else 100)
    report = run(checkpoint, annotations, images, settings, out=out, max_dets=max_dets)
    if report is None:
        return  # under torchrun the first process reports
    for line in describe_rejects(report.rejects):
        click.echo(line)
    click.echo(describe(report))
    if any(reject.kind == "image" for reject in report.rejects) or set(report.summary.values()) == {None}:
        sys.exit(1)


@cli.command()
@click.option(
    "--checkpoint", type=location, required=True, help="file that `sniper train` wrote, or the folder of its run"
)
@click.argument("images", type=location, nargs=-1, required=True)
@click.option("--out", type=location, default=Path("detections"), help="folder for detections.json and the pictures")
@click.option("--min-drawn", type=click.FloatRange(0, 1), default=0.3, help="score from which a box is drawn")
@_settings_options
def detect(
    checkpoint: Location, images: tuple[Location, ...], out: Location, min_drawn: float, settings: Settings
) -> None:
    """Detect on image files and folders of them, of any size: boxes as JSON, and pictures."""

    with needed("train"):
        from trainer.inference.detect import detect as run
    results = run(checkpoint, images, settings, out=out, min_drawn=min_drawn)
    bad = [result for result in results if "error" in result]
    for result in bad:
        click.echo(f"{result['file']}: {result['error']}")
    number = sum(len(result.get("detections", ())) for result in results)
    count = sum("detections" in result for result in results)
    click.echo(f"{out}: {number:,} detections on {count} images")
    if bad:
        sys.exit(1)


def main() -> None:
    """Entry point: prints what a user can mend as one message, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold what a terminal cannot show
    try:
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
