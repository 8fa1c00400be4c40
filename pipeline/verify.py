"""`sniper verify`: re-hashes a chip data set and names every bad shard and chip."""

import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.engines import run_local
from pipeline.progress import Progress
from pipeline.shards import read_record, read_rows
from schemas.errors import DataError, UsageError


class VerifyReport(NamedTuple):
    num_shards: int
    num_chips: int
    problems: list[str]  # one line each, naming shard and chip


def verify(data: Path, *, workers: int = 1) -> VerifyReport:
    """Check that a data set is complete and that every byte is as recorded.

    Raises:
        UsageError: `data` holds no chip data set.
    """
    folders = [folder for name in ("positives", "negatives") if (folder := data / name).is_dir()]
    if not folders:
        raise UsageError(f"{data}: holds no chips; expected the folder that `sniper chips --out` wrote")
    problems = list(_check_run(data, data, data / "positives"))
    if data / "negatives" in folders:
        problems += _check_run(data, data / "negatives", data / "negatives")
        problems += _check_origin(data)
    records = sorted(path for folder in folders for path in folder.glob("chips-*.parquet"))
    num_chips = 0
    for tar in sorted(path for folder in folders for path in folder.glob("chips-*.tar")):
        if not tar.with_suffix(".parquet").is_file():
            problems.append(
                f"{tar.relative_to(data)}: has no manifest beside it; the build was interrupted, run it again"
            )
    found: dict[str, list[str]] = {}
    with Progress("verify", len(records), "shards") as progress:
        jobs = ((data, path) for path in records)
        for name, count, bad in run_local(_check_shard, jobs, workers):
            found[name] = bad
            num_chips += count
            progress.add(1)
    problems += [line for name in sorted(found) for line in found[name]]
    return VerifyReport(len(records), num_chips, problems)


def _check_run(data: Path, root: Path, folder: Path) -> Iterator[str]:
    """What is missing or changed of a build; its run.json and ledgers lie in `root`, its shards in `folder`."""
    path = root / "run.json"
    name = path.relative_to(data)
    if not path.is_file():
        yield f"{name}: is missing; the build is unfinished, run it again"
        return
    try:
        run = json.loads(path.read_bytes())
        num_shards, files = run["num_shards"], run["files"]
    except (ValueError, KeyError) as error:
        yield f"{name}: is damaged ({error!r}); run the build again"
        return
    for index in range(num_shards):
        if not (folder / f"chips-{index:05d}.parquet").is_file():
            yield f"{folder.name}/chips-{index:05d}: is missing; run the build again"
    for file, digest in files.items():
        if not (root / file).is_file():
            yield f"{file}: is missing; run the build again"
        elif hashlib.sha256((root / file).read_bytes()).hexdigest() != digest:
            yield f"{file}: differs from what run.json records; run the build again"


def _check_origin(data: Path) -> Iterator[str]:
    """Whether the pool was mined for these positives; unreadable files are named elsewhere."""
    try:
        positives = json.loads((data / "run.json").read_bytes())["fingerprint"]
        origin = json.loads((data / "negatives/run.json").read_bytes())["positives"]
    except (OSError, ValueError, KeyError):
        return
    if origin != positives:
        yield "negatives/run.json: the pool was mined for other positives; run `sniper negatives` again"


def _check_shard(job: tuple[Path, Path]) -> tuple[str, int, list[str]]:
    """Name, number of chips and problems of one shard."""
    data, path = job
    name = str(path.relative_to(data))
    try:
        record, rows = (
            read_record(path),
            read_rows(path).select(["key", "offset", "size", "crc32"]).to_pylist(),
        )
    except DataError as error:
        return name, 0, [str(error)]
    tar_path = path.with_suffix(".tar")
    tar_name = str(tar_path.relative_to(data))
    if not tar_path.is_file():
        return name, 0, [f"{tar_name}: is missing; delete {name} and run the build again"]
    tar = tar_path.read_bytes()
    if len(tar) == record.tar_bytes and hashlib.sha256(tar).hexdigest() == record.tar_sha256:
        return name, len(rows), []
    bad = [row["key"] for row in rows if zlib.crc32(tar[row["offset"] : row["offset"] + row["size"]]) != row["crc32"]]
    size = f"{len(tar)} bytes, {record.tar_bytes} recorded" if len(tar) != record.tar_bytes else "SHA-256 differs"
    advice = f"delete {name} and run the build again"
    return (
        name,
        len(rows),
        [
            f"{tar_name}: {size}; {len(bad)} of {len(rows)} chips damaged; {advice}",
            *(f"{tar_name}: chip {key}: damaged" for key in bad),
        ],
    )
