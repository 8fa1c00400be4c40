"""Evaluation on whole images: perfect detections score 1, ids come back, ranks and odd images change nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import trainer.inference.batches
from pipeline.coco import SourceImage
from pipeline.coco.read import read_coco
from pipeline.commands.chips import chips
from pipeline.planning.plan import plan_span
from pipeline.pyramid.merging import merge, tile_overlaps, widened_ranges
from pipeline.pyramid.views import Viewed, compose, plan_views
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, DetectSettings, Settings, load_settings
from scripts.make_demo_data import make_demo_data
from tests.builders import exif
from tests.pipeline.sources import make_source
from tests.trainer.runs import TINY_CHIPS, tiny_settings
from trainer.evaluation.coco_scores import run_coco, score
from trainer.evaluation.evaluate import Evaluation, as_results, coco_content, describe, evaluate, trusted_areas
from trainer.inference.detect import detect
from trainer.runtime.checkpoint import chosen_file, find_checkpoints, origin, read_checkpoint, write_checkpoint
from trainer.training.train import train


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
        in_view = ((clipped[here] - origin) * view.scale).astype(np.float32)
        seen.append((view, (in_view, np.full(len(in_view), 0.9, np.float32), labels[here])))
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


def test_truth_through_chips_and_back_scores_one() -> None:
    """What the chips say of the boxes they hold whole, put back into the image, is what was cut."""
    source = make_source(5, num_images=25)
    rows = plan_span(source, 0, source.num_images, ChipSettings()).chips.to_pylist()
    found = {}
    for row in rows:
        for box in row["boxes"]:
            if box["status"] in ("valid", "rescued"):
                corners = [box[name] / row["scale"] for name in ("x1", "y1", "x2", "y2")]
                x1, y1, x2, y2 = (c + row["xy"[i % 2] + "1"] for i, c in enumerate(corners))
                found[box["annotation_id"]] = (row["image_id"], box["category_id"], [x1, y1, x2 - x1, y2 - y1])
    results = [{"image_id": i, "category_id": c, "bbox": box, "score": 0.9} for i, c, box in found.values()]
    annotations = []
    for at in np.flatnonzero(source.crowd | np.isin(source.annotation_id, list(found))):
        x1, y1, x2, y2 = source.box[at].tolist()
        image = int(source.image_id[np.searchsorted(source.offsets, at, "right") - 1])
        box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(source.crowd[at])}
        annotations.append({"id": int(at) + 1, "image_id": image, "category_id": 7, **box})
    truth = {
        "images": [{"id": int(i)} for i in source.image_id],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "thing"}],
    }
    assert len(found) > 0.75 * (~source.crowd).sum()  # the others are thinner than 4 px in every chip
    summary = score(truth, results, ChipSettings().bounds(), 10_000)
    assert all(value is None or value == pytest.approx(1.0) for value in summary.values()), summary


@pytest.mark.parametrize("merge", ["gaussian", "linear", "hard"])
def test_merge__thousands_of_boxes_of_one_image_come_through(merge: Literal["gaussian", "linear", "hard"]) -> None:
    """2,500 boxes side by side, which every scale sees; of what a scale finds again soft-NMS leaves low scores."""
    boxes = np.array([[20.0 * x, 20.0 * y, 20.0 * x + 17, 20.0 * y + 17] for x in range(50) for y in range(50)])
    image = SourceImage(1, "a", 1000, 1000)
    names = [(k, str(k)) for k in range(1, 26)]  # pycocotools compares each box with each of its class
    labels = 1 + np.arange(len(boxes)) % len(names)
    found = perfect(image, boxes, labels, DetectSettings(merge=merge, max_detections=10_000))
    fields = [{"image_id": 1, "category_id": int(k), "iscrowd": 0, "area": 289.0} for k in labels]
    truth = {
        "images": [{"id": 1}],
        "annotations": [
            {**f, "id": i, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for i, (f, (x1, y1, x2, y2)) in enumerate(zip(fields, boxes.tolist(), strict=True), 1)
        ],
        "categories": [{"id": k, "name": name} for k, name in names],
    }
    scores = run_coco(truth, as_results(image, found, names), {"all": (0.0, 1e10)}, 10_000)
    assert scores.precision() == pytest.approx(1.0)
    assert (found.scores > 0.5).sum() == len(boxes)


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
        for view in batch:
            assert 0 <= view.shape[0] - view.height < 32
            assert 0 <= view.shape[1] - view.width < 32
        assert len(batch) * batch[0].shape[0] * batch[0].shape[1] <= 4_000_000 or len(batch) == 1


def test_evaluate__writes_results_a_fresh_pycocotools_reads_and_two_ranks_change_nothing(
    demo: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = evaluate(checkpoint, demo / "val.json", demo / "val", out=tmp_path / "one.json")
    assert report is not None
    assert report.summary["AP"] is not None
    source_ids = {c["id"] for c in json.loads((demo / "val.json").read_bytes())["categories"]}
    assert {result["category_id"] for result in report.detections} <= source_ids
    assert source_ids == {1, 3, 7}
    truth = COCO(str(demo / "val.json"))
    assert len(truth.loadRes(str(tmp_path / "one.json")).anns) == len(report.detections)
    assert "AP50" in describe(report)
    monkeypatch.setattr(trainer.inference.batches, "SPAN", 2)  # so that both ranks have images
    evaluate(checkpoint, demo / "val.json", demo / "val", out=tmp_path / "one.json")
    code = (
        "import torch, sys; torch.set_num_threads(1)\nfrom pathlib import Path\n"
        "import trainer.inference.batches\nfrom trainer.evaluation.evaluate import evaluate\n"
        "trainer.inference.batches.SPAN = 2\n"
        "evaluate(*map(Path, sys.argv[1:4]), out=Path(sys.argv[4]))"
    )
    script = tmp_path / "evaluate.py"
    script.write_text(code)
    arguments = [checkpoint, demo / "val.json", demo / "val", tmp_path / "two.json"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
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


def content_of(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    path.write_text(json.dumps(content))
    return coco_content(read_coco(path, as_written=True), {2})


def test_coco_content__keeps_what_is_in_order(tmp_path: Path) -> None:
    """Numbers written as floats or text, `ignore` and ids that repeat mean the same as to `sniper chips`."""
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 50, "height": 50} for i in (1, 2)]
    boxes: list[dict[str, Any]] = [
        {"id": 1, "image_id": 1.0, "category_id": "1", "bbox": [1, 1, 5, 5]},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 5]},
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [-2, 1, 5, 5], "area": 20, "ignore": 1},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [1, 1, 5, 5]},
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    truth = content_of(tmp_path / "coco.json", content)
    assert truth["images"] == [{"id": 1}]
    assert truth["categories"] == content["categories"]
    assert truth["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [-2, 1, 5, 5], "area": 20, "iscrowd": 1},
    ]


@pytest.mark.parametrize("area", [0, -1, 0.01, 41, 1e999, "12", [1], True, 10**400])
def test_trusted_areas__that_cannot_be_true_are_those_of_the_box(area: Any, tmp_path: Path) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 8]}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 50, "height": 50}],
        "annotations": [{**box, "area": area}, {**box, "area": 20}, {**box, "area": 0.04}, {**box, "area": None}, box],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    written = read_coco(tmp_path / "coco.json", as_written=True).as_written
    assert written is not None
    areas, num_wrong = trusted_areas(written)
    assert areas.tolist() == [40, 20, 0.04, 40, 40]
    assert num_wrong == 1


def test_detect__files_folders_and_bad_files(demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index, file in enumerate(sorted((demo / "val").iterdir())[:2]):
        (tmp_path / f"in/{index}.jpg").write_bytes(file.read_bytes())
    (tmp_path / "in/bad.jpg").write_bytes(b"nothing")
    huge = Image.new("RGB", (3000, 200), "gray")
    huge.save(tmp_path / "long.png")
    settings = Settings(detect=DetectSettings(max_side=320, min_score=0.01))
    results = detect(checkpoint, [tmp_path / "in", tmp_path / "long.png"], settings, out=tmp_path / "out")
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


def test_detect__reads_each_image_as_a_viewer_shows_it_and_skips_litter(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packet = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    stored = Image.new("RGB", (96, 72), "gray")
    folder = tmp_path / "in"
    (folder / "@eaDir").mkdir(parents=True)
    stored.save(folder / "exif.jpg", exif=exif(6))
    stored.save(folder / "xmp.jfif", "JPEG", xmp=packet)
    stored.save(folder / "tag.tif", exif=exif(6))
    stored.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", (96, 72), "red")])
    for litter in ("@eaDir/exif.jpg", "._exif.jpg"):
        (folder / litter).write_bytes(b"thumbnail")
    results = detect(checkpoint, folder, Settings())
    sizes = {Path(result["file"]).name: (result["width"], result["height"]) for result in results}
    assert sizes == {"animated.gif": (96, 72), "exif.jpg": (72, 96), "tag.tif": (72, 96), "xmp.jfif": (72, 96)}
    assert "2 files of systems and editors" in caplog.text
    assert "1 image files hold several pages or frames" in caplog.text


def test_detect__a_large_tiff_is_searched_by_windows(
    demo: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The boxes are those of the same pixels in a file that is decoded whole; the picture is drawn smaller."""
    monkeypatch.setattr("pipeline.images.sources.LARGE_PIXELS", 1000)
    monkeypatch.setattr("trainer.inference.detect.LARGEST_DRAWN", 100)
    source = Image.open(sorted((demo / "val").iterdir())[0]).convert("RGB")
    source.save(tmp_path / "a.png")
    source.save(tmp_path / "b.tif", tiffinfo={278: 16})
    settings = Settings(detect=DetectSettings(min_score=0.01))
    by_whole, by_windows = detect(checkpoint, [tmp_path / "a.png", tmp_path / "b.tif"], settings, out=tmp_path / "out")
    best = [[(round(d["score"], 2), d["category_id"]) for d in r["detections"][:5]] for r in (by_whole, by_windows)]
    assert len(best[0]) == 5
    assert best[0] == best[1]
    [picture] = (tmp_path / "out").glob("*-b.jpg")
    assert max(Image.open(picture).size) == 100


