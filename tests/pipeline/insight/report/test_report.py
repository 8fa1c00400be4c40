"""The report's numbers are those of the files, they add up, and its page opens in a browser."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import pipeline.insight.report.tally as tally
from pipeline.commands.chips import chips
from pipeline.commands.negatives import negatives
from pipeline.insight.report.facts import collect_facts
from pipeline.insight.report.remarks import remarks
from pipeline.insight.report.report import report
from schemas.errors import MissingError, UsageError
from schemas.settings import Settings
from tests.browser import browsing
from tests.builders import CocoSet, build, sound_set
from tests.conftest import RunSniper
from tests.pipeline.conftest import DataSet
from tests.s3 import S3

TARGETS = ("valid", "rescued")


@pytest.fixture(scope="module")
def data(demo_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chips and random negatives of the demo's scenes."""
    out = tmp_path_factory.mktemp("report") / "chips[1]"
    chips(demo_set.annotations, demo_set.images, out, Settings())
    negatives(out, random=2)
    return out


@pytest.fixture(scope="module")
def facts(data: Path) -> dict[str, Any]:
    return collect_facts(data)


def rows(data: Path, kind: str) -> list[dict[str, Any]]:
    return [
        row for file in sorted((data / kind).glob("*.parquet")) for row in pl.read_parquet(file, glob=False).to_dicts()
    ]


def sides(box: dict[str, Any]) -> float:
    return float(((box["x2"] - box["x1"]) * (box["y2"] - box["y1"])) ** 0.5)


def test_facts__tell_categories_of_one_name_apart(tmp_path: Path) -> None:
    made = CocoSet(
        tmp_path, categories=[{"id": 3, "name": "cat"}, {"id": 9, "name": "cat"}, {"id": 11, "name": "dog"}]
    )
    made.add_image(1)
    build(made, tmp_path / "chips", workers=1)
    assert sorted(row["name"] for row in collect_facts(tmp_path / "chips")["classes"]) == ["cat #3", "cat #9", "dog"]


def test_facts__of_each_scale_are_those_of_the_manifests(facts: dict[str, Any], data: Path) -> None:
    for kind in ("positives", "negatives"):
        for index, scale in enumerate(facts["scales"]):
            here = [row for row in rows(data, kind) if row["scale_index"] == index]
            made = scale[kind]
            assert made["chips"] == len(here)
            assert made["bytes"] == sum(row["size"] for row in here)
            assert made["pixels"] == sum(row["width"] * row["height"] for row in here)
            assert made["without_targets"] == sum(row["num_valid"] == 0 for row in here)
            statuses = Counter(box["status"] for row in here for box in row["boxes"])
            assert {name: count for name, count in made["boxes"].items() if count} == statuses
            if kind == "positives":
                held = [[box for box in row["boxes"] if box["status"] in TARGETS] for row in here]
                number = Counter(map(len, held))
                assert {r["targets"]: r["chips"] for r in scale["targets_per_chip"]} == number
                share = [
                    sum(sides(box) ** 2 for box in boxes) / (row["width"] * row["height"])
                    for row, boxes in zip(here, held, strict=True)
                ]
                bins = np.histogram(share, bins=20, range=(0, 1))[0].tolist()
                filled = {round(r["from"] * 20): r["chips"] for r in scale["filled"]}
                assert [filled.get(i, 0) for i in range(20)] == bins


def test_facts__sizes_are_of_whole_boxes_before_and_after_scaling(facts: dict[str, Any], data: Path) -> None:
    ledger = pl.read_parquet(data / "annotations.parquet", glob=False).to_dicts()
    size = {(row["image_id"], row["annotation_id"]): sides(row) for row in ledger}
    for index, scale in enumerate(facts["scales"]):
        here = [row for row in rows(data, "positives") if row["scale_index"] == index]
        boxes = [(size[row["image_id"], box["annotation_id"]], row["scale"]) for row in here for box in row["boxes"]]
        for bins, values in (
            (scale["sizes"], [size for size, _ in boxes]),
            (scale["chip_sizes"], [size * factor for size, factor in boxes]),
        ):
            assert sum(row["boxes"] for row in bins) == len(boxes)
            for row in bins:
                around = sum(row["from"] * 0.999 <= value < row["to"] * 1.001 for value in values)
                assert 0 < row["boxes"] <= around
        low, high = scale["range"]
        inside = [row for row in scale["sizes"] if row["status"] == "valid"]
        assert all(row["to"] > low and (high is None or row["from"] < high) for row in inside)


def test_facts__of_each_class_are_those_of_the_ledger(facts: dict[str, Any], data: Path) -> None:
    ledger = pl.read_parquet(data / "annotations.parquet", glob=False).to_dicts()
    positives = rows(data, "positives")
    factor = {(row["image_id"], row["scale_index"]): row["scale"] for row in positives}
    for row in facts["classes"]:
        mine = [a for a in ledger if a["category_id"] == row["id"] and a["fate"] != "refused"]
        plain = [a for a in mine if a["fate"] != "crowd"]
        assert row["boxes"] == len(plain)
        assert row["crowd"] == len(mine) - len(plain)
        assert row["whole"] == sum(a["fate"] in ("covered", "rescued") for a in mine)
        assert row["comfortable"] == sum(
            any(32 <= sides(a) * factor[a["image_id"], s] <= 240 for s in a["scales"])
            for a in plain
            if a["fate"] == "covered"
        )
        held = [
            [box for box in chip["boxes"] if box["status"] in TARGETS and box["category_id"] == row["id"]]
            for chip in positives
        ]
        assert row["targets"] == sum(map(len, held))
        assert row["chips"] == sum(map(bool, held))


