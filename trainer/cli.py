"""The detector's commands. They are found by the entry-point group `sniper.commands`, and import torch when called."""

import csv
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

import click

from pipeline.cli.options import (
    Share,
    annotations_option,
    assigned,
    engine_options,
    given_settings,
    made_shards,
    refuse_both,
    settings_options,
    tell_next,
)
from pipeline.engines.extras import needed
from pipeline.engines.progress import log
from pipeline.storage import Location, location
from schemas.errors import UsageError
from schemas.settings import Settings
from schemas.wording import counted, duration, shell

allow_seen_option = click.option("--allow-seen", is_flag=True, help="score on images that were trained on, too")


@click.command()
@click.option("--data", type=location, required=True, help="folder that `sniper chips` wrote")
@click.option("--images", type=location, help="folder the positives were cut from; default: as run.json records it")
@click.option(
    "--proposals",
    type=location,
    help="ready proposals, Parquet or COCO results JSON; without this option an RPN is trained, which makes them",
)
@click.option("--random", type=click.IntRange(1), help="draw this many background chips per image at random instead")
@engine_options
@click.option("--overwrite", is_flag=True, help="replace a pool made with other settings")
@settings_options
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
    """Mine background that looks like objects. An RPN is trained briefly, and what fools it is cut into a pool."""
    from pipeline.commands.negatives import describe, image_root
    from pipeline.commands.negatives import negatives as run
    from pipeline.dataset.build_file import read_build

    if random is not None and assigned("negatives"):
        raise UsageError("negatives: --random mines nothing, so no --set negatives acts; leave out one of them")
    trains = proposals is None and random is None
    if trains:
        with needed("train"):
            from trainer.training.make_proposals import make_proposals
        root = image_root(read_build(data), images)
        proposals = make_proposals(data, root, settings, overwrite=overwrite)
    if int(os.environ.get("RANK", 0)) > 0:
        return  # under torchrun the first process mines and cuts
    started = time.perf_counter()
    if trains:
        log.info("step 3 of 3: mining and cutting")
    report = run(
        data,
        images=images,
        proposals=proposals,
        random=random,
        settings=settings,
        workers=workers,
        engine=engine,
        address=address,
        overwrite=overwrite,
    )
    if trains:
        log.info(f"step 3 of 3 took {duration(time.perf_counter() - started)}")
    click.echo(describe(report.counts, random=random is not None))
    click.echo(made_shards(f"{data}/negatives", report.num_shards, report.num_made))
    tell_next(
        shell("sniper", "show", data, "--kind", "negative", "--out", "sheet.png"),
        shell("sniper", "train", "--data", data, "--out", "RUN", *given_settings()),
    )


@click.command()
@click.option("--data", type=location, required=True, help="chip data set, as `sniper chips` wrote it")
@click.option("--out", type=location, required=True, help="folder of the run: checkpoints, log, pictures")
@click.option("--batch-size", type=click.IntRange(1), help="chips of the global batch  [default: 128]")
@click.option("--epochs", type=click.IntRange(1), help="passes over the chips  [default: 12]")
@click.option("--precision", type=click.Choice(["bf16", "fp16", "fp32"]), help="[default: bf16 on a GPU, else fp32]")
@click.option(
    "--resume",
    type=click.Choice(["yes", "auto"]),
    is_flag=False,
    flag_value="yes",
    help="go on from the last checkpoint in --out, with its settings; auto: begin where there is none",
)
@click.option("--val-annotations", type=location, help="COCO JSON file to score on every train.evaluate_every epochs")
@click.option("--val-images", type=location, help="folder that file_name of --val-annotations is relative to")
@allow_seen_option
@settings_options
def train(
    data: Location,
    out: Location,
    resume: Literal["yes", "auto"] | None,
    val_annotations: Location | None,
    val_images: Location | None,
    allow_seen: bool,
    settings: Settings,
    **options: Any,
) -> None:
    """Train a Faster R-CNN on chips. Under torchrun each GPU has one process."""
    with needed("train"):
        from trainer.training.train import train as run
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        refuse_both(f"--{name.replace('_', '-')}", f"train.{name}")
    settings = settings.model_copy(update={"train": settings.train.model_copy(update=given)})
    if (val_annotations is None) != (val_images is None):
        raise UsageError("train: give --val-annotations and --val-images together")
    if allow_seen and val_images is None:
        raise UsageError(
            "train: --allow-seen is for scoring; give --val-annotations and --val-images, or leave it out"
        )
    validation = (val_annotations, val_images) if val_annotations and val_images else None
    begin: bool | Literal["auto"] = "auto" if resume == "auto" else bool(resume)
    click.echo(run(data, out, settings, resume=begin, validation=validation, allow_seen=allow_seen))
    if int(os.environ.get("RANK", 0)) == 0:
        tell_next(
            shell("sniper", "evaluate", "--checkpoint", out, "--annotations", "VAL.json", "--images", "VAL"),
            shell("sniper", "detect", "--checkpoint", out, "PHOTOS", "--out", "DETECTIONS"),
        )


