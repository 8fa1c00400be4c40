"""What is said of the anchors, and the value that is advised where they miss boxes."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from schemas.codes import Status
from schemas.settings import ChipSettings, ModelSettings, load_settings
from tests.trainer.conftest import SETTINGS
from trainer.loading.dataset import ChipDataset
from trainer.training.report import anchor_report, focus_report


def shares(text: str) -> list[float]:
    return [float(share) for share in re.findall(r"anchors meet ([0-9.]+)%", text)]


def test_anchor_report__names_a_value_that_meets_more_boxes(dataset: ChipDataset) -> None:
    settings = load_settings(None, ("model.levels=[3, 5]", "model.anchor_scales=[9]"))
    text = anchor_report(dataset, SETTINGS, settings.model)
    assert "WARNING: below 90%; missed most in chip pixels: " in text
    scales, ratios = r"model\.anchor_scales=\[[^]]*\]", r"model\.anchor_ratios=\[[^]]*\]"
    advised = re.search(rf"try ({scales})(?: and ({ratios}))?, which meets", text)
    assert advised is not None
    better = load_settings(None, ("model.levels=[3, 5]", *filter(None, advised.groups())))
    assert better.model != settings.model
    assert sum(shares(anchor_report(dataset, SETTINGS, better.model))) > sum(shares(text))


def test_anchor_report__advises_nothing_that_is_set_already_or_has_no_effect(dataset: ChipDataset) -> None:
    """Boxes of 2 px are met by no anchor that is near those of the settings."""
    m = dataset.manifest
    dataset = copy.copy(dataset)
    dataset.manifest = replace(m, corners=np.concatenate([m.corners[:, :2], m.corners[:, :2] + 2], 1))
    for neck, levels, advised in (("fpn", (3, 5), "finer model.levels"), ("c5", (2, 6), "larger scale of chips")):
        text = anchor_report(dataset, SETTINGS, ModelSettings(neck=neck, levels=levels))
        assert f"no anchors near these meet more; a {advised} meets smaller ones" in text


def test_anchor_report__warns_of_nothing_where_boxes_are_met(dataset: ChipDataset) -> None:
    wide = {"levels": [2, 6], "anchor_scales": [2, 3, 4, 5, 6, 8], "anchor_ratios": [0.25, 0.5, 1, 2, 4]}
    text = anchor_report(dataset, SETTINGS, ModelSettings.model_validate(wide))
    assert min(shares(text)) >= 90
    assert "try" not in text


def test_anchor_report__has_a_line_for_each_scale(chip_folder: Path) -> None:
    """Two scales whose ranges begin alike have one each, with their own share; without a valid box there is none."""
    dataset = ChipDataset(chip_folder)
    chips = SETTINGS.model_copy(update={"ranges": [(0, 80), (0, 150), (120, None)]})
    m = dataset.manifest
    dataset.manifest = replace(m, ranges=np.nan_to_num(m.ranges) * (m.scale_indices == 2)[:, None])
    text = anchor_report(dataset, chips, ModelSettings())
    assert re.findall(r"at scale (.*)", text) == [
        "0.5, sizes from 0 px to 80 px",
        "0.25, sizes from 0 px to 150 px",
        "96/long side, sizes from 120 px",
    ]
    dataset.manifest = replace(m, status=np.full_like(m.status, Status.IGNORE))
    assert anchor_report(dataset, chips, ModelSettings()) == ""


def test_focus_report__warns_where_small_objects_are_specks_at_the_coarsest_scale(dataset: ChipDataset) -> None:
    limits = [0.0, 32.0, 75.0]
    assert focus_report(dataset, SETTINGS.model_copy(update={"scales": [2.0, 1.0, 0.5]}), limits) == ""
    coarse = ChipSettings.model_validate({**SETTINGS.model_dump(), "scales": [0.5, 0.25, {"long_side": 64}]})
    assert "of the objects that finer scales are for have less than 3 px" in focus_report(dataset, coarse, limits)
    assert focus_report(dataset, coarse, [0.0, 0.0, 0.0]) == "", "nothing calls for a finer scale"
