"""Loading speed: our loader against the bare decoder and against four peers, interleaved in one run; and from a bucket
against local files.

The same chips (those of coco-real, repeated under new keys), the same tensors handed out, two threads or two worker
processes each. A rate is taken from the first batch on; the time to it stands apart. Peers run in .venv-peers
(`make peers`), everything in a process of its own. Ratios are medians over rounds, so that other load hits all alike;
CPU time per chip, all processes together, tells what a loader costs whatever else runs.

The bucket is moto's on this machine, in a process of its own: it has no latency, but takes its time from the same
cores. An epoch with an empty cache and one with a full one, window by window, stand against one from the disk.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import pyarrow as pa
from simplejpeg import decode_jpeg

from pipeline.commands.chips import chips
from pipeline.dataset.shards import Record, TarWriter, commit_shard, read_record, read_rows
from pipeline.storage import download, files_in, location
from schemas.settings import LoaderSettings, Settings
from scripts.bench.real_data import REAL_DATA

HERE = Path(__file__).resolve()
PEER_PYTHON = HERE.parents[2] / ".venv-peers/bin/python"
PEERS = ["webdataset", "litdata", "streaming", "dataloader"]
PEERS += [f"{name}_our_decoder" for name in PEERS]
BATCH, THREADS, EPOCHS = 16, 2, 5
WINDOW = 4
BUCKET = "s3://chips"


def repeat_chips(source: Path, out: Path, at_least: int) -> int:
    """Write the chips of one data set several times under new keys; returns their number."""
    paths = sorted((source / "positives").glob("chips-*.parquet"))
    tables = [read_rows(path) for path in paths]
    num: int = sum(table.num_rows for table in tables)
    copies = -(-at_least // num)
    (out / "positives").mkdir(parents=True)
    for copy in range(copies):
        for index, (path, table) in enumerate(zip(paths, tables, strict=True)):
            name = f"chips-{copy * len(paths) + index:05d}"
            data = path.with_suffix(".tar").read_bytes()
            rows = table.to_pylist()
            with (out / f"positives/{name}.tar").open("wb") as file:
                tar = TarWriter(file)
                for row in rows:
                    jpeg = data[row["offset"] : row["offset"] + row["size"]]
                    row["key"] = f"{row['key']}x{copy}"
                    row["shard"] = f"positives/{name}.tar"
                    row["offset"], _, _ = tar.add(f"{row['key']}.jpg", jpeg)
                    tar.add(f"{row['key']}.json", msgspec.json.encode(row))
                sha256 = tar.close()
            old = read_record(path)
            record = Record(f"{old.fingerprint}-{copy}", tar.size, sha256, old.settings, old.images, [])
            commit_shard(out / f"positives/{name}.parquet", pa.Table.from_pylist(rows, table.schema), record)
    run = json.loads((source / "run.json").read_bytes())
    run |= {"fingerprint": f"{run['fingerprint']}-{copies}", "num_shards": copies * len(paths)}
    (out / "run.json").write_text(json.dumps(run))
    return copies * num


# --- What runs in a process of its own --------------------------------------------------------------------


def read_jpegs(data: Path) -> list[bytes]:
    jpegs = []
    for path in sorted((data / "positives").glob("chips-*.parquet")):
        tar = path.with_suffix(".tar").read_bytes()
        rows = read_rows(path).select(["offset", "size"]).to_pylist()
        jpegs += [tar[row["offset"] : row["offset"] + row["size"]] for row in rows]
    return jpegs


def measure_limit(jpegs: list[bytes]) -> float:
    """Bare decoding: threads over JPEGs in memory, each into one piece of memory again and again."""

    def decode_all(first: int) -> None:
        buffer = np.zeros(512 * 512 * 3, np.uint8)
        for jpeg in jpegs[first::THREADS]:
            decode_jpeg(jpeg, "RGB", buffer=buffer)

    threads = [threading.Thread(target=decode_all, args=(first,)) for first in range(THREADS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(jpegs) / (time.perf_counter() - started)


def measure_both(data: Path) -> dict[str, Any]:
    """Ours between two halves of the limit, in one process: other load on the machine comes and goes in seconds."""
    jpegs = read_jpegs(data)
    cpu = time.process_time()
    before = measure_limit(jpegs[::2])
    cpu_us = 1e6 * (time.process_time() - cpu) / len(jpegs[::2])
    ours = measure_ours(str(data), epochs=1)
    after = measure_limit(jpegs[1::2])
    return {**ours, "limit": statistics.harmonic_mean([before, after]), "limit_cpu_us": cpu_us}


def measure_ours(data: str, epochs: int, window: int | None = None, cache: str | None = None) -> dict[str, Any]:
    from trainer.loading.cache import cache_of
    from trainer.loading.dataset import ChipDataset
    from trainer.loading.loader import BatchLoader
    from trainer.loading.order import State

    started = time.perf_counter()
    settings = LoaderSettings(threads=THREADS, window=window, cache=cache)
    loader = BatchLoader(ChipDataset(data, cache=cache_of(settings)), settings, BATCH)
    state, rates, pss_mb, first_batch_s = State(0), [], [], 0.0
    whole: list[dict[str, float]] = []
    for _ in range(epochs):
        began, cpu_began, first, seen = time.perf_counter(), time.process_time(), 0.0, 0
        for step in loader.epoch(state):
            if not first:
                first, cpu = time.perf_counter(), time.process_time()
                first_batch_s = first_batch_s or first - started
                num_first = step.num_chips
            seen += len(step.micros[0].batch)
            state = step.after
            del step  # as a trainer does: what it no longer needs is filled again
        rates.append((seen - num_first) / (time.perf_counter() - first))
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        whole.append({"rate": seen / seconds, "cpu_us": 1e6 * cpu_seconds / seen})
        cpu_us = 1e6 * (time.process_time() - cpu) / (seen - num_first)
        pss_mb.append(_pss_mb())
    rate = statistics.median(rates)
    return {
        "rate": rate,
        "whole": whole,  # by epoch, the wait for its first batch included
        "first_batch_s": first_batch_s,
        "num_chips": seen,
        "pss_mb": pss_mb,
        "cpu_us": cpu_us,
    }


def _pss_mb() -> float:
    """Memory of this process, what it shares with others counted in part; workers there are none."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


