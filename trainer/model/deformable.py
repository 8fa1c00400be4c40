"""Convolutions that learn where to read their samples (Dai et al., 2017; docs/method.md, 6.7)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 4
"""Groups of input channels that have offsets of their own (original)."""


class DeformableConv(nn.Conv2d):
    """A convolution that reads its samples at learnt offsets from their usual places.

    At first all offsets are 0, so that it computes what a plain convolution with its weight computes.
    """

    def __init__(self, like: nn.Conv2d) -> None:
        """Build it with random numbers, in the shape of a square convolution without bias and with one group."""
        side, stride, padding, dilation = (
            int(values[0]) for values in (like.kernel_size, like.stride, like.padding, like.dilation)
        )
        super().__init__(like.in_channels, like.out_channels, side, stride, padding, dilation, bias=False)
        self.offsets = nn.Conv2d(like.in_channels, 2 * GROUPS * side**2, side, stride, padding, dilation)
        self.shape = (side, stride, padding, dilation)
        for parameter in self.offsets.parameters():
            nn.init.zeros_(parameter)


def deformable_conv(conv: DeformableConv, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a deformable convolution, with a weight and a bias that stand for its own.

    The result equals that of torchvision.ops.deform_conv2d, which took four times as long on a CPU, multiplies in
    float32 under autocast, and is not known to ONNX. Here the samples are gathered, and one matrix product is left.

    Args:
        conv: its offsets and its shape.
        x: [B, C, H, W]; a sample beyond its edge is 0.
        weight: [D, C, side, side].
        bias: [D], or None.

    Returns:
        [B, D, H', W'], in the type that autocast gives.
    """
    num, channels, height, width = x.shape
    side, stride, padding, dilation = conv.shape
    offsets = conv.offsets(x)
    down, across = offsets.shape[2:]
    taps = torch.arange(side, device=x.device) * dilation - padding
    rows = taps.repeat_interleave(side)[:, None, None] + torch.arange(down, device=x.device)[:, None] * stride
    columns = taps.repeat(side)[:, None, None] + torch.arange(across, device=x.device) * stride
    # [B * GROUPS, side^2, H', W'], in cells; y comes before x, as in the weights of others
    dy, dx = offsets.float().reshape(num * GROUPS, side**2, 2, down, across).unbind(2)
    grid = torch.stack([(2 * (columns + dx) + 1) / width - 1, (2 * (rows + dy) + 1) / height - 1], -1)
    grouped = x.reshape(num * GROUPS, channels // GROUPS, height, width)
    samples = F.grid_sample(grouped, grid.flatten(1, 2), align_corners=False)
    samples = samples.view(num, channels * side**2, down, across)
    out = F.conv2d(samples, weight.reshape(len(weight), -1, 1, 1), bias)
    return out.contiguous(memory_format=torch.channels_last)
