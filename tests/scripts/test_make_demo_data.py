"""The demo data: well-formed COCO, reproducible, with everything in it that the pipeline must cope with."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from scripts.make_demo_data import CLASSES, Floats, Kind, Shape, draw, main, make_demo_data, random_scene, visible_box

NUM_TRAIN, NUM_VAL = 20, 3
LEVEL = 60


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    make_demo_data(out, NUM_TRAIN, NUM_VAL, seed=0)
    return out


@pytest.fixture(scope="module")
def train(demo: Path) -> dict[str, Any]:
    return load(demo / "train.json")


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def files_under(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_shape(kind: Kind, box: Floats, angle: float) -> Shape:
    """A shape whose rim, 0.3 of the ground, is at LEVEL and whose inside is brighter."""
    return Shape(kind, box, angle, np.full((2, 3), LEVEL / 0.3, dtype=np.float32))


def half_level_bounds(picture: Floats, axis: int) -> tuple[float, float]:
    """Where the brightest pixels along an axis (0: x, 1: y) of a picture (H, W) cross LEVEL / 2."""
    profile = picture.max(axis=axis)
    above = np.flatnonzero(profile >= LEVEL / 2)
    first, last = int(above[0]), int(above[-1])
    before = (profile[first] - LEVEL / 2) / (profile[first] - profile[first - 1])
    after = (profile[last] - LEVEL / 2) / (profile[last] - profile[last + 1])
    return first + 0.5 - before, last + 0.5 + after


def test_files_are_well_formed_coco(demo: Path) -> None:
    image_ids = []
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        coco = COCO(str(demo / f"{split}.json"))
        assert len(coco.imgs) == count
        assert {image["file_name"] for image in coco.imgs.values()} == {p.name for p in (demo / split).iterdir()}
        for image in coco.imgs.values():
            with Image.open(demo / split / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])
                assert min(picture.size) >= 480
                assert max(picture.size) <= 1600
        assert [category["id"] for category in coco.dataset["categories"]] == [1, 3, 7]
        assert len(coco.anns) == len(coco.dataset["annotations"])
        assert {record["image_id"] for record in coco.anns.values()} <= set(coco.imgs)
        image_ids += list(coco.imgs)
    assert len(set(image_ids)) == NUM_TRAIN + NUM_VAL


def test_same_seed_same_bytes_and_another_seed_other_ones(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_demo_data(tmp_path / name, 3, 1, seed)
    a, b, c = (files_under(tmp_path / name) for name in "abc")
    assert len(a) == 6
    assert a == b
    assert all(a[name] != c[name] for name in a)


def test_an_image_depends_on_its_index_but_not_on_the_counts(demo: Path, tmp_path: Path) -> None:
    make_demo_data(tmp_path, 3, 1, seed=0)
    for split in ("train", "val"):
        few, many = load(tmp_path / f"{split}.json"), load(demo / f"{split}.json")
        for image in few["images"]:
            name = f"{split}/{image['file_name']}"
            assert (tmp_path / name).read_bytes() == (demo / name).read_bytes()
        for key in ("images", "annotations", "lookalikes"):
            assert few[key] == many[key][: len(few[key])]


def test_boxes_lie_in_their_images(train: dict[str, Any]) -> None:
    sides = {image["id"]: (image["width"], image["height"]) for image in train["images"]}
    for record in train["annotations"] + train["lookalikes"]:
        x, y, w, h = record["bbox"]
        width, height = sides[record["image_id"]]
        assert w > 0
        assert h > 0
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height


def test_every_class_is_small_medium_and_large_and_some_objects_are_cut() -> None:
    sizes = defaultdict(list)
    cut = counts = 0
    for index in range(60):
        scene = random_scene(np.random.default_rng(index), index)
        for shape in scene.objects:
            x1, y1, x2, y2 = shape.box
            sizes[shape.kind].append(((x2 - x1) * (y2 - y1)) ** 0.5)
            cut += not np.array_equal(visible_box(shape, scene.width, scene.height), shape.box)
            assert 0.59 < (x2 - x1) / (y2 - y1) < 1.71
        counts += len(scene.objects)
    assert set(sizes) == set(CLASSES)
    for of_class in sizes.values():
        assert min(of_class) >= 11.9
        assert max(of_class) <= 500
        assert np.all(np.histogram(of_class, bins=[0, 40, 120, 501])[0] >= 10)
    assert 0.03 * counts < cut < 0.2 * counts


def test_object_counts_crowds_and_images_without_objects(train: dict[str, Any]) -> None:
    counts = {image["id"]: 0 for image in train["images"]}
    for record in train["annotations"]:
        counts[record["image_id"]] += not record["iscrowd"]
    assert sum(count == 0 for count in counts.values()) == NUM_TRAIN // 10
    assert max(counts.values()) <= 25
    crowds = [record for record in train["annotations"] if record["iscrowd"]]
    assert len(crowds) == 3
    for crowd in crowds:
        rle = crowd["segmentation"]
        mask = coco_mask.decode(coco_mask.frPyObjects(rle, *rle["size"]))
        assert mask.sum() == crowd["area"]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y, w, h = crowd["bbox"]
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(np.array(found) - [x, y, x + w, y + h]).max() <= 0.5


def test_lookalikes_are_in_every_image_and_apart_from_objects(train: dict[str, Any]) -> None:
    boxes = defaultdict(list)
    for record in train["lookalikes"]:
        boxes[record["image_id"]].append(record["bbox"])
    assert set(boxes) == {image["id"] for image in train["images"]}
    assert all(2 <= len(of_image) <= 8 for of_image in boxes.values())
    for record in train["annotations"]:
        others = boxes[record["image_id"]]
        assert np.all(coco_mask.iou([record["bbox"]], others, [0] * len(others)) == 0)


# Towards its tip a corner is narrower than the pixels that sample it: the sharper, the more of it is lost.
@pytest.mark.parametrize(("kind", "tolerance"), list(zip(CLASSES, (0.1, 0.5, 0.9), strict=True)))
def test_drawn_edges_are_where_the_box_says(kind: Kind, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        corner, sides = rng.uniform(10, 40, size=2), rng.uniform(60, 100, size=2)
        shape = make_shape(kind, np.concatenate([corner, corner + sides]), rng.uniform(-0.35, 0.35))
        canvas = np.zeros((150, 150, 3), dtype=np.float32)
        draw(canvas, shape)
        (x1, x2), (y1, y2) = half_level_bounds(canvas[..., 0], 0), half_level_bounds(canvas[..., 0], 1)
        assert np.abs(np.array([x1, y1, x2, y2]) - shape.box).max() < tolerance


def test_the_box_of_a_cut_shape_is_tight_around_what_remains() -> None:
    rng = np.random.default_rng(1)
    for kind in CLASSES * 10:
        corner = rng.uniform([-40, 60], [-10, 80])
        shape = make_shape(kind, np.concatenate([corner, corner + 80]), rng.uniform(-0.35, 0.35))
        canvas = np.zeros((120, 90, 3), dtype=np.float32)
        draw(canvas, shape)
        rows, columns = (np.flatnonzero(canvas[..., 0].max(axis=axis) >= LEVEL / 2) for axis in (1, 0))
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(found - visible_box(shape, 90, 120)).max() < 1.5


def test_command_line(tmp_path: Path) -> None:
    arguments = ["--train", "2", "--val", "1", "--seed", "3"]
    result = CliRunner().invoke(main, ["--out", str(tmp_path / "a"), *arguments])
    assert result.exit_code == 0, result.output
    make_demo_data(tmp_path / "b", 2, 1, seed=3)
    assert files_under(tmp_path / "a") == files_under(tmp_path / "b")
    assert CliRunner().invoke(main, arguments).exit_code == 2
