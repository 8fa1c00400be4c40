"""SAHI's results are COCO results: they are merged on the images, and what is merged is what SAHI evaluates."""

import json
from pathlib import Path

import pytest

from pipeline.exchange.views import views
from schemas.settings import DetectSettings, Settings, load_settings
from tests.on_views import perfect
from trainer.evaluation.views import merge_views

pytestmark = pytest.mark.peers


def test_sahi__its_results_are_taken_and_ours_are_evaluated(scenes: Path, tmp_path: Path) -> None:
    from sahi.prediction import ObjectPrediction
    from sahi.scripts.coco_evaluation import evaluate

    annotations = scenes / "val.json"
    scales = ("chips.scales=[1.0, 0.5, {long_side: 128}]", "chips.ranges=[[0, 40], [32, 90], [70, null]]")
    views(scenes / "val", tmp_path / "views", load_settings(None, scales), annotations=annotations, workers=1)
    results = []
    for found in perfect(tmp_path / "views", annotations):
        x, y, width, height = found["bbox"]
        box = {"bbox": [x, y, x + width, y + height], "full_shape": [10_000, 10_000]}
        one = ObjectPrediction(category_id=found["category_id"], category_name="any", score=found["score"], **box)
        results.append(one.to_coco_prediction(image_id=found["image_id"]).json)
    (tmp_path / "found.json").write_text(json.dumps(results))
    places = (tmp_path / "views", tmp_path / "found.json", tmp_path / "merged.json")
    merged = merge_views(*places, Settings(detect=DetectSettings(merge="hard")), annotations=annotations)
    assert merged.summary is not None
    assert merged.summary["AP"] == pytest.approx(1.0)
    scores = evaluate(str(annotations), str(tmp_path / "merged.json"), out_dir=str(tmp_path), return_dict=True)
    assert scores["eval_results"]["bbox_mAP"] == pytest.approx(1.0)
