import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from schemas.codes import Status
from schemas.settings import ModelSettings, Precision
from tests.trainer.chips import CLASSES, SLIM, make_batch, slim_detector, take
from tests.trainer.gpus import CUDA, needs_gpu
from trainer.learning.objective import Objective
from trainer.loading.batch import Batch
from trainer.model import Detector, predict
from trainer.model.anchors import anchor_grid
from trainer.model.backbone import normalise
from trainer.model.boxes import constant
from trainer.model.heads import autocast, neighbours
from trainer.runtime.weights import set_norm_policy


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Two threads that wait for each other are many times slower when something else keeps a core busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2")
CASES = {
    "mixed": make_batch([5, 0, 30], seed=1),
    "only negatives": make_batch([0, 0]),
    "no chips": make_batch([]),
    "only crowds": make_batch([3, 3], statuses=[Status.CROWD]),
    "more boxes than slots": make_batch([200], statuses=[Status.RESCUED]),
}


def losses_of(model: Detector, batch: Batch, chips: int | None = None) -> dict[str, Tensor]:
    limits = (0.0, 80.0, 150.0) if model.settings.focus else ()
    losses: dict[str, Tensor] = Objective(model, limits)(
        batch, seed=0, epoch=0, batch_size=max(1, len(batch)) if chips is None else chips
    )
    return losses


def gradients(model: Detector) -> dict[str, Tensor]:
    """Of every parameter that learns; fails if one has none or one that is not finite."""
    out = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            out[name] = parameter.grad.clone()
    model.zero_grad()
    return out


@pytest.mark.parametrize(("backbone", "neck"), list(itertools.product(BACKBONES, ("fpn", "c5"))))
def test_detector__trains_and_predicts(backbone: str, neck: str):
    settings = SLIM.model_copy(update={"backbone": backbone, "neck": neck, "anchor_scales": None, "levels": (2, 6)})
    model = slim_detector(64, settings=settings)
    set_norm_policy(model, "frozen", freeze_stem=False)
    losses = losses_of(model, make_batch([2, 0], 64))
    assert set(losses) == {"rpn_class", "rpn_box", "roi_class", "roi_box"}
    sum(losses.values()).backward()
    gradients(model)
    stride = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]])).maps[0].shape[3]
    assert stride == {"fpn": 16, "c5": 2 if backbone == "mobilenet_v2" else 4}[neck]
    detections = predict(
        model.eval(), torch.zeros(2, 3, 96, 80, dtype=torch.uint8), torch.tensor([[96, 70], [50, 80]])
    )
    assert len(detections) == 2
    for (boxes, scores, labels), (height, width) in zip(detections, ((96, 70), (50, 80)), strict=True):
        assert len(boxes) == len(scores) == len(labels)
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert (scores > 0.001).all()
        assert ((labels >= 1) & (labels <= CLASSES)).all()


@pytest.mark.parametrize("policy", ["train", "frozen"])
@pytest.mark.parametrize("changes", [{}, {"class_boxes": True}, {"neck": "c5", "deformable": True}], ids=str)
def test_objective__finite_with_every_parameter_whatever_the_boxes(policy: str, changes: dict[str, object]):
    model = slim_detector(settings=SLIM.model_copy(update=changes))
    set_norm_policy(model, policy)  # type: ignore[arg-type]
    for name, batch in CASES.items():
        losses = losses_of(model, batch)
        assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values()), name
        sum(losses.values()).backward()
        gradients(model)
        if name in ("only negatives", "no chips"):
            assert losses["rpn_box"] == losses["roi_box"] == 0
        if name == "only negatives":
            assert losses["rpn_class"] > 0
            assert losses["roi_class"] > 0
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_objective__gradients_of_parts_add_up():
    """1 x 8 chips = 2 ranks x 4 = 4 x 2 accumulated, each over the chips of the global batch."""
    model = slim_detector()
    set_norm_policy(model, "frozen")
    batch = make_batch([3, 0, 8, 1, 20, 2, 0, 5], seed=6)
    found = []
    for size in (8, 4, 2):
        for start in range(0, 8, size):
            sum(losses_of(model, take(batch, list(range(start, start + size))), 8).values()).backward()
        found.append(gradients(model))
    for other in found[1:]:
        for name, gradient in found[0].items():
            assert torch.allclose(gradient, other[name], rtol=1e-3, atol=1e-5 * gradient.abs().max().item()), name