def test_facts__of_negatives_are_those_of_the_pool(facts: dict[str, Any], data: Path) -> None:
    found, pool = facts["negatives"], rows(data, "negatives")
    images = {row["image_id"]: row for row in pl.read_parquet(data / "images.parquet", glob=False).to_dicts()}
    assert found["chips"] == len(pool)
    per_image = Counter(Counter(row["image_id"] for row in pool)[image] for image in images)
    assert {r["negatives"]: r["images"] for r in found["images_by_number"] if r["images"]} == per_image
    cells = Counter(
        (
            row["scale_index"],
            int((row["x1"] + row["x2"]) / 2 / images[row["image_id"]]["width"] * 10) * 10,
            int((row["y1"] + row["y2"]) / 2 / images[row["image_id"]]["height"] * 10) * 10,
        )
        for row in pool
    )
    assert {(r["scale_index"], r["% from left"], r["% from top"]): r["chips"] for r in found["places"]} == cells


def test_facts__the_number_of_shards_at_a_time_changes_nothing(
    facts: dict[str, Any], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "SHARDS", 1)
    assert collect_facts(data) == facts


def test_facts__a_lost_shard_is_a_mismatch(tmp_path: Path) -> None:
    out = tmp_path / "my chips"
    build(sound_set(tmp_path / "data"), out)
    assert collect_facts(out)["mismatches"] == []
    (out / "positives/chips-00001.parquet").unlink()
    found = collect_facts(out)
    assert any("positive chips: manifests" in line for line in found["mismatches"])
    lines = remarks(found)
    assert f"run `sniper verify '{out}'`" in lines[0]
    assert any(f"`sniper negatives --data '{out}'`" in line for line in lines)


def test_facts__refused_records_are_grouped_by_cause(tmp_path: Path) -> None:
    made = sound_set(tmp_path / "data")
    for number in range(5):
        made.add_image(100 + number, content=b"no image")
    made.add_box(1, [0, 0, -3, 4])
    build(made, tmp_path / "out")
    found = collect_facts(tmp_path / "out")
    images = next(group for group in found["rejects"] if group["reason"] == "not_an_image")
    assert (images["kind"], images["count"], len(images["examples"])) == ("image", 5, 3)
    assert images["examples"][0].startswith("100.jpg: ")
    assert images["examples"][0].count("100.jpg") == 1
    assert found["images"]["refused"] == {"not_an_image": 5}
    assert found["boxes"]["refused"] == {"no_area": 1}
    assert found["mismatches"] == []
    assert any("5 of 7 images were refused" in line for line in remarks(found))


def test_report__writes_a_page_that_a_browser_shows(data: Path, tmp_path: Path, sniper: RunSniper) -> None:
    out = tmp_path / "new/report.html"
    result = sniper("report", data, "--out", out)
    assert result.status == 0, result.err
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["images"]["total"] == 12
    for line in found["remarks"]:
        assert line in result.out
    with browsing() as browser:
        for width in (1280, 390):
            browser.open(out, width)
            browser.wait_for(
                "document.querySelectorAll('.vega svg').length == document.querySelectorAll('.vega').length"
            )
            assert browser.value("document.querySelectorAll('.vega svg').length") >= 14
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.value("[...document.images].length") >= 16
            assert browser.value("[...document.images].every(image => image.naturalWidth == 262)")
        text = browser.value("document.body.innerText")
        assert "ledger, manifests and run.json agree" in text
        for row in found["classes"]:
            assert row["name"] in text
        assert browser.requests() == []
        assert browser.faults() == []


def test_report__of_a_bucket_has_the_same_numbers(tmp_path: Path, s3: S3) -> None:
    made = sound_set(tmp_path / "data")
    build(made, tmp_path / "out")
    there = f"{s3.url}/out[1]"
    chips(made.path, made.image_root, there, Settings())
    near = report(tmp_path / "out", tmp_path / "near.html")
    far = report(there, f"{s3.url}/reports/far.html")
    assert {**near, "data": "", "remarks": []} == {**far, "data": "", "remarks": []}
    assert {"reports/far.html", "reports/far.json"} <= set(s3.keys())


def test_report__says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="sniper chips"):
        report(tmp_path, tmp_path / "report.html")
    with pytest.raises(UsageError, match="ends in .html"):
        report(tmp_path, tmp_path / "report.pdf")


def test_report__writes_over_no_json_but_its_own(data: Path, tmp_path: Path, sniper: RunSniper) -> None:
    """The numbers go beside the page under its name, where annotations or the record of a build may lie."""
    (tmp_path / "train.json").write_text('{"images": []}')
    refused = sniper("report", data, "--out", tmp_path / "train.html")
    assert (refused.status, "train.json: is there and is no report" in refused.err) == (2, True)
    assert (tmp_path / "train.json").read_text() == '{"images": []}'
    assert not (tmp_path / "train.html").exists()
    with pytest.raises(UsageError, match=r"run\.json: is there and is no report"):
        report(data, data / "run.html")
    for _ in range(2):  # its own is replaced
        assert sniper("report", data, "--out", tmp_path / "report.html").status == 0
