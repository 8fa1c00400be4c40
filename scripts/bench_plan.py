"""Planning speed: milliseconds per image in one thread, and whole `sniper chips --plan-only` runs."""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from pipeline.coco import read_coco
from pipeline.plan import plan_run
from schemas.settings import ChipSettings

SHARED = Path(__file__).resolve().parents[1] / "../shared/data/coco-val2017-boxes/val.json"
TRAIN_SIZE = 118_000  # images of COCO train2017, about


def repeat_records(annotations: Path, num_images: int, out: Path) -> None:
    """Write the same images and boxes again under new ids until there are `num_images`."""
    coco: dict[str, Any] = json.loads(annotations.read_bytes())
    images, boxes = coco["images"], coco["annotations"]
    by_image: dict[int, list[dict[str, Any]]] = {}
    for box in boxes:
        by_image.setdefault(box["image_id"], []).append(box)
    coco["images"], coco["annotations"] = [], []
    for index in range(num_images):
        image = images[index % len(images)]
        new_image = {**image, "id": index + 1, "file_name": f"{index + 1:012d}.jpg"}
        coco["images"].append(new_image)
        for box in by_image.get(image["id"], []):
            new_id = len(coco["annotations"]) + 1
            coco["annotations"].append({**box, "id": new_id, "image_id": index + 1})
    out.write_text(json.dumps(coco))


def plan_only(annotations: Path, folder: Path) -> tuple[float, float]:
    """Seconds of a `sniper chips --plan-only` process, start and reading included, and the peak of its memory, MB."""
    command = [sys.executable, "-c", "from pipeline.cli import main; main()"]
    arguments = ["chips", "--annotations", str(annotations), "--out", str(folder), "--plan-only"]
    started = time.perf_counter()
    subprocess.run([*command, *arguments], check=True, capture_output=True)
    seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


@click.command()
@click.option("--annotations", type=click.Path(path_type=Path), default=SHARED)
@click.option("--rounds", default=7)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(annotations: Path, rounds: int, json_file: Path | None) -> None:
    """Print medians over the rounds."""
    source = read_coco(annotations)
    settings = ChipSettings()
    plan = plan_run(source, 0, source.num_images, settings)  # compiles, or loads what was compiled
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        for start in range(0, source.num_images, settings.images_per_shard):
            stop = min(start + settings.images_per_shard, source.num_images)
            plan_run(source, start, stop, settings)
        times.append((time.perf_counter() - started) * 1e3 / source.num_images)
    results: dict[str, float] = {
        "ms_per_image": statistics.median(times),
        "chips_per_image": float((~plan.for_rescue).sum()) / source.num_images,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = [plan_only(annotations, folder / f"small-{i}") for i in range(3)]
        results["plan_only_seconds"], results["plan_only_peak_mb"] = sorted(small)[1]
        repeat_records(annotations, TRAIN_SIZE, folder / "large.json")
        results["plan_only_118k_seconds"], results["plan_only_118k_peak_mb"] = plan_only(
            folder / "large.json", folder / "large"
        )
    for key, value in results.items():
        click.echo(f"{key:<26}{value:10.4f}")
    if json_file:
        json_file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
