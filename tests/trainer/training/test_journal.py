"""Pictures of a training batch, and what a record counts."""

import time
from pathlib import Path

import pytest
import torch

from tests.trainer.chips import make_batch
from trainer.model import RawDetections
from trainer.training.journal import Meter, draw_batch


def test_draw_batch__detections_carry_the_names_of_their_classes(tmp_path: Path) -> None:
    batch = make_batch([1, 1], side=160)
    boxes, scores, labels = torch.tensor([[10.0, 10.0, 90.0, 90.0]]), torch.tensor([0.9]), torch.tensor([2])
    found = [RawDetections(boxes, scores, labels)] * 2
    pictures = []
    for names in (["gull", "Möwe"], ["cat", "Möwe"], ["gull", "Mäwe"]):
        draw_batch(tmp_path / "picture.png", batch, found, names)
        pictures.append((tmp_path / "picture.png").read_bytes())
    assert pictures[0] == pictures[1]  # no detection is of the first class
    assert pictures[0] != pictures[2]


def test_meter__leaves_out_a_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    meter = Meter(4, torch.device("cpu"))
    with meter.paused():
        now += 600
    for _ in range(2):
        now += 2
        meter.add({"rpn": 1.0}, 8, 1.0)
    values = meter.take()
    assert (values["chips_per_s"], values["data_wait"], values["seconds_left"]) == (4, 0.5, 4)