def test_train__validates_and_keeps_the_best(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second of five epochs and the last; the scores are replaced, so that the best is not the last."""
    given = iter([0.1, 0.7, 0.2])
    monkeypatch.setattr(
        "trainer.training.validate.score_model",
        lambda *arguments: Evaluation({"AP": next(given), "AP50": None}, [], [], []),
    )
    options = ["train.norm=train", "train.norm_momentum=0.3", "train.evaluate_every=2", "train.keep=9"]
    validation = (demo / "val.json", demo / "val")
    train(demo / "chips", tmp_path, tiny_settings("train.epochs=5", *options), validation=validation)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    scored = [(line["epoch"], line["AP"]) for line in lines if "AP" in line]
    assert scored == [(1, 0.1), (3, 0.7), (4, 0.2)]  # the last epoch always
    best = read_checkpoint(tmp_path / "best.pt")
    assert (best.loader[1], best.best_ap) == (4, 0.7)
    last = find_checkpoints(tmp_path)[-1]
    said = origin(chosen_file(tmp_path), best)
    assert "4 of 5 epochs done; its AP of 0.700 is the highest of 3 validations; the last checkpoint" in said
    assert said.endswith("has 0.200")
    assert "5 of 5 epochs done" in origin(last, read_checkpoint(last))
    scores = (tmp_path / "scores.json").read_bytes()
    (tmp_path / "scores.json").unlink()
    assert "was never validated and may be better" in origin(tmp_path / "best.pt", best)
    (tmp_path / "scores.json").write_bytes(scores)
    assert read_checkpoint(tmp_path).step == best.step < read_checkpoint(find_checkpoints(tmp_path)[-1]).step
    # the checkpoint of that step was saved before it was scored; resumed from there, a worse one is not the best
    for path in find_checkpoints(tmp_path):
        if read_checkpoint(path).step > best.step:
            path.unlink()
    assert read_checkpoint(find_checkpoints(tmp_path)[-1]).best_ap == 0.1
    given = iter([0.3])
    options[2] = "train.evaluate_every=1"
    train(demo / "chips", tmp_path, tiny_settings("train.epochs=5", *options), resume=True, validation=validation)
    assert read_checkpoint(tmp_path / "best.pt").step == best.step


def test_train__scores_a_network_on_whole_images(demo: Path, tmp_path: Path) -> None:
    options = tiny_settings("train.norm=train", "train.norm_momentum=0.3")
    train(demo / "chips", tmp_path, options, validation=(demo / "val.json", demo / "val"))
    assert read_checkpoint(tmp_path / "best.pt").best_ap >= 0
    report = evaluate(tmp_path / "best.pt", demo / "val.json", demo / "val", tiny_settings())
    assert report is not None
    assert report.summary["AP"] == read_checkpoint(tmp_path / "best.pt").best_ap


def test_train__what_cannot_be_scored_on_is_refused_before_the_first_step(demo: Path, tmp_path: Path) -> None:
    for validation in ((demo / "none.json", demo / "val"), (demo / "val.json", demo / "none")):
        with pytest.raises((DataError, UsageError)):
            train(demo / "chips", tmp_path / "out", tiny_settings(), validation=validation)
        assert not (tmp_path / "out/log.jsonl").exists()


def test_evaluate__names_what_was_left_out_and_what_is_odd(demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    content = json.loads((demo / "val.json").read_bytes())
    content["annotations"][0]["bbox"][2] = -1
    content["categories"][0]["name"] = content["categories"][1]["name"]
    content["categories"].append({"id": 50, "name": "unheard of"})
    (tmp_path / "odd.json").write_text(json.dumps(content))
    settings = Settings(detect=DetectSettings(max_detections=1))
    report = evaluate(checkpoint, tmp_path / "odd.json", demo / "val", settings, max_dets=1000)
    assert report is not None
    assert [reject.kind for reject in report.rejects] == ["annotation"]
    text = describe(report)
    for said in (
        "knows no category 50 (unheard of)",
        "have other names than in training, 1: ",
        "more boxes than the 1 ",
    ):
        assert said in text
    names = [line for line in report.summary if line.startswith("AP[")]
    assert len(names) == len(content["categories"])
    by_class = [line for line in text.splitlines() if line.startswith("AP[")]
    assert len(by_class) == len(names)
    assert all(" AP50 " in line for line in by_class)


def test_evaluate__refuses_other_settings_and_the_rpn_alone(demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = load_settings(None, ("chips.scales=[1, 2]", "chips.ranges=[[0, 9], [5, null]]", "model.width=99"))
    with pytest.raises(UsageError, match=r"(?s)chips.scales: \[0.5,.*\[1.*given.*model.width: 16 there, 99 given"):
        evaluate(checkpoint, demo / "val.json", demo / "val", other)
    same = load_settings(None, (*TINY_CHIPS, "model.width=16"))
    assert evaluate(checkpoint, demo / "val.json", demo / "val", same) is not None
    write_checkpoint(tmp_path / "rpn.pt", read_checkpoint(checkpoint)._replace(rpn_only=True))
    with pytest.raises(DataError, match="is the RPN alone"):
        evaluate(tmp_path / "rpn.pt", demo / "val.json", demo / "val")
    with pytest.raises(DataError, match="is the RPN alone"):
        detect(tmp_path / "rpn.pt", demo / "val")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"text", "is not a checkpoint of `sniper train`, or it is damaged"),
        ({"a": torch.ones(2)}, "weights of others serve as train.weights"),
        ([1, 2], "weights of others serve as train.weights"),
        ({"format": 1, "model": {}}, "of another version of this program; train anew"),
        ("lacks a weight", "its network cannot be made again"),
        ("other network", "its network cannot be made again"),
    ],
)
def test_detect__says_what_is_wrong_with_a_checkpoint(
    checkpoint: Path, tmp_path: Path, content: Any, said: str
) -> None:
    path = tmp_path / "odd.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        kept = read_checkpoint(checkpoint)
        if content == "lacks a weight":
            kept.model.popitem()
        else:
            kept.settings["model"]["unheard_of"] = 1
        write_checkpoint(path, kept)
    else:
        torch.save(content, path)
    with pytest.raises(DataError) as caught:
        detect(path, tmp_path)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_detect__one_image_named_by_text_and_pictures_that_cannot_be_made(
    demo: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = sorted((demo / "val").iterdir())[0]
    name = "n" * 240 + ".jpg"
    (tmp_path / name).write_bytes(image.read_bytes())
    [found] = detect(str(checkpoint), name, out="found")
    assert len(list((tmp_path / "found").glob("0000-n*.jpg"))) == 1
    assert len(detect(checkpoint, tmp_path, out=tmp_path / "found")) == 1  # its own pictures are none of the images
    Image.new("RGB", (66_000, 20)).save(tmp_path / "longer than a JPEG may be.png")
    long, short = detect(checkpoint, [tmp_path], out=tmp_path / "found")
    assert "no picture could be made" in long["error"]
    assert long["width"] == 66_000
    assert short["detections"] == found["detections"]
    assert json.loads((tmp_path / "found/detections.json").read_bytes())[0]["error"] == long["error"]


def test_detect__an_image_above_max_pixels_is_read_where_that_is_raised(
    demo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    kept = read_checkpoint(checkpoint)
    write_checkpoint(tmp_path / "low.pt", kept._replace(chips={**kept.chips, "max_pixels": 1000}))
    image = sorted((demo / "val").iterdir())[0]
    [refused] = detect(tmp_path / "low.pt", image)
    assert "too_many_pixels" in refused["error"]
    [taken] = detect(tmp_path / "low.pt", image, load_settings(None, ("chips.max_pixels=10000000",)))
    assert "detections" in taken
