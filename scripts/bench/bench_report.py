"""`sniper report` on many images: time and memory of the process, on manifests planned from COCO's boxes.

The records of an annotation file are repeated under new ids and planned; shards are written as manifests alone, and
every chip has the pixels of one picture.
"""

import io
import json
import tempfile
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.coco.read import read_coco
from pipeline.dataset.build_file import NAME, build_fingerprint, write_build
from pipeline.dataset.ledger.summary import Summary
from pipeline.dataset.ledger.write import write_ledger
from pipeline.dataset.shards import Record, commit_shard, shard_name
from pipeline.dataset.spans import plan_spans
from schemas.build import Build
from schemas.settings import ChipSettings
from schemas.tables import MANIFEST
from scripts.bench.bench_plan import BOXES, Measured, measured, repeat_records

SIZES = (1_000, 10_000, 100_000)  # images
NEGATIVES = 4  # one of so many chips is repeated as a negative without boxes
PICTURE = "positives/picture.jpg"


def make_data_set(annotations: Path, num_images: int, folder: Path) -> int:
    """Write a data set without pixels; returns the number of its boxes."""
    num_boxes: int = repeat_records(annotations, num_images, folder.with_suffix(".json"))
    source, settings = read_coco(folder.with_suffix(".json")), ChipSettings()
    for kind in ("positives", "negatives"):
        (folder / kind).mkdir(parents=True)
    encoded = io.BytesIO()
    Image.new("RGB", (settings.size, settings.size), "#667788").save(encoded, "JPEG")
    (folder / PICTURE).write_bytes(encoded.getvalue())
    summary = Summary(source, settings)
    num_negatives = num_shards = 0
    for start, stop, plan in plan_spans(source, settings):
        summary.add(plan, start, stop, {}, None)
        positives = stored(plan.chips, len(encoded.getvalue()))
        negatives = as_negatives(positives.take(list(range(0, len(positives), NEGATIVES))))
        for kind, rows in (("positives", positives), ("negatives", negatives)):
            record = Record(str(start), 0, "", {}, [], [])
            commit_shard(folder / kind / f"{shard_name(num_shards)}.parquet", rows, record)
        num_negatives += len(negatives)
        num_shards += 1
    files = write_ledger(folder, summary, [], {})
    chips = {"chips": settings.model_dump(mode="json")}
    fingerprint = build_fingerprint(["positives"])
    write_build(folder / NAME, Build(fingerprint, chips, num_shards, files, summary.counts()))
    counts = {"chips": {"total": num_negatives}}
    pool = Build(build_fingerprint(["negatives"]), chips, num_shards, {}, counts, positives=fingerprint)
    write_build(folder / "negatives" / NAME, pool)
    return num_boxes


def stored(chips: pa.Table, size: int) -> pa.Table:
    """Planned chips as rows of a manifest, with bytes that are those of one picture."""
    count = len(chips)
    columns = {"shard": [PICTURE] * count, "offset": [0] * count, "size": [size] * count, "crc32": [0] * count}
    for name, values in columns.items():
        chips = chips.append_column(name, pa.array(values, MANIFEST.field(name).type))
    return chips


def as_negatives(chips: pa.Table) -> pa.Table:
    """The same windows as a pool, without boxes and with scores."""
    count = len(chips)
    scores = np.random.default_rng(count).uniform(0.3, 1, count).astype(np.float32)
    columns = {
        "key": [f"n{key}" for key in chips["key"].to_pylist()],
        "kind": ["negative"] * count,
        "boxes": [[]] * count,
        "num_valid": [0] * count,
        "num_boxes": [0] * count,
        "num_proposals": [20] * count,
        "mean_score": scores,
    }
    for name, values in columns.items():
        field = MANIFEST.field(name)
        chips = chips.set_column(chips.schema.get_field_index(name), field, pa.array(values, field.type))
    return chips


def run_report(folder: Path) -> Measured:
    """A `sniper report` process, start included."""
    command = "from sniper_chips import main; main()"
    return measured(command, "report", str(folder), "--out", str(folder.with_suffix(".html")))


@click.command()
@click.option("--annotations", type=click.Path(path_type=Path), default=BOXES)
@click.option("--rounds", default=3)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(annotations: Path, rounds: int, json_file: Path | None) -> None:
    """Print the median of the rounds for each size."""
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        for size in SIZES:
            folder = Path(name) / str(size)
            results[f"{size}_boxes"] = make_data_set(annotations, size, folder)
            run = sorted(run_report(folder) for _ in range(rounds))[rounds // 2]
            results |= {f"{size}_{field}": value for field, value in run._asdict().items()}
            results[f"{size}_html_mb"] = folder.with_suffix(".html").stat().st_size / 2**20
    for key, value in results.items():
        click.echo(f"{key:<32}{value:14.3f}")
    if json_file:
        json_file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
