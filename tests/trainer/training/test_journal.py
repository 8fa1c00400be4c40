"""Pictures of a training batch."""

from pathlib import Path

import torch

from tests.trainer.chips import make_batch
from trainer.model import RawDetections
from trainer.training.journal import draw_batch


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
