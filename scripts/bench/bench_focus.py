"""Detection from coarse to fine, as AutoFocus does it, against the whole pyramid and against SAHI.

    .venv-peers/bin/python -m scripts.bench.bench_focus --work bench-results/focus --json bench-results/focus.json

It trains one network per seed with a focus head on generated scenes, some with few groups of small objects and some
full of them, and searches new ones of both kinds in several ways: every scale whole; the finer scales where the focus
head says so, over thresholds; where what the coarser scale proposes says so (the poor man's map); and by SAHI with the
same network. Core seconds, pixels and AP of a seed are of the same images. What was trained in WORK is used again.
"""

import json
import logging
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import scipy.ndimage  # noqa: F401  # what the first window of a search would load
import torch
from PIL import Image

from pipeline.commands.chips import chips
from pipeline.commands.negatives import negatives
from pipeline.pyramid.merging import Detections
from pipeline.pyramid.search import SearchLog, split_spans
from schemas.settings import ChipSettings, DetectSettings, load_settings
from scripts.bench.focus_scenes import HEIGHT, WIDTH, dense_scene, mixed_scene, sparse_scene
from scripts.make_demo_data import make_demo_data
from scripts.scoring import score_found
from trainer.evaluation.ground_truth import GroundTruth, open_ground_truth
from trainer.evaluation.matching import MAX_DETS
from trainer.inference.predictor import Predictor, detect_images
from trainer.runtime.checkpoint import find_checkpoints, read_checkpoint
from trainer.training.make_proposals import make_proposals
from trainer.training.train import train

CONFIG = Path(__file__).with_name("focus.yaml")
NUM_TRAIN, NUM_SPARSE, NUM_DENSE = 150, 28, 8
THRESHOLDS = (0.01, 0.02, 0.03, 0.05, 0.1)
POOR_THRESHOLDS = (0.02,)
SLICES = (256, 512)  # sides of SAHI's slices, source pixels
SPAN = 4  # images whose views share batches; few, so that reading goes on while the network works
LARGE_SIDES = (4000, 12000)
NAMES = ("AP", "AP50", "AP_small", "AP_medium", "AP_large")


class Found(NamedTuple):
    """What a way of searching found on some images, and at what cost.

    Attributes:
        detections: of each image.
        core_s: seconds of all cores together per image, which hardly depend on what else the machine does.
        share: pixels of all views over those of the whole pyramid.
        reached: share of the small objects that lie whole in some view of the finest scale; None for SAHI.
    """

    detections: list[Detections]
    core_s: float
    share: float
    reached: float | None


def prepare(work: Path, seeds: Sequence[int]) -> list[Path]:
    """Make the data and train one network for each seed, unless they are there; returns the runs."""
    for name, make_scene, num_train, num_val in (
        ("train", mixed_scene, NUM_TRAIN, 0),
        ("sparse", sparse_scene, 0, NUM_SPARSE),
        ("dense", dense_scene, 0, NUM_DENSE),
    ):
        if not (work / name / "val.json").exists():
            make_demo_data(work / name, num_train, num_val, make_scene=make_scene)
    settings = load_settings(CONFIG)
    chips(work / "train/train.json", work / "train/train", work / "chips", settings)
    if not (work / "chips/negatives/run.json").exists():
        proposals = make_proposals(work / "chips", work / "train/train", settings)
        negatives(work / "chips", proposals=proposals, settings=settings)
    runs = []
    for seed in seeds:
        out = work / f"run-{seed}"
        seeded = load_settings(CONFIG, (f"train.seed={seed}",))
        if not (out / "done").exists():
            train(work / "chips", out, seeded, resume="auto")
            (out / "done").touch()
        runs.append(Path(str(find_checkpoints(out)[-1])))
    return runs


