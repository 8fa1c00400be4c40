"""Cutting speed: our cutter against the bare kernels in a loop and against SAHI's slicing, interleaved in one run.

Steady state: start-up of processes and imports is timed apart. Ray runs on all cores of this machine. SAHI runs in
.venv-peers (`make peers`).
"""

import io
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import click

from pipeline.coco.read import read_coco
from pipeline.coco.source import Source
from pipeline.dataset.cutting import cut_shard
from pipeline.dataset.job import ShardJob, Target
from pipeline.engines.run import run_tasks
from pipeline.engines.tasks import Engine, Task
from pipeline.images.chip import codec, cut_chip, encode_jpeg
from pipeline.images.decode import decode_image, decoders, open_image
from pipeline.planning.plan import plan_span
from schemas.settings import ChipSettings
from scripts.bench.real_data import REAL_DATA

PEER = Path(__file__).resolve().parents[2] / ".venv-peers/bin/python"
IMAGES_PER_JOB = 64  # half the default, so that two workers end nearly together
REPEATS = 3  # of the data set, so that a round lasts some seconds
SAHI_SLICE = 307  # source pixels: our 512 px chip at the middle scale
SAHI_IMAGES = 60  # it is slow; a rate needs no more

RATIOS = [
    ("one_worker", "kernels"),
    ("two_workers", "kernels_two_processes"),
    ("two_workers", "one_worker"),
    ("ray", "two_workers"),
    ("kernels_two_processes", "kernels"),
    ("one_worker", "sahi"),
    ("two_workers", "sahi"),
]

SAHI_SCRIPT = """
import json, sys, time
from pathlib import Path
from sahi.slicing import slice_coco
annotations, images, out, side = sys.argv[1:]
started = time.perf_counter()
coco, _ = slice_coco(annotations, images, "sliced", output_dir=out, slice_height=int(side), slice_width=int(side),
                     overlap_height_ratio=0.2, overlap_width_ratio=0.2, ignore_negative_samples=True, verbose=False)
taken = time.perf_counter() - started
print(json.dumps([sum(1 for path in Path(out).rglob("*") if path.suffix != ".json"), taken]))
"""


class Timed(NamedTuple):
    process: int
    started: float  # time.monotonic(), which processes share
    ended: float
    num_chips: int


def timed_cut(job: ShardJob) -> Timed:
    started = time.monotonic()
    cut_shard(job, "")
    return Timed(os.getpid(), started, time.monotonic(), job.chips.num_rows)


