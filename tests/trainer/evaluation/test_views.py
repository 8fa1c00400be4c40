"""What any program finds on views becomes detections on images: perfect results score 1, and no torch is needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from pipeline.exchange.views import read_index, views
from schemas.errors import DataError, MissingError, UsageError
from schemas.settings import load_settings
from tests.conftest import RunSniper
from tests.on_views import perfect
from tests.paths import ROOT
from trainer.evaluation.views import merge_views

SETTINGS = ("chips.scales=[1.0, 0.5, {long_side: 128}]", "chips.ranges=[[0, 40], [32, 90], [70, null]]")
TILES = ("detect.max_side=220",)


@pytest.fixture(scope="module")
def pyramid(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The views of the demo's validation images. Not to be changed."""
    out = tmp_path_factory.mktemp("pyramid") / "views"
    settings = load_settings(None, (*SETTINGS, *TILES))
    views(demo / "val", out, settings, annotations=demo / "val.json", workers=1)
    return out


def test_merge_views__perfect_results_score_one(demo: Path, pyramid: Path, tmp_path: Path, sniper: RunSniper) -> None:
    found = perfect(pyramid, demo / "val.json")
    (tmp_path / "found.json").write_text(json.dumps(found))
    arguments = ("merge-views", pyramid, "--results", tmp_path / "found.json", "--out", tmp_path / "merged.json")
    result = sniper(*arguments, "--annotations", demo / "val.json", "--set", "detect.merge=hard")
    assert result.status == 0
    assert "AP                          1.000" in result.out
    summary = json.loads((tmp_path / "merged.summary.json").read_bytes())
    assert all(
        value is None or value == pytest.approx(1.0)
        for name, value in summary.items()
        if not name.startswith("score[")
    ), summary
    truth = COCO(str(demo / "val.json"))
    merged = truth.loadRes(str(tmp_path / "merged.json")).dataset["annotations"]
    assert len(merged) == sum(not a["iscrowd"] for a in truth.dataset["annotations"]) < len(found)


def test_merge_views__corners_in_place_of_width_and_height_are_named(
    demo: Path, pyramid: Path, tmp_path: Path, sniper: RunSniper
) -> None:
    found = perfect(pyramid, demo / "val.json")
    for record in found:
        x, y, width, height = record["bbox"]
        record["bbox"] = [x, y, x + width, y + height]
    (tmp_path / "found.json").write_text(json.dumps(found))
    result = sniper("merge-views", pyramid, "--results", tmp_path / "found.json", "--out", tmp_path / "merged.json")
    assert result.status == 0
    assert "found.json: " in result.out
    assert "seems to hold x1 y1 x2 y2" in result.out


def test_merge_views__takes_the_settings_that_act_and_refuses_others(
    demo: Path, pyramid: Path, tmp_path: Path
) -> None:
    (tmp_path / "found.json").write_text(json.dumps(perfect(pyramid, demo / "val.json")))
    places = (pyramid, tmp_path / "found.json", tmp_path / "out.json")
    [(_, name), *_] = read_index(pyramid).categories
    ignoring = load_settings(None, (f"chips.ignore_categories=[{name}]",))
    merged = merge_views(*places, ignoring, annotations=demo / "val.json")
    assert merged.summary is not None
    assert merged.summary[f"AP[{name}]"] is None
    assert merge_views(*places, load_settings(None, SETTINGS)).summary is None
    with pytest.raises(UsageError, match="chips.size: 512 there, 640 given"):
        merge_views(*places, load_settings(None, ("chips.size=640",)))