@click.command()
@click.option("--checkpoint", type=location, help="file that `sniper train` wrote, or the folder of its run")
@click.option("--results", type=location, help="COCO results of any detector, scored in place of a checkpoint")
@annotations_option
@click.option("--images", type=location, help="folder that file_name is relative to; not with --results")
@click.option(
    "--out", type=location, help="what is found as COCO results JSON; the summary goes beside it; not with --results"
)
@click.option("--table", type=location, help="file for the scores of each class, .csv or .parquet")
@click.option(
    "--proposals", is_flag=True, help="score the RPN's proposals alone: recall by size, as the paper's Table 1"
)
@click.option(
    "--max-dets",
    type=click.IntRange(1),
    show_default="100, with --proposals 300",
    help="detections of an image and class that count in each score; with --proposals, proposals of an image",
)
@allow_seen_option
@settings_options
def evaluate(
    checkpoint: Location | None,
    results: Location | None,
    annotations: Location,
    images: Location | None,
    out: Location | None,
    table: Location | None,
    proposals: bool,
    max_dets: int | None,
    allow_seen: bool,
    settings: Settings,
) -> None:
    """Score detections on whole images. They are a checkpoint's, or any detector's ready results."""
    from pipeline.coco.rejects import describe_rejects
    from trainer.evaluation.coco_scores import check_table, describe_scores, write_class_table
    from trainer.evaluation.matching import MAX_DETS

    if table is not None:
        if proposals:
            raise UsageError("evaluate: proposals have no classes, so leave out --proposals or --table")
        check_table(table)
    if results is not None:
        if checkpoint or images or out or proposals or allow_seen:
            raise UsageError(
                "evaluate: --results are scored as they are; leave out --checkpoint, --images, --out, --proposals and "
                "--allow-seen"
            )
        from trainer.evaluation.score_results import score_results

        scored = score_results(results, annotations, settings, max_dets=max_dets or MAX_DETS)
        if table is not None:
            write_class_table(table, scored.summary)
        click.echo("\n".join([*describe_rejects(scored.rejects), describe_scores(scored.summary, scored.notes)]))
        if set(scored.summary.values()) == {None}:
            sys.exit(1)
        return
    if checkpoint is None or images is None:
        raise UsageError("evaluate: give --checkpoint and --images, or --results")
    with needed("train"):
        from trainer.evaluation.evaluate import evaluate as score_detections
        from trainer.evaluation.recall import MAX_PROPOSALS, evaluate_proposals
        from trainer.runtime.ranks import stoppable
    run = evaluate_proposals if proposals else score_detections
    max_dets = max_dets or (MAX_PROPOSALS if proposals else MAX_DETS)
    with stoppable("To score, run the same command again; it begins anew"):
        report = run(checkpoint, annotations, images, settings, out=out, max_dets=max_dets, allow_seen=allow_seen)
    if report is None:
        return  # under torchrun the first process reports
    if table is not None:
        write_class_table(table, report.summary)
    for line in describe_rejects(report.rejects):
        click.echo(line)
    click.echo(describe_scores(report.summary, report.notes))
    if report.searched.share < 1:
        click.echo(f"searched {report.searched.share:.1%} of the pyramid's pixels (detect.focus)")
    given = given_settings()
    tell_next(shell("sniper", "detect", "--checkpoint", checkpoint, images, "--out", "DETECTIONS", *given))
    if not report.rejects and out is not None and set(report.summary.values()) == {None}:
        click.echo(f"nothing was scored, since {annotations} holds no box; what was found is in {out}")
    elif any(reject.kind == "image" for reject in report.rejects) or set(report.summary.values()) == {None}:
        sys.exit(1)


