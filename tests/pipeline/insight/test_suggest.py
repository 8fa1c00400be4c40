"""`sniper suggest`: one YAML file that chips, negatives and train all take."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.commands.chips import chips
from pipeline.insight.suggest import describe, suggest
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, Settings, SideScale, load_settings
from scripts.make_demo_data import make_demo_data
from tests.builders import CocoSet
from tests.conftest import RunSniper
from tests.pipeline.conftest import DataSet


def test_suggest__its_file_drives_chips_negatives_and_train(sniper: RunSniper, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    make_demo_data(tmp_path, num_train=4, num_val=1)
    demo_set = DataSet(tmp_path / "train.json", tmp_path / "train")
    config, out, run = tmp_path / "sniper.yaml", tmp_path / "chips", tmp_path / "run"
    told = sniper("suggest", "--annotations", demo_set.annotations, "--device", "cpu", "--out", config)
    assert told.status == 0
    assert f"next: sniper train --data CHIPS --out RUN --config {config}" in told.err
    assert set(yaml.safe_load(config.read_text())) == {"chips", "negatives", "model", "train"}
    data = ("--data", out, "--config", config)
    given = ("--annotations", demo_set.annotations, "--images", demo_set.images)
    assert sniper("chips", *given, "--out", out, "--config", config, "--workers", 1).status == 0
    assert sniper("negatives", *data, "--random", 1, "--workers", 1).status == 0
    trained = sniper("train", *data, "--out", run, "--epochs", 1)
    assert trained.status == 0
    assert "anchors meet" in trained.err
    assert "WARNING: below" not in trained.err  # some anchor meets the boxes of every scale
    assert "2 to 5" in trained.err
    assert [*run.glob("step-*.pt")]


def test_suggest__every_value_has_a_comment_that_says_why(demo_set: DataSet, tmp_path: Path) -> None:
    found = suggest(demo_set.annotations)
    lines = found.text.splitlines()
    values = [number for number, line in enumerate(lines) if line.startswith("  ") and not line.startswith("  #")]
    assert len(values) >= 10
    assert all(lines[number - 1].startswith("  # ") for number in values)
    (tmp_path / "sniper.yaml").write_text(found.text)
    assert load_settings(tmp_path / "sniper.yaml") == found.settings
    assert max(map(len, lines)) <= 110


def test_suggest__what_is_given_stays(demo_set: DataSet) -> None:
    given = Settings.model_validate(
        {"chips": {"size": 384, "quality": 80}, "train": {"epochs": 5}, "detect": {"sigma": 0.4}}
    )
    found = suggest(demo_set.annotations, given, device="cpu")
    assert (found.settings.chips.size, found.settings.chips.quality) == (384, 80)
    assert found.settings.train.epochs == 5
    assert found.settings.detect.sigma == 0.4
    assert found.settings.chips.scales[-1] == SideScale(long_side=384)
    assert found.text.count("# as given\n") == 4
    assert found.chosen == "balanced"


def test_suggest__given_scales_are_judged_beside_the_proposals(demo_set: DataSet) -> None:
    chip_settings = ChipSettings(scales=[2.0, SideScale(long_side=512)], ranges=[(0, 100), (60, None)])
    found = suggest(demo_set.annotations, Settings(chips=chip_settings))
    assert list(found.costs) == ["lean", "balanced", "dense", "as given", "paper"]
    assert found.chosen == "as given"
    assert found.settings.chips.scales == chip_settings.scales
    report = chips(
        demo_set.annotations, demo_set.images, demo_set.images.parent / "planned", Settings(chips=chip_settings)
    )
    assert found.costs["as given"].chips == report.counts["chips"]["total"]


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"proposal": "paper"}])
def test_suggest__refuses_devices_and_proposals_that_there_are_not(demo_set: DataSet, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=f"{name}: expected one of .*, found '{options[name]}'"):
        suggest(demo_set.annotations, **options)


def test_suggest__refuses_settings_under_which_boxes_are_valid_nowhere(sniper: RunSniper, demo_set: DataSet) -> None:
    gap = ("--set", "chips.scales=[2, {long_side: 512}]", "--set", "chips.ranges=[[0, 20], [200, null]]")
    told = sniper("suggest", "--annotations", demo_set.annotations, *gap)
    assert told.status == 1
    assert "more than --max-nowhere 0.01 allows" in told.err
    told = sniper("suggest", "--annotations", demo_set.annotations, *gap, "--max-nowhere", 1)
    assert told.status == 0
    assert "ranges: [[0.0, 20.0], [200.0, null]]" in told.out


def test_suggest__takes_several_files_whatever_their_images_are_called(demo_set: DataSet) -> None:
    once, twice = suggest(demo_set.annotations), suggest([demo_set.annotations, demo_set.annotations])
    assert twice.costs["paper"].chips == 2 * once.costs["paper"].chips
    assert twice.costs["paper"].comfortable == 2 * once.costs["paper"].comfortable


def test_suggest__without_an_object_there_is_nothing_to_suggest(tmp_path: Path) -> None:
    data = CocoSet(tmp_path)
    content = {"images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 64}], "annotations": []}
    data.root.mkdir(exist_ok=True)
    path = tmp_path / "empty.json"
    path.write_text(json.dumps({**content, "categories": data.categories}))
    with pytest.raises(DataError, match="nothing to suggest"):
        suggest(path)


def test_suggest__says_what_is_probably_wrong_with_the_boxes(
    demo_set: DataSet, sniper: RunSniper, tmp_path: Path
) -> None:
    content = json.loads(demo_set.annotations.read_bytes())
    for box in content["annotations"]:
        x, y, width, height = box["bbox"]
        box["bbox"] = [x, y, x + width, y + height]
    (tmp_path / "corners.json").write_text(json.dumps(content))
    assert "seems to hold x1 y1 x2 y2" in sniper("suggest", "--annotations", tmp_path / "corners.json").err
    for box in content["annotations"]:
        box["bbox"] = [0.1, 0.1, 0.5, 0.5]
    (tmp_path / "shares.json").write_text(json.dumps(content))
    assert "they are shares of the image" in sniper("suggest", "--annotations", tmp_path / "shares.json").err


def test_suggest__writes_over_nothing_and_makes_the_folder_first(
    sniper: RunSniper, demo_set: DataSet, tmp_path: Path
) -> None:
    out = tmp_path / "new folder/sniper.yaml"
    words = ("suggest", "--annotations", demo_set.annotations, "--out", out)
    told = sniper(*words)
    assert told.status == 0
    assert f"--config '{out}'" in told.err  # as a shell reads it
    out.write_text("mine")
    refused = sniper(*words)
    assert (refused.status, "is there already" in refused.err) == (2, True)
    refused = sniper("suggest", "--annotations", demo_set.annotations, "--out", tmp_path)
    assert (refused.status, refused.out) == (2, "")  # before it has planned anything
    assert out.read_text() == "mine"


def test_suggest__says_which_proposals_are_the_same(tmp_path: Path, demo_set: DataSet) -> None:
    data = CocoSet(tmp_path)
    for number in range(3):
        boxes = [[40.0 * i, 30.0 * number, 60, 60] for i in range(5)]
        data.add_image(number, width=640, height=480, boxes=boxes, write=False)
    told = describe(suggest(data.write()))
    assert "`lean`, `balanced`, `dense` are the same here" in told
    assert "are the same here" not in describe(suggest(demo_set.annotations))