def test_rpn__at_equals_everywhere_values_and_gradients():
    model = slim_detector()
    torch.manual_seed(1)
    maps = [torch.randn(2, 16, n, n, requires_grad=True) for n in (6, 3, 2)]
    rows = torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in maps], 1)
    shapes = ((6, 6), (3, 3), (2, 2))
    slots = torch.randint(0, rows.shape[1] * model.rpn.k, (2, 40))
    logits, deltas = model.rpn.at(rows, shapes, slots)
    all_logits, all_deltas = model.rpn.everywhere(maps)
    assert torch.allclose(logits, all_logits.gather(1, slots), atol=1e-5)
    assert torch.allclose(deltas, all_deltas.gather(1, slots[..., None].expand(-1, -1, 4)), atol=1e-5)

    weight, weights = torch.randn_like(logits), torch.randn_like(deltas)
    leaves = [*maps, *model.rpn.parameters()]
    ours = torch.autograd.grad((logits * weight).sum() + (deltas * weights).sum(), leaves)
    hidden = [F.relu(model.rpn.conv(level)) for level in maps]
    dense = torch.cat([model.rpn.logits(x).permute(0, 2, 3, 1).flatten(1) for x in hidden], 1)
    dense_boxes = torch.cat([model.rpn.deltas(x).permute(0, 2, 3, 1).reshape(2, -1, 4) for x in hidden], 1)
    total = (dense.gather(1, slots) * weight).sum()
    total = total + (dense_boxes.gather(1, slots[..., None].expand(-1, -1, 4)) * weights).sum()
    for a, b in zip(ours, torch.autograd.grad(total, leaves), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_rpn__everywhere_widens_each_map_once(monkeypatch: pytest.MonkeyPatch):
    model, widened = slim_detector(), []
    wide = Tensor.float
    monkeypatch.setattr(Tensor, "float", lambda x: widened.append(x.shape) or wide(x))
    with torch.autocast("cpu", torch.bfloat16):
        model.rpn.everywhere([torch.randn(2, 16, n, n) for n in (6, 3)])
    assert [shape[2:] for shape in widened] == [(6, 6), (3, 3)]


def test_detector__the_rpn_alone_learns_in_its_own_run():
    """A parameter that learns and has no loss would make ranks wait for its gradient."""
    model = slim_detector(settings=SLIM.model_copy(update={"focus": True}))
    model.keep_rpn_only()
    sum(losses_of(model, make_batch([2])).values()).backward()
    gradients(model)


def test_backbone__equals_torchvision_whatever_the_norms_do():
    for policy in ("train", "frozen"):
        model = slim_detector(settings=ModelSettings(backbone="resnet50", width=16, head_width=16))
        for buffer in model.backbone.buffers():
            if buffer.dtype == torch.float32:
                buffer.uniform_(0.5, 1.5)
        set_norm_policy(model, policy)  # type: ignore[arg-type]
        body, x = model.backbone.body, torch.randn(2, 3, 64, 64)
        maps = model.backbone(x)
        out = body.maxpool(body.relu(body.bn1(body.conv1(x))))
        for level, ours in enumerate(maps, 1):
            out = getattr(body, f"layer{level}")(out)
            assert torch.allclose(ours, out, rtol=1e-3, atol=1e-4 * out.abs().max().item())


def test_backbone__one_value_per_channel_has_no_statistics():
    """A chip of one cell at the coarsest level, alone in its batch: torch's own batch norm refuses to train on it."""
    model = slim_detector()
    set_norm_policy(model, "train", momentum=0.5)
    for buffer in model.backbone.buffers():
        if buffer.dtype == torch.float32:
            buffer.fill_(2.0)
    x = torch.randn(1, 3, 32, 32)
    maps = model.backbone(x)
    assert maps[-1].shape[2:] == (1, 1)
    assert all(level.isfinite().all() for level in maps)
    sum(level.sum() for level in maps).backward()
    statistics = {name: value for name, value in model.backbone.body.named_buffers() if "running" in name}
    assert (statistics["layer4.0.bn1.running_mean"] == 2.0).all()  # of one value: stays
    assert (statistics["layer2.0.bn1.running_mean"] != 2.0).any()  # of sixteen values: learns


@pytest.fixture
def synchronised() -> Iterator[Detector]:
    """A detector with synchronised norms in a process that has joined a group, if one of itself alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = slim_detector()
    set_norm_policy(model, "sync")
    yield model
    dist.destroy_process_group()


def test_backbone__synchronised_norms_have_an_outline(synchronised: Detector):
    """Nothing is computed for it, so torch's refusal of what is not on a GPU has no place there."""
    maps = synchronised.to("meta").backbone(torch.empty(2, 3, 64, 64, device="meta"))
    assert maps[-1].shape[2:] == (2, 2)


def test_backbone__a_rank_without_a_chip_sends_the_type_that_the_others_send(
    synchronised: Detector, monkeypatch: pytest.MonkeyPatch
):
    given: set[tuple[int, torch.dtype]] = set()

    def spy(norm: torch.nn.SyncBatchNorm, x: Tensor) -> Tensor:
        given.add((len(x), x.dtype))
        return x * norm.weight[:, None, None]

    monkeypatch.setattr(torch.nn.SyncBatchNorm, "forward", spy)
    for chips in (0, 1):
        with torch.autocast("cpu", torch.bfloat16):
            maps = synchronised.backbone(torch.randn(chips, 3, 64, 64))
        assert all(level.dtype == torch.bfloat16 for level in maps)
        sum(level.sum() for level in maps).backward()
    assert given == {(0, torch.float32), (1, torch.bfloat16)}


def test_normalise__padding_is_the_mean_colour():
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    sizes = torch.tensor([[20, 12], [5, 20]])
    x = normalise(images, sizes)
    assert x.is_contiguous(memory_format=torch.channels_last)
    for chip, (height, width) in enumerate(sizes.tolist()):
        mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
        expected = (images[chip, :, :height, :width] / 255 - mean) / deviation
        assert torch.allclose(x[chip, :, :height, :width], expected, atol=1e-5)
        assert (x[chip, :, height:] == 0).all()
        assert (x[chip, :, :, width:] == 0).all()


def test_objective__refuses_chips_of_another_side():
    with pytest.raises(ValueError, match=r"expected chips \[B, 3, 96, 96\].*128"):
        losses_of(slim_detector(96), make_batch([1], 128))


def test_objective__bf16_autocast():
    """The casts that autocast caches must not cut the RPN's weights out of the graph."""
    model = slim_detector()
    set_norm_policy(model, "train")
    batch = make_batch([4, 2], seed=3)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = losses_of(model, batch)
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        sum(losses.values()).backward()
        found.append(gradients(model))
    for name in ("rpn.conv.weight", "rpn.logits.weight", "head.layers.0.weight"):
        assert F.cosine_similarity(found[0][name].flatten(), found[1][name].flatten(), 0) > 0.9, name
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert predict(model, batch.images, batch.sizes)[0].boxes.dtype == torch.float32


def test_detector__overfits_a_few_chips():
    """A slim model finds the bright rectangles of four chips, and nothing else with as much certainty.

    Losses of a given step hang on how a CPU rounds. The steps are many and end small, so that all CPUs come to the
    same end: with other first weights, AP50 is 1 after 60 steps as well.
    """
    from tests.trainer.overfit import overfit  # needs pycocotools, which the other tests here do without

    before, after = overfit(torch.device("cpu"), "fp32")
    assert before < 0.1
    assert after >= 0.95


KINDS: dict[str, dict[str, object]] = {
    "fpn": {},
    "c5": {"neck": "c5", "anchor_scales": None},
    "c5 of mobilenet": {"neck": "c5", "anchor_scales": None, "backbone": "mobilenet_v2"},
    "focus": {"focus": True},
    "class boxes": {"class_boxes": True},
    "deformable": {"deformable": True},
    "deformable c5": {"neck": "c5", "anchor_scales": None, "deformable": True},
}


@needs_gpu
@pytest.mark.parametrize(
    ("kind", "case", "policy"),
    [("fpn", case, policy) for case in CASES for policy in ("train", "frozen")]
    + [(kind, "mixed", policy) for kind in KINDS if kind != "fpn" for policy in ("train", "frozen")],
)
def test_objective__losses_and_gradients_of_a_cpu(kind: str, case: str, policy: str, monkeypatch: pytest.MonkeyPatch):
    """In fp32, without TF32, any batch gives what it gives on a CPU; an empty one gives zeros."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    batch, found = CASES[case], []
    for device in (torch.device("cpu"), CUDA):
        model = slim_detector(settings=SLIM.model_copy(update=KINDS[kind])).to(device)
        set_norm_policy(model, policy)  # type: ignore[arg-type]
        losses = losses_of(model, batch.to(device))
        sum(losses.values()).backward()
        found.append(({name: loss.item() for name, loss in losses.items()}, gradients(model)))
    (ours, right), (theirs, other) = found
    assert theirs == pytest.approx(ours, rel=0.05, abs=1e-4)
    for name, gradient in right.items():
        off = (other[name].cpu() - gradient).norm()
        assert off <= 0.1 * gradient.norm() + 1e-5, name


@needs_gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_objective__autocast_on_a_gpu(precision: Precision):
    """The casts that autocast caches must not cut the RPN's weights out of the graph, and fp16 must not overflow."""
    model = slim_detector().to(CUDA)
    set_norm_policy(model, "train")
    batch, found = make_batch([4, 2], seed=3).to(CUDA), []
    kinds: list[Precision] = ["fp32", precision]
    for each in kinds:
        with autocast(CUDA, each):
            losses = losses_of(model, batch)
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        (1024 * sum(losses.values())).backward()
        found.append(gradients(model))
    for name in ("rpn.conv.weight", "rpn.logits.weight", "head.layers.0.weight"):
        assert F.cosine_similarity(found[0][name].flatten(), found[1][name].flatten(), 0) > 0.9, name
    for cached in (anchor_grid, constant, neighbours):
        cached.cache_clear()
    with torch.inference_mode(), autocast(CUDA, precision):
        assert predict(model.eval(), batch.images, batch.sizes)[0].boxes.dtype == torch.float32
    with autocast(CUDA, precision):  # anchors and constants made in inference mode serve training, too
        sum(losses_of(model.train(), batch).values()).backward()
    gradients(model)
