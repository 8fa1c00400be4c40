"""What is scored against: classes that are numbered otherwise, areas that cannot be, images that are missing."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.coco.read import read_coco
from schemas.errors import DataError
from schemas.settings import ChipSettings, DetectSettings
from tests.builders import CocoSet
from trainer.evaluation.ground_truth import (
    GroundTruth,
    Objects,
    check_images,
    open_ground_truth,
    read_objects,
)
from trainer.inference.categories import Categories


def objects_in(path: Path, content: dict[str, Any]) -> tuple[Objects, list[str]]:
    path.write_text(json.dumps(content))
    return read_objects(read_coco(path, as_written=True))


def test_read_objects__keeps_what_is_in_order(tmp_path: Path) -> None:
    """Numbers written as floats or text, `ignore` and ids that repeat mean the same as to `sniper chips`."""
    boxes: list[dict[str, Any]] = [
        {"id": 1, "image_id": 1.0, "category_id": "1", "bbox": [1, 1, 5, 5]},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 5]},
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [-2, 1, 5, 5], "area": 20, "ignore": 1},
    ]
    images = [{"id": 1, "file_name": "1.jpg", "width": 50, "height": 50}]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    objects, notes = objects_in(tmp_path / "coco.json", content)
    assert (objects.image_id.tolist(), objects.category_id.tolist()) == ([1, 1], [1, 1])
    assert objects.boxes.tolist() == [[1, 1, 5, 5], [-2, 1, 5, 5]]
    assert (objects.area.tolist(), objects.crowd.tolist(), notes) == ([25, 20], [False, True], [])


@pytest.mark.parametrize("area", [0, -1, 0.01, 41, 1e999, "12", [1], True, 10**400])
def test_read_objects__areas_that_cannot_be_true_are_those_of_the_box(area: Any, tmp_path: Path) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 8]}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 50, "height": 50}],
        "annotations": [{**box, "area": area}, {**box, "area": 20}, {**box, "area": 0.04}, {**box, "area": None}, box],
        "categories": [{"id": 1, "name": "a"}],
    }
    objects, notes = objects_in(tmp_path / "coco.json", content)
    assert objects.area.tolist() == [40, 20, 0.04, 40, 40]
    assert ["area of 1 of 5 boxes" in note for note in notes] == [True]


def opened(made: CocoSet) -> GroundTruth:
    return open_ground_truth(
        made.write(), made.image_root, ChipSettings(), [(category["id"], "a") for category in made.categories], 9
    )


def test_open_ground_truth__says_how_many_areas_are_wrong(tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    made.add_image(5, boxes=[[1, 1, 5, 5]])
    for area in (12, 0, -1):
        made.add_box(5, [2, 2, 6, 5], area=area)
    truth = opened(made)
    assert truth.objects.area.tolist() == [25, 12, 30, 30]
    assert any("area of 2 of 4 boxes" in note for note in truth.notes)


def test_open_ground_truth__says_where_more_boxes_are_than_can_count(tmp_path: Path) -> None:
    """By class for what counts, and by image for what is kept of it, which grows with the image's area."""
    made = CocoSet(tmp_path)
    for image_id, count in ((1, 12), (2, 3)):
        made.add_image(image_id, boxes=[[1, 1, 5, 5]] * count)
    few = DetectSettings(max_detections=2, by_area=False)
    categories = [(category["id"], "a") for category in made.categories]

    def notes(max_dets: int, options: DetectSettings | None, known: Categories | None = categories) -> str:
        path = made.write()
        return "\n".join(open_ground_truth(path, made.image_root, ChipSettings(), known, max_dets, options).notes)

    assert "1 images hold more boxes of one class than the 9 detections" in notes(9, DetectSettings())
    assert "2 images hold more boxes than the detections that are kept" in notes(20, few)
    assert "more boxes" not in notes(12, DetectSettings())
    assert "2 images hold more boxes than the 2 results" in notes(2, None, None)


def test_check_images__one_missing_of_few_is_refused(tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    made.add_image(5)
    truth = opened(made)
    check_images(truth)
    made.add_image(6, file_name="gone.jpg", write=False)
    with pytest.raises(DataError, match=r"1 of 2 images are missing, such as gone.jpg"):
        check_images(opened(made))


def test_check_images__one_in_a_thousand_is_let_through(tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    for index in range(1000):
        made.add_image(index, b"not looked into", boxes=[], write=index != 5)
    check_images(opened(made))


def test_open_ground_truth__lacks_the_category_that_a_training_ignored(tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    made.add_image(5, boxes=[[1, 1, 5, 5]])
    chips = ChipSettings(ignore_categories=["ignored regions"])
    known = [(category["id"], "a") for category in made.categories]
    truth = open_ground_truth(made.write(), made.image_root, chips, known, 9)
    assert not truth.objects.crowd.any()