@click.command()
@click.option(
    "--checkpoint", type=location, required=True, help="file that `sniper train` wrote, or the folder of its run"
)
@click.argument("images", type=location, nargs=-1, required=True)
@click.option("--out", type=location, default=Path("detections"), help="folder for detections.json and the pictures")
@click.option(
    "--classes",
    multiple=True,
    help="names of the classes that are wanted, with commas between them; may be repeated. A name that holds a comma "
    "stands in quotes: '\"car, parked\",person'  [default: all]",
)
@click.option(
    "--min-score",
    type=Share(is_open=True),
    help="leave out what scores less  [default: detect.min_score]",
)
@click.option("--min-drawn", type=Share(), default=0.3, help="score from which a box is drawn")
@click.option(
    "--focus-map", is_flag=True, help="also draw where the finer scales were searched and why: NAME.focus.jpg"
)
@click.option(
    "--results", type=location, help="file for all detections in one list: .json (COCO results), .jsonl or .csv"
)
@click.option("--annotations", type=location, help="with --results: COCO JSON file whose ids they get")
@settings_options
def detect(
    checkpoint: Location,
    images: tuple[Location, ...],
    out: Location,
    classes: tuple[str, ...],
    min_score: float | None,
    min_drawn: float,
    focus_map: bool,
    results: Location | None,
    annotations: Location | None,
    settings: Settings,
) -> None:
    """Find objects on images. Takes files and folders, of any size, and writes boxes as JSON, and pictures."""
    with needed("train"):
        from trainer.inference.detect import detect_into as run
        from trainer.runtime.ranks import stoppable
    if min_score is not None:
        refuse_both("--min-score", "detect.min_score")
        options = settings.detect.model_copy(update={"min_score": min_score})
        settings = settings.model_copy(update={"detect": options})
    wanted = [name.strip() for names in csv.reader(classes, skipinitialspace=True) for name in names]
    if classes and not any(wanted):
        raise UsageError("--classes names no class; leave it out for all")
    with stoppable(f"To go on, run the same command again: what was found is in {out}"):
        report = run(
            out,
            checkpoint,
            images,
            settings,
            min_drawn=min_drawn,
            classes=wanted,
            focus_map=focus_map,
            results=results,
            annotations=annotations,
        )
    if report is None:
        return  # under torchrun the first process reports
    for file, error in report.errors:
        click.echo(f"{file}: {error}")
    click.echo(f"{out}: {counted(report.num_detections, 'detection')} on {counted(report.num_images, 'image')}")
    if report.errors:
        sys.exit(1)