def by_pyramid(checkpoint: Path, truth: GroundTruth, focus: str) -> Found:
    """Search with `detect.focus` set; `poor:T` takes a threshold of a network whose focus head is not looked at."""
    is_poor = focus.startswith("poor:")
    predictor = Predictor(checkpoint, load_settings(None, (f"detect.focus={focus.removeprefix('poor:')}",)))
    model, chip_settings = predictor.inference.model, predictor.inference.chips
    if is_poor:
        model.focus = None
    sources = truth.source.images(0, truth.source.num_images)
    log = SearchLog(maps={})
    began = time.process_time()
    spans = split_spans(len(sources), SPAN)
    found = dict(detect_images(predictor.inference, spans, sources, truth.images, log))
    core_s = (time.process_time() - began) / len(sources)
    assert log.maps is not None
    small = [0, 0]
    _, highest = chip_settings.bounds()[0]
    for m, source in enumerate(sources):
        boxes = _boxes(truth, source.image_id)
        sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
        windows = np.array([view.window for view, _ in log.maps[m] if view.scale_index == 0]).reshape(-1, 4)
        for box in boxes[sides < highest * 0.7]:
            inside = (windows[:, :2] <= box[:2] + 1e-3).all(1) & (windows[:, 2:] >= box[2:] - 1e-3).all(1)
            small[0] += bool(inside.any())
            small[1] += 1
    share = log.searched.pixels / log.searched.pyramid
    return Found([found[m] for m in range(len(sources))], core_s, share, small[0] / max(small[1], 1))


def _boxes(truth: GroundTruth, image_id: int) -> np.ndarray[Any, Any]:
    xywh = truth.objects.boxes[truth.objects.image_id == image_id]
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def by_sahi(checkpoint: Path, truth: GroundTruth, side: int) -> Found:
    """SAHI's get_sliced_prediction with the same network and least score; its time includes decoding, as ours does."""
    from scripts.bench import bench_sahi

    logging.getLogger("sahi").setLevel(logging.ERROR)  # it says for every image what it does with a low threshold
    predictor = Predictor(checkpoint, load_settings(None, ("detect.focus=off",)))
    way = bench_sahi.by_sahi(bench_sahi.on_pixels(predictor), side, side, DetectSettings().min_score, batch=8)
    sources = truth.source.images(0, truth.source.num_images)
    began = time.process_time()
    detections = [
        way.search(np.asarray(Image.open(Path(str(truth.images)) / source.file_name).convert("RGB")))
        for source in sources
    ]
    return Found(detections, (time.process_time() - began) / len(sources), np.nan, None)


