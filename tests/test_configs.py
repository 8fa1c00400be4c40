"""The files below configs/ load, and say what they are meant to."""

import pytest

from schemas.settings import Settings, load_settings
from tests.paths import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_configs__load(path):
    load_settings(path)


def test_coco_paper__differs_from_the_defaults_where_the_paper_does():
    """The defaults are the paper's numbers; a changed default is to be a decision about this file, too."""
    ours, paper = Settings().model_dump(mode="json"), load_settings(ROOT / "configs/coco-paper.yaml")
    given = paper.model_dump(mode="json", exclude_unset=True)
    differing = {
        f"{section}.{name}": value
        for section, values in given.items()
        for name, value in values.items()
        if paper.model_dump(mode="json")[section][name] != ours[section][name]
    }
    assert differing == {
        "model.neck": "c5",
        "model.deformable": True,
        "train.weights": "ResNet101_Weights.IMAGENET1K_V1",
        "train.decay_epochs": [10],
        "train.norm": "train",
        "train.precision": "bf16",
        "detect.by_area": False,
    }
    assert given["chips"]["ranges"] == [[0, 80], [32, 150], [120, None]]
