"""The report of a run tells what its log and its detections hold, and its page opens in a browser."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from schemas.errors import DataError, UsageError
from tests.browser import browsing
from tests.conftest import RunSniper
from tests.paths import ROOT
from tests.trainer.evaluation.test_matching import CLASSES, scenes
from trainer.evaluation.ground_truth import Objects
from trainer.evaluation.matching import NONE
from trainer.evaluation.results import CocoResults
from trainer.insight.crops import SHOWN, choose_false, choose_missed
from trainer.insight.findings import Kind, as_facts, find_errors, object_sizes
from trainer.insight.history import POINTS, read_history
from trainer.insight.report_run import report_run

BOUNDS = ((0.0, 4.0), (4.0, 8.0), (8.0, np.inf))


def write_log(run: Path, records: list[dict[str, Any]], torn: str = "") -> Path:
    run.mkdir(exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + torn)
    return run


def step(number: int, **values: float) -> dict[str, Any]:
    return {"step": number, "epoch": number // 10, "loss": 1 / number, "rpn_box": 0.5 / number, "lr": 0.1} | values


def test_read_history__parts_steps_validations_and_classes(tmp_path: Path) -> None:
    scores = {"AP": 0.4, "AP50": 0.6, "AP[a]": 0.3, "AP50[a]": 0.5, "AP[b [c]]": 0.5, "AP[d\ne]": 0.7}
    records = [step(1), {"step": 1, "epoch": 0, "settings": ["changed"]}, step(2), {"step": 2, "epoch": 0, **scores}]
    history = read_history(write_log(tmp_path, records, torn='{"step": 3, "lo'))
    assert [row["step"] for row in history["steps"]] == [1, 2]
    assert history["validations"] == [{"step": 2, "epoch": 0, "AP": 0.4, "AP50": 0.6}]
    assert history["classes"] == {
        "a": [{"step": 2, "epoch": 0, "AP": 0.3, "AP50": 0.5}],
        "b [c]": [{"step": 2, "epoch": 0, "AP": 0.5}],
        "d\ne": [{"step": 2, "epoch": 0, "AP": 0.7}],
    }


def test_report_run__scored_is_two_files_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="scored: expected .detections, annotation file, image folder., found"):
        report_run(tmp_path, tmp_path / "a.html", scored="found.json")  # type: ignore[arg-type]


def test_read_history__averages_long_logs(tmp_path: Path) -> None:
    records = [step(i) for i in range(1, 2 * POINTS + 2)]
    steps = read_history(write_log(tmp_path, records))["steps"]
    assert len(steps) <= POINTS
    assert steps[0]["loss"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert (steps[0]["step"], steps[-1]["step"]) == (3, 2 * POINTS + 1)


def test_read_history__of_a_run_without_a_step_says_when_there_is_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no record of a step; a run writes one every train.log_every steps"):
        read_history(write_log(tmp_path, [], torn="no json\n"))


@given(scenes)
def test_as_facts__parts_add_up(scene: tuple[Objects, CocoResults]) -> None:
    truth, results = scene
    found = find_errors(truth, results)
    facts = as_facts(found, [(id_, str(id_)) for id_ in CLASSES], BOUNDS)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["objects"] == (~truth.crowd).sum() == sum(row["objects"] for row in facts["ranges"])
    assert facts["objects"] == sum(row["objects"] for row in facts["sizes"])
    assert facts["found"] == sum(row["found"] for row in facts["ranges"])
    assert facts["found"] == sum(row["objects"] for row in facts["sizes"] if row["what"] == "found")
    assert facts["false"] == sum(row["count"] for row in facts["errors"] if row["kind"] != "missed")
    background = next(row["count"] for row in facts["errors"] if row["kind"] == "background")
    assert background == sum(row["background"] for row in facts["ranges"])
    assert sum(cell["number"] for cell in facts["confusion"] if cell["object"] is not None) == facts["objects"]
    assert facts["best"]["F1"] is None or facts["best"]["F1"] >= 0
    for row in facts["classes"]:
        assert set(row) == {"class", "F1", "score", "precision", "recall"}
    for curve in facts["precision_recall"]:
        recalls = [point["recall"] for point in curve["points"]]
        precisions = [point["precision"] for point in curve["points"]]
        assert recalls == sorted(recalls)
        assert precisions == sorted(precisions, reverse=True)


@given(scenes)
def test_as_facts__tells_classes_of_one_name_apart(scene: tuple[Objects, CocoResults]) -> None:
    facts = as_facts(find_errors(*scene), [(id_, "thing") for id_ in CLASSES], BOUNDS)
    names = [f"thing #{id_}" for id_ in CLASSES]
    assert [row["class"] for row in facts["classes"]] == names
    curves = [curve["class"] for curve in facts["precision_recall"]]
    assert curves == [name for name in names if name in curves]


@given(scenes)
def test_choose__takes_the_surest_and_the_largest(scene: tuple[Objects, CocoResults]) -> None:
    truth, results = scene
    found = find_errors(truth, results)
    for kind in Kind:
        rows = np.flatnonzero(found.errors.kind == kind)
        crops = choose_false(found, kind)
        assert len(crops) == min(SHOWN, len(rows))
        assert len({crop.detection for crop in crops}) == len(crops)
        if crops:
            assert results.scores[crops[0].detection] == results.scores[rows].max()
            assert len({crop.image_id for crop in crops}) == min(SHOWN, len(set(results.image_id[rows].tolist())))
    missed = [crop for low, high in BOUNDS for crop in choose_missed(found, low, high)]
    assert all(found.errors.missed[crop.object] and crop.detection == NONE for crop in missed)
    if missed:
        largest = object_sizes(truth)[found.errors.missed].max()
        assert max(object_sizes(truth)[crop.object] for crop in missed) == largest


@pytest.fixture(scope="module")
def found(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Detections on the demo's validation images: some objects found, some boxes beside them, some of nothing."""
    annotations = json.loads((demo / "val.json").read_text())
    records = []
    for number, box in enumerate(annotations["annotations"]):
        x, y, width, height = box["bbox"]
        shifted = [x + width * (0, 0.5)[number % 3 == 1], y, width, height]
        if number % 3 < 2 and not box["iscrowd"]:
            records.append((box["image_id"], box["category_id"], shifted, 0.9 - number / 1000))
        records.append((box["image_id"], box["category_id"], [0, 0, 9, 9], 0.2))
    names = ("image_id", "category_id", "bbox", "score")
    path = tmp_path_factory.mktemp("found") / "found.json"
    path.write_text(json.dumps([dict(zip(names, record, strict=True)) for record in records]))
    return path