def scores(truth: GroundTruth, found: Found, bounds: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """COCO's scores of what was found."""
    sources = truth.source.images(0, truth.source.num_images)
    summary, _ = score_found(truth, sources, found.detections, bounds)
    return {name: summary[name] for name in NAMES}


def ways(with_sahi: bool) -> dict[str, Callable[[Path, GroundTruth], Found]]:
    """Name each way to search, the whole pyramid first."""
    named: dict[str, Callable[[Path, GroundTruth], Found]] = {"whole pyramid": partial(by_pyramid, focus="off")}
    named |= {f"focus {threshold}": partial(by_pyramid, focus=str(threshold)) for threshold in THRESHOLDS}
    named |= {
        f"poor man's {threshold}": partial(by_pyramid, focus=f"poor:{threshold}") for threshold in POOR_THRESHOLDS
    }
    if with_sahi:  # slices at their own resolution, as its documentation has it
        named |= {f"SAHI, slices of {side} px": partial(by_sahi, side=side) for side in SLICES}
    return named


def large_picture(work: Path, side: int) -> Path:
    """A picture of `side` by 3/4 `side` px, the sparse scenes one beside the other, again and again."""
    path = work / f"mosaic-{side}.png"
    if not path.exists():
        picture = Image.new("RGB", (side, side * 3 // 4))
        scenes = [Image.open(name) for name in sorted((work / "sparse/val").glob("*.jpg"))]
        places = [(x, y) for y in range(0, picture.height, HEIGHT) for x in range(0, picture.width, WIDTH)]
        for number, place in enumerate(places):
            picture.paste(scenes[number % len(scenes)], place)
        picture.save(path, compress_level=1)
    return path


def measure_large(checkpoint: Path, picture: Path, focus: str) -> dict[str, float]:
    """Seconds of all cores and the memory at the peak of one picture, in a process of its own."""
    import subprocess

    code = (
        "import sys, json, time, resource\n"
        "from trainer.inference.predictor import Predictor; from schemas.settings import load_settings\n"
        "p = Predictor(sys.argv[1], load_settings(None, ('detect.focus=' + sys.argv[3], 'detect.max_side=1024')))\n"
        "began = time.process_time(); found = p(sys.argv[2]); taken = time.process_time() - began\n"
        "print(json.dumps({'core_s': taken, 'found': int((found.scores > 0.5).sum()),"
        " 'peak_gb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))\n"
    )
    command = [sys.executable, "-c", code, str(checkpoint), str(picture), focus]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def described(rows: list[dict[str, Any]], points: list[float]) -> str:
    """Put the means over seeds into words; `points` is AP less that of the whole pyramid, for each seed."""
    mean = {name: float(np.mean([row[name] for row in rows])) for name in ("share", "AP", "AP_small")}
    reached = [float(row["reached"]) for row in rows if row["reached"] is not None]
    share = "" if np.isnan(mean["share"]) else f"pixels {mean['share']:.1%}  "
    return (
        f"{share}AP {100 * mean['AP']:.1f} ({np.mean(points):+.2f}, from {min(points):+.2f} to {max(points):+.2f})"
        f"  AP small {100 * mean['AP_small']:.1f}" + (f", small reached {np.mean(reached):.1%}" if reached else "")
    )


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=Path("bench-results/focus"))
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--prepare", "only_prepare", is_flag=True, help="Make data and networks alone.")
@click.option("--large/--no-large", default=True, help="Whether pictures of 4,000 and 12,000 px are searched, too.")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(work: Path, seeds: str, only_prepare: bool, large: bool, json_file: Path | None) -> None:
    """Print for each kind of scene and each way the mean over seeds, with the ratio to the whole pyramid."""
    checkpoints = prepare(work, [int(seed) for seed in seeds.split(",")])
    if only_prepare:
        return
    try:
        import sahi  # noqa: F401

        with_sahi = True
    except ImportError:
        with_sahi = False
        click.echo("SAHI: not measured, since it is not in this environment; run it in .venv-peers")
    bounds = load_settings(CONFIG).chips.bounds()
    figures: list[dict[str, Any]] = []
    for kind in ("sparse", "dense"):
        folder = work / kind
        for name, search in ways(with_sahi).items():
            rows = []
            for checkpoint in checkpoints:
                kept = read_checkpoint(checkpoint)
                chip_settings = ChipSettings.model_validate(kept.chips)
                places = folder / "val.json", folder / "val"
                truth = open_ground_truth(*places, chip_settings, kept.categories, MAX_DETS)
                found = search(checkpoint, truth)
                rows.append({**found._asdict(), **scores(truth, found, bounds)})
                del rows[-1]["detections"]
            figures.append({"scenes": kind, "way": name, "seeds": rows})
            whole = next(one for one in figures if one["scenes"] == kind)["seeds"]
            speed = [a["core_s"] / b["core_s"] for a, b in zip(whole, rows, strict=True)]
            points = [100 * (b["AP"] - a["AP"]) for a, b in zip(whole, rows, strict=True)]
            click.echo(f"{kind:<7}{name:<28}speed {statistics.median(speed):5.2f}  {described(rows, points)}")
    for side in LARGE_SIDES if large else ():
        picture = large_picture(work, side)
        for focus in ("off", "auto"):
            measured = measure_large(checkpoints[0], picture, focus)
            figures.append({"scenes": f"{side} px", "way": f"focus {focus}", **measured})
            click.echo(f"{side} px, focus {focus}: " + ", ".join(f"{k} {v:.2f}" for k, v in measured.items()))
    if json_file:
        threads, peak = torch.get_num_threads(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        json_file.write_text(json.dumps({"threads": threads, "peak_gb": peak, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
