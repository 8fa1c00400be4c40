import pytest
import torch
import torchvision

from tests.trainer.chips import inter, iou, random_boxes
from tests.trainer.gpus import CUDA, needs_gpu
from trainer.model import boxes as geometry
from trainer.model.boxes import box_size, clip, decode, encode, has_area, nms, overlaps


def test_encode__decode_gives_the_box_back():
    boxes, refs = random_boxes(500, 512, 1), random_boxes(500, 512, 2)
    assert torch.allclose(decode(encode(boxes, refs), refs), boxes, atol=1e-3)
    assert encode(refs, refs).abs().max() == 0


def test_encode__by_hand():
    refs, box = torch.tensor([[10.0, 20.0, 30.0, 60.0]]), torch.tensor([[15.0, 20.0, 35.0, 100.0]])
    expected = [5 / 20, 20 / 40, 0, torch.log(torch.tensor(2.0)).item()]
    assert encode(box, refs)[0].tolist() == pytest.approx(expected)


def test_decode__wild_offsets_stay_finite():
    refs = random_boxes(4, 512, 1)
    assert decode(torch.full((4, 4), 1e4), refs).isfinite().all()


def test_clip__cuts_to_each_chips_content():
    boxes = torch.tensor([[[-5.0, -5.0, 50.0, 50.0]], [[10.0, 10.0, 20.0, 20.0]]])
    clipped = clip(boxes, torch.tensor([[30, 40], [12, 100]]))
    assert clipped.tolist() == [[[0, 0, 40, 30]], [[10, 10, 20, 12]]]
    assert clip(boxes[:, :, None], torch.tensor([[30, 40], [12, 100]])).squeeze(2).equal(clipped)
    boxes = torch.tensor([[0.0, 0, 4, 9], [5, 5, 4, 9], [5, 5, 5, 9]])
    assert box_size(boxes).tolist() == [6, 0, 0]
    assert has_area(boxes).tolist() == [True, False, False]


@pytest.mark.parametrize("chunk", [1, 100, 10**6])
def test_overlaps__chunks_equal_one_by_one(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(geometry, "CHUNK", chunk)
    candidates, boxes = random_boxes(20, 96, 1).view(2, 10, 4), random_boxes(14, 96, 2).view(2, 7, 4)
    seen = 0
    for columns, ious, inters in overlaps(candidates, boxes):
        assert ious.numel() <= max(chunk, 20)
        for chip in range(2):
            for row, box in enumerate(boxes[chip, columns].tolist()):
                for column, candidate in enumerate(candidates[chip].tolist()):
                    assert ious[chip, row, column] == pytest.approx(iou(candidate, box), abs=1e-6)
                    assert inters[chip, row, column] == pytest.approx(inter(candidate, box), rel=1e-5)
        seen += ious.shape[1]
    assert seen == 7


@pytest.mark.parametrize("seed", range(8))
def test_nms__greedy_on_each_chip_both_ways(seed: int, monkeypatch: pytest.MonkeyPatch):
    """The GPU's fixed point and the CPU's loop give torchvision's set; refused boxes do not suppress."""
    num = 300
    monkeypatch.setattr(geometry, "NMS_BLOCK", 64 if seed % 3 else num)
    boxes = random_boxes(3 * num, 96 if seed % 2 else 40, seed).view(3, num, 4)
    valid = torch.rand(3, num, generator=torch.Generator().manual_seed(seed)) < 0.8
    valid[2] = seed < 4
    expected = torch.zeros_like(valid)
    for chip in range(3):
        rows = valid[chip].nonzero()[:, 0]
        kept = torchvision.ops.nms(boxes[chip, rows].double(), -rows.double(), 0.5)
        expected[chip, rows[kept]] = True
    assert nms(boxes, valid, 0.5).equal(expected)
    assert geometry._nms_parallel(boxes, valid, 0.5).equal(expected)


def test_nms__nothing_to_do():
    for shape in ((0, 5), (2, 5)):
        boxes, valid = torch.zeros(*shape, 4), torch.zeros(shape, dtype=torch.bool)
        assert nms(boxes, valid, 0.5).equal(valid)
        assert geometry._nms_parallel(boxes, valid, 0.5).equal(valid)


@needs_gpu
@pytest.mark.parametrize("num", [0, 1, 300, 2000])
def test_nms__keeps_the_same_on_a_gpu(num: int):
    """One chip of random boxes, one of many equal ones, one without a valid box; and no chip at all."""
    boxes = random_boxes(3 * num, 200, num).view(3, num, 4)
    boxes[1] = boxes[1, :1]
    valid = torch.rand(3, num, generator=torch.Generator().manual_seed(num)) < 0.8
    valid[2] = False
    assert nms(boxes.to(CUDA), valid.to(CUDA), 0.7).cpu().equal(nms(boxes, valid, 0.7))
    assert nms(boxes[:0].to(CUDA), valid[:0].to(CUDA), 0.7).shape == (0, num)


@needs_gpu
def test_nms__large_views_keep_the_same_on_a_gpu():
    """Above MOST_COMPARED boxes the host does the work, and gives it back to the device."""
    num = geometry.MOST_COMPARED + 100
    boxes = random_boxes(2 * num, 4000, 0).view(2, num, 4)
    valid = torch.rand(2, num, generator=torch.Generator().manual_seed(0)) < 0.8
    kept = nms(boxes.to(CUDA), valid.to(CUDA), 0.7)
    assert kept.device.type == CUDA.type
    assert kept.cpu().equal(nms(boxes, valid, 0.7))
