import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from schemas.settings import ModelSettings
from tests.trainer.chips import SLIM, make_batch, random_boxes, slim_detector
from tests.trainer.gpus import CUDA, needs_gpu
from trainer.inference.export_model import OPSET
from trainer.model import predict
from trainer.model.backbone import Backbone
from trainer.model.deformable import DeformableConv, deformable_conv
from trainer.model.pooling import flatten_maps, roi_align

SHAPES = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "stride": {"kernel_size": 3, "padding": 1, "stride": 2},
    "no padding": {"kernel_size": 1},
}


def one(shape: dict[str, int], spread: float) -> DeformableConv:
    torch.manual_seed(0)
    conv = DeformableConv(nn.Conv2d(16, 6, **shape, bias=False))  # type: ignore[arg-type]
    nn.init.normal_(conv.offsets.weight, std=spread)
    nn.init.normal_(conv.offsets.bias, std=spread)  # type: ignore[arg-type]
    return conv


def outcome(conv: DeformableConv, x: Tensor, *, theirs: bool) -> list[Tensor]:
    """The result and the gradients of x, weight and offsets."""
    if theirs:
        shape = (conv.stride, conv.padding, conv.dilation)
        out = deform_conv2d(x, conv.offsets(x), conv.weight, None, *shape)  # type: ignore[arg-type]
    else:
        out = deformable_conv(conv, x, conv.weight, None)
    weighted = out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device)
    return [out, *torch.autograd.grad(weighted.sum(), (x, conv.weight, conv.offsets.weight))]


@pytest.mark.parametrize("spread", [0.3, 3.0], ids=["near", "far beyond the edges"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_deformable_conv__equals_torchvision_values_and_gradients(shape: dict[str, int], spread: float) -> None:
    conv = one(shape, spread)
    x = torch.randn(3, 16, 9, 14, requires_grad=True)
    for ours, right in zip(outcome(conv, x, theirs=False), outcome(conv, x, theirs=True), strict=True):
        assert (ours - right).abs().max() <= 1e-4 * right.abs().max()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_deformable_conv__at_rest_is_a_plain_one(shape: dict[str, int]) -> None:
    conv, x = one(shape, 0.0), torch.randn(3, 16, 9, 14)
    assert torch.allclose(deformable_conv(conv, x, conv.weight, None), conv(x), atol=1e-5)


def test_deformable_conv__no_images() -> None:
    conv = one(SHAPES["dilated"], 0.1)
    out = deformable_conv(conv, torch.zeros(0, 16, 9, 14), conv.weight, None)
    assert out.shape == (0, 6, 9, 14)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in conv.parameters())


class Deformable(nn.Module):
    """A deformable convolution, and the pooling of moved bins from its map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = one(SHAPES["dilated"], 0.3)

    def forward(self, x: Tensor, rois: Tensor, shifts: Tensor) -> Tensor:
        table = flatten_maps([deformable_conv(self.conv, x, self.conv.weight, None)])
        return roi_align(table, ((9, 14),), (16,), rois, 3, shifts)


def test_deformable_layers__as_onnx() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module = Deformable().eval()
    rois, shifts = random_boxes(10, 144, 0).view(2, 5, 4), torch.randn(2, 5, 3, 3, 2) * 0.1
    given = (torch.randn(2, 16, 9, 14), rois, shifts)
    expected = module(*given)  # makes the constants that both share
    program = torch.onnx.export(module, given, dynamo=True, opset_version=OPSET, verbose=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [each.name for each in session.get_inputs()]
    (found,) = session.run(None, {name: values.numpy() for name, values in zip(names, given, strict=True)})
    assert (torch.from_numpy(found) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("name", "number"), [("resnet18", 4), ("resnet50", 3)])
def test_backbone__has_them_in_the_last_stage_alone(name: str, number: int) -> None:
    """BasicBlocks have two 3x3 layers, Bottlenecks one."""
    deformable = [
        n for n, m in Backbone(name, 5, dilated=True, deformable=True).named_modules() if type(m) is DeformableConv
    ]
    assert len(deformable) == number
    assert all(".layer4." in each for each in deformable)


@pytest.mark.parametrize("neck", ["fpn", "c5"])
def test_detector__begins_as_the_one_without_deformable_layers(neck: str) -> None:
    """Offsets and shifts are 0 at first, so that pretrained weights mean what they meant."""
    settings = ModelSettings.model_validate(SLIM.model_dump() | {"neck": neck})
    plain = slim_detector(settings=settings).eval()
    model = slim_detector(settings=settings.model_copy(update={"deformable": True})).eval()
    new = model.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert new
    assert all("offsets" in name or "shifts" in name for name in new)
    batch = make_batch([3, 1])
    for one, right in zip(
        predict(model, batch.images, batch.sizes), predict(plain, batch.images, batch.sizes), strict=True
    ):
        assert all(torch.allclose(a.float(), b.float(), atol=1e-3) for a, b in zip(one, right, strict=True))


@needs_gpu
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_deformable_conv__values_and_gradients_of_a_cpu(shape: dict[str, int]) -> None:
    conv, x = one(shape, 0.3), torch.randn(3, 16, 9, 14, requires_grad=True)
    right = outcome(conv, x, theirs=False)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = outcome(conv.to(CUDA), x.detach().to(CUDA).requires_grad_(), theirs=False)
    for ours, theirs in zip(found, right, strict=True):
        assert (ours.cpu() - theirs).norm() < 1e-3 * theirs.norm()
