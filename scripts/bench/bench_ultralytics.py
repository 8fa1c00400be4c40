"""A detector of ultralytics that learns from whole images, as its own trainer has it, and from our chips.

Run it in .venv-peers, which has ultralytics; nothing is downloaded, so the networks learn from scratch:

    .venv-peers/bin/python -m scripts.bench.bench_ultralytics --json FILE

All ways train YOLO11n by `YOLO(...).train` on the generated scenes of docs/evidence.md, with the same number of pixels
in all and about the same in an optimiser step. Whole images are given to `YOLO(...).predict`, at the size of the
training. The chips are those of `sniper chips` and `sniper negatives`, as `sniper export --format yolo` writes them,
and the images are searched by the pyramid. The scores come from the same scorer.
"""

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import yaml

os.environ |= {
    "YOLO_OFFLINE": "1",
    "YOLO_VERBOSE": "False",
    "YOLO_CONFIG_DIR": tempfile.mkdtemp(),
    "MPLCONFIGDIR": tempfile.mkdtemp(),
}

from ultralytics import YOLO

from pipeline.coco.read import read_coco
from pipeline.exchange.export import export
from pipeline.pyramid.merging import Detections
from pipeline.pyramid.search import search
from schemas.settings import Settings, load_settings
from scripts.ablate.cuts import SETTINGS, mined, seconds
from scripts.ablate.data import Data, scenes
from scripts.scoring import score_found
from trainer.evaluation.ground_truth import open_ground_truth
from trainer.evaluation.matching import MAX_DETS

NETWORK = "yolo11n.yaml"
CHIPS = 16  # in a step
FULL = 640
"""Longer side of the scenes, and what ultralytics trains at by default."""
Found = tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.floating[Any]], npt.NDArray[np.integer[Any]]]


class Way(NamedTuple):
    """One way to train and to detect.

    Attributes:
        name: for the table.
        make: writes the training data; returns the file that describes them to ultralytics, the number of images in a
            pass, and the core seconds that it took.
        side: the training images are padded to this square, px.
        options: of `YOLO.train`, beside those of all ways.
        by_pyramid: search the pyramid, or else the whole image at `side`.
    """

    name: str
    make: Callable[[Data, Settings, Path], tuple[Path, int, float]]
    side: int
    options: dict[str, Any]
    by_pyramid: bool


def whole_images(data: Data, settings: Settings, out: Path) -> tuple[Path, int, float]:
    """Write the images with labels in YOLO's form, links to the files in place of copies."""
    source = read_coco(data.train)
    labels, images = out / "labels/train", out / "images/train"
    for folder in (labels, images):
        folder.mkdir(parents=True, exist_ok=True)
    boxes = json.loads(data.train.read_text())["annotations"]
    label_of = {id_: number for number, (id_, _) in enumerate(source.categories)}
    for image in source.images(0, source.num_images):
        file = images / Path(image.file_name).name
        if not file.exists():
            file.symlink_to((data.train_images / image.file_name).resolve())
        rows = []
        for box in boxes:
            if box["image_id"] == image.image_id and not box.get("iscrowd", 0):
                x, y, width, height = box["bbox"]
                centre = (x + width / 2) / image.width, (y + height / 2) / image.height
                shares = (*centre, width / image.width, height / image.height)
                rows.append(f"{label_of[box['category_id']]} " + " ".join(f"{share:.6f}" for share in shares))
        (labels / file.with_suffix(".txt").name).write_text("\n".join(rows))
    return _described(out, [name for _, name in source.categories]), source.num_images, 0.0


def our_chips(data: Data, settings: Settings, out: Path) -> tuple[Path, int, float]:
    """Write the chips of the whole method as `sniper export --format yolo` does."""
    (chips,) = mined(data, settings)
    began = time.process_time()
    report = export(chips, out, format="yolo", workers=1)
    taken = sum(seconds(chips).values()) + time.process_time() - began
    names = yaml.safe_load((out / "data.yaml").read_text())["names"]
    return _described(out, [*names.values()]), report.tally.num_chips, taken


def _described(out: Path, names: list[str]) -> Path:
    """Describe a data set for a training that validates on a single image, since its scores are not used."""
    (out / "one.txt").write_text(f"{min((out / 'images/train').iterdir())}\n")
    path = out / "training.yaml"
    content = {"path": str(out), "train": "images/train", "val": "one.txt", "names": dict(enumerate(names))}
    path.write_text(yaml.safe_dump(content))
    return path


def find_whole(network: YOLO, side: int, files: list[Path]) -> Iterator[Detections]:
    """Detect on whole images as ultralytics does, in pixels of the image."""
    for file in files:
        (found,) = network.predict(str(file), imgsz=side, conf=0.001, max_det=MAX_DETS, verbose=False)
        boxes, scores, labels = _columns(found)
        yield Detections(boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int64))


