"""Whole builds: the same bytes however they come about, nothing half-made, nothing redone."""

import hashlib
import json
import os
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

import pipeline.commands.chips as job_module
from pipeline.commands.check import check
from pipeline.commands.chips import Report, chips
from pipeline.commands.verify import verify
from pipeline.dataset.build import clear_unfinished
from pipeline.dataset.job import ShardJob
from pipeline.images.chip import codec
from pipeline.storage import Location, files_in, is_file, location, locked
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, Settings
from schemas.tables import PLAN
from tests.builders import CocoSet, encoded, sound_set, states, texture
from tests.pipeline.conftest import DataSet
from tests.s3 import S3

OPTIONS = ChipSettings(images_per_shard=2)


def build(data: DataSet, out: Path, options: ChipSettings = OPTIONS, **kwargs: Any) -> Report:
    return chips(data.annotations, data.images, out, Settings(chips=options), **kwargs)


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
    """kill -9 the whole build seven times, from just after its start to near its end, then let it finish."""
    command = [sys.executable, "-c", "from sniper_chips import main; main()", "chips", "--workers", "2"]
    command += ["--annotations", str(demo_set.annotations), "--images", str(demo_set.images), "--out", str(tmp_path)]
    command += ["--set", "chips.images_per_shard=2"]
    rng = random.Random(7)
    positives = tmp_path / "positives"
    num_committed = []
    for kill in range(7):
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
    assert len(set(num_committed)) > 1, num_committed  # the kills met the build at different places
    build(demo_set, tmp_path)
    assert digests(tmp_path) == digests(built)


