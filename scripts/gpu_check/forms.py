"""What was written for a CPU, beside the plain form of it: which one serves this device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, deform_conv2d

from scripts.bench.step_models import plausible_batch
from scripts.gpu_check.setting import Setting
from scripts.gpu_check.steps import default_model, timed
from trainer.learning.targets import RPN_SAMPLES
from trainer.model import Detector
from trainer.model.backbone import normalise
from trainer.model.deformable import DeformableConv, deformable_conv
from trainer.model.heads import autocast, full_precision
from trainer.model.pooling import flatten_maps, roi_align

Figures = Iterator[dict[str, Any]]
Form = Callable[[], Tensor]
"""Computes something whose sum is then derived by the leaves."""


def both_forms(setting: Setting) -> Figures:
    """Milliseconds, forward and backward, of each pair, in the first precision."""
    batch = plausible_batch(setting.sizes.chips, setting.device, setting.sizes.side)
    model = default_model(setting, batch)
    precision = setting.sizes.precisions[0]
    with torch.no_grad(), autocast(setting.device, precision):
        features = model(batch.images, batch.sizes)
    maps = [level.detach().requires_grad_() for level in features.maps]
    shapes = features.shapes()

    pooling = poolings(model, maps, shapes, random_rois(setting))
    yield from compared("pooling", pooling, maps, setting)
    yield from compared("rpn", rpns(model, maps, shapes), [*maps, *model.rpn.parameters()], setting)

    pixels = normalise(batch.images, batch.sizes)
    learning = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
    norms: dict[str, Form] = {
        "folded": lambda: model.backbone(pixels)[-1],
        "plain": lambda: plain(model, pixels),
    }
    yield from compared("norms", norms, learning, setting)

    conv, x = deformable_layer(setting)
    shape: Any = (conv.stride, conv.padding, conv.dilation)
    convolutions: dict[str, Form] = {
        "gathered": lambda: deformable_conv(conv, x, conv.weight, None),
        "plain": lambda: deform_conv2d(x, conv.offsets(x).float(), conv.weight, None, *shape),  # fp32 alone
    }
    yield from compared("deformable", convolutions, [x, *conv.parameters()], setting)


def compared(
    name: str, forms: dict[str, Form], leaves: Sequence[Tensor], setting: Setting
) -> Iterator[dict[str, Any]]:
    """Measure the two forms, ours first."""
    taken = {}
    for label, form in forms.items():

        def once(form: Form = form) -> None:
            with autocast(setting.device, setting.sizes.precisions[0]):
                out = form()
            torch.autograd.grad(out.float().sum(), leaves, allow_unused=True)

        taken[label] = timed(once, setting.device) * 1e3
        yield {f"{name}_{label}_ms": taken[label]}
    ours, other = taken.values()
    yield {f"{name}_plain_over_ours": other / ours}


def random_rois(setting: Setting) -> Tensor:
    """Boxes of all sizes, float32 [B, 300, 4]."""
    random, side = torch.Generator().manual_seed(0), setting.sizes.side
    wh = torch.empty(setting.sizes.chips, 300, 2).uniform_(2.0, 6.0, generator=random).exp().clamp(max=side - 1)
    corner = torch.rand(wh.shape, generator=random) * (side - wh)
    return torch.cat([corner, corner + wh], 2).to(setting.device)


def deformable_layer(setting: Setting) -> tuple[DeformableConv, Tensor]:
    """A deformable convolution of the last stage of `neck: c5`, with offsets of about a cell, and maps for it."""
    torch.manual_seed(0)
    conv = DeformableConv(nn.Conv2d(512, 512, 3, padding=2, dilation=2, bias=False))
    nn.init.normal_(conv.offsets.weight, std=0.015)  # of 4,608 inputs
    side = setting.sizes.side // 16
    x = torch.randn(setting.sizes.chips, 512, side, side).to(setting.device, memory_format=torch.channels_last)
    return conv.to(setting.device), x.requires_grad_()


def poolings(
    model: Detector, maps: list[Tensor], shapes: tuple[tuple[int, int], ...], rois: Tensor
) -> dict[str, Form]:
    """RoIAlign as weighted sums of rows, and torchvision's over one level after the other."""
    used = [i for i, stride in enumerate(model.layout.strides) if stride <= 32]
    strides, pooled = model.layout.strides[: len(used)], model.settings.pooled
    names = [str(i) for i in used]
    theirs = MultiScaleRoIAlign(names, pooled, sampling_ratio=2)
    side = shapes[0][0] * strides[0]
    images, boxes = [(side, side)] * len(rois), list(rois)
    return {
        "rows": lambda: roi_align(flatten_maps(maps), shapes[: len(used)], strides, rois, pooled),
        "plain": lambda: theirs(dict(zip(names, maps, strict=False)), boxes, images),
    }


def rpns(model: Detector, maps: list[Tensor], shapes: tuple[tuple[int, int], ...]) -> dict[str, Form]:
    """The RPN's outputs with gradient at the drawn anchors alone beside all without, and all of them with gradient."""
    rpn, rows = model.rpn, flatten_maps(maps)
    num = rows.shape[1] * rpn.k
    slots = torch.randint(num, (len(rows), min(RPN_SAMPLES, num)), generator=torch.Generator().manual_seed(0))
    slots = slots.to(rows.device)

    def ours() -> Tensor:
        rpn.everywhere(maps)
        logits, deltas = rpn.at(flatten_maps(maps), shapes, slots)
        return logits.sum() + deltas.sum()

    def dense() -> Tensor:
        hidden = [F.relu_(rpn.conv(level)).float() for level in maps]
        with full_precision(rows):
            logits = flatten_maps([rpn.logits(x) for x in hidden]).flatten(1)
            deltas = flatten_maps([rpn.deltas(x) for x in hidden]).reshape(len(rows), num, 4)
        return logits.gather(1, slots).sum() + deltas.gather(1, slots[..., None].expand(-1, -1, 4)).sum()

    return {"at": ours, "plain": dense}


def plain(model: Detector, pixels: Tensor) -> Tensor:
    """The backbone's coarsest map as torchvision computes it: each norm is a pass of its own."""
    body: Any = model.backbone.body
    x = body.maxpool(body.relu(body.bn1(body.conv1(pixels))))
    return torch.as_tensor(body.layer4(body.layer3(body.layer2(body.layer1(x)))))