def find_by_pyramid(network: YOLO, settings: Settings, files: list[Path]) -> Iterator[Detections]:
    """Detect by the pyramid, as examples/search_ultralytics.py does."""

    def detector(views: list[npt.NDArray[np.uint8]]) -> list[Found]:
        side = max(max(view.shape[:2]) for view in views)
        images = [np.ascontiguousarray(view[:, :, ::-1]) for view in views]
        found = network.predict(images, imgsz=side + -side % 32, conf=0.001, verbose=False)
        return [_columns(one) for one in found]

    yield from search(files, detector, settings)


def _columns(found: Any) -> Found:
    boxes = found.boxes
    return boxes.xyxy.cpu().numpy(), boxes.conf.cpu().numpy(), boxes.cls.cpu().numpy().astype(np.int64) + 1


def measure(way: Way, data: Data, settings: Settings, work: Path, num_chips: int, seed: int) -> dict[str, Any]:
    """Train, detect and score one way with one seed."""
    named = way.name.replace(" ", "-").replace(",", "")
    described, per_pass, prepared = way.make(data, settings, work / named)
    pixels = num_chips * settings.chips.size**2
    step = max(1, round(CHIPS * settings.chips.size**2 / way.side**2))
    epochs = max(1, round(pixels / (per_pass * way.side**2)))
    network = YOLO(NETWORK)
    began = time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        network.train(
            data=str(described),
            imgsz=way.side,
            epochs=epochs,
            batch=step,
            nbs=step,  # by default the gradients of 64 images are added up for a step, be they chips or whole images
            seed=seed,
            project=str(work / "runs"),
            name=f"{named}-{seed}",
            exist_ok=True,
            pretrained=False,
            device="cpu",
            workers=0,
            amp=False,
            val=False,
            plots=False,
            verbose=False,
            **way.options,
        )
    trained = time.process_time() - began
    network = YOLO(work / "runs" / f"{named}-{seed}" / "weights/last.pt")
    truth = open_ground_truth(data.val, data.val_images, settings.chips, None, MAX_DETS)
    sources = truth.source.images(0, truth.source.num_images)
    files = [data.val_images / source.file_name for source in sources]
    began = time.process_time()
    found = list(find_by_pyramid(network, settings, files) if way.by_pyramid else find_whole(network, way.side, files))
    detected = time.process_time() - began
    summary, _ = score_found(truth, sources, found, settings.chips.bounds())
    return {
        **{"way": way.name, "seed": seed, "passes": epochs, "images_per_pass": per_pass, "per_step": step},
        **{"pixels": epochs * per_pass * way.side**2, "prepare_cpu_s": prepared, "train_cpu_s": trained},
        **{"images_per_core_s": len(files) / detected},
        **{"scores": {name: value for name, value in summary.items() if "[" not in name}},
    }


# ultralytics' mosaic joins four training images and changes their size by up to a half, which undoes what a chip's
# scale is chosen for. The ways of whole images keep it, since it is how ultralytics trains.
AS_CUT = {"mosaic": 0.0, "scale": 0.1, "translate": 0.0}

WAYS = (
    Way("whole images, 640 px", whole_images, FULL, {}, by_pyramid=False),
    Way("whole images, 320 px", whole_images, FULL // 2, {}, by_pyramid=False),
    Way("our chips", our_chips, 128, AS_CUT, by_pyramid=True),
)


@click.command(help="Train a YOLO on whole images and on chips; print and write scores and times.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures here.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("bench-results/ultralytics"))
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--ways", default=",".join(str(number) for number in range(len(WAYS))), show_default=True)
@click.option("--images", type=click.IntRange(min=3), default=400, show_default=True, help="Training images.")
@click.option("--chips", type=click.IntRange(min=1), default=38_400, show_default=True, help="Seen by a training.")
def main(out: Path | None, work: Path, seeds: str, ways: str, images: int, chips: int) -> None:
    work = work.resolve()
    data = scenes(work, images)
    settings = load_settings(SETTINGS)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out is not None and out.exists() else []
    done = {(line["way"], line["seed"]) for line in lines if line["chips"] == chips}
    for seed in (int(seed) for seed in seeds.split(",")):
        for way in (WAYS[int(number)] for number in ways.split(",")):
            if (way.name, seed) in done:
                continue
            line = {**measure(way, data, settings, work, chips, seed), "chips": chips}
            lines.append(line)
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            click.echo(f"{way.name}, seed {seed}: AP {line['scores']['AP']:.3f}")
    for way in WAYS:
        of_way = [line for line in lines if line["way"] == way.name and line["chips"] == chips]
        if of_way:
            ap = statistics.mean(line["scores"]["AP"] for line in of_way)
            trained = statistics.median(line["train_cpu_s"] for line in of_way)
            rate = statistics.median(line["images_per_core_s"] for line in of_way)
            click.echo(
                f"{way.name:<26} AP {ap:.3f} ({len(of_way)} seeds), {trained:.0f} core s, {rate:.1f} images/core s"
            )


if __name__ == "__main__":
    main()