def test_merge_views__no_results_at_all_and_none_of_an_image(demo: Path, pyramid: Path, tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("[]")
    merged = merge_views(pyramid, tmp_path / "none.json", tmp_path / "out.json", annotations=demo / "val.json")
    assert merged.summary is not None
    assert merged.summary["AP"] == 0
    assert json.loads((tmp_path / "out.json").read_bytes()) == []
    one = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 20, 20], "score": 1}
    (tmp_path / "one.json").write_text(json.dumps([one]))
    merged = merge_views(pyramid, tmp_path / "one.json", tmp_path / "out.json")
    assert (len(merged.detections.scores), merged.num_on_views, merged.summary) == (1, 1, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"images": []}', "expected COCO results"),
        ("[1]", "expected COCO results"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3], "score": 1}]', "expected COCO results"),
        ('[{"image_id": "a", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]', "expected COCO results"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, NaN], "score": 1}]', "expected COCO results"),
        ('[{"image_id": 99999, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]', "are no views"),
        ("[", "expected COCO results"),
        ("", "expected COCO results"),
    ],
)
def test_merge_views__says_what_is_wrong_with_results(pyramid: Path, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "found.json").write_text(content)
    with pytest.raises(DataError, match=said):
        merge_views(pyramid, tmp_path / "found.json", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_merge_views__refuses_other_images_and_what_is_missing(demo: Path, pyramid: Path, tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text("[]")
    with pytest.raises(DataError, match="of the images that the views are of are not in it"):
        merge_views(pyramid, tmp_path / "found.json", tmp_path / "out.json", annotations=demo / "train.json")
    with pytest.raises(MissingError, match="no such file of results"):
        merge_views(pyramid, tmp_path / "none.json", tmp_path / "out.json")
    with pytest.raises(DataError, match="no finished views here; run `sniper views`"):
        merge_views(tmp_path, tmp_path / "found.json", tmp_path / "out.json")


def test_merge_views__refuses_classes_of_other_numbers(demo: Path, pyramid: Path, tmp_path: Path) -> None:
    content = json.loads((demo / "val.json").read_bytes())
    first, second, *_ = content["categories"]
    first["name"], second["name"] = second["name"], first["name"]
    (tmp_path / "other.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text("[]")
    with pytest.raises(DataError, match=f"numbers the classes otherwise.* {first['id']} is '{first['name']}'"):
        merge_views(pyramid, tmp_path / "found.json", tmp_path / "out.json", annotations=tmp_path / "other.json")


def test_merge_views__writes_over_nothing_that_it_reads(
    demo: Path, pyramid: Path, tmp_path: Path, sniper: RunSniper
) -> None:
    (tmp_path / "found.json").write_text("[]")
    (tmp_path / "truth.summary.json").write_bytes((demo / "val.json").read_bytes())
    (tmp_path / "link").symlink_to(tmp_path)
    index = (pyramid / "views.json").read_bytes()
    for out in ("link/found.json", "truth.summary.json", "truth.json", pyramid / "views.json"):
        arguments = ("merge-views", pyramid, "--results", tmp_path / "found.json", "--out", tmp_path / out)
        told = sniper(*arguments, "--annotations", tmp_path / "truth.summary.json")
        assert told.status == 2
        assert "would be written over" in told.err
    assert (tmp_path / "found.json").read_text() == "[]"
    assert (pyramid / "views.json").read_bytes() == index


def test_merge_views__makes_the_folder_and_writes_scores_short(pyramid: Path, tmp_path: Path) -> None:
    one = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 20.1, 20], "score": 0.9}
    (tmp_path / "one.json").write_text(json.dumps([one]))
    merge_views(pyramid, tmp_path / "one.json", tmp_path / "new/out.json")
    (written,) = json.loads((tmp_path / "new/out.json").read_bytes())
    assert written["score"] == 0.9
    merge_views(pyramid, tmp_path / "one.json", tmp_path / "new/out.json")  # its own file may be written again
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(UsageError, match="holds no results of this command"):
        merge_views(pyramid, tmp_path / "one.json", tmp_path / "mine.json")
    with pytest.raises(UsageError, match="is a folder"):
        merge_views(pyramid, tmp_path / "one.json", tmp_path / "new")
    with pytest.raises(UsageError, match="cannot be written"):
        merge_views(pyramid, tmp_path / "none.json", tmp_path / "one.json/out.json")


def test_merge_views__needs_no_torch() -> None:
    command = "import sys; import trainer.evaluation.views; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True)
