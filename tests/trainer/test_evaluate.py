"""Evaluation on whole images: perfect detections score 1, ids come back, ranks and odd images change nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from pipeline.chips import chips
from pipeline.coco import SourceImage, read_coco
from schemas.detect import DetectSettings
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, load_settings
from scripts.make_demo_data import make_demo_data
from tests.pipeline.sources import make_source
from tests.trainer.runs import TINY_CHIPS, tiny_settings
from trainer.checkpoint import find_checkpoints
from trainer.detect import detect, merge
from trainer.evaluate import as_results, describe, evaluate, load_truth, score
from trainer.model import Detections
from trainer.pyramid import compose, plan_views
from trainer.train import train
from trainer.views import Viewed, tile_overlaps, widened_ranges


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    make_demo_data(folder, num_train=4, num_val=8)
    chips(folder / "train.json", folder / "train", folder / "chips", load_settings(None, TINY_CHIPS).chips)
    return folder


@pytest.fixture(scope="module")
def checkpoint(demo: Path) -> Path:
    torch.set_num_threads(1)
    return train(demo / "chips", demo / "run", tiny_settings("train.norm=train", "train.norm_momentum=0.3"))


def perfect(
    image: SourceImage, boxes: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], options: DetectSettings
) -> Any:
    """The boxes of an image as a perfect network would find them in every view, whole or cut by a tile."""
    settings = ChipSettings()
    views = plan_views([image], settings, options.max_side, tile_overlaps(settings.bounds()))
    seen = []
    for view in views:
        x1, y1, x2, y2 = view.window
        origin, limit = np.array([x1, y1, x1, y1]), np.array([x2, y2, x2, y2])
        clipped = np.clip(boxes, origin, limit)
        here = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
        in_view = torch.tensor((clipped[here] - origin) * view.scale, dtype=torch.float32)
        seen.append((view, Detections(in_view, torch.full((len(in_view),), 0.9), torch.tensor(labels[here]))))
    return merge(Viewed(0, seen), image, settings.bounds(), options)


@pytest.mark.parametrize(("max_side", "seed"), [(4096, 1), (700, 2), (1000, 3)])
def test_merge__truth_through_the_pyramid_scores_one(max_side: int, seed: int) -> None:
    """All sizes, crowds, tiles: what is put in comes out once, with the source ids."""
    source = make_source(seed, num_images=25)
    options = DetectSettings(max_side=max_side, merge="hard", max_detections=10_000, iou=0.999)
    images = source.images(0, source.num_images)
    results, annotations = [], []
    for m, image in enumerate(images):
        rows = slice(int(source.offsets[m]), int(source.offsets[m + 1]))
        boxes, crowd = source.box[rows], source.crowd[rows]
        # an object longer than what tiles share at its scale is cut by all of them; elongated ones stay out here
        sides = boxes[:, 2:] - boxes[:, :2]
        plain = sides.max(axis=1, initial=0) <= 1.5 * np.sqrt(sides.prod(axis=1))
        boxes, crowd = boxes[plain], crowd[plain]
        found = perfect(image, boxes[~crowd], np.ones(int((~crowd).sum()), np.int64), options)
        results += as_results(image, found, source.categories)
        for (x1, y1, x2, y2), is_crowd in zip(boxes.tolist(), crowd.tolist(), strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(is_crowd)}
            annotations.append({"id": len(annotations) + 1, "image_id": image.image_id, "category_id": 7, **box})
    truth = {
        "images": [{"id": i.image_id, "width": i.width, "height": i.height} for i in images],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "thing"}],
    }
    summary = score(truth, results, ChipSettings().bounds(), 10_000)
    assert summary["AP"] == pytest.approx(1.0)
    assert summary["AR"] == pytest.approx(1.0)
    assert all(value is None or value == pytest.approx(1.0) for value in summary.values()), summary


def test_score__thousands_of_boxes_count_when_max_dets_is_above_them() -> None:
    """2,400 boxes of 20 classes in one image; pycocotools counts detections per image and class."""
    boxes = [[10.0 * (i % 50), 10.0 * (i // 50), 8, 8] for i in range(2400)]
    fields = [{"image_id": 1, "category_id": 1 + i % 20, "bbox": box} for i, box in enumerate(boxes)]
    truth = {
        "images": [{"id": 1, "width": 600, "height": 600}],
        "annotations": [{**f, "id": i, "area": 64, "iscrowd": 0} for i, f in enumerate(fields, 1)],
        "categories": [{"id": i, "name": f"dot{i}"} for i in range(1, 21)] + [{"id": 99, "name": "none"}],
    }
    results = [{**field, "score": 0.5} for field in fields]
    enough = score(truth, results, [(0, 80)], 200)
    assert enough["AP"] == pytest.approx(1.0)
    assert enough["AP[none]"] is None
    few = score(truth, results, [(0, 80)], 10)
    assert few["AP"] is not None
    assert few["AP"] < 0.15


def test_score__no_detections_and_no_truth() -> None:
    truth: dict[str, Any] = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    assert score(truth, [], [(0, 80)], 100)["AP"] is None
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}
    assert score({**truth, "annotations": [box]}, [], [(0, 80)], 100)["AP"] == 0


def test_widened_ranges__are_the_papers() -> None:
    assert widened_ranges(ChipSettings().bounds()) == [(0, 90), (32, 180), (75, float("inf"))]


def test_views__cover_every_image_within_the_side_and_waste_little() -> None:
    images = [SourceImage(1, "a", 640, 480), SourceImage(2, "b", 20_000, 11_111), SourceImage(3, "c", 40, 3000)]
    views = plan_views(images, ChipSettings(), 2048, [90, 180, float("inf")])
    for m, image in enumerate(images):
        for s in range(3):
            windows = [v.window for v in views if (v.image, v.scale_index) == (m, s)]
            covered = np.zeros((image.height // 10 + 1, image.width // 10 + 1), bool)
            for x1, y1, x2, y2 in windows:
                assert 0 <= x1 < x2 <= image.width
                assert 0 <= y1 < y2 <= image.height
                covered[int(y1 // 10) : int(y2 // 10) + 1, int(x1 // 10) : int(x2 // 10) + 1] = True
            assert covered.all()
    assert all(view.width <= 2048 and view.height <= 2048 for view in views)
    batches = compose(views, 4_000_000)
    assert sorted(view for batch in batches for view in batch) == sorted(views)
    for batch in batches:
        assert len({(view.scale_index, view.shape) for view in batch}) == 1
        assert len(batch) * batch[0].shape[0] * batch[0].shape[1] <= 4_000_000 or len(batch) == 1


def test_evaluate__writes_results_a_fresh_pycocotools_reads_and_two_ranks_change_nothing(
    demo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    report = evaluate(checkpoint, demo / "val.json", demo / "val", out=tmp_path / "one.json")
    assert report is not None
    assert report.summary["AP"] is not None
    source_ids = {c["id"] for c in json.loads((demo / "val.json").read_bytes())["categories"]}
    assert {result["category_id"] for result in report.detections} <= source_ids
    assert source_ids == {1, 3, 7}
    truth = COCO(str(demo / "val.json"))
    assert len(truth.loadRes(str(tmp_path / "one.json")).anns) == len(report.detections)
    assert "AP50" in describe(report, 100)
    assert "WARNING" in describe(report._replace(num_crowded=2), 100)
    code = (
        "import torch, sys; torch.set_num_threads(1)\nfrom pathlib import Path\n"
        "from trainer.evaluate import evaluate\n"
        "evaluate(*map(Path, sys.argv[1:4]), out=Path(sys.argv[4]))"
    )
    script = tmp_path / "evaluate.py"
    script.write_text(code)
    arguments = [checkpoint, demo / "val.json", demo / "val", tmp_path / "two.json"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    subprocess.run([*command, *map(str, arguments)], check=True, env=environment, capture_output=True)
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()


def test_evaluate__odd_images_cost_only_themselves(demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    content = json.loads((demo / "val.json").read_bytes())
    images = sorted(content["images"], key=lambda image: int(image["id"]))
    for image in images[2:]:
        (tmp_path / image["file_name"]).write_bytes((demo / "val" / image["file_name"]).read_bytes())
    (tmp_path / images[1]["file_name"]).write_bytes(b"not an image")
    report = evaluate(checkpoint, demo / "val.json", tmp_path)
    assert report is not None
    assert sorted(reject.reason for reject in report.rejects) == ["missing_file", "not_an_image"]
    whole = evaluate(checkpoint, demo / "val.json", demo / "val")
    assert whole is not None
    left = {image["id"] for image in images[2:]}
    assert report.detections == [d for d in whole.detections if d["image_id"] in left]


def test_evaluate__refuses_data_of_other_categories(demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    content = json.loads((demo / "val.json").read_bytes())
    content["categories"] = [{"id": 99, "name": "other"}]
    content["annotations"] = []
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"has categories \[99\], the model knows \[1, 3, 7\]"):
        evaluate(checkpoint, tmp_path / "other.json", demo / "val")
    with pytest.raises(UsageError, match="no such image folder"):
        evaluate(checkpoint, demo / "val.json", tmp_path / "nowhere")


def test_load_truth__keeps_what_is_in_order(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 50, "height": 50}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 5]},
        ],
        "categories": [{"id": 1, "name": "a"}],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    truth = load_truth(path, set(read_coco(path).row.tolist()), set())
    assert [(box["id"], box["area"], box["iscrowd"]) for box in truth["annotations"]] == [(1, 25, 0)]


def test_detect__files_folders_and_bad_files(demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index, file in enumerate(sorted((demo / "val").iterdir())[:2]):
        (tmp_path / f"in/{index}.jpg").write_bytes(file.read_bytes())
    (tmp_path / "in/bad.jpg").write_bytes(b"nothing")
    huge = Image.new("RGB", (3000, 200), "gray")
    huge.save(tmp_path / "long.png")
    options = DetectSettings(max_side=320, min_score=0.01)
    results = detect(checkpoint, [tmp_path / "in", tmp_path / "long.png"], options, out=tmp_path / "out")
    assert [Path(result["file"]).name for result in results] == ["0.jpg", "1.jpg", "bad.jpg", "long.png"]
    assert "error" in results[2]
    assert (results[3]["width"], results[3]["height"]) == (3000, 200)
    assert json.loads((tmp_path / "out/detections.json").read_bytes()) == json.loads(json.dumps(results))
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".jpg", ".jpg", ".jpg", ".json"]
    for result in results:
        for found in result.get("detections", []):
            x, y, width, height = found["bbox"]
            assert x >= 0
            assert y >= 0
            assert x + width <= result["width"] + 1e-2
            assert y + height <= result["height"] + 1e-2
            assert found["category_id"] in (1, 3, 7)
    with pytest.raises(UsageError, match="no such file"):
        detect(checkpoint, [tmp_path / "none.jpg"])


def test_train__validates_and_keeps_the_best(demo: Path, tmp_path: Path) -> None:
    options = tiny_settings("train.epochs=2", "train.norm=train", "train.norm_momentum=0.3")
    train(demo / "chips", tmp_path, options, validation=(demo / "val.json", demo / "val"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    scores = [line["AP"] for line in lines if "AP" in line]
    assert len(scores) == 2
    assert (tmp_path / "best.pt").is_file()
    assert find_checkpoints(tmp_path)
