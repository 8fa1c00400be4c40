"""One training step of our R50-FPN against torchvision's `fasterrcnn_resnet50_fpn`: same chips, machine and run.

Both: ResNet-50 with frozen norms and the same weights, stem and first stage frozen, FPN, chips of 512, SGD. The
models take turns within a round, and the ratios are medians over rounds, so other load on the machine hits all alike.
torchvision gets its images as floats on the device beforehand; ours starts from bytes. Figures are chips/s.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from pipeline.commands.chips import chips
from schemas.codes import Status
from schemas.settings import ChipSettings, LoaderSettings, ModelSettings
from trainer.learning.objective import Objective
from trainer.loading.batch import Batch
from trainer.loading.dataset import ChipDataset
from trainer.loading.loader import BatchLoader
from trainer.loading.order import State
from trainer.model import Detector
from trainer.model.backbone import normalise
from trainer.runtime.weights import set_norm_policy

SIDE, CLASSES = 512, 80
SHARED = Path(__file__).resolve().parents[2] / "../shared/data/coco-real"
NUM_IMAGES = 40
STATUSES = torch.tensor([Status.VALID] * 6 + [Status.CUT] * 2 + [Status.OUT_OF_RANGE, Status.IGNORE])


def plausible_batch(num: int, device: torch.device) -> Batch:
    """Chips of the middle scale: 0 to 19 boxes each, sizes log-uniform from 12 to 300 px, ratios 1/3 to 3."""
    random = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 20, (num,), generator=random)
    total = int(counts.sum())
    size = torch.empty(total, 1).uniform_(2.5, 5.7, generator=random).exp()
    ratio = torch.empty(total, 1).uniform_(-0.55, 0.55, generator=random).exp()
    wh = torch.cat([size * ratio, size / ratio], 1).clamp(max=SIDE - 1)
    corner = torch.rand(total, 2, generator=random) * (SIDE - wh)
    coarse = torch.rand(num, 3, 32, 32, generator=random)
    images = nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1) * 255
    return Batch(
        keys=[f"chip-{i}" for i in range(num)],
        images=images.byte().contiguous(memory_format=torch.channels_last),
        sizes=torch.full((num, 2), SIDE),
        scales=torch.full((num,), 1.667),
        ranges=torch.tensor([[32.0, 150.0]]).repeat(num, 1),
        boxes=torch.cat([corner, corner + wh], 1),
        labels=torch.randint(1, CLASSES + 1, (total,), generator=random),
        status=STATUSES[torch.randint(len(STATUSES), (total,), generator=random)].to(torch.uint8),
        offsets=nn.functional.pad(counts.cumsum(0), (1, 0)),
    ).to(device)


def calibrated_resnet50(batch: Batch) -> dict[str, Tensor]:
    """A random ResNet-50 whose stored statistics fit the images: with none, frozen norms let activations explode."""
    torch.manual_seed(0)
    net = torchvision.models.resnet50(weights=None)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        net.train()(normalise(batch.images, batch.sizes))
    state: dict[str, Tensor] = net.state_dict()
    return {name: value for name, value in state.items() if "num_batches" not in name}


def their_model(state: dict[str, Tensor], **options: int) -> nn.Module:
    """What fasterrcnn_resnet50_fpn(weights_backbone=...) builds by default, without its download."""
    net = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    net.load_state_dict(state)
    backbone = _resnet_fpn_extractor(net, 3)
    model: nn.Module = FasterRCNN(backbone, CLASSES + 1, min_size=SIDE, max_size=SIDE, **options)
    return model


def our_model(state: dict[str, Tensor]) -> Detector:
    model = Detector(ModelSettings(backbone="resnet50"), CLASSES, SIDE)
    model.backbone.body.load_state_dict(state, strict=False)
    set_norm_policy(model, "frozen")
    return model


def stepper(model: nn.Module, losses: Callable[[], dict[str, Tensor]], precision: str) -> Callable[[], float]:
    """A function that does one step and returns its seconds."""
    device = next(model.parameters()).device
    dtype = {"fp32": None, "bf16": torch.bfloat16}[precision]
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            total = sum(losses().values(), torch.zeros((), device=device))
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return step


def loaded_batches(batch_size: int, folder: Path, device: torch.device) -> Iterator[Batch]:
    """Batches of real chips through the loader, epoch after epoch, on the device."""
    coco = json.loads((SHARED / "train.json").read_bytes())
    coco["images"] = sorted(coco["images"], key=lambda image: int(image["id"]))[:NUM_IMAGES]
    kept = {image["id"] for image in coco["images"]}
    coco["annotations"] = [box for box in coco["annotations"] if box["image_id"] in kept]
    (folder / "few.json").write_text(json.dumps(coco))
    chips(folder / "few.json", SHARED / "images", folder / "chips", ChipSettings())
    loader = BatchLoader(ChipDataset(folder / "chips"), LoaderSettings(), batch_size, pin=device.type == "cuda")
    for epoch in itertools.count():
        for step in loader.epoch(State(0, epoch)):
            if step.num_chips == batch_size:
                yield step.micros[0].to(device)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder))


def measure(folder: Path) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=7, help="measured; one more warms up")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    batch = plausible_batch(args.batch_size, torch.device("cpu"))
    images = (batch.images.float() / 255).contiguous()
    state = calibrated_resnet50(batch)
    ours, theirs = our_model(state).to(device), their_model(state).to(device)
    rois = ours.settings.proposals
    same = their_model(state, box_batch_size_per_image=rois).to(device)
    batch = batch.to(device)
    floats = list(images.to(device))
    ends = batch.offsets.tolist()
    targets = [
        {"boxes": batch.boxes[a:b], "labels": batch.labels[a:b]} for a, b in zip(ends[:-1], ends[1:], strict=True)
    ]

    steps = {
        "ours_fixed_batch": stepper(
            ours, lambda: Objective(ours)(batch, seed=0, epoch=0, batch_size=len(batch)), args.precision
        ),
        "torchvision": stepper(theirs, lambda: theirs(floats, targets), args.precision),
        "torchvision_same_rois": stepper(same, lambda: same(floats, targets), args.precision),
    }
    if SHARED.is_dir():
        batches = loaded_batches(args.batch_size, folder, device)
        steps["ours"] = stepper(
            ours,
            lambda: Objective(ours)(next(batches), seed=0, epoch=0, batch_size=args.batch_size),
            args.precision,
        )
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(args.rounds + 1):
        for name, step in steps.items():
            taken = step()
            if round_number:
                seconds[name].append(taken)
            print(f"round {round_number} of {args.rounds}: {name} {taken:.2f} s", file=sys.stderr)
    result: dict[str, object] = {
        name: round(args.batch_size / statistics.median(values), 3) for name, values in seconds.items()
    }
    result.setdefault("ours", None)  # no real chips to load here
    for name in ("torchvision", "torchvision_same_rois"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["ours_fixed_batch"], strict=True)]
        result[f"ratio_{name}"] = round(statistics.median(ratios), 3)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    result |= {"device": name, "batch_size": args.batch_size, "precision": args.precision, "rois": rois}
    for key, value in result.items():
        print(f"{key:24} {'not measured' if value is None else value}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
