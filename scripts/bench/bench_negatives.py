"""Mining speed: milliseconds per image in one thread, on COCO val2017's images with made-up proposals.

The proposals stand for those of a weak RPN after each scale's own NMS: half lie around the image's objects, half
anywhere, up to 300 per scale with sizes that the scale favours. Then the share of the whole RPN stage.
"""

import json
import statistics
import time
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch

from pipeline.coco.read import read_coco
from pipeline.coco.source import Source
from pipeline.planning.geometry import Windows
from pipeline.planning.mine import PooledProposals, merge_scales, mine_span
from pipeline.planning.plan import plan_span, span_columns
from pipeline.pyramid.search import SearchLog
from schemas.settings import ChipSettings, DetectSettings, NegativeSettings, Settings, load_settings
from scripts.bench.real_data import REAL_DATA
from scripts.bench.step_models import plausible_batch, stage_share
from trainer.inference.extract import propose_images
from trainer.inference.opening import Inference
from trainer.learning.objective import Objective
from trainer.loading.batch import Batch
from trainer.model import Detector

ROOT = Path(__file__).resolve().parents[2]
BOXES = REAL_DATA / "coco-val2017-boxes/val.json"
COCO_REAL = REAL_DATA / "coco-real"
PER_SCALE = 300
SIZES = ((8, 80), (24, 160), (80, 480))  # source pixels, per scale: those that its anchors fit, more or less


def make_proposals(source: Source, seed: int = 0) -> PooledProposals:
    """PER_SCALE proposals per image and scale, inside the image, with scores that fall off as an RPN's do."""
    rng = np.random.default_rng(seed)
    parts = []
    for m in range(source.num_images):
        extent = np.array([source.width[m], source.height[m]], np.float64)
        objects = source.box[source.offsets[m] : source.offsets[m + 1]]
        parts += [_some_boxes(rng, extent, objects, sizes) for sizes in SIZES]
    boxes = np.concatenate(parts).astype(np.float32)
    offsets = np.arange(source.num_images + 1, dtype=np.int64) * PER_SCALE * len(SIZES)
    return PooledProposals(offsets, boxes, rng.beta(1, 3, len(boxes)).astype(np.float32))


def _some_boxes(
    rng: np.random.Generator,
    extent: npt.NDArray[np.float64],
    objects: npt.NDArray[np.float64],
    sizes: tuple[float, float],
) -> npt.NDArray[np.float64]:
    """float64 [PER_SCALE, 4]: half of the centres within an object's box widened by half, the others anywhere."""
    size = np.exp(rng.uniform(np.log(sizes[0]), np.log(sizes[1]), PER_SCALE))
    aspect = np.exp(rng.normal(0, 0.4, PER_SCALE))
    half = np.minimum(np.stack([size * aspect, size / aspect], axis=1), extent) / 2
    centre = rng.uniform(0, 1, (PER_SCALE, 2)) * extent
    if len(objects):
        chosen = objects[rng.integers(len(objects), size=PER_SCALE // 2)]
        place = rng.uniform(-0.25, 1.25, (len(chosen), 2))
        centre[: len(chosen)] = chosen[:, :2] + place * (chosen[:, 2:] - chosen[:, :2])
    centre = np.clip(centre, half, extent - half)
    return np.concatenate([np.maximum(centre - half, 0), np.minimum(centre + half, extent)], axis=1)


def measure(source: Source, rounds: int) -> dict[str, float | None]:
    """Medians over the rounds, CPU time of the one thread."""
    chips, negatives = ChipSettings(), NegativeSettings()
    plan = plan_span(source, 0, source.num_images, chips)
    scale_index = plan.chips["scale_index"].to_numpy()
    window = np.stack([plan.chips[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1)
    span = span_columns(source, 0, source.num_images, chips)
    least = np.array([negatives.min_finest, *[negatives.min_others] * (len(chips.scales) - 1)])
    proposals = make_proposals(source)
    # mining is timed with all 900 proposals of an image, as if none overlapped another, and with what pooling leaves
    pooled = merge_scales(proposals, negatives.nms)
    seconds: dict[str, list[float]] = {"pool": [], "all": [], "pooled": []}
    for _ in range(rounds + 1):
        started = time.thread_time()
        merge_scales(proposals, negatives.nms)
        seconds["pool"].append(time.thread_time() - started)
        for name, pool in (("all", proposals), ("pooled", pooled)):
            started = time.thread_time()
            mined = mine_span(span, pool, Windows(plan.image, scale_index, window), least, chips.size, chips.stride)
            seconds[name].append(time.thread_time() - started)
    ms = {name: statistics.median(times[1:]) * 1e3 / source.num_images for name, times in seconds.items()}
    return {
        "mine_ms_per_image": ms["all"],
        "mine_pooled_ms_per_image": ms["pooled"],
        "pool_ms_per_image": ms["pool"],
        "pooled_per_image": len(pooled.score) / source.num_images,
        "chips_per_image": len(mined.num_proposals) / source.num_images,
    }


def seconds_per_chip(model: Detector, batch: Batch) -> float:
    """Of a training step without the loader: the best of three."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    times = []
    for epoch in range(4):
        started = time.perf_counter()
        losses = Objective(model)(batch, seed=0, epoch=epoch, batch_size=len(batch))
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return min(times[1:]) / len(batch)


def measure_stage(pool_per_image: float, num_images: int) -> dict[str, float | None]:
    """Share of the RPN's run and its extraction in all training time at the default schedule, one network for both.

    The network is the demo's slim one on full-size chips; extraction runs on real COCO images at all scales.
    """
    if not (COCO_REAL / "train.json").is_file():
        return {"data_wait_share": None, "rpn_share": None}
    settings = Settings()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Detector(load_settings(ROOT / "scripts/demo.yaml").model, 80, 512).to(device).train()
    batch = plausible_batch(4, device)
    full = seconds_per_chip(model, batch)
    model.keep_rpn_only()
    rpn = seconds_per_chip(model, batch)
    images = read_coco(COCO_REAL / "train.json").images(0, num_images)
    log = SearchLog()
    inference = Inference(model.eval(), settings.chips, DetectSettings(), device, "bf16")
    started = time.perf_counter()
    for _ in propose_images(inference, [range(num_images)], images, COCO_REAL / "images", log):
        pass
    extraction = (time.perf_counter() - started) / num_images
    return {
        "full_ms_per_chip": full * 1e3,
        "rpn_ms_per_chip": rpn * 1e3,
        "extraction_ms_per_image": extraction * 1e3,
        "data_wait_share": log.data_wait,
        "rpn_share": stage_share(full, rpn, extraction, pool_per_image),
    }


@click.command()
@click.option("--annotations", type=click.Path(path_type=Path), default=BOXES)
@click.option("--rounds", default=5)
@click.option("--num-images", default=8, help="of the extraction")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(annotations: Path, rounds: int, num_images: int, json_file: Path | None) -> None:
    """Print medians over the rounds."""
    results = measure(read_coco(annotations), rounds)
    results |= measure_stage(results["chips_per_image"] or 0.0, num_images)
    for key, value in results.items():
        click.echo(f"{key:<26}" + ("not measured" if value is None else f"{value:10.4f}"))
    if json_file:
        json_file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
