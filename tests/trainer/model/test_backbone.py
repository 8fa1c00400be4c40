"""What a GPU computes in one kernel, against the layers one after the other; and the network compiled."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.settings import Norm
from tests.trainer.chips import SLIM, slim_detector
from tests.trainer.gpus import CUDA, needs_gpu
from trainer.model.backbone import conv_relu
from trainer.model.heads import autocast
from trainer.runtime.weights import set_norm_policy


class Case:
    """A convolution, what is folded into it, and what it is applied to."""

    def __init__(
        self, device: torch.device, *, is_residual: bool, learns: bool = True, stride: int = 2, dilation: int = 1
    ) -> None:
        torch.manual_seed(0)
        self.stride, self.dilation = stride, dilation
        conv = nn.Conv2d(32, 64, 3, stride, dilation, dilation, bias=False, device=device)
        self.conv = conv.requires_grad_(learns)
        self.x = torch.randn(2, 32, 16, 20, device=device).to(memory_format=torch.channels_last).requires_grad_()
        self.factor, self.offset = torch.rand(64, device=device) + 0.5, torch.randn(64, device=device)
        shortcut = torch.randn(2, 64, 16 // stride, 20 // stride, device=device)
        shortcut = shortcut.to(memory_format=torch.channels_last).requires_grad_()
        self.shortcut = shortcut if is_residual else None

    def fused(self, dtype: torch.dtype) -> Tensor:
        return conv_relu(self.x, self.factor, self.offset.to(dtype), self.shortcut, self.conv)

    def layers(self, dtype: torch.dtype) -> Tensor:
        weight = (self.conv.weight * self.factor[:, None, None, None]).to(dtype)
        out = F.conv2d(self.x.to(dtype), weight, self.offset.to(dtype), self.stride, self.dilation, self.dilation)
        return F.relu(out if self.shortcut is None else out + self.shortcut.to(dtype))

    def gradients(self, out: Tensor) -> tuple[Tensor, ...]:
        leaves = [
            leaf for leaf in (self.x, self.conv.weight, self.shortcut) if leaf is not None and leaf.requires_grad
        ]
        weighted = out.double() * torch.arange(64, device=out.device)[:, None, None]
        return torch.autograd.grad(weighted.sum(), leaves)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_residual", [False, True])
@pytest.mark.parametrize(("stride", "dilation"), [(2, 1), (1, 2)])  # the second as in the last stage of `neck: c5`
def test_conv_relu__equals_the_layers_one_by_one(
    dtype: torch.dtype, is_residual: bool, stride: int, dilation: int
) -> None:
    case = Case(CUDA, is_residual=is_residual, stride=stride, dilation=dilation)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        ours, right = case.fused(dtype), case.layers(torch.float64)
        pairs = zip((ours, *case.gradients(ours)), (right, *case.gradients(right)), strict=True)
    assert ours.dtype == dtype
    limit = {torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.06}[dtype]
    for mine, theirs in pairs:
        assert (mine.double() - theirs.double()).norm() < limit * theirs.double().norm()


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_conv_relu__does_not_read_the_memory_that_it_writes(dtype: torch.dtype) -> None:
    """cuDNN is given the output as what is added, times 0; a NaN that lay there before must not come through."""
    case = Case(CUDA, is_residual=False)
    right = case.fused(dtype).detach()
    poison = [torch.full_like(right, torch.nan) for _ in range(64)]
    del poison  # memory is handed out again in these blocks
    assert case.fused(dtype).equal(right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_residual", [False, True])
@pytest.mark.parametrize("learns", [False, True])
def test_conv_relu__has_the_gradients_that_autograd_has(
    dtype: torch.dtype, is_residual: bool, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the kernels themselves, which a CPU lacks: the layers stand in their place."""

    def relu(x: Tensor, weight: Tensor, offset: Tensor, *where: object) -> Tensor:
        return F.relu(F.conv2d(x, weight, offset, *where))

    def add_relu(x: Tensor, weight: Tensor, added: Tensor, alpha: float, offset: Tensor, *where: object) -> Tensor:
        assert alpha == 1
        return F.relu(F.conv2d(x, weight, offset, *where) + added)

    monkeypatch.setattr(torch, "cudnn_convolution_relu", relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", add_relu)
    case = Case(torch.device("cpu"), is_residual=is_residual, learns=learns)
    ours, right = case.fused(dtype), case.layers(dtype)
    assert ours.dtype == dtype
    for mine, theirs in zip((ours, *case.gradients(ours)), (right, *case.gradients(right)), strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.equal(theirs)


@pytest.mark.parametrize("policy", ["train", "frozen"])
def test_backbone__compiles_into_one_graph(policy: Norm) -> None:
    """As `train.compile` and gpu-check have it compiled, but without making code of the graph, which takes long."""
    model = slim_detector(settings=SLIM.model_copy(update={"deformable": True}))
    set_norm_policy(model.train(), policy)
    images = torch.randn(2, 3, 96, 96)
    with autocast(images.device, "bf16"):
        plain = model.backbone(images)
        model.backbone.compile(fullgraph=True, backend="eager")
        compiled = model.backbone(images)
    assert all(ours.equal(theirs) for ours, theirs in zip(compiled, plain, strict=True))
