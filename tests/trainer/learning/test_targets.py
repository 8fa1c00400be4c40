"""Labels against the rules of docs/method.md, 7, written out one anchor at a time."""

import math

import pytest
import torch
from torch import Tensor

from schemas.codes import Status
from schemas.settings import ModelSettings
from tests.trainer.chips import area, chip_boxes, inter, iou, make_batch, random_boxes, take
from tests.trainer.gpus import CUDA, needs_gpu
from trainer.learning.ground_truth import hash_slots, key_states, pad_boxes
from trainer.learning.targets import label_anchors, label_rois, sample_anchors
from trainer.loading.batch import Batch
from trainer.model import boxes as geometry
from trainer.model.anchors import anchor_grid, anchor_layout

CPU = torch.device("cpu")
LEARNS = (Status.VALID, Status.RESCUED)


def small_grid(side: int = 96) -> Tensor:
    layout = anchor_layout(ModelSettings(levels=(4, 5), anchor_scales=[1, 2]))
    return anchor_grid(layout, tuple((math.ceil(side / s), math.ceil(side / s)) for s in layout.strides), CPU)


def slow_anchor_labels(batch: Batch, chip: int, anchors: list[list[float]]) -> list[int]:
    height, width = batch.sizes[chip].tolist()
    boxes = chip_boxes(batch, chip)

    def learns_here(anchor: list[float]) -> bool:
        x1, y1, x2, y2 = anchor
        centred = round(x1 + x2, 3) < 2 * width and round(y1 + y2, 3) < 2 * height  # centres are whole pixels
        return centred and x1 >= -32 and y1 >= -32 and x2 <= width + 32 and y2 <= height + 32

    allowed = [learns_here(anchor) for anchor in anchors]
    positive = [False] * len(anchors)
    for box, _, status in boxes:
        if status in LEARNS:
            found = [iou(a, box) if ok else 0 for a, ok in zip(anchors, allowed, strict=True)]
            best = max(found)
            for i, value in enumerate(found):
                positive[i] |= value >= 0.5 or (best > 0 and value >= best * (1 - 1e-6))
    labels = []
    for anchor, ok, is_positive in zip(anchors, allowed, positive, strict=True):
        ignored = not ok
        for box, _, status in boxes:
            value = iou(anchor, box)
            if status is Status.CROWD:
                ignored |= inter(anchor, box) / area(anchor) >= 0.5
            elif status not in LEARNS:
                ignored |= value > 0.3
            ignored |= value >= 0.4
        labels.append(1 if is_positive else -1 if ignored else 0)
    return labels


