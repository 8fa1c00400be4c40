import pytest
import torch
import torchvision

from tests.trainer.chips import random_boxes
from trainer.model.pooling import flatten_maps, roi_align

MAPS, STRIDES = ((128, 128), (64, 64), (32, 32), (16, 16)), (4, 8, 16, 32)


def test_roi_align__equals_torchvision_values_and_gradients():
    """Each box against torchvision's operator on the level that its size asks for."""
    torch.manual_seed(0)
    maps = [torch.randn(2, 12, h, w, dtype=torch.float32, requires_grad=True) for h, w in MAPS]
    wh = 2 ** (torch.rand(80, 2) * 7 + 2)
    corner = torch.rand(80, 2) * (512 - wh)
    rois = torch.cat([corner, corner + wh], 1).view(2, 40, 4)
    rois[0, 0] = torch.tensor([0.0, 0, 512, 512])
    spare = torch.randn(2, 12, 8, 8)  # a level behind those pooled from
    out = roi_align(flatten_maps([*maps, spare]), MAPS, STRIDES, rois, 5)
    weight = torch.randn_like(out)
    gradients = torch.autograd.grad((out * weight).sum(), maps)

    size = ((rois[..., 2] - rois[..., 0]) * (rois[..., 3] - rois[..., 1])).sqrt()
    level = (4 + (size / 224).log2()).floor().clamp(2, 5).long() - 2
    assert level.unique().tolist() == [0, 1, 2, 3]
    expected = torch.zeros_like(out)
    for number, (feature, stride) in enumerate(zip(maps, STRIDES, strict=True)):
        chip, slot = (level == number).nonzero(as_tuple=True)
        boxes = torch.cat([chip[:, None].float(), rois[chip, slot]], 1)
        pooled = torchvision.ops.roi_align(feature, boxes, 5, 1 / stride, 2, aligned=True)
        expected[chip * 40 + slot] = pooled.flatten(2).transpose(1, 2)
    assert (out - expected).abs().max() < 2e-4  # coordinates of 128 cells leave a weight five digits
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * weight).sum(), maps), strict=True):
        assert (ours - theirs).abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_roi_align__no_boxes(shape: tuple[int, int]):
    table = torch.randn(shape[0], 64, 3, requires_grad=True)
    out = roi_align(table, ((8, 8),), (16,), torch.zeros(*shape, 4), 7)
    assert out.shape == (0, 49, 3)
    out.sum().backward()
    assert table.grad is not None


def test_roi_align__unused_slots_are_harmless():
    table = torch.randn(1, 64, 3)
    rois = torch.cat([torch.zeros(1, 4), random_boxes(1, 100, 0)])[None]
    assert roi_align(table, ((8, 8),), (16,), rois, 7).isfinite().all()
