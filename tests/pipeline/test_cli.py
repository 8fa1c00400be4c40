"""The command line: exit statuses, messages that say what to do, and never a traceback."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from schemas.settings import ChipSettings
from tests.builders import SIDE, CocoSet, assert_reconciles, build, chip_sums, digest, encoded, sound_set, texture
from tests.conftest import CommandResult, RunSniper
from tests.paths import shared_data

SNIPER = Path(sys.executable).with_name("sniper")


def installed(*arguments: object, file_limit: int | None = None, **environment: str) -> CommandResult:
    """Runs the installed console script; `file_limit` is the size in bytes beyond which no file can grow."""

    def limit() -> None:
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    done = subprocess.run(
        [SNIPER, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        preexec_fn=limit,
        env=os.environ | environment,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return CommandResult(done.returncode, done.stdout, done.stderr)


def options(made: CocoSet, out: Path | None = None) -> list[object]:
    inputs: list[object] = ["--annotations", made.write(), "--images", made.image_root, "--workers", 1]
    return inputs if out is None else [*inputs, "--out", out]


def with_bad_images(root: Path, good: int, bad: int) -> CocoSet:
    made = CocoSet(root)
    content = encoded(texture(16, 16))
    for i in range(good + bad):
        made.add_image(i, content if i < good else b"", f"{i}.jpg", 16, 16, [[1, 1, 9, 9]])
    return made


def test_check_of_sound_set_succeeds(tmp_path: Path, sniper: RunSniper) -> None:
    result = sniper("check", *options(sound_set(tmp_path)))
    assert result.status == 0
    assert "2 images, 3 boxes, 1 categories; 2 image files decoded" in result.out
    assert "nothing wrong found" in result.out


def test_check_of_bad_set_lists_every_kind_and_fails(tmp_path: Path, sniper: RunSniper) -> None:
    made = sound_set(tmp_path)
    made.add_image(50, b"", "empty.jpg")
    made.add_image(51, file_name="gone.jpg", write=False)
    made.add_image(52, file_name="../up.jpg", write=False)
    made.add_box(1, [1, 1, 0, 1])
    made.add_box(1, [1, 1, float("nan"), 1])
    command = options(made)
    before = digest(tmp_path)
    result = sniper("check", *command)
    assert result.status == 1
    assert digest(tmp_path) == before
    for reason in ("empty_file", "missing_file", "unsafe_path", "no_area", "bad_numbers"):
        assert f": {reason}" in result.out
    for name in ("empty.jpg", "gone.jpg", "../up.jpg", "annotations[6]"):
        assert name in result.out
    assert "nothing wrong" not in result.out
    assert "5 images, 8 boxes, 1 categories; 2 image files decoded" in result.out


def test_check_writes_its_report_though_nobody_reads_its_lines(tmp_path: Path) -> None:
    given = [*options(with_bad_images(tmp_path, 1, 2)), "--report", tmp_path / "all.csv"]
    command = [SNIPER, "check", *map(str, given)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.close()  # as `| head` does
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 3


def test_check_groups_what_it_refuses_by_cause(tmp_path: Path, sniper: RunSniper) -> None:
    result = sniper("check", *options(with_bad_images(tmp_path, 1, 12)))
    assert result.status == 1
    assert "12 images: " in result.out
    assert [i for i in range(13) if f"    {i}.jpg: " in result.out] == [1, 2, 3]
    assert "... and 9 more" in result.out


def test_check_of_boxes_that_read_as_corners_fails(tmp_path: Path, sniper: RunSniper) -> None:
    made = CocoSet(tmp_path)
    made.add_image(1, boxes=[[4 * i, 4 * i, 4 * i + 20, 4 * i + 20] for i in range(1, 12)])
    result = sniper("check", *options(made))
    assert result.status == 1
    assert "x1 y1 x2 y2" in result.out


def test_check_without_images_reads_no_file(tmp_path: Path, sniper: RunSniper) -> None:
    made = sound_set(tmp_path)
    made.write()
    shutil.rmtree(made.image_root)
    result = sniper("check", "--annotations", made.path)
    assert result.status == 0
    assert "0 image files decoded" in result.out


@pytest.mark.parametrize("command", ["check", "chips"])
def test_image_folder_that_is_missing_is_wrong_use(command: str, tmp_path: Path, sniper: RunSniper) -> None:
    made = sound_set(tmp_path)
    out = ["--out", tmp_path / "out"] if command == "chips" else []
    for images in (tmp_path / "none", made.write()):
        result = sniper(command, "--annotations", made.path, "--images", images, *out)
        assert result.status == 2
        assert f"{images}: no such image folder" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["check", "chips"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"images": [', "is not valid JSON"),
        (b"[]", "expected a COCO object"),
        (b"{}", "has no `images`"),
        (b"[" * 100_000, "is not valid JSON"),
        (None, "no such annotation file"),
    ],
)
def test_annotation_file_that_cannot_be_used_is_named_and_fails(
    command: str, content: bytes | None, expected: str, tmp_path: Path, sniper: RunSniper
) -> None:
    path = tmp_path / "annotations.json"
    if content is not None:
        path.write_bytes(content)
    out = ["--out", tmp_path / "out"] if command == "chips" else []
    result = sniper(command, "--annotations", path, "--images", tmp_path, *out)
    assert result.status == (2 if content is None else 1)  # a missing file is wrong use
    assert result.err.startswith(f"sniper: {path}: ")
    assert expected in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("good", "bad", "max_bad", "status"),
    [(9, 1, None, 1), (9, 1, 0.09, 1), (9, 1, 0.1, 0), (2, 1, 0.34, 0), (2, 1, 0.33, 1), (3, 0, 0, 0)],
)
def test_max_bad_is_a_share_of_images_and_everything_good_is_written(
    good: int, bad: int, max_bad: float | None, status: int, tmp_path: Path, sniper: RunSniper
) -> None:
    made = with_bad_images(tmp_path, good, bad)
    limit = [] if max_bad is None else ["--max-bad", max_bad]
    result = sniper("chips", *options(made, tmp_path / "out"), *limit)
    assert result.status == status, result.err
    assert_reconciles(tmp_path / "out", made.content())
    assert len({key[:12] for key in chip_sums(tmp_path / "out", tuple(range(good + bad)))}) == good
    if status:
        assert f"{bad} of {good + bad} images were refused" in result.err
        assert "rejects.parquet" in result.err
    if bad:
        assert f"{bad} image{'s' if bad > 1 else ''}: empty_file" in result.out


def test_max_bad_counts_refused_records_too(tmp_path: Path, sniper: RunSniper) -> None:
    made = sound_set(tmp_path)
    made.images.append({"id": 7})
    assert sniper("chips", *options(made, tmp_path / "out")).status == 1
    assert sniper("chips", *options(made, tmp_path / "out"), "--max-bad", 0.34).status == 0


def test_max_bad_counts_images_and_max_bad_boxes_boxes(tmp_path: Path, sniper: RunSniper) -> None:
    made = sound_set(tmp_path)
    for _ in range(30):
        made.add_box(1, None)
    command = ["chips", *options(made, tmp_path / "out"), "--max-bad", 0]
    result = sniper(*command)
    assert result.status == 1
    assert "30 of 33 boxes were refused, more than --max-bad-boxes 0.01 allows" in result.err
    assert "the commonest reason is bad_numbers (30 boxes)" in result.err
    result = sniper(*command, "--max-bad-boxes", 0.91)
    assert result.status == 0
    assert "30 annotations: bad_numbers" in result.out


def test_boxes_of_images_that_were_cut_from_the_list_are_a_failure_that_says_so(
    tmp_path: Path, sniper: RunSniper
) -> None:
    made = sound_set(tmp_path)
    for _ in range(6):
        made.add_box(555, [1, 1, 9, 9])
    result = sniper("chips", *options(made, tmp_path / "out"))
    assert result.status == 1
    assert "6 of 9 boxes were refused" in result.err
    assert "the list of images was cut short" in result.err


NO_TARGETS: dict[str, tuple[dict[str, Any], str]] = {
    "crowd": ({"iscrowd": 1}, "all 3 boxes are crowd"),
    "shares": ({"bbox": [0.1, 0.1, 0.3, 0.3]}, "lie between 0 and 1"),
    "counted from 0": ({"category_id": 2}, "may count from 0"),
}


@pytest.mark.parametrize("case", NO_TARGETS)
def test_chips_without_a_target_are_no_success_and_the_cause_is_named(
    case: str, tmp_path: Path, sniper: RunSniper
) -> None:
    change, cause = NO_TARGETS[case]
    made = sound_set(tmp_path)
    made.annotations = [{**box, **change} for box in made.annotations]
    result = sniper("check", *options(made))
    assert result.status == 1
    assert cause in result.out
    result = sniper("chips", *options(made, tmp_path / "out"), "--max-bad-boxes", 1)
    assert result.status == 1
    assert "none of 3 boxes is a target in any chip" in result.err
    assert cause in result.err


def test_ignore_categories_count_as_crowd(tmp_path: Path, sniper: RunSniper) -> None:
    made = sound_set(tmp_path)
    made.categories.append({"id": 8, "name": "ignored regions"})
    made.annotations[0]["category_id"] = 8
    result = sniper("check", *options(made))
    assert result.status == 1
    assert "'ignored regions' looks like regions that nobody labelled" in result.out
    ignore = ["--set", "chips.ignore_categories=[ignored regions]"]
    assert sniper("check", *options(made), *ignore).status == 0
    assert sniper("chips", *options(made, tmp_path / "out"), *ignore).status == 0
    fates = pl.read_parquet(tmp_path / "out/annotations.parquet").sort("row")["fate"].to_list()
    assert fates == ["crowd", "covered", "covered"]


@pytest.mark.parametrize("plan", [[], ["--plan-only"]])
def test_chips_that_lost_every_box_fail_with_the_commonest_reason(
    plan: list[str], tmp_path: Path, sniper: RunSniper
) -> None:
    made = sound_set(tmp_path)
    made.add_box(1, [1, 1, 0, 5])
    made.categories = [{"id": 77, "name": "of another file"}]
    result = sniper("chips", *options(made, tmp_path / "out"), "--max-bad", 1, *plan)
    assert result.status == 1
    assert "none of 4 boxes is a target in any chip" in result.err
    assert "commonest reason is unknown_category (4 boxes)" in result.err
    assert ("rejects.parquet" in result.err) == (not plan)
    if not plan:
        assert_reconciles(tmp_path / "out", made.content())


def test_chips_of_a_file_without_boxes_is_a_success(tmp_path: Path, sniper: RunSniper) -> None:
    made = sound_set(tmp_path)
    made.annotations.clear()
    assert sniper("chips", *options(made, tmp_path / "out")).status == 0


def test_plan_only_with_overwrite_is_wrong_use_and_deletes_nothing(tmp_path: Path, sniper: RunSniper) -> None:
    command = ["chips", *options(sound_set(tmp_path), tmp_path / "out")]
    assert sniper(*command).status == 0
    before = digest(tmp_path)
    result = sniper(*command, "--plan-only", "--overwrite")
    assert result.status == 2
    assert "--plan-only" in result.err
    assert "--overwrite" in result.err
    assert digest(tmp_path) == before


def test_plan_only_shows_progress(tmp_path: Path, sniper: RunSniper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engines.progress.LOG_INTERVAL", 0.0)
    result = sniper("chips", *options(sound_set(tmp_path), tmp_path / "out"), "--plan-only")
    assert "plan: 2 of 2 images" in result.err


def test_chips_without_images_says_that_they_are_missing(tmp_path: Path, sniper: RunSniper) -> None:
    result = sniper("chips", "--annotations", sound_set(tmp_path).write(), "--out", tmp_path / "out")
    assert result.status == 2
    assert "--images is missing" in result.err
    assert not (tmp_path / "out").exists()


def test_advice_to_raise_max_pixels_can_be_followed(tmp_path: Path, sniper: RunSniper) -> None:
    made = sound_set(tmp_path)
    made.add_image(50, width=SIDE + 1)
    command = ["chips", *options(made, tmp_path / "out")]
    limited = sniper(*command, "--set", f"chips.max_pixels={SIDE * SIDE}")
    assert limited.status == 1
    assert "chips.max_pixels=N" in limited.out
    assert sniper(*command, "--set", f"chips.max_pixels={2 * SIDE * SIDE}").status == 0


def test_chips_again_after_bad_images_does_nothing_and_reports_them_again(tmp_path: Path, sniper: RunSniper) -> None:
    made = with_bad_images(tmp_path, 3, 1)
    first = sniper("chips", *options(made, tmp_path / "out"))
    before = digest(tmp_path / "out")
    second = sniper("chips", *options(made, tmp_path / "out"))
    assert first.status == second.status == 1
    assert "nothing to do" in second.out
    assert "1 image: empty_file" in second.out
    assert digest(tmp_path / "out") == before


def test_chips_after_the_bad_image_was_mended_has_it(tmp_path: Path, sniper: RunSniper) -> None:
    made = with_bad_images(tmp_path, 3, 1)
    assert sniper("chips", *options(made, tmp_path / "out")).status == 1
    (made.image_root / "3.jpg").write_bytes(encoded(texture(16, 16)))
    assert sniper("chips", *options(made, tmp_path / "out")).status == 0
    assert pl.read_parquet(tmp_path / "out/rejects.parquet").is_empty()
    assert_reconciles(tmp_path / "out", made.content())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--max-bad", "2"], "--max-bad"),
        (["--max-bad", "few"], "--max-bad"),
        (["--workers", "0"], "--workers"),
        (["--wrokers", "2"], "--wrokers"),
    ],
)
def test_chips_wrong_options_are_wrong_use(
    arguments: list[str], expected: str, tmp_path: Path, sniper: RunSniper
) -> None:
    result = sniper("chips", *options(sound_set(tmp_path), tmp_path / "out"), *arguments)
    assert result.status == 2
    assert expected in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["check", "chips"])
def test_settings_faults_are_all_named_and_are_wrong_use(command: str, tmp_path: Path, sniper: RunSniper) -> None:
    (tmp_path / "settings.yaml").write_text("chips: {sise: 5, quality: 500}\nextra: 1\n")
    out = tmp_path / "out" if command == "chips" else None
    result = sniper(
        command,
        *options(sound_set(tmp_path), out),
        *("--config", tmp_path / "settings.yaml", "--set", "chips.stride=-1", "--set", "chips.seed"),
    )
    assert result.status == 2
    for name in ("chips.sise: unknown setting", "chips.quality: ", "extra: unknown", "chips.stride: ", "chips.seed: "):
        assert name in result.err
    assert not (tmp_path / "out").exists()


def test_out_below_a_file_is_wrong_use(tmp_path: Path, sniper: RunSniper) -> None:
    made = sound_set(tmp_path)
    for out in (made.write(), made.path / "out"):
        result = sniper("chips", *options(made, out))
        assert result.status == 2
        assert result.err.startswith(f"sniper: {out}: cannot be written: ")
        assert "choose another --out" in result.err


@pytest.mark.parametrize("name", ["positives", "plan", "run.json", "images.parquet"])
def test_out_that_holds_something_else_under_our_names_gives_no_traceback(
    name: str, tmp_path: Path, sniper: RunSniper
) -> None:
    made = sound_set(tmp_path)
    blocked = tmp_path / "out" / name
    if name.endswith((".json", ".parquet")):
        (blocked / "inside").mkdir(parents=True)
    else:
        blocked.parent.mkdir()
        blocked.write_text("mine")
    plan = ["--plan-only"] if name == "plan" else []
    result = sniper("chips", *options(made, tmp_path / "out"), *plan)
    assert result.status in (1, 2)
    assert str(blocked) in result.err
    assert blocked.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk_is_an_error_that_names_the_file_and_a_rerun_completes(workers: int, tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    for i in range(6):
        made.add_image(i, encoded(texture(200, 200, i), quality=95), f"{i}.jpg", 200, 200)
    build(made, tmp_path / "first")  # numba's cache must be filled: it could not be written either
    command = ["chips", *options(made, tmp_path / "out"), "--workers", workers, "--set", "chips.images_per_shard=2"]
    full = installed(*command, file_limit=40_000)
    assert full.status == 1
    assert "cannot be written: " in full.err
    assert str(tmp_path / "out/positives/chips-0000") in full.err
    assert "run the same command again" in full.err
    assert not (tmp_path / "out/run.json").exists()
    report = build(made, tmp_path / "out", ChipSettings(images_per_shard=2))
    assert report.num_shards == 3
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    assert_reconciles(tmp_path / "out", made.content())


def test_installed_command_prints_no_traceback_on_bad_input(tmp_path: Path) -> None:
    made = sound_set(tmp_path)
    made.add_image(50, b"text", "bad.jpg")
    made.add_image(51, b"", "шум-图.jpg")
    made.add_box(1, [0, 0, 1e-200, 1e-200])
    # a terminal that cannot show these letters
    result = installed("chips", *options(made, tmp_path / "out"), PYTHONIOENCODING="latin-1")
    assert result.status == 1
    assert "not_an_image" in result.out
    assert "\\u56fe.jpg" in result.out
    assert "2 of 4 images were refused" in result.err
    assert_reconciles(tmp_path / "out", made.content())


def test_installed_command_ends_quietly_when_its_reader_does(tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    for i in range(300):
        made.images.append({"id": i, "file_name": f"../{'x' * 400}{i}", "width": 0, "height": 1})
    command = f"'{SNIPER}' check --annotations '{made.write()}' | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["odd/BloodImage_00338.xml", "odd/lfs_pointer_instead_of_json.json"])
def test_check_real_file_that_is_not_coco_fails_by_name(name: str, sniper: RunSniper) -> None:
    path = shared_data(name)
    result = sniper("check", "--annotations", path)
    assert result.status == 1
    assert result.err.startswith(f"sniper: {path}: ")


@pytest.mark.parametrize("name", ["odd/visdrone_train_first50.json", "odd/lvis_val_100.json"])
def test_check_real_odd_file_is_read(name: str, sniper: RunSniper) -> None:
    path = shared_data(name)
    content = json.loads(path.read_bytes())
    result = sniper("check", "--annotations", path)
    assert f"{len(content['images']):,} images, {len(content['annotations']):,} boxes" in result.out
    assert "sniper: " not in result.err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["check", "--help"], ["chips", "-h"]])
def test_help_names_what_there_is(arguments: list[str], sniper: RunSniper) -> None:
    result = sniper(*arguments)
    assert "Usage: sniper" in result.out + result.err


def test_version_names_codec_and_resizer(sniper: RunSniper) -> None:
    result = sniper("--version")
    assert result.status == 0
    assert result.out.startswith("sniper ")
    assert "JPEG: simplejpeg" in result.out
    assert "resize: pillow" in result.out
    assert "image formats: JPEG, PNG, BMP, GIF, TIFF (" in result.out


def is_running(pid: str) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("sent", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_stopped_chips_keep_finished_shards_and_leave_no_worker(
    sent: signal.Signals, name: str, tmp_path: Path
) -> None:
    made = CocoSet(tmp_path)
    content = encoded(texture(900, 900))
    for i in range(80):
        made.add_image(i, content, width=900, height=900, boxes=[[8, 8, 400, 400]])
    out, inputs = tmp_path / "out", ["--annotations", made.write(), "--images", made.image_root, "--workers", 2]
    command = [SNIPER, "chips", *map(str, inputs), "--out", str(out), "--set", "chips.images_per_shard=1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list(out.glob("positives/*.parquet")):
            assert process.poll() is None
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(sent)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + sent
    assert f"sniper: stopped by {name}; run the same command again: what is finished is kept" in told
    assert "Traceback" not in told
    assert children
    deadline = time.monotonic() + 20
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (out / "run.json").exists()
    assert list(out.glob("positives/*.parquet"))


def test_check_tells_the_next_command_with_the_settings_given(tmp_path: Path, sniper: RunSniper) -> None:
    config = tmp_path / "my settings.yaml"
    config.write_text("chips: {seed: 3}\n")
    given = ["--config", config, "--set", "chips.min_side=3", "--set", "chips.ignore_categories=[thing]"]
    result = sniper("check", *options(sound_set(tmp_path)), *given, "--set", "chips.ignore_categories=[]")
    told = f"--config '{config}' --set chips.min_side=3 --set 'chips.ignore_categories=[thing]' --set "
    assert told in result.err