def test_report__of_a_run_shows_what_goes_wrong(
    checkpoint: Path, demo: Path, found: Path, tmp_path: Path, sniper: RunSniper
) -> None:
    out = tmp_path / "run.html"
    scored = ["--detections", found, "--annotations", demo / "val.json", "--images", demo / "val"]
    result = sniper("report", checkpoint.parent, "--out", out, *scored)
    assert result.status == 0, result.err
    assert "never validated" in result.out
    facts = json.loads(out.with_suffix(".json").read_text())
    number = {row["kind"]: row["count"] for row in facts["detections"]["errors"]}
    assert min(number["place"], number["background"], number["missed"]) > 0
    assert facts["detections"]["found"] > 0
    log = (checkpoint.parent / "log.jsonl").read_text().splitlines()
    assert facts["steps"][-1]["loss"] == json.loads(log[-1])["loss"]
    with browsing() as browser:
        for width in (1280, 390):
            browser.open(out, width)
            browser.wait_for(
                "document.querySelectorAll('.vega svg').length == document.querySelectorAll('.vega').length"
            )
            assert browser.value("document.querySelectorAll('.vega svg').length") == 8
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.value("[...document.images].every(image => image.naturalWidth > 0)")
            assert browser.value("document.images.length") >= 9
        assert browser.requests() == []
        assert browser.faults() == []


