"""Whole builds: the same bytes however they come about, nothing half-made, nothing redone."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.commands.check import check
from pipeline.commands.chips import Report, chips
from pipeline.commands.verify import verify
from pipeline.images.chip import codec
from pipeline.storage import Location, files_in, is_file, location, locked
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings
from schemas.tables import PLAN
from tests.pipeline.conftest import DataSet
from tests.s3 import S3

OPTIONS = ChipSettings(images_per_shard=2)


def build(data: DataSet, out: Path, options: ChipSettings = OPTIONS, **kwargs: Any) -> Report:
    return chips(data.annotations, data.images, out, options, **kwargs)


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file but the lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def built(demo_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    build(demo_set, out)
    return out


@pytest.mark.parametrize("workers", [2, 5])
def test_chips__same_bytes_for_any_number_of_workers(
    demo_set: DataSet, built: Path, tmp_path: Path, workers: int
) -> None:
    build(demo_set, tmp_path, workers=workers)
    assert digests(tmp_path) == digests(built)


def test_chips__a_worker_with_other_codecs_stops_the_build(
    demo_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.commands.chips.codec", lambda: codec()._replace(jpeg="another"))  # not in workers
    with pytest.raises(DataError, match=r"chips-\d+: this worker has .*the command was started with another"):
        build(demo_set, tmp_path, workers=2)
    assert not list(tmp_path.rglob("chips-*"))


def test_chips__order_of_the_annotation_file_does_not_matter_to_the_chips(
    demo_set: DataSet, built: Path, tmp_path: Path
) -> None:
    coco = json.loads(demo_set.annotations.read_bytes())
    random.Random(0).shuffle(coco["images"])
    (tmp_path / "shuffled.json").write_text(json.dumps(coco))
    out = tmp_path / "out"
    build(DataSet(tmp_path / "shuffled.json", demo_set.images), out)
    assert digests(out / "positives") == digests(built / "positives")


def test_chips__killed_at_random_moments_then_rerun_gives_the_same_bytes(
    demo_set: DataSet, built: Path, tmp_path: Path
) -> None:
    """kill -9 the whole build eleven times, from just after its start to near its end, then let it finish."""
    command = [sys.executable, "-c", "from sniper_chips import main; main()", "chips", "--workers", "2"]
    command += ["--annotations", str(demo_set.annotations), "--images", str(demo_set.images), "--out", str(tmp_path)]
    command += ["--set", "chips.images_per_shard=2"]
    rng = random.Random(7)
    positives = tmp_path / "positives"
    num_committed = []
    for kill in range(11):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = set(tmp_path.rglob("*"))
        if kill % 4 == 0:
            time.sleep(rng.uniform(0.2, 2.5))  # while it starts, reads and plans
        else:  # as soon as it writes a file, or a little later
            wanted = [".tmp-*.tar", "chips-*.tar", "chips-*.parquet"][kill % 4 - 1]
            while process.poll() is None and not set(positives.glob(wanted)) - before:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        committed = sorted(path.stem for path in positives.glob("chips-*.parquet"))
        num_committed.append(len(committed))
        for name in committed:  # what has a record is whole
            assert (positives / f"{name}.tar").read_bytes() == (built / f"positives/{name}.tar").read_bytes()
        if (tmp_path / "run.json").exists():  # it was quicker than the kill: go back
            for path in [tmp_path / "run.json", *sorted(positives.glob("*"))[2:]]:
                path.unlink()
    assert len(set(num_committed)) > 2, num_committed  # the kills met the build at different places
    build(demo_set, tmp_path)
    assert digests(tmp_path) == digests(built)


def test_chips__rerun_of_a_finished_build_touches_nothing(demo_set: DataSet, tmp_path: Path) -> None:
    build(demo_set, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    report = build(demo_set, tmp_path)
    assert report.num_made == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_chips__changed_settings_are_refused_by_name_and_replaced_on_demand(demo_set: DataSet, tmp_path: Path) -> None:
    build(demo_set, tmp_path)
    other = ChipSettings(images_per_shard=2, quality=80)
    before = digests(tmp_path)
    with pytest.raises(UsageError, match=r"chips\.quality: 95 there, 80 now"):
        build(demo_set, tmp_path, other)
    assert digests(tmp_path) == before
    report = build(demo_set, tmp_path, other, overwrite=True)
    assert report.num_made == report.num_shards
    assert verify(tmp_path).problems == []
    assert digests(tmp_path) != before


def test_chips__changed_annotations_redo_only_their_shards(demo_set: DataSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(demo_set, out)
    before = digests(out)
    coco = json.loads(demo_set.annotations.read_bytes())
    coco["annotations"][0]["bbox"][2] *= 0.9
    (tmp_path / "changed.json").write_text(json.dumps(coco))
    report = build(DataSet(tmp_path / "changed.json", demo_set.images), out)
    assert report.num_made == 1
    changed = {name for name, digest in digests(out).items() if before[name] != digest}
    assert {name for name in changed if name.endswith(".tar")} <= {"positives/chips-00000.tar"}
    # and it is what a build from nothing gives
    build(DataSet(tmp_path / "changed.json", demo_set.images), tmp_path / "fresh")
    assert digests(out) == digests(tmp_path / "fresh")


def test_chips__changed_category_name_rewrites_its_ledger_alone(demo_set: DataSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(demo_set, out)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    coco = json.loads(demo_set.annotations.read_bytes())
    coco["categories"][0]["name"] = "renamed"
    (tmp_path / "renamed.json").write_text(json.dumps(coco))
    report = build(DataSet(tmp_path / "renamed.json", demo_set.images), out)
    assert report.num_made == 0
    changed = {path.name for path, seen in before.items() if seen != (path.stat().st_ino, path.stat().st_mtime_ns)}
    assert changed - {".lock"} == {"categories.parquet", "run.json"}
    assert verify(out).problems == []


def test_chips__fewer_images_drop_the_shards_beyond(demo_set: DataSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(demo_set, out)
    coco = json.loads(demo_set.annotations.read_bytes())
    coco["images"] = sorted(coco["images"], key=lambda image: int(image["id"]))[:5]
    kept = {image["id"] for image in coco["images"]}
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] in kept]
    (tmp_path / "fewer.json").write_text(json.dumps(coco))
    build(DataSet(tmp_path / "fewer.json", demo_set.images), out)
    build(DataSet(tmp_path / "fewer.json", demo_set.images), tmp_path / "fresh")
    assert digests(out) == digests(tmp_path / "fresh")


@pytest.mark.parametrize("damage", ["tar cut", "tar gone", "record damaged"])
def test_chips__damaged_shards_are_made_again(demo_set: DataSet, built: Path, tmp_path: Path, damage: str) -> None:
    build(demo_set, tmp_path)
    tar = tmp_path / "positives/chips-00001.tar"
    if damage == "tar cut":
        tar.write_bytes(tar.read_bytes()[:-1])
    elif damage == "tar gone":
        tar.unlink()
    else:
        tar.with_suffix(".parquet").write_bytes(b"PAR1")
    assert build(demo_set, tmp_path).num_made == 1
    assert digests(tmp_path) == digests(built)


def test_chips__two_builds_do_not_share_a_folder(demo_set: DataSet, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match="another build"):
        build(demo_set, tmp_path)


def test_plan_only__is_the_manifest_without_storage_and_needs_no_images(
    demo_set: DataSet, built: Path, tmp_path: Path
) -> None:
    report = chips(demo_set.annotations, None, tmp_path, OPTIONS, plan_only=True)
    plan = pl.read_parquet(tmp_path / "plan/plan-*.parquet")
    assert plan.columns == PLAN.names
    manifest = pl.read_parquet(built / "positives/chips-*.parquet").drop("shard", "offset", "size", "crc32")
    assert plan.equals(manifest)
    assert not (tmp_path / "run.json").exists()
    assert report.counts == json.loads((built / "run.json").read_bytes())["counts"]
    with pytest.raises(UsageError, match="holds chips already"):
        chips(demo_set.annotations, None, built, OPTIONS, plan_only=True)
    build(demo_set, tmp_path)
    assert digests(tmp_path) == digests(built)


def in_store(folder: Path, s3: S3, prefix: str) -> Location:
    """A copy of a folder in the store."""
    for path in folder.rglob("*"):
        if path.is_file():
            s3.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
    return location(f"{s3.url}/{prefix}")


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_chips__files_of_the_user_in_its_folders_stay(
    demo_set: DataSet, built: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    mine = [
        "plan/notes.txt",
        "photos/.tmp-1-a.jpg",
        "positives/notes.txt",
        "negatives/notes.txt",
        "a/plan/plan-1.parquet",
    ]
    theirs = ["plan/plan-00000.parquet", "negatives/run.json", "negatives/chips-00000.tar", "proposals/rpn/last.pt"]
    for name in [*mine, *theirs]:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(name)
    shutil.copytree(built, tmp_path / "out", dirs_exist_ok=True)
    out: Location = tmp_path / "out"
    if kind == "s3":
        out = in_store(tmp_path / "out", request.getfixturevalue("s3"), "out")

    def left(names: list[str]) -> list[str]:
        return [name for name in names if is_file(out / name)]

    assert chips(demo_set.annotations, demo_set.images, out, OPTIONS).num_made == 0
    assert left(mine) == mine
    assert left(theirs) == theirs[1:]
    other = OPTIONS.model_copy(update={"quality": 80})
    chips(demo_set.annotations, demo_set.images, out, other, overwrite=True)
    assert left(mine) == mine
    assert left(theirs) == []
    assert len(files_in(out / "positives", "chips-*.tar")) == 6


def test_chips__overwrite_leaves_no_empty_folder(demo_set: DataSet, tmp_path: Path) -> None:
    """A folder `negatives` would be taken for an unfinished pool."""
    for name in ("negatives/.tmp-12-run.json", "negatives/chips-00000.tar", "plan/plan-00000.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    build(demo_set, tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["positives"]


def test_chips__roundabout_file_names_mean_the_same_in_a_store(
    demo_set: DataSet, built: Path, s3: S3, tmp_path: Path
) -> None:
    """As on a disk, where they always did."""
    coco = json.loads(demo_set.annotations.read_bytes())
    for i, image in enumerate(coco["images"]):
        image["file_name"] = f"{['./', './/', ''][i % 3]}train{'//' if i % 2 else '/./'}{image['file_name']}"
    (tmp_path / "roundabout.json").write_text(json.dumps(coco))
    in_store(demo_set.images, s3, "images/train")
    out = tmp_path / "out"
    chips(tmp_path / "roundabout.json", location(f"{s3.url}/images"), out, OPTIONS)
    assert [
        r.reason for r in check(tmp_path / "roundabout.json", location(f"{s3.url}/images"), max_pixels=10**8).rejects
    ] == []
    for path in (built / "positives").glob("*.tar"):
        assert (out / "positives" / path.name).read_bytes() == path.read_bytes()


def test_chips__image_without_boxes_and_shard_without_chips_stay(demo_set: DataSet, tmp_path: Path) -> None:
    coco = json.loads(demo_set.annotations.read_bytes())
    coco["annotations"] = []
    (tmp_path / "empty.json").write_text(json.dumps(coco))
    report = build(DataSet(tmp_path / "empty.json", demo_set.images), tmp_path / "out")
    assert report.num_shards == 6
    assert verify(tmp_path / "out").problems == []
    images = pl.read_parquet(tmp_path / "out/images.parquet")
    assert images["state"].to_list() == ["kept"] * 12
    assert images["hash"].null_count() == 0
    assert len(pl.read_parquet(tmp_path / "out/positives/chips-*.parquet")) == 0
