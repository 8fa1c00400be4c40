"""Recall on dense scenes must not hang on the size of a view, nor on whether it is cut into tiles."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from pipeline.coco import SourceImage
from pipeline.pyramid.merging import Detections, merge
from pipeline.pyramid.views import Viewed, plan_views
from schemas.settings import ChipSettings, DetectSettings, ModelSettings
from trainer.model import Detector, predict
from trainer.model.detector import Features

CHIP, OBJECT, GRID = 512, 16, 32
CHIPS = ChipSettings(scales=[1.0], ranges=[(0, 100)])
LIFTED = DetectSettings(max_detections=10**6)
SETTINGS = ModelSettings(backbone="resnet18", levels=(3, 3), width=8, anchor_scales=[2], anchor_ratios=[1])


class Seeing(Detector):
    """A detector whose network is replaced by one that sees: the brighter a cell of 8 pixels, the surer an object.

    Anchors, decoding, top-k, NMS and the slices of the head are the real ones.
    """

    def __init__(self) -> None:
        super().__init__(SETTINGS, 1, CHIP)
        self.rpn = Brightness()  # type: ignore[assignment]

    def forward(self, images: Tensor, sizes: Tensor) -> Features:
        cells = nn.functional.max_pool2d(images[:, :1].float(), 8)
        rows = cells.flatten(2).transpose(1, 2)
        return Features([cells], rows, rows, cells)

    def detect(self, features: Features, rois: Tensor) -> tuple[Tensor, Tensor]:
        self.most_rois = max(getattr(self, "most_rois", 0), rois.shape[0] * rois.shape[1])
        sure = torch.tensor([0.0, 3.0]).expand(*rois.shape[:2], 2)
        return sure, torch.zeros(*rois.shape[:2], 1, 4)


class Brightness(nn.Module):
    def everywhere(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits = maps[0].flatten(1)
        return logits, torch.zeros(*logits.shape, 4)


def scene(side: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """A square image with objects in most places of a grid, 200 to a chip, and noise as bright as the faintest."""
    rng = np.random.default_rng(side)
    cells = rng.integers(0, 110, (side // 8, side // 8)).astype(np.uint8)
    there = rng.random((side // GRID, side // GRID)) < 200 / (CHIP // GRID) ** 2
    row, column = (GRID // 8 * index + 1 for index in np.nonzero(there))
    cells[row, column] = rng.integers(100, 255, len(row))
    centre = np.stack([column, row], axis=1) * 8 + 4
    boxes = np.concatenate([centre - OBJECT / 2, centre + OBJECT / 2], axis=1)
    return np.kron(cells, np.ones((8, 8), np.uint8)), boxes


def search(model: Detector, pixels: npt.NDArray[np.uint8], options: DetectSettings) -> Detections:
    image = SourceImage(1, "1.png", pixels.shape[1], pixels.shape[0])
    found = []
    for view in plan_views([image], CHIPS, options.max_side, [3 * OBJECT]):
        x1, y1, x2, y2 = (int(side) for side in view.window)
        part = torch.from_numpy(pixels[y1:y2, x1:x2]).expand(1, 3, -1, -1)
        (raw,) = predict(model, part, torch.tensor([part.shape[2:]]), by_area=options.by_area)
        found.append((view, [values.numpy() for values in raw]))
    return merge(Viewed(0, found), image, CHIPS.bounds(), options, CHIP)


def recall(found: Detections, boxes: npt.NDArray[np.float64]) -> float:
    """Share of objects that a detection equals."""
    return float(np.isin(corner_ids(boxes), corner_ids(found.boxes)).mean())


def corner_ids(boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:  # type: ignore[type-arg]
    corner = np.rint(boxes[:, :2]).astype(np.int64)
    ids: npt.NDArray[np.int64] = corner[:, 0] * 2**20 + corner[:, 1]
    return ids


def test_predict__recall_is_flat_over_the_size_of_a_view() -> None:
    model = Seeing()
    recalls = {}
    for side in (512, 1024, 2048, 4096):
        pixels, boxes = scene(side)
        recalls[side] = recall(search(model, pixels, LIFTED), boxes)
        if side == 2048:
            recalls["tiles"] = recall(search(model, pixels, LIFTED.model_copy(update={"max_side": 1024})), boxes)
    assert recalls[512] > 0.9
    assert max(recalls.values()) - min(recalls.values()) < 0.02, recalls
    assert model.most_rois <= 4800


def test_predict__the_counts_of_the_paper_are_one_setting_away() -> None:
    model = Seeing()
    pixels, boxes = scene(2048)
    found = search(model, pixels, LIFTED.model_copy(update={"by_area": False}))
    assert len(found.boxes) <= SETTINGS.proposals
    assert recall(found, boxes) < 0.2


@pytest.mark.parametrize(("by_area", "expected"), [(True, 3200), (False, 200)])
def test_merge__an_image_keeps_detections_by_its_area(by_area: bool, expected: int) -> None:
    pixels, _ = scene(2048)
    assert len(search(Seeing(), pixels, DetectSettings(by_area=by_area)).boxes) == expected