@pytest.mark.parametrize("seed", range(25))
def test_label_anchors__equals_the_rule(seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(geometry, "CHUNK", 10**6 if seed % 2 else 1500)
    batch = make_batch([0, 1, 4, 15], seed=seed)
    anchors = small_grid()
    labels, match = label_anchors(anchors, batch.sizes, pad_boxes(batch))
    for chip in range(len(batch)):
        assert labels[chip].tolist() == slow_anchor_labels(batch, chip, anchors.tolist())
        boxes = chip_boxes(batch, chip)
        for i in (labels[chip] == 1).nonzero()[:, 0].tolist():
            overlap = [iou(anchors[i].tolist(), b) if s in LEARNS else 0 for b, _, s in boxes]
            assert overlap[match[chip, i]] == pytest.approx(max(overlap), abs=1e-6)


@pytest.mark.parametrize("status", [Status.VALID, Status.OUT_OF_RANGE, Status.CROWD])
def test_label_anchors__exactly_at_the_limits(status: Status):
    """Boxes that share the given rows of an anchor 40 x 40, in whole pixels; another anchor is their best."""
    outcomes = {}
    for rows in (11, 12, 13, 16, 17, 20):  # IoU = rows / 40, as is the share of the anchor
        box = [20.0, 20, 60, 20 + rows]
        batch = make_batch([1], statuses=[status])
        batch = Batch(**{**vars(batch), "boxes": torch.tensor([box]), "sizes": torch.tensor([[96, 96]])})
        anchors = torch.tensor([[20.0, 20, 60, 60], box])
        outcomes[rows] = label_anchors(anchors, batch.sizes, pad_boxes(batch))[0][0, 0].item()
    expected = {
        Status.VALID: {11: 0, 12: 0, 13: 0, 16: -1, 17: -1, 20: 1},
        Status.OUT_OF_RANGE: {11: 0, 12: 0, 13: -1, 16: -1, 17: -1, 20: -1},
        Status.CROWD: {11: 0, 12: 0, 13: 0, 16: -1, 17: -1, 20: -1},
    }
    assert outcomes == expected[status]


def test_label_anchors__other_boxes_take_nothing_from_a_valid_one():
    """A valid box under an out-of-range one of the same place keeps its positives (docs/method.md, 7)."""
    batch = make_batch([2], seed=0)
    box = [20.0, 20, 52, 52]
    batch = Batch(**{**vars(batch), "boxes": torch.tensor([box, box]), "sizes": torch.tensor([[96, 96]])})
    batch = Batch(**{**vars(batch), "status": torch.tensor([Status.VALID, Status.OUT_OF_RANGE], dtype=torch.uint8)})
    alone = take(Batch(**{**vars(batch), "status": torch.full((2,), Status.VALID, dtype=torch.uint8)}), [0])
    both, single = (label_anchors(small_grid(), b.sizes, pad_boxes(b))[0] for b in (batch, alone))
    assert (both == 1).equal(single == 1)
    assert (both == 1).any()


def test_label_anchors__two_thousand_boxes_in_bounded_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(geometry, "CHUNK", 50_000)
    batch = make_batch([2000, 3], seed=3)
    anchors = small_grid()
    labels, _ = label_anchors(anchors, batch.sizes, pad_boxes(batch))
    for chip in range(2):
        assert labels[chip].tolist() == slow_anchor_labels(batch, chip, anchors.tolist())


def test_sample_anchors__takes_the_highest_hashes():
    side = 512
    anchors = small_grid(side)
    batch = make_batch([0, 40, 300], side, seed=2, statuses=[Status.VALID, Status.CUT])
    truth = pad_boxes(batch)
    states = key_states(batch.keys, 7, 3, CPU)
    labels, match = label_anchors(anchors, batch.sizes, truth)
    sample = sample_anchors(anchors, labels, match, truth, states)
    hashes = hash_slots(states, len(anchors)).tolist()
    limited = 0
    for chip in range(len(batch)):
        by_hash = sorted(range(len(anchors)), key=lambda i: -hashes[chip][i])
        positive = [i for i in by_hash if labels[chip, i] == 1][:128]
        negative = [i for i in by_hash if labels[chip, i] == 0][: 256 - len(positive)]
        limited += (labels[chip] == 1).sum().item() > 128
        used, is_positive = sample.used[chip], sample.positive[chip]
        assert sorted(sample.slots[chip, is_positive].tolist()) == sorted(positive)
        assert sorted(sample.slots[chip, used & ~is_positive].tolist()) == sorted(negative)
        assert not (is_positive & ~used).any()
        for slot, delta in zip(sample.slots[chip].tolist(), sample.deltas[chip], strict=True):
            if labels[chip, slot] == 1:
                own = truth.boxes[chip, match[chip, slot]]
                assert delta.equal(geometry.encode(own, anchors[slot]))
        assert (sample.deltas[chip, ~is_positive] == 0).all()
    assert limited  # the cap was met


def test_sample_anchors__depends_on_seed_epoch_key_and_anchor_only():
    anchors = small_grid()
    batch = make_batch([3, 0, 12, 5], seed=4)

    def drawn(part: Batch, seed: int = 0, epoch: int = 0) -> dict[str, tuple[set[int], set[int]]]:
        truth = pad_boxes(part)
        labels, match = label_anchors(anchors, part.sizes, truth)
        sample = sample_anchors(anchors, labels, match, truth, key_states(part.keys, seed, epoch, CPU))
        rows = zip(sample.slots, sample.used, sample.positive, strict=True)
        chosen = [(set(slots[used].tolist()), set(slots[positive].tolist())) for slots, used, positive in rows]
        return dict(zip(part.keys, chosen, strict=True))

    # few anchors, so that the draw leaves some out
    anchors = anchors.repeat(4, 1)
    whole = drawn(batch)
    permuted = drawn(take(batch, [2, 0, 3, 1]))
    assert permuted == whole
    for chip, key in enumerate(batch.keys):
        assert drawn(take(batch, [chip])) == {key: whole[key]}
    assert drawn(batch, seed=1)[batch.keys[1]] != whole[batch.keys[1]]
    assert drawn(batch, epoch=1)[batch.keys[1]] != whole[batch.keys[1]]


@pytest.mark.parametrize("seed", range(25))
def test_label_rois__equals_the_rule(seed: int):
    batch = make_batch([0, 2, 8, 20], seed=seed)
    truth = pad_boxes(batch)
    rois = random_boxes(4 * 60, 90, seed).view(4, 60, 4)
    for chip in range(4):  # some on the boxes and near them
        near = truth.boxes[chip, truth.real[chip]][:15]
        rois[chip, : len(near)] = near
        rois[chip, 20 : 20 + len(near)] = near + torch.tensor([0.0, 0, 3, 2])
    used = torch.rand(4, 60, generator=torch.Generator().manual_seed(seed)) < 0.9
    labels, targets = label_rois(rois, used, truth)
    for chip in range(4):
        boxes = chip_boxes(batch, chip)
        for i, roi in enumerate(rois[chip].tolist()):
            best, own, ignored = 0.0, None, not used[chip, i]
            for box, label, status in boxes:
                value = iou(roi, box)
                if status is Status.CROWD:
                    ignored |= inter(roi, box) / area(roi) >= 0.5
                elif status is Status.IGNORE:
                    ignored |= value >= 0.5
                elif value > best:
                    best, own = value, (box, label)
            foreground = best >= 0.5 and bool(used[chip, i])
            assert labels[chip, i] == (own[1] if foreground and own else -1 if ignored else 0)
            if foreground and own:
                x, y, w, h = ((own[0][0] + own[0][2]) / 2, (own[0][1] + own[0][3]) / 2, *(_wh(own[0])))
                px, py, pw, ph = ((roi[0] + roi[2]) / 2, (roi[1] + roi[3]) / 2, *(_wh(roi)))
                expected = [10 * (x - px) / pw, 10 * (y - py) / ph, 5 * math.log(w / pw), 5 * math.log(h / ph)]
                assert targets[chip, i].tolist() == pytest.approx(expected, abs=1e-4)
            else:
                assert targets[chip, i].tolist() == [0, 0, 0, 0]


def _wh(box: list[float]) -> tuple[float, float]:
    return box[2] - box[0], box[3] - box[1]


@needs_gpu
@pytest.mark.parametrize("counts", [[], [0], [0, 1, 4, 15], [300, 2]])
def test_labels_and_draws__are_a_cpus_on_a_gpu(counts: list[int]):
    batch = make_batch(counts, seed=1)
    rois = random_boxes(len(counts) * 50, 96, 2).view(len(counts), 50, 4)
    used = torch.rand(len(counts), 50, generator=torch.Generator().manual_seed(0)) < 0.9
    found = []
    for device in (CPU, CUDA):
        anchors, truth = small_grid().to(device), pad_boxes(batch.to(device))
        labels, match = label_anchors(anchors, batch.sizes.to(device), truth)
        states = key_states(batch.keys, 0, 0, device)
        sample = sample_anchors(anchors, labels, match, truth, states)
        slots = torch.where(sample.used, sample.slots, len(anchors))
        order = slots.argsort(1)  # drawn in any order
        drawn = (tensor.gather(1, order) for tensor in (slots, sample.used, sample.positive))
        deltas = sample.deltas.gather(1, order[..., None].expand(-1, -1, 4))
        roi_labels, targets = label_rois(rois.to(device), used.to(device), truth)
        positive = torch.where(labels == 1, match, -1)
        found.append(([labels, positive, *drawn, roi_labels], [deltas, targets]))
    (exact, close), (theirs_exact, theirs_close) = found
    for ours, theirs in zip(exact, theirs_exact, strict=True):
        assert theirs.cpu().equal(ours)
    for ours, theirs in zip(close, theirs_close, strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-4, atol=1e-5)
