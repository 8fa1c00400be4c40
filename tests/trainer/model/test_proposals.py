"""The proposals of a training step against the rules of docs/method.md, 7.4, taken one box at a time."""

import math

import pytest
import torch

from schemas.codes import Status
from tests.trainer.chips import area, chip_boxes, iou, make_batch, random_boxes
from tests.trainer.gpus import CUDA, needs_gpu
from trainer.learning.ground_truth import hash_slots, key_states, pad_boxes
from trainer.learning.targets import add_ground_truth, trainable
from trainer.loading.batch import Batch
from trainer.model.boxes import clip
from trainer.model.proposals import compact, select

PRE_NMS, NUM = 60, 20


def slow_proposals(batch: Batch, chip: int, boxes: list[list[float]], scores: list[float]) -> list[list[float]]:
    """Those that stay of the boxes, best first."""
    truth = chip_boxes(batch, chip)
    kept = []
    for _, box in sorted(zip(scores, boxes, strict=True), key=lambda pair: -pair[0]):
        rescued = any(iou(box, own) >= 0.5 for own, _, status in truth if status is Status.RESCUED)
        if area(box) > 0 and (in_range(batch, chip, box) or rescued):
            kept.append(box)
    survivors: list[list[float]] = []
    for box in kept[:PRE_NMS]:
        if all(iou(box, better) <= 0.7 for better in survivors):
            survivors.append(box)
    return survivors[:NUM]


def in_range(batch: Batch, chip: int, box: list[float]) -> bool:
    low, high = (batch.ranges[chip] * batch.scales[chip]).tolist()
    return low <= math.sqrt(area(box)) < high


@pytest.mark.parametrize("seed", range(20))
def test_select_and_with_truth__equal_the_rule(seed: int):
    batch = make_batch([0, 3, 10, 30], seed=seed)
    truth = pad_boxes(batch)
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(4 * 150, 96, seed).view(4, 150, 4)
    for chip in range(4):  # some near the boxes
        near = truth.boxes[chip, truth.real[chip]]
        boxes[chip, : len(near)] = near + torch.tensor([0.25, 0, 1, 0.5])
    boxes = clip(boxes, batch.sizes)
    logits = torch.randn(4, 150, generator=generator)
    rois, used, _ = select(boxes, logits, trainable(boxes, batch, truth), PRE_NMS, NUM)
    states = key_states(batch.keys, 0, 0, torch.device("cpu"))
    final, final_used = add_ground_truth(rois, used, batch, truth, states)
    assert rois.shape == final.shape == (4, NUM, 4)
    for chip in range(4):
        expected = slow_proposals(batch, chip, boxes[chip].tolist(), logits[chip].tolist())
        assert rois[chip, used[chip]].tolist() == expected
        assert (rois[chip, ~used[chip]] == 0).all()

        wanted = []
        hashes = hash_slots(states, truth.real.shape[1])[chip].tolist()
        for slot, (box, _, status) in enumerate(chip_boxes(batch, chip)):
            target = status not in (Status.IGNORE, Status.CROWD)
            if target and (status is Status.RESCUED or in_range(batch, chip, box)):
                wanted.append((hashes[slot], box))
        appended = [box for _, box in sorted(wanted, reverse=True)[:NUM]]
        everything = appended + expected[: NUM - len(appended)]
        assert sorted(final[chip, final_used[chip]].tolist()) == sorted(everything)


def test_select__never_makes_a_box_up():
    """Fewer candidates than slots, none in range, no anchors' worth at all: the rest of the slots are not in use."""
    batch = make_batch([2, 2], seed=0)
    boxes = random_boxes(10, 96, 0).view(2, 5, 4)
    rois, used, _ = select(boxes, torch.zeros(2, 5), torch.tensor([[True] * 5, [False] * 5]), PRE_NMS, NUM)
    assert rois.shape == (2, NUM, 4)
    assert used.sum(1).tolist() == [used[0].sum(), 0]
    assert 1 <= used[0].sum() <= 5
    flat = torch.tensor([[[5.0, 5, 5, 9], [5, 5, 9, 5], [5, 5, 9, 9]]])  # a box clipped away has no side
    assert select(flat, torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), 3, 3)[1].sum() == 1
    empty = make_batch([])
    nothing = torch.zeros(0, 5, 4)
    assert trainable(nothing, empty, pad_boxes(empty)).shape == (0, 5)
    assert trainable(boxes, batch, pad_boxes(batch)).shape == (2, 5)


def test_compact__keeps_order():
    boxes = torch.arange(6.0).view(1, 6, 1).expand(1, 6, 4)
    kept, used = compact(boxes, torch.tensor([[False, True, False, True, True, False]]), 4)
    assert kept[0, :, 0].tolist() == [1, 3, 4, 0]
    assert used.tolist() == [[True, True, True, False]]


def test_select__logits_stand_beside_their_boxes() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9.9], [20, 20, 40, 40]]])
    logits = torch.tensor([[1.0, 2.0, -3.0]])
    chosen, used, scores = select(boxes, logits, torch.ones(1, 3, dtype=torch.bool), 3, 3)
    assert used.tolist() == [[True, True, False]]
    assert chosen[0, :2].tolist() == boxes[0, [1, 2]].tolist()
    assert scores.tolist() == [[2.0, -3.0, 0.0]]


@needs_gpu
@pytest.mark.parametrize("seed", range(4))
def test_select_and_with_truth__are_a_cpus_on_a_gpu(seed: int):
    batch = make_batch([0, 3, 10, 30], seed=seed)
    boxes = clip(random_boxes(4 * 400, 96, seed).view(4, 400, 4), batch.sizes)
    logits = torch.randn(4, 400, generator=torch.Generator().manual_seed(seed))
    found = []
    for device in (torch.device("cpu"), CUDA):
        here = batch.to(device)
        truth, states = pad_boxes(here), key_states(batch.keys, 0, 0, device)
        chosen = trainable(boxes.to(device), here, truth)
        rois, used, _ = select(boxes.to(device), logits.to(device), chosen, PRE_NMS, NUM)
        found.append([chosen, rois, used, *add_ground_truth(rois, used, here, truth, states)])
    for ours, theirs in zip(*found, strict=True):
        assert theirs.cpu().equal(ours)
