"""Detection speed: the whole pipeline against the sum of its network's time, and soft-NMS of one image.

The network is the demo's slim one, untrained, on real COCO images at the three default scales; on a GPU give
--backbone.
"""

import json
import resource
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from pipeline.coco import SourceImage
from pipeline.coco.read import read_coco
from pipeline.pyramid.merging import tile_overlaps
from pipeline.pyramid.nms import soft_nms
from pipeline.pyramid.reading import ViewBatch, open_files, read_batches
from pipeline.pyramid.search import SearchLog, split_spans
from pipeline.pyramid.views import compose, plan_views
from schemas.settings import ChipSettings, DetectSettings, load_settings
from scripts.bench.real_data import REAL_DATA
from trainer.inference.opening import Inference
from trainer.inference.predictor import detect_images
from trainer.model import Detector, predict

ROOT = Path(__file__).resolve().parents[2]
COCO_REAL = REAL_DATA / "coco-real"
LARGE = 4096  # pixels, side of a view


def pipeline_rate(
    model: Detector, images: Sequence[SourceImage], root: Path, device: torch.device
) -> tuple[float, float]:
    """Images/s of detection from files to merged boxes, and the share of time spent waiting for pixels."""
    log = SearchLog()
    spans = split_spans(len(images))
    started = time.perf_counter()
    inference = Inference(model, ChipSettings(), DetectSettings(focus="off"), device, "bf16")
    count = sum(1 for _ in detect_images(inference, spans, images, root, log))
    return count / (time.perf_counter() - started), log.data_wait


def model_rate(model: Detector, images: Sequence[SourceImage], root: Path, device: torch.device) -> float:
    """Images/s of the network alone: the same batches, read before the time is taken."""
    chips, options = ChipSettings(), DetectSettings()
    overlaps = tile_overlaps(chips.bounds())
    batches = compose(plan_views(images, chips, options.max_side, overlaps), options.batch_pixels)
    reader = read_batches(
        partial(next, iter(batches), None), images, open_files(images, root, chips.max_pixels), {}, threads=2
    )
    ready = [
        (torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).to(device), torch.tensor(sizes_of(batch), device=device))
        for batch in reader
    ]
    started = time.perf_counter()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        for pixels, sizes in ready:
            predict(model, pixels, sizes, options.min_score, by_area=options.by_area)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return len(images) / (time.perf_counter() - started)


def sizes_of(batch: ViewBatch) -> list[tuple[int, int]]:
    return [(view.height, view.width) for view in batch.views]


def large_view(model: Detector, device: torch.device) -> dict[str, float]:
    """Time and memory of one view of LARGE pixels a side, over those of as many pixels in chips."""
    random = torch.randint(0, 255, (1, 3, LARGE, LARGE), dtype=torch.uint8)
    side = model.chip_size
    chips = random.view(3, LARGE // side, side, LARGE // side, side).permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
    seconds, peaks = [], [_peak_mb(device)]
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        predict(model, chips[:1].to(device), torch.tensor([[side, side]], device=device))
        for images in (chips, random):  # chips first: a peak never falls
            sizes = torch.tensor([images.shape[2:]] * len(images), device=device)
            started = time.perf_counter()
            found = predict(model, images.to(device), sizes, by_area=True)
            num_boxes = sum(len(one.boxes) for one in found)
            seconds.append(time.perf_counter() - started)
            peaks.append(_peak_mb(device))
    return {
        "large_view_detections": num_boxes,
        "large_view_s_per_megapixel": seconds[1] / LARGE**2 * 1e6,
        "large_view_time_over_chips": seconds[1] / seconds[0],
        "large_view_memory_over_chips": (peaks[2] - peaks[0]) / (peaks[1] - peaks[0]),
    }


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def soft_nms_ms(pairs: int) -> float:
    """Milliseconds for one image: `pairs` (box, class) pairs over 80 classes, in clusters as detections are."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 500, (60, 2))
    centres = np.concatenate([low, low + rng.uniform(20, 150, (60, 2))], axis=1)
    boxes = (centres[rng.integers(60, size=900)] + rng.normal(0, 6, (900, 4))).astype(np.float32)
    chosen = rng.choice(900 * 80, pairs, replace=False)
    scores = np.clip(rng.beta(0.3, 6, pairs), 0.001, 1).astype(np.float32)
    arguments = boxes[chosen % 900], scores, chosen // 900 + 1
    times = []
    for _ in range(21):
        started = time.perf_counter()
        soft_nms(*arguments)
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


@click.command()
@click.option("--num-images", default=24)
@click.option("--backbone", default="resnet18", help="with another one, the full-size network")
@click.option("--rounds", default=3)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(num_images: int, backbone: str, rounds: int, json_file: Path | None) -> None:
    """Print medians over interleaved rounds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = ROOT / "scripts/demo.yaml" if backbone == "resnet18" else None
    model = Detector(load_settings(config, (f"model.backbone={backbone}",)).model, 80, 512).to(device).eval()
    source = read_coco(COCO_REAL / "train.json")
    images, root = source.images(0, num_images), COCO_REAL / "images"
    rows = [
        (*pipeline_rate(model, images, root, device), model_rate(model, images, root, device)) for _ in range(rounds)
    ]
    whole, waits, alone = (statistics.median(column) for column in zip(*rows, strict=True))
    results: dict[str, float | str] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "images_per_s": whole,
        "model_only_images_per_s": alone,
        "ratio": statistics.median(row[0] / row[2] for row in rows),
        "data_wait_share": waits,
        **large_view(model, device),
        "soft_nms_ms": soft_nms_ms(8000),
        "soft_nms_worst_ms": soft_nms_ms(72_000),
    }
    for name, value in results.items():
        click.echo(f"{name:<26}{value if isinstance(value, str) else f'{value:10.3f}'}")
    if json_file:
        json_file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