def make_jobs(source: Source, images: Path, out: Path) -> list[ShardJob]:
    settings = ChipSettings()
    (out / "positives").mkdir(parents=True)
    target = Target(out, "positives", images, settings, {}, codec(), decoders())
    jobs = []
    starts = range(0, source.num_images // IMAGES_PER_JOB * IMAGES_PER_JOB, IMAGES_PER_JOB)  # jobs of equal size
    for number, start in enumerate(REPEATS * list(starts)):
        stop = start + IMAGES_PER_JOB
        chips = plan_span(source, start, stop, settings).chips
        name = f"chips-{number:05d}"
        jobs.append(ShardJob(target, name, source.images(start, stop), chips))
    return jobs


def timed_kernels(job: ShardJob) -> Timed:
    """Decode + crop-resize + encode alone, on the same work: the limit. Files are read before the clock starts."""
    rows = job.chips.to_pylist()
    work = []
    for image in job.images:
        mine = [row for row in rows if row["image_id"] == image.image_id]
        work.append(((job.target.image_root / image.file_name).read_bytes(), image, mine))
    settings = job.target.settings
    started = time.monotonic()
    for data, source, chips in work:
        decoded = decode_image(open_image(io.BytesIO(data)), source.width, source.height, settings.max_pixels)
        for row in chips:
            window = (row["x1"], row["y1"], row["x2"], row["y2"])
            pixels = cut_chip(decoded, window, row["scale"], row["width"], row["height"])
            encode_jpeg(pixels, settings.quality, settings.subsampling)
    return Timed(os.getpid(), started, time.monotonic(), len(rows))


def rate(work: Callable[[ShardJob], Timed], jobs: list[ShardJob], engine: Engine) -> tuple[float, float]:
    """Chips/s once every worker has finished its first shard, and the seconds until the first shard began."""
    started = time.monotonic()
    tasks = (Task(job.name, job) for job in jobs)
    done = sorted(run_tasks(work, tasks, engine), key=lambda shard: shard.started)
    firsts = {shard.process: shard for shard in reversed(done)}
    warm = max(shard.ended for shard in firsts.values())
    steady = [shard for shard in done if shard.started >= warm]
    if work is timed_kernels:  # what lies between two shards is no part of the limit: files are read there
        return sum(own_rate(process, steady) for process in {shard.process for shard in steady}), 0.0
    seconds = max(shard.ended for shard in steady) - min(shard.started for shard in steady)
    return sum(shard.num_chips for shard in steady) / seconds, done[0].started - started


def own_rate(process: int, shards: list[Timed]) -> float:
    """Chips/s of one process by the time that its shards took."""
    own = [shard for shard in shards if shard.process == process]
    return sum(shard.num_chips for shard in own) / sum(shard.ended - shard.started for shard in own)


def sahi_rate(annotations: Path, images: Path, folder: Path) -> float | None:
    """Slices/s that SAHI's slice_coco writes, or None where the peers are not installed."""
    if not PEER.is_file():
        return None
    coco = json.loads(annotations.read_bytes())
    coco["images"] = coco["images"][:SAHI_IMAGES]
    kept = {image["id"] for image in coco["images"]}
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] in kept]
    (folder / "few.json").write_text(json.dumps(coco))
    arguments = [folder / "few.json", images, folder / "sahi", SAHI_SLICE]
    command = [str(PEER), "-c", SAHI_SCRIPT, *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    num_slices, seconds = json.loads(output.splitlines()[-1])
    return float(num_slices / seconds)


def measure(annotations: Path, images: Path, rounds: int) -> Iterator[dict[str, float | None]]:
    source = read_coco(annotations)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            jobs = make_jobs(source, images, folder / "ours")
            one, _ = rate(timed_cut, jobs, Engine(workers=1))
            two, start_up = rate(timed_cut, jobs, Engine(workers=2))
            ray, ray_start_up = rate(timed_cut, jobs, Engine("ray")) if find_spec("ray") else (None, None)
            yield {
                "kernels": rate(timed_kernels, jobs, Engine(workers=1))[0],
                "kernels_two_processes": rate(timed_kernels, jobs, Engine(workers=2))[0],
                "one_worker": one,
                "two_workers": two,
                "ray": ray,
                "sahi": sahi_rate(annotations, images, folder),
                "start_up_seconds": start_up,
                "ray_start_up_seconds": ray_start_up,
            }


@click.command()
@click.option("--annotations", type=click.Path(path_type=Path), default=REAL_DATA / "coco-real/train.json")
@click.option("--images", type=click.Path(path_type=Path), default=REAL_DATA / "coco-real/images")
@click.option("--rounds", default=5)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(annotations: Path, images: Path, rounds: int, json_file: Path | None) -> None:
    """Print medians over interleaved rounds, chips/s, and their ratios."""
    results = list(measure(annotations, images, rounds))
    medians: dict[str, float | None] = {}
    for name in results[0]:
        values = [value for result in results if (value := result[name]) is not None]
        medians[name] = statistics.median(values) if values else None
    for name, value in medians.items():
        click.echo(f"{name:<24}{'not measured' if value is None else f'{value:10.1f}'}")
    for top, bottom in RATIOS:
        ratios = [a / b for r in results if (a := r[top]) is not None and (b := r[bottom]) is not None]
        click.echo(f"{top} / {bottom}: {f'{statistics.median(ratios):.2f}' if ratios else 'not measured'}")
    if json_file:
        json_file.write_text(json.dumps(medians, indent=2) + "\n")


if __name__ == "__main__":
    main()