def test_chips__rerun_of_a_finished_build_touches_nothing(demo_set: DataSet, tmp_path: Path) -> None:
    build(demo_set, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    report = build(demo_set, tmp_path)
    assert report.num_made == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_chips__go_nowhere_but_beside_the_images(demo_set: DataSet, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(demo_set.images)
    for out in (demo_set.images, link):
        with pytest.raises(UsageError, match="is the folder of the images"):
            build(demo_set, out)
    assert not (demo_set.images / "positives").exists()


def test_chips__replace_no_file_that_they_did_not_write(demo_set: DataSet, tmp_path: Path) -> None:
    for name in ("run.json", "images.parquet"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("precious")
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="did not write and would replace"):
                build(demo_set, folder, overwrite=overwrite)
        assert (folder / name).read_text() == "precious"


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


def test_chips__changed_settings_are_refused_where_the_record_of_a_build_stands_without_its_shards(
    demo_set: DataSet, built: Path, tmp_path: Path
) -> None:
    shutil.copytree(built, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/positives")
    with pytest.raises(UsageError, match=r"chips\.quality: 95 there, 80 now"):
        build(demo_set, tmp_path / "out", ChipSettings(images_per_shard=2, quality=80))


def test_chips__a_rerun_that_is_stopped_keeps_the_length_of_the_shards(
    demo_set: DataSet, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that was given once, and the record of the build is gone, as after a kill amid the rerun."""
    shutil.copytree(built, tmp_path / "out")
    (tmp_path / "out/positives/chips-00001.tar").unlink()
    cut, calls = job_module.make_shard, 0

    def killed(job: ShardJob) -> Any:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise KeyboardInterrupt
        return cut(job)

    monkeypatch.setattr(job_module, "make_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        build(demo_set, tmp_path / "out", ChipSettings())
    assert not (tmp_path / "out/run.json").exists()
    monkeypatch.undo()
    build(demo_set, tmp_path / "out", ChipSettings())
    assert digests(tmp_path / "out") == digests(built)


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


def small_set(root: Path, num_images: int) -> CocoSet:
    """Images of 64 pixels with a box each, ids from 1."""
    made = CocoSet(root)
    for image_id in range(1, num_images + 1):
        made.add_image(image_id)
    return made


SMALL = ChipSettings.model_validate({"scales": [1.0], "ranges": [[0, None]], "size": 64, "images_per_shard": 4})


def test_chips__fewer_images_drop_the_shards_beyond(tmp_path: Path) -> None:
    made, out = small_set(tmp_path / "set", 21), tmp_path / "out"
    chips(made.write(), made.image_root, out, Settings(chips=SMALL))
    del made.images[-1], made.annotations[-1]
    chips(made.write(), made.image_root, out, Settings(chips=SMALL))
    chips(made.path, made.image_root, tmp_path / "fresh", Settings(chips=SMALL))
    assert digests(out) == digests(tmp_path / "fresh")


@pytest.mark.parametrize("gone", ["images", "boxes", "other files"])
def test_chips__the_wrong_annotation_file_does_not_replace_a_finished_build(tmp_path: Path, gone: str) -> None:
    made, out = small_set(tmp_path / "set", 21), tmp_path / "out"
    chips(made.write(), made.image_root, out, Settings(chips=SMALL))
    before = digests(out)
    if gone == "images":
        del made.images[-2:], made.annotations[-2:]
    elif gone == "boxes":
        del made.annotations[-2:]
    else:  # the ids of another data set
        for image in made.images[:2]:
            image["file_name"] = f"./{image['file_name']}"
    with pytest.raises(
        UsageError, match=r"2 of 21 .*the finished build there are not in .*annotations.json.*--overwrit"
    ):
        chips(made.write(), made.image_root, out, Settings(chips=SMALL))
    assert digests(out) == before
    chips(made.path, made.image_root, out, Settings(chips=SMALL), overwrite=True)
    assert verify(out).problems == []


def test_chips__overwrite_says_what_it_removes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, demo_set: DataSet
) -> None:
    made, out = small_set(tmp_path / "set", 2), tmp_path / "out"
    chips(made.write(), made.image_root, out, Settings(chips=SMALL))
    (out / "proposals").mkdir()
    (out / "proposals/part-00000.parquet").touch()
    (out / "proposals/notes.txt").touch()
    with caplog.at_level("INFO", "sniper"):
        chips(made.path, made.image_root, out, Settings(chips=SMALL), overwrite=True)
    assert f"{out / 'positives'}: --overwrite removes 2 files" in caplog.text
    assert f"{out / 'proposals'}: --overwrite removes 1 files" in caplog.text
    assert [path.name for path in (out / "proposals").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("change", [{"max_pixels": 10_000}, {"stride": 16}, {"images_per_shard": 100}])
def test_chips__settings_that_change_no_byte_refuse_nothing(tmp_path: Path, change: dict[str, int]) -> None:
    made, out = small_set(tmp_path / "set", 3), tmp_path / "out"
    chips(made.write(), made.image_root, out, Settings(chips=SMALL))
    before = digests(out)
    report = chips(made.path, made.image_root, out, Settings(chips=SMALL.model_copy(update=change)))
    assert report.num_made == 0
    changed = {name for name, digest in digests(out).items() if before[name] != digest}
    assert changed <= {"run.json"}
    chips(made.path, made.image_root, tmp_path / "fresh", Settings(chips=SMALL.model_copy(update=change)))
    assert digests(out) == digests(tmp_path / "fresh")


def test_chips__another_length_of_shards_is_refused_by_name(tmp_path: Path) -> None:
    made, out = small_set(tmp_path / "set", 5), tmp_path / "out"
    chips(made.write(), made.image_root, out, Settings(chips=SMALL))
    with pytest.raises(UsageError, match=r"chips\.images_per_shard: 4 there, 2 now"):
        chips(made.path, made.image_root, out, Settings(chips=SMALL.model_copy(update={"images_per_shard": 2})))


def test_chips__a_higher_limit_of_pixels_makes_only_the_shards_anew_that_it_changes(tmp_path: Path) -> None:
    made, out = small_set(tmp_path / "set", 8), tmp_path / "out"
    made.images[6]["width"] = made.images[6]["height"] = 10  # the file is larger than annotated, and than the limit
    made.annotations[6]["bbox"] = [1, 1, 8, 8]
    low = SMALL.model_copy(update={"max_pixels": 64 * 64 - 1})
    for image in [*made.images[:6], made.images[7]]:
        image["width"] = 32  # so that these are within it as annotated
    for annotation in made.annotations:
        annotation["bbox"] = [1, 1, 8, 8]
    chips(made.write(), made.image_root, out, Settings(chips=low), max_bad=1.0)
    assert states(out)[7] == "too_many_pixels"
    report = chips(made.path, made.image_root, out, Settings(chips=SMALL), max_bad=1.0)
    assert states(out)[7] == "size_mismatch"
    assert report.num_made == 2
    chips(made.path, made.image_root, tmp_path / "fresh", Settings(chips=SMALL), max_bad=1.0)
    assert digests(out) == digests(tmp_path / "fresh")


def test_chips__a_changed_image_of_the_same_size_is_seen(tmp_path: Path) -> None:
    made, out = small_set(tmp_path / "set", 8), tmp_path / "out"
    for image in made.images:
        image["file_name"] = f"{image['id']}.bmp"
        (made.image_root / image["file_name"]).write_bytes(encoded(texture(64, 64, image["id"]), "BMP"))
    chips(made.write(), made.image_root, out, Settings(chips=SMALL))
    changed, old = made.image_root / "6.bmp", (made.image_root / "6.bmp").stat()
    os.utime(made.image_root / "1.bmp")  # touched, and the same
    changed.write_bytes(encoded(texture(64, 64, 77), "BMP"))
    os.utime(changed, ns=(old.st_atime_ns, old.st_mtime_ns))  # as a copy that keeps times would leave it
    assert changed.stat().st_size == old.st_size
    report = chips(made.path, made.image_root, out, Settings(chips=SMALL))
    assert report.num_made == 1
    chips(made.path, made.image_root, tmp_path / "fresh", Settings(chips=SMALL))
    assert digests(out) == digests(tmp_path / "fresh")


def test_chips__images_of_another_folder_are_compared_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are older than the shards, and where the rerun was stopped before it was through."""
    made, out, other = small_set(tmp_path / "set", 12), tmp_path / "out", tmp_path / "other"
    for image in made.images:
        image["file_name"] = f"{image['id']}.bmp"
        (made.image_root / image["file_name"]).write_bytes(encoded(texture(64, 64, image["id"]), "BMP"))
    shutil.copytree(made.image_root, other)
    for number in (6, 11):
        (other / f"{number}.bmp").write_bytes(encoded(texture(64, 64, 77), "BMP"))
    chips(made.write(), made.image_root, out, Settings(chips=SMALL))
    cut = job_module.make_shard

    def stopped(job: ShardJob) -> Any:
        if job.name == "chips-00002":
            raise KeyboardInterrupt
        return cut(job)

    monkeypatch.setattr(job_module, "make_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        chips(made.path, other, out, Settings(chips=SMALL))
    monkeypatch.undo()
    assert chips(made.path, other, out, Settings(chips=SMALL)).num_made == 1
    chips(made.path, other, tmp_path / "fresh", Settings(chips=SMALL))
    assert digests(out) == digests(tmp_path / "fresh")
    assert chips(made.path, other, out, Settings(chips=SMALL)).num_made == 0


def test_chips__a_kill_amid_overwrite_leaves_nothing_foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, out = small_set(tmp_path / "set", 8), tmp_path / "out"
    chips(made.write(), made.image_root, out, Settings(chips=SMALL))
    from pipeline.dataset import build as build_module

    clear = build_module._clear_shards

    def killed(folder: Location) -> None:
        clear(folder)
        if folder.name == "positives":
            raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "_clear_shards", killed)
    with pytest.raises(KeyboardInterrupt):
        chips(made.path, made.image_root, out, Settings(chips=SMALL), overwrite=True)
    monkeypatch.undo()
    assert chips(made.path, made.image_root, out, Settings(chips=SMALL)).num_made == 2


def test_chips__a_small_data_set_has_sixteen_shards(tmp_path: Path) -> None:
    made, out = small_set(tmp_path / "set", 17), tmp_path / "out"
    options = SMALL.model_copy(update={"images_per_shard": None})
    assert chips(made.write(), made.image_root, out, Settings(chips=options)).num_shards == 17
    assert verify(out).problems == []


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
    with locked(tmp_path, "sniper chips"), pytest.raises(UsageError, match="`sniper chips`.* is writing here"):
        build(demo_set, tmp_path)


def plan_digests(out: Path) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((out / "plan").glob("*.parquet"))}


def test_plan_only__is_the_manifest_without_storage_and_needs_no_images(
    demo_set: DataSet, built: Path, tmp_path: Path
) -> None:
    report = chips(demo_set.annotations, None, tmp_path, Settings(chips=OPTIONS), plan_only=True)
    plan = pl.read_parquet(tmp_path / "plan/plan-*.parquet")
    assert plan.columns == PLAN.names
    manifest = pl.read_parquet(built / "positives/chips-*.parquet").drop("shard", "offset", "size", "crc32")
    assert plan.equals(manifest)
    record = json.loads((tmp_path / "plan/run.json").read_bytes())
    assert record["files"] == {path.name: sha for path, sha in plan_digests(tmp_path).items()}
    assert not (tmp_path / "run.json").exists()
    assert report.counts == json.loads((built / "run.json").read_bytes())["counts"]
    with pytest.raises(UsageError, match="holds chips already"):
        chips(demo_set.annotations, None, built, Settings(chips=OPTIONS), plan_only=True)
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

    assert chips(demo_set.annotations, demo_set.images, out, Settings(chips=OPTIONS)).num_made == 0
    assert left(mine) == mine
    assert left(theirs) == theirs[1:]
    other = OPTIONS.model_copy(update={"quality": 80})
    chips(demo_set.annotations, demo_set.images, out, Settings(chips=other), overwrite=True)
    assert left(mine) == mine
    assert left(theirs) == []
    assert len(files_in(out / "positives", "chips-*.tar")) == 6


def test_clear_unfinished__leaves_what_is_not_of_a_data_set(tmp_path: Path) -> None:
    ours = [".tmp-12-run.json", "positives/.tmp-12-chips-00000.tar", "plan/.tmp-3-plan-00000.parquet"]
    others = [".tmp-mine", "photos/.tmp-12-a.jpg", "positives/old/.tmp-12-a.tar", "positives/chips-00000.tar"]
    for name in [*ours, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    clear_unfinished(tmp_path)
    assert [name for name in [*ours, *others] if (tmp_path / name).exists()] == others


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
    chips(tmp_path / "roundabout.json", location(f"{s3.url}/images"), out, Settings(chips=OPTIONS))
    assert [
        r.reason
        for r in check(
            tmp_path / "roundabout.json", location(f"{s3.url}/images"), Settings(chips=ChipSettings(max_pixels=10**8))
        ).rejects
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


def test_chips__wrong_image_folder_replaces_no_finished_build(tmp_path: Path) -> None:
    made, out, wrong = sound_set(tmp_path), tmp_path / "out", tmp_path / "wrong"
    chips(made.write(), made.image_root, out, Settings(chips=OPTIONS))
    before = digests(out)
    wrong.mkdir()
    with pytest.raises(UsageError, match=f"2 of 2 images .*made from {made.image_root}.* not in {wrong}") as refused:
        chips(made.path, wrong, out, Settings(chips=OPTIONS))
    assert refused.value.exit_status == 2
    assert digests(out) == before
    assert chips(made.path, wrong, out, Settings(chips=OPTIONS), overwrite=True).counts["images"]["kept"] == 0
