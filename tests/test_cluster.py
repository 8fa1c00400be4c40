"""Whole builds past one machine: on Ray, into an S3 store, and a training of two ranks from there."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import s3fs

from pipeline.commands.chips import chips
from pipeline.commands.negatives import negatives
from pipeline.commands.verify import verify
from pipeline.insight.show import show
from pipeline.storage import Location, files_in, location, read_bytes
from schemas.errors import DataError
from schemas.settings import Settings, load_settings
from scripts.make_demo_data import make_demo_data
from tests.paths import ROOT
from tests.s3 import S3, SECRETS, Server
from tests.trainer.runs import TINY, TINY_CHIPS
from trainer.training.make_proposals import make_proposals
from trainer.training.train import train as go_on

pytest_plugins = ["tests.clusters"]

MINING = ("negatives.rpn_epochs=1", "negatives.min_finest=3", "negatives.min_others=3")
OPTIONS = (*TINY, *TINY_CHIPS, "chips.images_per_shard=1", *MINING)
SNIPER = [sys.executable, "-c", "from sniper_chips import main; main()"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]


class Scenes(NamedTuple):
    folder: Path  # train.json and train/
    built: Path  # chips and negatives, by one process, on local disk


def settings() -> Settings:
    return load_settings(None, OPTIONS)


def options() -> list[str]:
    return [word for assignment in OPTIONS for word in ("--set", assignment)]


def sniper(*arguments: object, launcher: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as users start it; it must end well."""
    command = [*(launcher or []), *SNIPER, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result


def digests(folder: Location, *parts: str) -> dict[str, str]:
    """Name -> SHA-256 of the files of a data set; of run.json without the places, which may differ."""
    found = {}
    for part in parts:
        for path in files_in(folder / part, "*"):
            content = read_bytes(path)
            if path.name == "run.json":
                run = json.loads(content)
                content = json.dumps({k: v for k, v in run.items() if k not in ("images", "proposals")}).encode()
            if path.name != ".lock":
                found[f"{part}/{path.name}"] = hashlib.sha256(content).hexdigest()
    return found


@pytest.fixture(scope="module", autouse=True)
def environment(s3_server: Server) -> Iterator[None]:
    """The store's address and keys, before the cluster starts: its workers inherit them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in S3(s3_server, "").environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    folder = tmp_path_factory.mktemp("scenes")
    make_demo_data(folder, num_train=8, num_val=2)
    built = folder / "chips"
    chips(folder / "train.json", folder / "train", built, settings())
    negatives(built, random=1, settings=settings())
    return Scenes(folder, built)


@pytest.fixture
def uploaded(scenes: Scenes, s3: S3) -> str:
    """The scenes in the bucket; returns its URL."""
    for path in [*scenes.folder.glob("*.json"), *scenes.folder.glob("*/*.jpg")]:
        s3.put(f"scenes/{path.relative_to(scenes.folder)}", path.read_bytes())
    return s3.url


def test_builds__same_bytes_on_ray(scenes: Scenes, ray_cluster: str, tmp_path: Path) -> None:
    source = (scenes.folder / "train.json", scenes.folder / "train")
    report = chips(*source, tmp_path, settings(), workers=None, engine="ray", address=ray_cluster)
    assert report.num_made == 8
    negatives(tmp_path, random=1, settings=settings(), workers=None, engine="ray", address=ray_cluster)
    parts = ("", "positives", "negatives")
    assert digests(tmp_path, *parts) == digests(scenes.built, *parts)
    again = chips(*source, tmp_path, settings(), workers=None, engine="ray", address=ray_cluster)
    assert again.num_made == 0


def interrupt(command: list[str], positives: Path, sent: signal.Signals) -> bool:
    """Send the signal to a build as soon as a shard of it is there; returns whether it came before the end."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None and not list(positives.glob("chips-*.parquet")):  # the test's time is limited
            time.sleep(0.001)
        process.send_signal(sent)
        status = process.wait()
        output.seek(0)
        assert list(positives.glob("chips-*.parquet")), output.read().decode()
    return status != 0


@pytest.mark.parametrize(
    ("first", "sent"), [("ray", signal.SIGINT), ("ray", signal.SIGKILL), ("local", signal.SIGINT)]
)
def test_builds__interrupted_on_one_engine_and_finished_on_the_other(
    scenes: Scenes, ray_cluster: str, tmp_path: Path, first: str, sent: signal.Signals
) -> None:
    engine = {"local": [], "ray": ["--engine", "ray", "--address", ray_cluster]}
    arguments = ["--annotations", scenes.folder / "train.json", "--images", scenes.folder / "train"]
    arguments += ["--out", tmp_path, *options(), "--workers", "2", *engine[first]]
    positives = tmp_path / "positives"
    for _ in range(3):  # a build may be faster than the signal
        if interrupt([*SNIPER, "chips", *map(str, arguments)], positives, sent):
            break
        shutil.rmtree(tmp_path)
    assert list(positives.glob("chips-*.parquet"))
    for record in positives.glob("chips-*.parquet"):  # what has a record is whole
        assert record.with_suffix(".tar").is_file()
    assert not (tmp_path / "run.json").exists()
    second = {"ray": ("local", None), "local": ("ray", ray_cluster)}[first]
    source = (scenes.folder / "train.json", scenes.folder / "train")
    report = chips(*source, tmp_path, settings(), engine=second[0], address=second[1])
    assert report.num_made < report.num_shards
    assert digests(tmp_path, "", "positives") == digests(scenes.built, "", "positives")
    assert not list(tmp_path.rglob(".tmp-*"))


def test_builds__same_bytes_in_a_store_that_often_answers_badly(scenes: Scenes, uploaded: str, s3: S3) -> None:
    for kind in ("error", "slow-down", "drop", "truncated"):
        s3.fault(kind, "GET", r"scenes/train/", times=2, after=1)
        s3.fault(kind, "PUT", r"chips/", times=1, after=2)
    s3.fault("error", "HEAD", times=3)
    source = (location(f"{uploaded}/scenes/train.json"), location(f"{uploaded}/scenes/train"))
    out = location(f"{uploaded}/chips")
    report = chips(*source, out, settings(), workers=2)
    assert not report.rejects
    negatives(out, random=1, settings=settings())
    parts = ("", "positives", "negatives")
    assert digests(out, *parts) == digests(scenes.built, *parts)
    assert verify(out).problems == []
    assert chips(*source, out, settings()).num_made == 0
    again = json.loads(read_bytes(out / "run.json"))
    assert again["images"] == f"{uploaded}/scenes/train"


def test_builds__a_missing_image_is_refused_and_an_unreachable_store_is_not_taken_for_one(
    scenes: Scenes, uploaded: str, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.stores.ATTEMPTS", 2)
    monkeypatch.setattr("pipeline.storage.stores.FIRST_WAIT", 0.01)
    source = (location(f"{uploaded}/scenes/train.json"), location(f"{uploaded}/scenes/train"))
    name = s3.keys("scenes/train/")[0]
    for method in ("GET", "HEAD"):  # its bytes; its size alone
        s3.fault("error", method, name, times=1000)
        with pytest.raises(DataError, match="no good answer"):
            chips(*source, location(f"{uploaded}/chips"), settings())
        s3.clear()
    assert "run.json" not in str(s3.keys("chips/"))
    s3.server.client.delete_object(Bucket=s3.bucket, Key=name)
    s3fs.S3FileSystem.clear_instance_cache()
    report = chips(*source, location(f"{uploaded}/chips"), settings())
    assert [(reject.reason, reject.file) for reject in report.rejects] == [("missing_file", Path(name).name)]


def test_from_images_in_a_bucket_over_ray_to_two_ranks_that_train(
    scenes: Scenes, uploaded: str, s3: S3, ray_cluster: str, tmp_path: Path
) -> None:
    """Chips, an RPN and mined negatives; then a training by two ranks, with validation, resumed by one."""
    data, run = f"{uploaded}/chips", f"{uploaded}/run"
    ray = ["--engine", "ray", "--address", ray_cluster]
    streamed = (f"loader.cache={tmp_path / 'cache'}", "loader.window=2", "loader.cache_gb=0.01")
    cache = [word for assignment in streamed for word in ("--set", assignment)]
    here = load_settings(None, (*OPTIONS, *streamed, "train.epochs=2"))
    source = ["--annotations", f"{uploaded}/scenes/train.json", "--images", f"{uploaded}/scenes/train"]
    said = [sniper("chips", *source, "--out", data, *options(), *ray)]
    assert digests(location(data), "positives") == digests(scenes.built, "positives")
    proposals = make_proposals(location(data), location(f"{uploaded}/scenes/train"), here)
    negatives(location(data), proposals=proposals, settings=here, engine="ray", address=ray_cluster)
    again = negatives(location(data), proposals=proposals, settings=here)
    assert (again.num_shards, again.num_made) == (8, 0)  # mined by one process it is the same
    assert verify(location(data)).problems == []
    assert show(location(data), tmp_path / "sheet.png", kind="negative") > 0
    s3.fault("truncated", "GET", r"positives/chips-\d+\.tar", times=2)
    s3.fault("error", "GET", r"negatives/chips-\d+\.tar", times=2)
    validation = ["--val-annotations", f"{uploaded}/scenes/val.json", "--val-images", f"{uploaded}/scenes/val"]
    train = ["train", "--data", data, "--out", run, *options(), *cache, *validation]
    said.append(sniper(*train, launcher=TORCHRUN))
    go_on(location(data), location(run), here, resume=True)
    assert [key for key in s3.keys("run/") if key.endswith(".pt")]
    assert list((tmp_path / "cache/shards").glob("*.tar"))
    log = [json.loads(line) for line in s3.get("run/log.jsonl").splitlines()]
    assert {entry["epoch"] for entry in log} == {0, 1}
    _no_secret_in([result.stdout + result.stderr for result in said], s3)


def _no_secret_in(texts: list[str], s3: S3) -> None:
    for secret in SECRETS:
        assert not any(secret in text for text in texts)
        assert [key for key in s3.keys("") if secret.encode() in s3.get(key)] == []
