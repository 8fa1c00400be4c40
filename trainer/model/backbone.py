"""torchvision's classification networks, cut into stages, and the pixels that go into them."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck

from schemas.settings import ModelSettings
from trainer.model.boxes import constant
from trainer.model.deformable import DeformableConv, deformable_conv

MEAN, DEVIATION = (
    tuple((torch.tensor(values) * 255).tolist()) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)
"""Of red, green and blue in ImageNet, 0 to 255 (docs/method.md, 2.4)."""
MOBILENET_STAGES = (0, 2, 4, 7, 14, 19)
"""Layers of MobileNetV2 at which its stem and its levels 2 to 5 begin, and where the last one ends."""


class Backbone(nn.Module):
    """Maps of an image at strides 4, 8, 16 and 32. Parameters below `body` have torchvision's names."""

    def __init__(self, name: str, last: int, *, dilated: bool = False, deformable: bool = False) -> None:
        """Build the network with random numbers.

        Args:
            name: a model of torchvision.
            last: its coarsest level in use, 2 to 5; level l has stride 2^l. Later stages are left out.
            dilated: give the last stage of a ResNet stride 1 and dilation 2, so that its map keeps stride 16
                (docs/method.md, 6.2).
            deformable: let the 3x3 convolutions of a ResNet's last stage in use learn where to read
                (docs/method.md, 6.7).
        """
        super().__init__()
        self.body: nn.Module = getattr(torchvision.models, name)(weights=None)
        self.last = last
        if name == "mobilenet_v2":
            self.body.features = self.body.features[: MOBILENET_STAGES[last]]
            del self.body.classifier
            self.channels = (24, 32, 96, 1280)[: last - 1]
            return  # the 3x3 layers of its later stages read one channel each, and stay as they are (original)
        del self.body.fc, self.body.avgpool
        for level in range(last + 1, 6):
            delattr(self.body, f"layer{level - 1}")
        wide = 1 if name in ("resnet18", "resnet34") else 4
        self.channels = tuple(64 * 2**i * wide for i in range(last - 1))
        if dilated:
            _dilate(self.body.layer4)
        if deformable:
            _deform(self.stages()[-1])

    def stages(self) -> list[list[nn.Module]]:
        """Return the stem's modules, then one list of modules for each level from 2 to `last`."""
        body: Any = self.body
        if hasattr(body, "features"):
            layers: list[nn.Module] = list(body.features.children())
            return [layers[a:b] for a, b in pairwise(MOBILENET_STAGES[: self.last + 1])]
        stem = [body.conv1, body.bn1, body.relu, body.maxpool]
        return [stem, *([getattr(body, f"layer{level - 1}")] for level in range(2, self.last + 1))]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps [B, C, H / 2^l, W / 2^l] of levels 2 to `last` of normalised images [B, 3, H, W]."""
        folded = _fold([norm for norm in self.modules() if isinstance(norm, _BatchNorm) and not norm.training])
        maps = []
        for stage in self.stages():
            x = _run(stage, x, folded)
            maps.append(x)
        return maps[1:]


def _dilate(stage: nn.Module) -> None:
    """Set stride 1, and dilation 2 in all 3x3 layers (docs/method.md, 6.2).

    torchvision's own switch for this does not serve networks of BasicBlocks.
    """
    for conv in stage.modules():
        if isinstance(conv, nn.Conv2d):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (2, 2)


def _deform(stage: list[nn.Module]) -> None:
    """Put deformable convolutions in the place of all 3x3 layers."""
    for block in [block for module in stage for block in module.modules()]:
        for name, conv in list(block.named_children()):
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                setattr(block, name, DeformableConv(conv))


Folded = dict[_BatchNorm, tuple[Tensor, Tensor]]
"""What a norm with stored statistics does to each channel: a factor, float32 [C], and an offset [C] in the type that
autocast gives to convolutions."""


def _fold(norms: list[_BatchNorm]) -> Folded:
    """Compute factor and offset of all norms at once: one by one they are hundreds of small kernels of a GPU."""
    if not norms:
        return {}
    if torch.compiler.is_compiling() and len(norms) > 1:  # for a CPU torch 2.11 takes no part of a bias
        return {norm: _fold([norm])[norm] for norm in norms}
    weight, bias, mean, variance = (
        torch.cat([getattr(norm, name) for norm in norms])
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    factor = weight * (variance + norms[0].eps).rsqrt()  # all norms of a network have one eps
    offset = bias - mean * factor
    kind = offset.device.type
    if not offset.is_meta and torch.is_autocast_enabled(kind):
        offset = offset.to(torch.get_autocast_dtype(kind))
    sizes = [norm.num_features for norm in norms]
    return dict(zip(norms, zip(torch.split(factor, sizes), torch.split(offset, sizes), strict=True), strict=True))


def _run(modules: Iterable[nn.Module], x: Tensor, folded: Folded) -> Tensor:
    """Apply modules in order, each convolution together with the batch norm and the ReLU behind it."""
    listed = list(modules)
    for i, module in enumerate(listed):
        if isinstance(module, nn.Conv2d):
            norm, behind = [*listed[i + 1 :], None][:2]
            assert isinstance(norm, _BatchNorm)
            x = _conv_norm(module, norm, x, folded, relu=isinstance(behind, nn.ReLU))
        elif isinstance(module, BasicBlock | Bottleneck):
            x = _residual(module, x, folded)
        elif isinstance(module, InvertedResidual):
            inner = _run(module.conv, x, folded)
            x = x + inner if module.use_res_connect else inner
        elif isinstance(module, nn.Sequential):
            x = _run(module, x, folded)
        elif not isinstance(module, _BatchNorm | nn.ReLU):
            x = module(x)
    return x


def _conv_norm(
    conv: nn.Conv2d, norm: _BatchNorm, x: Tensor, folded: Folded, *, relu: bool = False, shortcut: Tensor | None = None
) -> Tensor:
    """Compute norm(conv(x)), plus the shortcut, and the ReLU of that.

    Stored statistics are folded into the convolution's weights, which saves a pass over the map in both directions.
    Where a channel has one value or none, as in an empty batch, it has no statistics of its own, so the stored ones
    are used. Synchronised batch norm takes those of all ranks, of which one at least must have a chip.
    """
    if norm.training:
        out = _convolve(conv, x, conv.weight, None)
        chips = 1 if isinstance(norm, nn.SyncBatchNorm) else len(out)  # all ranks must decide alike
        if chips * out.shape[2] * out.shape[3] > 1:
            return _finished(_batch_norm(norm, out), shortcut, relu=relu)
        folded = _fold([norm])
    factor, offset = folded[norm]
    is_fusible = not isinstance(conv, DeformableConv) and not offset.requires_grad
    if relu and x.is_cuda and is_fusible and not torch.compiler.is_compiling():
        return conv_relu(x, factor, offset, shortcut, conv)
    out = _convolve(conv, x, conv.weight * factor.view(-1, 1, 1, 1), offset)
    return _finished(out, shortcut, relu=relu)


def _convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a convolution with a weight and a bias that stand for its own."""
    if isinstance(conv, DeformableConv):
        return deformable_conv(conv, x, weight, bias)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Apply a norm with the statistics of the batch; it does not count batches, since its momentum is a constant."""
    if (isinstance(norm, nn.SyncBatchNorm) and not x.is_meta) or norm.momentum is None:
        # without a chip, torch sends the other ranks zeros in the type of x, where they send float32
        out: Tensor = norm(x if len(x) else x.float())
        return out.to(x.dtype)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, norm.momentum, norm.eps)


def _finished(out: Tensor, shortcut: Tensor | None, *, relu: bool) -> Tensor:
    """Add the shortcut and apply ReLU, in place."""
    if shortcut is not None:
        out = out.add_(shortcut)
    return F.relu_(out) if relu else out


def conv_relu(x: Tensor, factor: Tensor, offset: Tensor, shortcut: Tensor | None, conv: nn.Conv2d) -> Tensor:
    """Compute relu(factor * conv(x) + offset + shortcut) in one kernel of a GPU; torch offers it for inference alone.

    Passes of their own for these took a quarter of a ResNet's time on an H100 (docs/benchmarks.md).

    Args:
        x: [B, C, H, W].
        factor: float32 [D]; it gets no gradient.
        offset: [D], in the type of the result, which is what autocast gives to convolutions; it gets no gradient.
        shortcut: [B, D, H', W'], or None.
        conv: a convolution without a bias.

    Returns:
        [B, D, H', W'].
    """
    dtype = offset.dtype
    added = None if shortcut is None else shortcut.to(dtype)
    out: Tensor = _ConvRelu.apply(x.to(dtype), conv.weight, factor.view(-1, 1, 1, 1), offset, added, conv)
    return out


class _ConvRelu(torch.autograd.Function):
    """The kernel, and its gradient: that of ReLU by the sign of the result, then that of the convolution.

    The factor is taken into the weight and the product is rounded in one kernel each way; autograd has two of each.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, own: Tensor, factor: Tensor, offset: Tensor, shortcut: Tensor | None, conv: nn.Conv2d
    ) -> Tensor:
        assert not isinstance(conv.padding, str)
        weight = torch.mul(own, factor, out=torch.empty_like(own, dtype=x.dtype))
        where = (conv.stride, conv.padding, conv.dilation)
        if shortcut is None:
            out = torch.cudnn_convolution_relu(x, weight, offset, *where, conv.groups)
        else:
            out = torch.cudnn_convolution_add_relu(x, weight, shortcut, 1.0, offset, *where, conv.groups)
        ctx.save_for_backward(x, weight, factor, out)
        ctx.conv = conv
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, factor, out = ctx.saved_tensors
        conv = ctx.conv
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], False)
        to_x, to_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups, wanted
        )
        to_own = None if to_weight is None else to_weight * factor
        return to_x, to_own, None, None, grad if ctx.needs_input_grad[4] else None, None


