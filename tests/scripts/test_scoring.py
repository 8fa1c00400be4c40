import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.pyramid.merging import Detections
from schemas.settings import ChipSettings
from scripts.scoring import score_found
from trainer.evaluation.ground_truth import open_ground_truth

KNOWN = [(7, "cat"), (3, "dog")]


@pytest.mark.parametrize(("categories", "labels"), [(None, [1, 2]), (KNOWN, [2, 1])], ids=["file", "network"])
def test_score_found__labels_are_those_of_the_file_or_of_the_network(
    tmp_path: Path, categories: list[tuple[int, str]] | None, labels: list[int]
) -> None:
    boxes = [[10, 10, 40, 40], [60, 20, 30, 50]]
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "width": 100, "height": 100}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": id_, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, (id_, box) in enumerate(zip((3, 7), boxes, strict=True))
        ],
    }
    file = tmp_path / "val.json"
    file.write_text(json.dumps(content))
    chips = ChipSettings()
    truth = open_ground_truth(file, tmp_path, chips, categories, 100)
    corners = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes], np.float32)
    found = Detections(corners, np.array([0.9, 0.8], np.float32), np.array(labels))
    summary, results = score_found(truth, truth.source.images(0, 1), [found], chips.bounds())
    assert summary["AP"] == 1
    assert [record["category_id"] for record in results.records()] == [3, 7]