# --- The run ----------------------------------------------------------------------------------------------


def run_one(what: str, data: Path | str, work: Path, epochs: int = 1, *options: str) -> dict[str, Any]:
    if what == "ours":
        command = [
            sys.executable,
            "-m",
            "scripts.bench.bench_loader",
            "--child",
            str(data),
            "--epochs",
            str(epochs),
            *options,
        ]
    else:
        command = [str(PEER_PYTHON), str(HERE.with_name("bench_loader_peers.py")), what, str(data), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=work, env=_environment())
    if done.returncode:
        raise click.ClickException(f"{what} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if what != "prepare" else {}
    return result


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE.parents[2]), "LITDATA_DISABLE_VERSION_CHECK": "1"}


@click.command(help=__doc__)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here.")
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), default=REAL_DATA / "coco-real")
@click.option("--rounds", default=3, show_default=True)
@click.option("--num-chips", default=3000, show_default=True, help="At least so many.")
@click.option("--work", "work_folder", type=click.Path(path_type=Path), help="Keep the data made here, or use it.")
@click.option("--only-remote", is_flag=True, help="Only what is read from a bucket; needs no peers.")
@click.option("--child", hidden=True)
@click.option("--epochs", default=1, hidden=True)
@click.option("--window", type=int, hidden=True)
@click.option("--cache", hidden=True)
def main(
    json_file: Path | None,
    data: Path,
    rounds: int,
    num_chips: int,
    work_folder: Path | None,
    only_remote: bool,
    child: str | None,
    epochs: int,
    window: int | None,
    cache: str | None,
) -> None:
    if child is not None:
        alone = epochs > 1 or window
        print(json.dumps(measure_ours(child, epochs, window, cache) if alone else measure_both(Path(child))))
        return
    if not only_remote and not PEER_PYTHON.is_file():
        raise click.ClickException("no .venv-peers; run `make peers`")
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as folder:
        work = work_folder or Path(folder)
        if not (work / "chips/run.json").is_file():
            chips(data / "train.json", data / "images", work / "once", Settings(), workers=2)
            print(f"{repeat_chips(work / 'once', work / 'chips', num_chips)} chips", flush=True)
        figures: dict[str, Any] = {}
        if not only_remote:
            if not (work / "peers").is_dir():
                (work / "unfinished").mkdir()
                run_one("prepare", work / "chips", work / "unfinished")
                (work / "unfinished").rename(work / "peers")
            figures = measure(work / "chips", work / "peers", rounds)
        try:
            import moto.server  # noqa: F401
            import s3fs  # noqa: F401
        except ImportError as error:
            print(f"nothing measured from a bucket: {error}")
        else:
            figures["remote"] = measure_remote(work / "chips", work, rounds)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