def _residual(block: Any, x: Tensor, folded: Folded) -> Tensor:
    """Apply torchvision's BasicBlock or Bottleneck: convolutions with ReLU between, then the shortcut is added."""
    shortcut = x if block.downsample is None else _run(block.downsample.children(), x, folded)
    num = 3 if isinstance(block, Bottleneck) else 2
    for i in range(1, num + 1):
        conv, norm = getattr(block, f"conv{i}"), getattr(block, f"bn{i}")
        x = _conv_norm(conv, norm, x, folded, relu=True, shortcut=shortcut if i == num else None)
    return x


def build_backbone(settings: ModelSettings) -> Backbone:
    """Build the backbone that a network's settings ask for."""
    if settings.neck == "fpn":
        return Backbone(settings.backbone, min(5, settings.levels[1]), deformable=settings.deformable)
    return Backbone(settings.backbone, 5, dilated=settings.backbone != "mobilenet_v2", deformable=settings.deformable)


def stored_statistics(module: nn.Module) -> None:
    """Put the batch norms whose affine parameters are frozen into eval mode, so that they use stored statistics.

    `module.train()` undoes it, so call this after it.
    """
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and not norm.weight.requires_grad:
            norm.eval()


def normalise(images: Tensor, sizes: Tensor) -> Tensor:
    """Bring pixels to ImageNet's mean and deviation; padding becomes 0, the mean colour (docs/method.md, 2.4).

    Args:
        images: uint8 [B, 3, H, W], RGB, content top left, the rest of any value.
        sizes: int64 [B, 2], height and width of the content, pixels.

    Returns:
        float32 [B, 3, H, W], channels_last.
    """
    device, (height, width) = images.device, images.shape[2:]
    mean, deviation = (constant(values, device).view(3, 1, 1) for values in (MEAN, DEVIATION))
    place = torch.arange(max(height, width), device=device)
    rows = place[:height, None] < sizes[:, 0, None, None]  # [B, H, 1]
    columns = place[:width] < sizes[:, 1, None, None]  # [B, 1, W]
    x = images.to(memory_format=torch.channels_last).float()
    return x.sub_(mean).div_(deviation).mul_((rows & columns)[:, None])
