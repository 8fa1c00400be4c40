"""Recall of the RPN's proposals: perfect ones score 1, the best N count, and they are those that mining pools."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.coco import SourceImage
from pipeline.coco.read import read_coco
from pipeline.commands.chips import chips
from pipeline.dataset.proposals import Extents, read_proposals
from pipeline.planning.mine import merge_scales
from pipeline.pyramid.search import SearchLog
from schemas.errors import DataError
from schemas.settings import ChipSettings, DetectSettings, Settings, load_settings
from schemas.tables import PROPOSALS
from scripts.make_demo_data import make_demo_data
from tests.conftest import RunSniper
from tests.trainer.columns import objects_of, results_of
from tests.trainer.runs import TINY, TINY_CHIPS
from trainer.evaluation.ground_truth import Objects
from trainer.evaluation.recall import best_proposals, recall
from trainer.evaluation.results import join_results
from trainer.inference.extract import MOST, propose_images
from trainer.inference.opening import Inference, open_inference
from trainer.runtime.checkpoint import chosen_file, read_checkpoint, write_checkpoint
from trainer.training.make_proposals import make_proposals

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, chips, a run of the RPN alone and its proposals. Not to be changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("recall")
    make_demo_data(folder, num_train=NUM_IMAGES, num_val=1)
    settings = load_settings(None, (*TINY, *TINY_CHIPS, "negatives.rpn_epochs=1"))
    chips(folder / "train.json", folder / "train", folder / "chips", settings)
    make_proposals(folder / "chips", folder / "train", settings)
    return folder


def truth_of(*boxes: tuple[float, float, float, float], crowd: int = 0) -> Objects:
    """One image with these boxes, x y width height, of alternating classes."""
    fields = [{"image_id": 1, "bbox": list(box), "area": 1.0, "iscrowd": 0} for box in boxes]
    fields += [{"image_id": 1, "bbox": [500, 500, 60, 60], "area": 1.0, "iscrowd": 1} for _ in range(crowd)]
    return objects_of([{**box, "category_id": 1 + i % 2} for i, box in enumerate(fields)])


def proposal(box: tuple[float, float, float, float], score: float = 0.5) -> dict[str, Any]:
    return {"image_id": 1, "bbox": list(box), "score": score}


def test_recall__of_the_truth_is_one_where_there_are_boxes() -> None:
    """Of two classes, by the size of the box (their `area` is 1); a crowd that nothing finds costs nothing."""
    boxes = [(0.0, 0.0, 8.0, 18.0), (100.0, 0.0, 30.0, 30.0), (0.0, 100.0, 300.0, 75.0)]  # 12, 30, 150 px
    summary = recall(truth_of(*boxes, crowd=1), results_of([proposal(box) for box in boxes]), 300)
    there = ("AR", "AR50", "AR75", "AR_0-25", "AR_25-50", "AR_100-200")
    assert summary == {**dict.fromkeys(there, 1.0), "AR_50-100": None, "AR_200-300": None}


def test_recall__by_hand() -> None:
    """IoU 0.62 is enough at 0.5, 0.55 and 0.6 of ten thresholds; 25 px belong to one bin."""
    summary = recall(truth_of((0, 0, 25, 25)), results_of([proposal((0, 0, 25, 15.5))]), 300)
    assert (summary["AR50"], summary["AR75"]) == (1, 0)
    assert summary["AR"] == summary["AR_25-50"] == pytest.approx(0.3)
    assert summary["AR_0-25"] is None


def test_recall__nothing_found() -> None:
    assert recall(truth_of((0, 0, 25, 25)), join_results([]), 300)["AR"] == 0
    assert recall(truth_of(), results_of([proposal((0, 0, 9, 9))]), 300)["AR"] is None


def test_recall__the_best_count() -> None:
    near, far = (0.0, 0.0, 50.0, 50.0), (200.0, 200.0, 50.0, 50.0)
    proposals = results_of([proposal(near, 0.1), proposal((600, 600, 50, 50), 0.9), proposal(far, 0.5)])
    assert [recall(truth_of(near, far), proposals, most)["AR"] for most in (1, 2, 3)] == [0, 0.5, 1]


def test_best_proposals__pooled_over_scales() -> None:
    """The box that two scales found stays once, with the better score."""
    boxes = np.array([[10, 10, 50, 50], [60, 10, 90, 50], [10, 10, 50, 49], [0, 0, 7, 7]], np.float32)
    scores = np.array([0.6, 0.7, 0.8, 0.1], np.float32)
    columns = [np.full(4, 3), np.array([0, 0, 1, 1], np.int8), *np.ascontiguousarray(boxes.T), scores]
    found = best_proposals(3, pa.table(columns, schema=PROPOSALS), 2)
    assert (found.image_id == 3).all()
    assert found.boxes.tolist() == [[10, 10, 50, 49], [60, 10, 90, 50]]
    assert found.scores.tolist() == pytest.approx([0.8, 0.7])
    assert len(best_proposals(3, PROPOSALS.empty_table(), 2).scores) == 0


def test_propose_images__boxes_have_an_area(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """101 px at scale 0.5 make 51 columns; what lies in the last half of the last is beyond the image."""
    Image.new("RGB", (101, 64)).save(tmp_path / "a.png")
    beyond, inside = torch.tensor([[50.6, 1, 51, 9]]), torch.tensor([[40.0, 1, 51, 9]]).repeat(MOST + 5, 1)
    found = (torch.cat([beyond, inside]), torch.linspace(1, 0, MOST + 6))
    monkeypatch.setattr("trainer.inference.extract.propose", lambda model, pixels, sizes: [found] * len(pixels))
    settings = ChipSettings.model_validate({"scales": [0.5], "ranges": [[0, None]]})
    images = [SourceImage(7, "a.png", 101, 64)]
    inference = Inference(cast(Any, None), settings, DetectSettings(), torch.device("cpu"), "fp32")
    [(position, rows)] = propose_images(inference, [range(1)], images, tmp_path, SearchLog())
    assert (position, len(rows)) == (0, MOST)
    assert set(zip(rows["x1"].to_pylist(), rows["x2"].to_pylist(), strict=True)) == {(80, 101)}
    assert rows["score"][0].as_py() == pytest.approx(found[1][1].item())


def test_evaluate__proposals_are_those_that_mining_pools(demo: Path, tmp_path: Path, sniper: RunSniper) -> None:
    """On the checkpoint of the RPN alone, and in a form that `sniper negatives` reads."""
    data = ("--annotations", demo / "train.json", "--images", demo / "train")
    checkpoint = ("--allow-seen", "--checkpoint", demo / "chips/proposals/rpn")
    out = tmp_path / "proposals.json"
    result = sniper("evaluate", "--proposals", *checkpoint, *data, "--out", out)
    assert result.status == 0, result.err
    summary = json.loads((tmp_path / "proposals.summary.json").read_bytes())
    assert [line.split()[0] for line in result.out.splitlines()] == list(summary)
    assert 0 <= summary["AR"] <= summary["AR50"] <= 1
    assert set(json.loads(out.read_bytes())[0]) == {"image_id", "bbox", "score"}
    images = pl.read_parquet(demo / "chips/images.parquet").sort("image_id")
    sizes = images.select("width", "height").to_numpy().astype(float)
    extents = Extents(images["image_id"].to_numpy(), sizes, np.empty(0, np.int64))
    written, mined = read_proposals(out, extents), merge_scales(read_proposals(demo / "chips/proposals", extents), 0.7)
    # 20 per view are fewer than 300 in all
    assert (written.offsets == mined.offsets).all()
    assert (written.boxes == mined.boxes).all()
    assert (written.score == mined.score).all()
    few = sniper("evaluate", "--proposals", *checkpoint, *data, "--out", out, "--max-dets", 5)
    assert few.status == 0, few.err
    assert "WARNING" in few.out  # an image with more objects
    counts = np.diff(read_proposals(out, extents).offsets)
    assert (counts == np.minimum(np.diff(mined.offsets), 5)).all()


def test_evaluate__proposals_of_other_classes_and_without_a_bad_image(
    demo: Path, tmp_path: Path, sniper: RunSniper
) -> None:
    content = json.loads((demo / "train.json").read_bytes())
    content["categories"] = [{"id": 99, "name": "other"}]
    content["annotations"] = [{**box, "category_id": 99} for box in content["annotations"]]
    (tmp_path / "other.json").write_text(json.dumps(content))
    shutil.copytree(demo / "train", tmp_path / "images")
    bad = read_coco(demo / "train.json").images(0, 1)[0]
    (tmp_path / "images" / bad.file_name).write_bytes(b"not an image")
    data = ("--annotations", tmp_path / "other.json", "--images", tmp_path / "images")
    options = ("--allow-seen", "--checkpoint", demo / "chips/proposals/rpn", "--out", tmp_path / "out.json")
    result = sniper("evaluate", "--proposals", *options, *data)
    assert result.status == 1, result.err  # an image could not be read
    assert bad.file_name in result.out
    assert len({each["image_id"] for each in json.loads((tmp_path / "out.json").read_bytes())}) == NUM_IMAGES - 1


def test_open_inference__refuses_weights_that_are_not_finite(demo: Path, tmp_path: Path) -> None:
    """With one NaN in a layer nothing is found, which would pass for a network that has learnt nothing."""
    sound = read_checkpoint(chosen_file(demo / "chips/proposals/rpn"))
    weights = {name: value.clone() for name, value in sound.model.items()}
    weights["rpn.conv.bias"][3] = float("nan")
    write_checkpoint(tmp_path / "bad.pt", sound._replace(model=weights))
    with pytest.raises(DataError, match=r"bad\.pt: 1 tensors hold values that are NaN .* first rpn\.conv\.bias"):
        open_inference(tmp_path / "bad.pt", Settings(), torch.device("cpu"))