def measure(data: Path, work: Path, rounds: int) -> dict[str, Any]:
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in ["ours", *PEERS]}
    num = run_one("ours", data, work)["num_chips"]  # makes the columns' file, and brings the shards into memory
    rates: dict[str, list[float]] = {name: [] for name in ["limit", *results]}
    for number in range(rounds):
        for name, found in results.items():
            found.append(run_one(name, data, work))
            assert found[-1]["num_chips"] == num, name
            rates[name].append(found[-1]["rate"])
        rates["limit"].append(results["ours"][-1]["limit"])
        print(f"round {number + 1}: " + ", ".join(f"{n} {r[-1]:.0f}" for n, r in rates.items()), flush=True)
    ratios = {name: statistics.median(np.divide(rates["ours"], found).tolist()) for name, found in rates.items()}
    first = {name: statistics.median(result["first_batch_s"] for result in found) for name, found in results.items()}
    figures: dict[str, Any] = {name: round(statistics.median(found), 1) for name, found in rates.items()}
    figures["first_batch_s"] = round(first["ours"], 3)
    figures["pss_mb"] = [round(value, 1) for value in run_one("ours", data, work, EPOCHS)["pss_mb"]]
    figures["first_batch_s_peers"] = {name: round(first[name], 3) for name in PEERS}
    cpu = {name: statistics.median(result["cpu_us"] for result in found) for name, found in results.items()}
    cpu["limit"] = statistics.median(result["limit_cpu_us"] for result in results["ours"])
    figures["cpu_us"] = {name: round(cpu[name]) for name in rates}
    figures["ours_over"] = {name: round(ratio, 3) for name, ratio in ratios.items() if name != "ours"}
    print(f"{'':26}chips/s  ours/it  CPU us/chip  first batch, s")
    for name in rates:
        shown = f"{first[name]:16.2f}" if name in first else ""
        print(f"{name:26}{figures[name]:7.0f}{ratios[name]:9.2f}{cpu[name]:13.0f}{shown}")
    print(f"memory (PSS) after each of {EPOCHS} epochs, MB: {figures['pss_mb']}")
    return figures


@contextmanager
def bucket_with(data: Path) -> Iterator[None]:
    """A bucket on this machine that holds a data set; the environment leads to it."""
    import s3fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if server.poll() is not None or time.monotonic() > deadline:
                raise click.ClickException("moto does not start")
            time.sleep(0.1)
        store = s3fs.S3FileSystem()
        store.mkdir(BUCKET)
        for path in (data / "run.json", *sorted((data / "positives").iterdir())):
            store.put_file(str(path), f"{BUCKET}/{path.relative_to(data)}")
        yield
    finally:
        server.terminate()
        server.wait()


def measure_remote(data: Path, work: Path, rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {"local": [], "cold": [], "warm": []}
    first_batch_s, store_mb_s = [], []
    options = ["--window", str(WINDOW)]
    with bucket_with(data):
        for number in range(rounds):
            before = run_one("ours", data, work, 2, *options)["whole"][1]
            with tempfile.TemporaryDirectory(dir=work) as cache:
                result = run_one("ours", BUCKET, work, 2, *options, "--cache", cache)
            after = run_one("ours", data, work, 2, *options)["whole"][1]  # other load comes and goes
            found["local"].append({name: statistics.harmonic_mean([before[name], after[name]]) for name in before})
            found["cold"].append(result["whole"][0])
            found["warm"].append(result["whole"][1])
            first_batch_s.append(result["first_batch_s"])
            store_mb_s.append(_store_mb_s(work))
            shown = ", ".join(f"{name} {values[-1]['rate']:.0f} chips/s" for name, values in found.items())
            print(f"round {number + 1}: {shown}, the bucket alone {store_mb_s[-1]:.0f} MB/s", flush=True)
    figures: dict[str, Any] = {"first_batch_s": round(statistics.median(first_batch_s), 2)}
    figures["store_mb_s"] = round(statistics.median(store_mb_s), 1)
    for name, epochs in found.items():
        rate = statistics.median(epoch["rate"] for epoch in epochs)
        cpu_us = statistics.median(epoch["cpu_us"] for epoch in epochs)
        ratios = [epoch["rate"] / local["rate"] for epoch, local in zip(epochs, found["local"], strict=True)]
        ratio = round(statistics.median(ratios), 3)
        figures[name] = {"rate": round(rate, 1), "cpu_us": round(cpu_us), "over_local": ratio}
        print(f"{name:6}{rate:6.0f} chips/s, {ratio:.2f} of local files, {cpu_us:.0f} us of CPU per chip")
    return figures


def _store_mb_s(work: Path) -> float:
    """What the bucket gives to as many downloads at a time as the loader has."""
    from trainer.loading.fetch import FETCHERS

    places = files_in(location(BUCKET) / "positives", "*.tar")
    with tempfile.TemporaryDirectory(dir=work) as folder, ThreadPoolExecutor(FETCHERS) as pool:
        started = time.perf_counter()
        list(pool.map(download, places, [Path(folder) / place.name for place in places]))
        seconds = time.perf_counter() - started
        return sum(path.stat().st_size for path in Path(folder).iterdir()) / seconds / 1e6


if __name__ == "__main__":
    main()
