"""What training steps are compared with: the same chips and the same weights in our network and in torchvision's.

It needs torch, torchvision and what `trainer.learning` needs, and nothing that reads data.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from schemas.codes import Status
from schemas.settings import LoaderSettings, ModelSettings, NegativeSettings, Precision, TrainSettings
from trainer.learning.objective import Objective
from trainer.loading.batch import Batch
from trainer.model import Detector
from trainer.model.backbone import normalise
from trainer.model.heads import autocast
from trainer.runtime.weights import set_norm_policy

SIDE, CLASSES = 512, 80
STATUSES = torch.tensor([Status.VALID] * 6 + [Status.CUT] * 2 + [Status.OUT_OF_RANGE, Status.IGNORE])
COCO_CHIPS = 3.75  # positive chips per image of COCO val2017 (docs/benchmarks.md)


def plausible_batch(num: int, device: torch.device, side: int = SIDE) -> Batch:
    """Chips of the middle scale: 0 to 19 boxes each, sizes log-uniform from 12 to 300 px, ratios 1/3 to 3."""
    random = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 20, (num,), generator=random)
    total = int(counts.sum())
    size = torch.empty(total, 1).uniform_(2.5, 5.7, generator=random).exp()
    ratio = torch.empty(total, 1).uniform_(-0.55, 0.55, generator=random).exp()
    wh = torch.cat([size * ratio, size / ratio], 1).clamp(max=side - 1)
    corner = torch.rand(total, 2, generator=random) * (side - wh)
    coarse = torch.rand(num, 3, side // 16, side // 16, generator=random)
    images = nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1) * 255
    return Batch(
        keys=[f"chip-{i}" for i in range(num)],
        images=images.byte().contiguous(memory_format=torch.channels_last),
        sizes=torch.full((num, 2), side),
        scales=torch.full((num,), 1.667),
        scale_indices=torch.ones(num, dtype=torch.int64),
        ranges=torch.tensor([[32.0, 150.0]]).repeat(num, 1),
        boxes=torch.cat([corner, corner + wh], 1),
        labels=torch.randint(1, CLASSES + 1, (total,), generator=random),
        status=STATUSES[torch.randint(len(STATUSES), (total,), generator=random)].to(torch.uint8),
        visible=torch.ones(total),
        offsets=nn.functional.pad(counts.cumsum(0), (1, 0)),
    ).to(device)


def calibrated_state(backbone: str, batch: Batch) -> dict[str, Tensor]:
    """A random ResNet whose stored statistics fit the images: with none, frozen norms let activations explode.

    It is made on the batch's device and handed out on the CPU.
    """
    torch.manual_seed(0)
    net = getattr(torchvision.models, backbone)(weights=None).to(batch.images.device)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        net.train()(normalise(batch.images, batch.sizes))
    state: dict[str, Tensor] = net.state_dict()
    return {name: value.cpu() for name, value in state.items() if "num_batches" not in name}


def their_model(backbone: str, state: dict[str, Tensor], side: int = SIDE, **options: int) -> nn.Module:
    """What fasterrcnn_resnet50_fpn(weights_backbone=...) builds by default, without its download."""
    net = getattr(torchvision.models, backbone)(weights=None, norm_layer=FrozenBatchNorm2d)
    net.load_state_dict(state)
    features = _resnet_fpn_extractor(net, 3)
    model: nn.Module = FasterRCNN(features, CLASSES + 1, min_size=side, max_size=side, **options)
    return model


def our_model(backbone: str, state: dict[str, Tensor], side: int = SIDE, **others: Any) -> Detector:
    """Our network on this backbone, in train mode, with frozen norms, stem and first stage.

    It is the default one but for other settings of `model` that are given. What the state does not hold is random, and
    the same in every call.
    """
    torch.manual_seed(0)
    model = Detector(ModelSettings.model_validate({"backbone": backbone, **others}), CLASSES, side)
    model.backbone.body.load_state_dict(state, strict=False)
    set_norm_policy(model, "frozen")
    return model.train()


def losses_of(model: Detector, batch: Batch) -> Callable[[], dict[str, Tensor]]:
    """What computes our losses on a batch that stays the same."""
    objective = Objective(model)
    return lambda: objective(batch, seed=0, epoch=0, batch_size=len(batch))


def as_torchvision(batch: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The batch as torchvision's detectors take it: images as floats, and the boxes of each."""
    floats = (batch.images.float() / 255).contiguous()
    ends = batch.offsets.tolist()
    targets = [
        {"boxes": batch.boxes[a:b], "labels": batch.labels[a:b]} for a, b in zip(ends[:-1], ends[1:], strict=True)
    ]
    return list(floats), targets


def stepper(
    model: nn.Module, losses: Callable[[], dict[str, Tensor]], precision: Precision, times: int = 1
) -> Callable[[], float]:
    """A function that does `times` steps, waits for the device, and returns the seconds of one.

    It raises FloatingPointError where the loss is not finite, since such a step is not that of a training.
    """
    device = next(model.parameters()).device
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-4, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def step() -> float:
        start = time.perf_counter()
        for _ in range(times):
            with autocast(device, precision):
                total = sum(losses().values(), torch.zeros((), device=device))
            optimizer.zero_grad()
            scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - start
        if not math.isfinite(total.item()):
            raise FloatingPointError(f"the loss is {total.item()}")
        return taken / times

    return step


def stage_share(full: float, rpn: float, extraction: float, pool_per_image: float) -> float:
    """Share of `sniper negatives` before mining, its RPN's run and its proposals, in all training time on COCO.

    Args:
        full, rpn: seconds per chip of a step of the whole detector, and of the RPN alone.
        extraction: seconds per image for proposals at all scales.
        pool_per_image: negative chips that were mined per image.
    """
    negatives, train, loader = NegativeSettings(), TrainSettings(), LoaderSettings()
    stage = negatives.rpn_epochs * COCO_CHIPS * rpn + extraction
    drawn = min(loader.negatives_per_image, pool_per_image)
    return stage / (stage + train.epochs * (COCO_CHIPS + drawn) * full)


def step_arguments(about: str | None) -> argparse.ArgumentParser:
    """What the benchmarks of a training step are asked: device, chips, precision, rounds, and where the figures go."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=7, help="measured; one more warms up")
    parser.add_argument("--json", type=Path)
    return parser


def tell(result: dict[str, object], json_file: Path | None) -> None:
    """Print the figures of a benchmark, and write them to a file where one is wanted."""
    for key, value in result.items():
        print(f"{key:30} {'not measured' if value is None else value}")
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def device_name(device: torch.device) -> str:
    """How the figures' machine is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