@click.command("export-model")
@click.option(
    "--checkpoint", type=location, required=True, help="file that `sniper train` wrote, or the folder of its run"
)
@click.option("--out", type=location, required=True, help="file to write: NAME.onnx, with --slim NAME.pt")
@click.option("--format", "kind", type=click.Choice(["onnx"]), help="of the network  [default: onnx]")
@click.option(
    "--size",
    type=click.IntRange(1),
    nargs=2,
    metavar="HEIGHT WIDTH",
    help="of the views that the network takes, multiples of 32  [default: those of the chips]",
)
@click.option(
    "--slim", is_flag=True, help="write a checkpoint without what only training needs, in place of a network"
)
@settings_options
def export_model(
    checkpoint: Location,
    out: Location,
    kind: str | None,
    size: tuple[int, int] | None,
    slim: bool,
    settings: Settings,
) -> None:
    """Write the network for other programs. The output is an ONNX file, or the weights alone."""
    with needed("train"):
        from trainer.inference.export_model import export_model as run
        from trainer.inference.export_model import slim_checkpoint
    if slim:
        for name, given in (("--size", size), ("--format", kind)):
            if given is not None:
                raise UsageError(f"export-model: --slim writes weights, which have no {name}; leave it out")
        slim_checkpoint(checkpoint, out)
        command = shell("sniper", "detect", "--checkpoint", out)
        click.echo(f"{out}: the weights alone; `{command}` takes them as it does the whole")
        return
    worst = run(checkpoint, out, size=size, settings=settings)
    click.echo(f"{out}: finds what the network finds, within {worst:.1g} of scores and of shares of a side")


@click.command()
@click.argument("folder", type=location)
@click.option(
    "--out", type=location, default=Path("report.html"), help="page to write; the same as JSON goes beside it"
)
@click.option("--detections", type=location, help="of a run: COCO results, as `sniper evaluate --out` writes them")
@click.option("--annotations", type=location, help="with --detections: the COCO JSON file they are scored against")
@click.option("--images", type=location, help="with --detections: folder that file_name is relative to")
def report(
    folder: Location,
    out: Location,
    detections: Location | None,
    annotations: Location | None,
    images: Location | None,
) -> None:
    """Show chips, or a run, in charts. Writes one HTML page, and the same as JSON."""
    from trainer.insight.history import holds_run

    scored = (detections, annotations, images) if detections and annotations and images else None
    if scored is None and (detections or annotations or images):
        raise UsageError("report: give --detections, --annotations and --images together")
    if holds_run(folder):
        with needed("train"):
            from trainer.insight.report_run import report_run
        facts = report_run(folder, out, scored=scored)
    else:
        if scored is not None:
            raise UsageError(f"{folder}: holds no training run, which --detections are for; give the folder of a run")
        from pipeline.insight.report.report import report as report_data

        facts = report_data(folder, out)
    for remark in facts["remarks"]:
        click.echo(remark)
    click.echo(f"{out}: open it in any browser; {out.with_suffix('.json')} has the same numbers")


@click.command("merge-views")
@click.argument("views", type=location)
@click.option("--results", type=location, required=True, help="COCO results on the views, with their ids")
@click.option("--out", type=location, required=True, help="file for the COCO results on the images")
@click.option("--annotations", type=location, help="COCO JSON file that the views were made with, to score against")
@click.option(
    "--max-dets",
    type=click.IntRange(1),
    show_default="100",
    help="with --annotations: detections of an image and class that count in each score",
)
@settings_options
def merge_views(
    views: Location,
    results: Location,
    out: Location,
    annotations: Location | None,
    max_dets: int | None,
    settings: Settings,
) -> None:
    """Merge what was found on views. Any program may have found it; with annotations it is scored."""
    from trainer.evaluation.coco_scores import describe_scores
    from trainer.evaluation.matching import MAX_DETS
    from trainer.evaluation.views import merge_views as run

    if max_dets is not None and annotations is None:
        raise UsageError("merge-views: --max-dets is for scoring; give --annotations, or leave it out")
    merged = run(views, results, out, settings, annotations=annotations, max_dets=max_dets or MAX_DETS)
    if merged.summary is not None or merged.notes:
        click.echo(describe_scores(merged.summary or {}, merged.notes))
    click.echo(f"{out}: {len(merged.detections.scores):,} detections of {merged.num_on_views:,} on views")
