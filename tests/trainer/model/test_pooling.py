import pytest
import torch
import torchvision

from tests.trainer.chips import random_boxes
from tests.trainer.gpus import CUDA, needs_gpu
from trainer.model import pooling
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


def test_roi_align__more_values_than_a_gpu_counts_in_one_call(monkeypatch: pytest.MonkeyPatch):
    """They are pooled in several calls, here of 37 bins each, and come out the same."""
    table, rois = torch.randn(2, 64, 3, requires_grad=True), random_boxes(10, 128, 0).view(2, 5, 4)
    weight, found = torch.randn(10, 49, 3), []
    for most in (pooling.MOST_VALUES, 37 * 3 + 2):
        monkeypatch.setattr(pooling, "MOST_VALUES", most)
        out = roi_align(table, ((8, 8),), (16,), rois, 7)
        found.append((out, *torch.autograd.grad((out * weight).sum(), table)))
    assert found[0][0].equal(found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


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


def test_roi_align__moved_bins_are_boxes_of_their_own():
    """Each bin against torchvision's operator on the box that the bin is; a shift's gradient against a difference."""
    torch.manual_seed(0)
    feature = torch.randn(2, 5, 16, 16, dtype=torch.float32)
    rois, shifts = random_boxes(6, 256, 0).view(2, 3, 4), (torch.randn(2, 3, 4, 4, 2) * 0.2).requires_grad_()
    table = flatten_maps([feature])
    out = roi_align(table, ((16, 16),), (16,), rois, 4, shifts)
    side = (rois[..., 2:] - rois[..., :2])[:, :, None, None]
    y, x = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    corner = rois[:, :, None, None, :2] + side * (torch.stack([x, y], -1) / 4 + shifts.detach())
    bins = torch.cat([corner, corner + side / 4], -1).view(2, -1, 4)
    inside = ((bins > 8) & (bins < 248)).all(-1).flatten()  # beyond the outermost centres torchvision gives zeros
    pooled = torchvision.ops.roi_align(feature, list(bins), 1, 1 / 16, 2, aligned=True)
    assert inside.sum() > 20
    assert (out.view(-1, 5) - pooled.flatten(1))[inside].abs().max() < 1e-4

    # a ramp is as steep between cells as from cell to cell, so a difference tells the slope
    ramp = torch.arange(16.0) / 16
    table = flatten_maps(
        [torch.stack([ramp.expand(16, 16), ramp[:, None].expand(16, 16)])[None].expand(2, -1, -1, -1)]
    )
    weight = torch.randn(96, 16, 2)[: len(out)]
    (gradient,) = torch.autograd.grad((roi_align(table, ((16, 16),), (16,), rois, 4, shifts) * weight).sum(), shifts)
    direction = torch.randn_like(shifts)
    step = 1e-3
    ends = [roi_align(table, ((16, 16),), (16,), rois, 4, shifts + sign * step * direction) for sign in (-1, 1)]
    difference = ((ends[1] - ends[0]) * weight).sum() / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=0.02)
    still = torch.zeros_like(shifts)
    plain = roi_align(table, ((16, 16),), (16,), rois, 4)
    assert torch.allclose(roi_align(table, ((16, 16),), (16,), rois, 4, still), plain, atol=1e-5)


@needs_gpu
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_roi_align__values_and_gradients_of_a_cpu(dtype: torch.dtype, off: float):
    """In half precision weights and sums are rounded on a GPU, and on a CPU they are not."""
    torch.manual_seed(0)
    cells = sum(height * width for height, width in MAPS)
    table = torch.randn(2, cells, 16).to(dtype)
    rois, weight = random_boxes(80, 512, 0).view(2, 40, 4), torch.randn(80, 25, 16)
    found = []
    for device in (torch.device("cpu"), CUDA):
        leaf = table.to(device).detach().clone().requires_grad_()
        out = roi_align(leaf, MAPS, STRIDES, rois.to(device), 5)
        assert out.dtype == dtype
        (gradient,) = torch.autograd.grad((out.float() * weight.to(device)).sum(), leaf)
        found.append((out.float().cpu(), gradient.float().cpu()))
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() <= off * ours.abs().max()


@needs_gpu
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_roi_align__no_boxes_on_a_gpu(shape: tuple[int, int]):
    table = torch.randn(shape[0], 64, 3, device=CUDA, requires_grad=True)
    out = roi_align(table, ((8, 8),), (16,), torch.zeros(*shape, 4, device=CUDA), 7)
    assert out.shape == (0, 49, 3)
    out.sum().backward()
    assert table.grad is not None
