import pickle
from itertools import pairwise

import pytest
import torch

from schemas.codes import Status
from tests.trainer.chips import chip_boxes, make_batch
from tests.trainer.gpus import CUDA, needs_gpu
from trainer.learning.ground_truth import hash_slots, key_states, pad_boxes
from trainer.loading.batch import flip


def test_batch__counts_its_boxes_and_survives_moving():
    batch = make_batch([3, 0, 7], seed=1)
    rescued = max(sum(s is Status.RESCUED for *_, s in chip_boxes(batch, chip)) for chip in range(3))
    assert (batch.max_boxes, batch.max_rescued) == (7, rescued)
    statuses = [batch.status[a:b].tolist() for a, b in pairwise(batch.offsets.tolist())]
    assert batch.max_crowds == max(of_chip.count(Status.CROWD) for of_chip in statuses)
    moved = batch.to("meta")
    assert (moved.max_boxes, moved.max_rescued, len(moved)) == (7, rescued, 3)
    assert pickle.loads(pickle.dumps(batch)).boxes.equal(batch.boxes)


@pytest.mark.parametrize("counts", [[], [0], [0, 0], [2, 0, 5]])
def test_pad__rows_are_the_chips_boxes(counts: list[int]):
    batch = make_batch(counts)
    padded = pad_boxes(batch)
    assert padded.boxes.shape == (len(counts), max(counts, default=0), 4)
    for chip, count in enumerate(counts):
        own = chip_boxes(batch, chip)
        assert padded.real[chip].tolist() == [i < count for i in range(padded.real.shape[1])]
        assert padded.boxes[chip, :count].tolist() == [box for box, *_ in own]
        assert padded.having(Status.VALID)[chip, :count].tolist() == [s is Status.VALID for *_, s in own]


def test_flip__mirrors_content_and_boxes_and_leaves_padding():
    batch = make_batch([3, 2, 4], seed=5)
    flags = torch.tensor([True, False, True])
    flipped = flip(batch, flags)
    for chip, (_, width) in enumerate(batch.sizes.tolist()):
        before, after = batch.images[chip], flipped.images[chip]
        content = before[..., :width]
        assert after[..., :width].equal(content.flip(-1) if flags[chip] else content)
        assert after[..., width:].equal(before[..., width:])
        for (old, *_), (new, *_) in zip(chip_boxes(batch, chip), chip_boxes(flipped, chip), strict=True):
            assert new == ([width - old[2], old[1], width - old[0], old[3]] if flags[chip] else old)
    again = flip(flipped, flags)
    assert again.images.equal(batch.images)
    assert again.boxes.equal(batch.boxes)
    assert flip(make_batch([]), flags[:0]).images.shape[0] == 0


def test_hash_slots__is_splitmix64():
    """Against the algorithm in whole numbers; a change would change every draw of every run."""

    def splitmix(state: int, slot: int) -> int:
        x = (state + (slot + 1) * 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return (x ^ (x >> 31)) % 2**62

    states = key_states(["a", "b"], seed=1, epoch=2, device=torch.device("cpu"))
    expected = [[splitmix(state, slot) for slot in range(1000)] for state in states.tolist()]
    assert hash_slots(states, 1000).tolist() == expected


def test_key_states__depend_on_seed_epoch_and_key_and_are_those_of_before():
    cpu = torch.device("cpu")
    inputs = [("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1)]
    assert len({key_states([key], seed, epoch, cpu).item() for key, seed, epoch in inputs}) == 4
    assert key_states(["000000000139-0p000"], 1, 2, cpu).tolist() == [-7994022485065269050]


@needs_gpu
@pytest.mark.parametrize("counts", [[], [0], [3, 2, 4], [0, 0, 1]])
def test_flip__is_a_cpus_on_a_gpu(counts: list[int]):
    batch = make_batch(counts, seed=5)
    flags = torch.tensor([i % 2 == 0 for i in range(len(counts))], dtype=torch.bool)
    ours, theirs = flip(batch, flags), flip(batch.to(CUDA), flags.to(CUDA))
    for name in ("images", "boxes", "labels", "offsets"):
        assert getattr(theirs, name).cpu().equal(getattr(ours, name)), name
    assert theirs.images.is_contiguous(memory_format=torch.channels_last)
    assert (theirs.max_boxes, theirs.max_rescued) == (ours.max_boxes, ours.max_rescued)


@needs_gpu
def test_hash_slots__wrap_on_a_gpu_as_on_a_cpu():
    keys = ["a", "b", "c"]
    ours, theirs = (hash_slots(key_states(keys, 1, 2, device), 5000) for device in (torch.device("cpu"), CUDA))
    assert theirs.cpu().equal(ours)
