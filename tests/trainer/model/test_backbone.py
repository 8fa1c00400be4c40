"""What a GPU computes in one kernel, against the layers one after the other."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trainer.gpus import CUDA, needs_gpu
from trainer.model.backbone import conv_relu


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_residual", [False, True])
def test_conv_relu__equals_the_layers_one_by_one(dtype: torch.dtype, is_residual: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False, device=CUDA)
    x = torch.randn(2, 32, 16, 20, device=CUDA).to(memory_format=torch.channels_last).requires_grad_()
    offset = torch.randn(64, device=CUDA)
    shortcut = torch.randn(2, 64, 8, 10, device=CUDA).to(memory_format=torch.channels_last).requires_grad_()

    def outcome(*, fused: bool) -> tuple[Tensor, ...]:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            added = shortcut if is_residual else None
            if fused:
                out = conv_relu(x, conv.weight, offset.to(dtype), added, conv)
            else:
                out = F.conv2d(x.double(), conv.weight.double(), offset.double(), 2, 1)
                out = F.relu(out if added is None else out + added)
        leaves = [x, conv.weight, *([shortcut] if is_residual else [])]
        return out, *torch.autograd.grad((out.double() * torch.arange(64, device=CUDA)[:, None, None]).sum(), leaves)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        ours, right = outcome(fused=True), outcome(fused=False)
    assert ours[0].dtype == dtype
    limit = {torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.06}[dtype]
    for mine, theirs in zip(ours, right, strict=True):
        assert (mine.double() - theirs.double()).norm() < limit * theirs.double().norm()
