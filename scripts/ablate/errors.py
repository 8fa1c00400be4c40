"""What the rows get wrong: the AP50 that each kind of error costs, and pictures of the errors on the same images.

Run it as: python -m scripts.ablate.errors [docs/evidence/runs.jsonl] --work WORK [--out docs/evidence/errors.jpg]
It draws what `python -m scripts.ablate` found and left in WORK.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pipeline.images.pictures import Stroke, draw_box, write_picture
from pipeline.insight.sheet import Row as Tiles
from pipeline.insight.sheet import draw_sheet
from schemas.settings import load_settings
from scripts.ablate.cuts import SETTINGS
from scripts.ablate.data import DATA, Data
from trainer.evaluation.errors import gains
from trainer.evaluation.ground_truth import Objects, open_ground_truth
from trainer.evaluation.matching import MAX_DETS, NONE
from trainer.evaluation.results import CocoResults, read_results
from trainer.insight.findings import Judged, best_of_all, find_errors

TILE = 320  # pixels
STROKES = {"found": Stroke("#35d04f", 1), "false": Stroke("#ff5252", 2), "missed": Stroke("#ffd21f", 2, 4)}


def objects_of(data: Data) -> Objects:
    """Read the objects of the validation images."""
    return open_ground_truth(data.val, data.val_images, load_settings(SETTINGS).chips, None, MAX_DETS).objects


def costs(data: Data, results: CocoResults) -> dict[str, float]:
    """Return by how much AP50 would rise if there were no error of a kind (docs/method.md, 11.5), by its name."""
    found = find_errors(objects_of(data), results)
    return {kind.name.lower(): gain for kind, gain in gains(*found).items()}


class Shown(NamedTuple):
    """The errors of a row at the score that is best for it.

    Attributes:
        found: its detections beside the objects.
        is_false: bool [D], detections above that score that found nothing.
        is_missed: bool [N], objects that none of the detections above that score found.
    """

    found: Judged
    is_false: npt.NDArray[np.bool_]
    is_missed: npt.NDArray[np.bool_]

    def counts(self, image_id: int) -> tuple[int, int]:
        """Return how many false detections and missed objects an image has."""
        false = self.is_false & (self.found.results.image_id == image_id)
        return int(false.sum()), int((self.is_missed & (self.found.objects.image_id == image_id)).sum())


def shown(objects: Objects, results: CocoResults) -> Shown:
    """Find the errors at the score with the best F1."""
    found = find_errors(objects, results)
    matching = found.matching
    is_shown = results.scores >= best_of_all(found).score
    is_found = matching.detection != NONE
    is_found[is_found] = is_shown[matching.detection[is_found]]
    return Shown(found, matching.is_false & is_shown, ~objects.crowd & ~is_found)


def draw(path: Path, image_id: int, errors: Shown) -> Image.Image:
    """Draw an image with the boxes of what was found, missed, and found falsely, at most TILE pixels wide and high."""
    with Image.open(path) as opened:
        zoom = TILE / max(opened.size)
        picture = opened.convert("RGB").resize((round(zoom * opened.width), round(zoom * opened.height)))
    canvas = Image.new("RGB", (TILE, TILE))
    canvas.paste(picture)
    pen = ImageDraw.Draw(canvas)
    objects, results = errors.found.objects, errors.found.results
    here = objects.image_id == image_id
    for boxes, name in (
        (objects.boxes[here & ~objects.crowd & ~errors.is_missed], "found"),
        (objects.boxes[here & errors.is_missed], "missed"),
        (results.xywh()[errors.is_false & (results.image_id == image_id)], "false"),
    ):
        for x, y, width, height in zoom * boxes:
            draw_box(pen, (x, y, x + width, y + height), STROKES[name])
    return canvas


def sheet(data: Data, rows: dict[str, Shown], image_ids: Sequence[int]) -> Image.Image:
    """Draw the same images for each row, one row below the other."""
    document = json.loads(data.val.read_text())
    files = {image["id"]: data.val_images / image["file_name"] for image in document["images"]}
    lines = []
    for name, errors in rows.items():
        tiles = []
        for image_id in image_ids:
            false, missed = errors.counts(image_id)
            tiles.append((draw(files[image_id], image_id, errors), f"{false} false, {missed} missed"))
        total = f"{int(errors.is_false.sum())} false, {int(errors.is_missed.sum())} missed on all images"
        lines.append(Tiles(f"{name}: {total}", tiles))
    return draw_sheet(lines, len(image_ids), TILE, STROKES)


@click.command(help="Draw what the rows of docs/evidence.md find, miss and find falsely, on the same images.")
@click.argument(
    "runs", type=click.Path(exists=True, path_type=Path), default=Path("docs/evidence/runs.jsonl"), required=False
)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("bench-results/ablate"))
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/evidence/errors.jpg"))
@click.option(
    "--rows", default="full,two scales,without negatives (equal passes)", help="Names with commas between them."
)
@click.option("--data", "name", type=click.Choice(list(DATA)), default="scenes", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--images", type=click.IntRange(min=1), default=4, show_default=True, help="Those with most false ones.")
def main(runs: Path, work: Path, out: Path, rows: str, name: str, seed: int, images: int) -> None:
    lines = [json.loads(line) for line in runs.read_text().splitlines()]
    errors: dict[str, Shown] = {}
    for row in rows.split(","):
        mine = [line for line in lines if (line["data"], line["row"], line["seed"]) == (name, row, seed)]
        if not mine or not (work / mine[-1].get("found", "-")).is_file():
            raise click.UsageError(f"{row}: {work} holds no detections of it on {name} with seed {seed}")
        data = DATA[name](work, mine[-1]["num_train"])
        errors[row] = shown(objects_of(data), read_results(work / mine[-1]["found"]))
    ids = [image["id"] for image in json.loads(data.val.read_text())["images"]]
    worst = sorted(ids, key=lambda id_: -sum(one.counts(id_)[0] for one in errors.values()))
    write_picture(out, sheet(data, errors, worst[:images]))


if __name__ == "__main__":
    main()
