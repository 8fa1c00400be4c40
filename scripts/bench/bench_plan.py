"""Planning speed: milliseconds per image in one thread, and `sniper chips --plan-only` processes with their memory."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from pipeline.coco.read import read_coco
from pipeline.coco.source import Source
from pipeline.dataset.ledger.summary import Summary
from pipeline.dataset.ledger.write import write_ledger
from pipeline.dataset.spans import plan_spans
from pipeline.planning.plan import plan_span
from schemas.settings import ChipSettings
from scripts.bench.real_data import REAL_DATA

BOXES = REAL_DATA / "coco-val2017-boxes/val.json"
TRAIN_SIZE = 118_000  # images of COCO train2017, about
BASE, SIZES = 1_000, (100_000, 1_000_000)  # images, of --scale
BYTES_PER_IMAGE, BYTES_PER_BOX = 200, 60
"""What a run may hold beyond what one of BASE images holds."""
SAMPLE_SECONDS = 0.01
DENSE_SIDE, DENSE_BOXES = 14_000, 100_000  # pixels, boxes


def repeat_records(annotations: Path, num_images: int, out: Path, with_boxes: bool = True) -> int:
    """Write the same images and boxes again under new ids until there are `num_images`; returns the number of boxes.

    Neither the boxes nor their ids are in any order, as in COCO's own files: first comes one box of every image, then
    another.
    """
    coco: dict[str, Any] = json.loads(annotations.read_bytes())
    templates = coco.pop("images")
    place = {image["id"]: i for i, image in enumerate(templates)}
    boxes: list[list[str]] = [[] for _ in templates]
    for box in coco.pop("annotations"):
        others = {key: value for key, value in box.items() if key not in ("id", "image_id")}
        boxes[place[box["image_id"]]].append(json.dumps(others)[1:])
    num_boxes = 0
    with out.open("w", buffering=1 << 20) as file:
        file.write(json.dumps(coco)[:-1] + ', "images": [')
        for index in range(num_images):
            image = {**templates[index % len(templates)], "id": index + 1, "file_name": f"{index + 1:012d}.jpg"}
            file.write(f"{', ' if index else ''}{json.dumps(image)}")
        file.write('], "annotations": [')
        for turn in range(max(map(len, boxes)) if with_boxes else 0):
            of_turn = [(i, of_image[turn]) for i, of_image in enumerate(boxes) if len(of_image) > turn]
            for first in range(0, num_images, len(templates)):
                for i, rest in of_turn:
                    if first + i >= num_images:
                        break
                    new_id = num_boxes * 2654435761 % 2**40  # odd times a number: no two are the same
                    comma = ", " if num_boxes else ""
                    file.write(f'{comma}{{"id": {new_id}, "image_id": {first + i + 1}, {rest}')
                    num_boxes += 1
        file.write("]}")
    return num_boxes


def dense_image(folder: Path) -> Source:
    """Return one image of DENSE_SIDE with DENSE_BOXES boxes of 6 to 40 pixels, evenly spread."""
    rng = np.random.default_rng(0)
    size = rng.uniform(6, 40, (DENSE_BOXES, 2))
    low = rng.uniform(0, 1, (DENSE_BOXES, 2)) * (DENSE_SIDE - size)
    boxes = np.concatenate([low, size], axis=1).tolist()
    coco = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": DENSE_SIDE, "height": DENSE_SIDE}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)],
        "categories": [{"id": 1, "name": "thing"}],
    }
    file = folder / "dense.json"
    file.write_text(json.dumps(coco))
    return read_coco(file)


class Measured(NamedTuple):
    """A process: start to end; the most memory it held, and the most that no file lies behind."""

    seconds: float
    peak_mb: float
    anonymous_mb: float


def plan_only(annotations: Path, folder: Path) -> Measured:
    """A `sniper chips --plan-only` process, start and reading included."""
    command = "from sniper_chips import main; main()"
    return measured(command, "chips", "--annotations", str(annotations), "--out", str(folder), "--plan-only")


def read_back(annotations: Path, folder: Path) -> Measured:
    """A process that reads the ledger of a build back, as `sniper negatives` does, start included."""
    folder.mkdir()
    source, settings = read_coco(annotations), ChipSettings()
    summary = Summary(source, settings)
    for start, stop, plan in plan_spans(source, settings):
        hashes: list[str | None] = [f"{i:032x}" for i in range(start, stop)]
        summary.add(plan, start, stop, {}, hashes)
    write_ledger(folder, summary, [], {})
    command = "\n".join(
        (
            "import sys",
            "from pathlib import Path",
            "from pipeline.dataset.ledger.read import read_kept",
            "read_kept(Path(sys.argv[1]))",
        )
    )
    return measured(command, str(folder))


def measured(code: str, *arguments: str) -> Measured:
    """A Python process."""
    started = time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = anonymous = 0.0
    while process.poll() is None:
        # from outside, for its kernels hold the interpreter; and not ru_maxrss, which counts this process in
        fields = dict(line.split(":", 1) for line in _status(process.pid).splitlines() if ":" in line)
        peak = max(peak, _megabytes(fields.get("VmHWM")))
        anonymous = max(anonymous, _megabytes(fields.get("RssAnon")))
        time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - started
    if process.returncode:
        assert process.stderr is not None
        raise click.ClickException(process.stderr.read().decode())
    return Measured(seconds, peak, anonymous)


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""  # it has ended


def _megabytes(field: str | None) -> float:
    """Of a line such as `VmHWM: 1024 kB`."""
    return float(field.split()[0]) / 1024 if field else 0.0


def scale(annotations: Path, folder: Path) -> dict[str, float]:
    """Plan BASE and SIZES images, and as many as the most without boxes; memory beyond that of BASE."""
    repeat_records(annotations, BASE, folder / "base.json")
    base = min(plan_only(folder / "base.json", folder / f"base-{i}") for i in range(3))
    results = {f"scale_base_{name}": value for name, value in base._asdict().items()}
    over = num_boxes = 0.0
    for num_images in SIZES:
        file = folder / f"{num_images}.json"
        num_boxes = repeat_records(annotations, num_images, file)
        run = plan_only(file, folder / str(num_images))
        over = (run.peak_mb - base.peak_mb) * 2**20
        name = f"scale_{num_images // 1000}k"
        results |= {f"{name}_{field}": value for field, value in run._asdict().items()}
        results[f"{name}_file_mb"] = file.stat().st_size / 2**20
        results[f"{name}_boxes"] = num_boxes
        results[f"{name}_ms_per_image"] = (run.seconds - base.seconds) * 1e3 / num_images
        results[f"{name}_over_base_mb"] = over / 2**20
        results[f"{name}_share_of_allowed"] = over / (BYTES_PER_IMAGE * num_images + BYTES_PER_BOX * num_boxes)
    small, large = (read_back(folder / f"{name}.json", folder / f"ledger-{name}") for name in ("base", SIZES[-1]))
    results |= {f"scale_read_back_{field}": value for field, value in large._asdict().items()}
    results["scale_read_back_over_base_mb"] = large.peak_mb - small.peak_mb
    most = SIZES[-1]
    repeat_records(annotations, most, folder / "images.json", with_boxes=False)
    of_images = (plan_only(folder / "images.json", folder / "images").peak_mb - base.peak_mb) * 2**20
    return results | {
        "scale_bytes_per_image": of_images / most,
        "scale_bytes_per_box": (over - of_images) / num_boxes,
    }


@click.command()
@click.option("--annotations", type=click.Path(path_type=Path), default=BOXES)
@click.option("--rounds", default=7)
@click.option("--scale", "with_scale", is_flag=True, help="also plan 100,000 and 1,000,000 images; some minutes, 2 GB")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(annotations: Path, rounds: int, with_scale: bool, json_file: Path | None) -> None:
    """Print medians over the rounds."""
    source = read_coco(annotations)
    settings = ChipSettings()
    plan = plan_span(source, 0, source.num_images, settings)  # compiles, or loads what was compiled
    times, reading = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        for _span in plan_spans(source, settings):
            pass
        times.append((time.perf_counter() - started) * 1e3 / source.num_images)
        started = time.perf_counter()
        read_coco(annotations)
        reading.append((time.perf_counter() - started) * 1e3 / source.num_images)
    results: dict[str, float] = {
        "ms_per_image": statistics.median(times),
        "reading_ms_per_image": statistics.median(reading),
        "chips_per_image": float((~plan.for_rescue).sum()) / source.num_images,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dense = dense_image(folder)
        started = time.perf_counter()
        plan_span(dense, 0, 1, settings)
        results["dense_image_seconds"] = time.perf_counter() - started
        small = sorted(plan_only(annotations, folder / f"small-{i}") for i in range(3))[1]
        repeat_records(annotations, TRAIN_SIZE, folder / "large.json")
        large = plan_only(folder / "large.json", folder / "large")
        for key, run in (("plan_only", small), ("plan_only_118k", large)):
            results |= {f"{key}_{field}": value for field, value in run._asdict().items()}
        if with_scale:
            results |= scale(annotations, folder)
    for key, value in results.items():
        click.echo(f"{key:<32}{value:14.4f}")
    if json_file:
        json_file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