def test_report__what_is_found_on_a_refused_image_is_no_error(checkpoint: Path, demo: Path, tmp_path: Path) -> None:
    content = json.loads((demo / "val.json").read_text())
    names = ("image_id", "category_id", "bbox")
    results = [{**{name: box[name] for name in names}, "score": 0.9} for box in content["annotations"]]
    (tmp_path / "found.json").write_text(json.dumps(results))
    content["images"][1]["width"] = 0
    (tmp_path / "val.json").write_text(json.dumps(content))
    scored = (tmp_path / "found.json", tmp_path / "val.json", demo / "val")
    facts = report_run(checkpoint.parent, tmp_path / "run.html", scored=scored)
    assert {row["kind"]: row["count"] for row in facts["detections"]["errors"]}["background"] == 0


def test_report__of_a_validated_run_shows_ap(tmp_path: Path) -> None:
    scores = [{"step": i, "epoch": i, "AP": ap, "AP50": ap, "AP[a]": ap, "AP_range_0-80": ap} for i, ap in
              enumerate((0.1, 0.4, 0.2), 1)]  # fmt: skip
    run = write_log(tmp_path / "run", [step(1), step(2), *scores])
    facts = report_run(run, tmp_path / "run.html")
    assert any("below the best one (0.400)" in line for line in facts["remarks"])
    text = (tmp_path / "run.html").read_text()
    assert "AP of each class" in text
    assert "best AP, at step 2" in text


def test_report__says_what_does_not_go_together(
    checkpoint: Path, chip_folder: Path, found: Path, tmp_path: Path, sniper: RunSniper
) -> None:
    out = ["--out", tmp_path / "report.html"]
    result = sniper("report", checkpoint.parent, "--detections", found, *out)
    assert (result.status, "give --detections, --annotations and --images together" in result.err) == (2, True)
    data = chip_folder.parent / "data"
    scored = ["--detections", found, "--annotations", data / "train.json", "--images", data / "train"]
    result = sniper("report", chip_folder, *scored, *out)
    assert (result.status, "holds no training run" in result.err) == (2, True)
    odd = tmp_path / "odd.json"
    odd.write_text('{"images": []}')
    with pytest.raises(DataError, match="expected COCO results"):
        report_run(checkpoint.parent, tmp_path / "a.html", scored=(odd, data / "train.json", data / "train"))


def test_report__refuses_detections_of_other_data(checkpoint: Path, demo: Path, found: Path, tmp_path: Path) -> None:
    records = json.loads(found.read_text())
    place, scored = tmp_path / "other.json", (demo / "val.json", demo / "val")
    for changes, message in (
        ({"image_id": 999_999}, "1 of [0-9,]+ detections are of images that .*val.json does not list.* 999999"),
        ({"category_id": 55}, None),
    ):
        place.write_text(json.dumps([{**records[0], **changes}, *records[1:]]))
        if message:
            with pytest.raises(DataError, match=message):
                report_run(checkpoint.parent, tmp_path / "a.html", scored=(place, *scored))
        else:
            facts = report_run(checkpoint.parent, tmp_path / "a.html", scored=(place, *scored))
            assert any(
                "1 of" in line and "does not have, and enter no score of a class" in line for line in facts["remarks"]
            )
    place.write_text(json.dumps([{**record, "category_id": 55} for record in records]))
    with pytest.raises(DataError, match="such as category_id 55"):
        report_run(checkpoint.parent, tmp_path / "a.html", scored=(place, *scored))


def test_report__of_chips_needs_no_torch(chip_folder: Path, tmp_path: Path) -> None:
    command = "import sys; sys.modules['torch'] = None; from sniper_chips import main; main()"
    out = tmp_path / "report.html"
    arguments = [sys.executable, "-c", command, "report", str(chip_folder), "--out", str(out)]
    subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
    assert out.is_file()
