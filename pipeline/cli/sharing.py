"""The commands that hand chips and detections to other programs, and take theirs."""

import sys

import click

from pipeline.cli.options import given_settings, settings_options, tell_next, workers_option
from pipeline.storage import Location, location
from schemas.settings import Settings
from schemas.wording import counted, shell


@click.command()
@click.argument("data", type=location)
@click.option("--format", "format_", type=click.Choice(["coco", "yolo", "hf"]), default="coco", help="of the data set")
@click.option("--out", type=location, required=True, help="folder for the data set")
@click.option("--split", default="train", help="name of the split; several of one format may lie in a folder")
@click.option("--kind", type=click.Choice(["all", "positive"]), default="all", help="positive: leave out the pool")
@click.option("--blank", is_flag=True, help="yolo: paint over the regions that nothing is to be learnt from")
@workers_option
@click.option("--overwrite", is_flag=True, help="replace what was exported to the split before")
def export(
    data: Location,
    format_: str,
    out: Location,
    split: str,
    kind: str,
    blank: bool,
    workers: int,
    overwrite: bool,
) -> None:
    """Write chips for another trainer. The output is an ordinary data set: COCO, YOLO or Hugging Face."""
    from pipeline.exchange.export import describe
    from pipeline.exchange.export import export as run

    report = run(data, out, format=format_, split=split, kind=kind, blank=blank, workers=workers, overwrite=overwrite)
    click.echo(describe(report, out, blank))
    yolo = "yolo", "detect", "train"
    loaders = {
        "coco": f"any COCO reader: {out}/annotations/instances_{split}.json with the images in {out}/{split}",
        "yolo": shell(*yolo, f"data={out}/data.yaml", "model=yolo11n.pt", f"imgsz={report.chip_size}"),
        "hf": shell("python", "-c", f"from datasets import load_dataset; print(load_dataset({str(out)!r}))"),
    }
    tell_next(loaders[format_])


@click.command()
@click.option("--images", type=location, required=True, help="folder of the images")
@click.option("--annotations", type=location, help="COCO JSON file that names them; default: all images in the folder")
@click.option("--out", type=location, required=True, help="folder for the views and their index")
@workers_option
@click.option("--overwrite", is_flag=True, help="replace views of other images or settings")
@settings_options
def views(
    images: Location, annotations: Location | None, out: Location, workers: int, overwrite: bool, settings: Settings
) -> None:
    """Write whole images at every scale. Any detector that reads files can then search them."""
    from pipeline.coco.rejects import describe_rejects
    from pipeline.exchange.views import views as run

    report = run(images, out, settings, annotations=annotations, workers=workers, overwrite=overwrite)
    for line in describe_rejects(report.rejects):
        click.echo(line)
    click.echo(f"{out}: {counted(report.num_views, 'view')} of {counted(report.num_images, 'image')}")
    scored = [] if annotations is None else ["--annotations", annotations]
    given = [*scored, *given_settings()]
    tell_next(shell("sniper", "merge-views", out, "--results", "FOUND.json", "--out", "MERGED.json", *given))
    if report.rejects:
        sys.exit(1)
