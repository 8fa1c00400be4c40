"""Seconds for COCO's scores of many detections: ours, and pycocotools on the same boxes."""

import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from trainer.evaluation.coco_scores import COCO_AREAS, run_coco
from trainer.evaluation.ground_truth import Objects
from trainer.evaluation.results import CocoResults

CLASSES, OBJECTS, DETECTIONS, MAX_DETS = 80, 8, 200, 100  # objects and detections of each image


def boxes_of(num_images: int) -> tuple[Objects, CocoResults]:
    """Objects of sizes from 7 to 150 px, and 25 detections around each, a third of them of another class."""
    rng = np.random.default_rng(0)
    num = num_images * OBJECTS
    image_id = np.repeat(np.arange(1, num_images + 1), OBJECTS)
    category_id = rng.integers(1, CLASSES + 1, num)
    xywh = np.concatenate([rng.uniform(0, 400, (num, 2)), np.exp(rng.uniform(2, 5, (num, 2)))], axis=1)
    objects = Objects(image_id, category_id, xywh, xywh[:, 2] * xywh[:, 3], rng.random(num) < 0.05)
    rows = np.repeat(np.arange(num), DETECTIONS // OBJECTS)
    shift, stretch = rng.normal(0, 0.25, (2, len(rows), 2))
    corner = xywh[rows, :2] + shift * xywh[rows, 2:]
    boxes = np.concatenate([corner, corner + xywh[rows, 2:] * np.exp(stretch)], axis=1).astype(np.float32)
    other = rng.random(len(rows)) < 1 / 3
    classes = np.where(other, rng.integers(1, CLASSES + 1, len(rows)), category_id[rows])
    return objects, CocoResults(image_id[rows], classes, boxes, rng.random(len(rows)).astype(np.float32))


def theirs(objects: Objects, results: CocoResults) -> None:
    """Score with pycocotools, all classes at once."""
    truths = [
        {"id": n, "image_id": image, "category_id": id_, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for n, (image, id_, box, area, crowd) in enumerate(zip(*(c.tolist() for c in objects), strict=True), 1)
    ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": id_} for id_ in np.unique(objects.image_id).tolist()],
        "annotations": truths,
        "categories": [{"id": id_} for id_ in range(1, CLASSES + 1)],
    }
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(list(results.records())), "bbox")
    evaluation.params.maxDets = [MAX_DETS]
    evaluation.evaluate()
    evaluation.accumulate()


@click.command()
@click.option("--images", type=int, default=500)
@click.option("--rounds", type=int, default=3)
@click.option("--json", "json_path", type=Path)
def main(images: int, rounds: int, json_path: Path | None) -> None:
    """Print medians over interleaved rounds."""
    objects, results = boxes_of(images)
    seconds: dict[str, list[float]] = {"ours": [], "pycocotools": []}
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: run_coco(objects, range(1, CLASSES + 1), results, COCO_AREAS, MAX_DETS),
        "pycocotools": lambda: theirs(objects, results),
    }
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                way()
            seconds[name].append(time.perf_counter() - started)
    ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    figures = {name: statistics.median(taken) for name, taken in seconds.items()} | {"pycocotools / ours": ratio}
    figures |= {"images": images, "detections": len(results.scores)}
    for name, value in figures.items():
        click.echo(f"{name:<22}{value:>10.2f}")
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
