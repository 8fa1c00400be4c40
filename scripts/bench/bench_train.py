"""One training step of our R50-FPN against torchvision's `fasterrcnn_resnet50_fpn`: same chips, machine and run.

Both: ResNet-50 with frozen norms and the same weights, stem and first stage frozen, FPN, chips of 512, SGD. The
models take turns within a round, and the ratios are medians over rounds, so other load on the machine hits all alike.
torchvision gets its images as floats on the device beforehand; ours starts from bytes. Figures are chips/s.
"""

import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline.commands.chips import chips
from schemas.settings import LoaderSettings, Settings
from scripts.bench.real_data import REAL_DATA
from scripts.bench.step_models import (
    as_torchvision,
    calibrated_state,
    device_name,
    losses_of,
    our_model,
    plausible_batch,
    step_arguments,
    stepper,
    tell,
    their_model,
)
from trainer.learning.objective import Objective
from trainer.loading.batch import Batch
from trainer.loading.dataset import ChipDataset
from trainer.loading.loader import BatchLoader
from trainer.loading.order import State

COCO_REAL = REAL_DATA / "coco-real"
NUM_IMAGES = 40


def loaded_batches(batch_size: int, folder: Path, device: torch.device) -> Iterator[Batch]:
    """Batches of real chips through the loader, epoch after epoch, on the device."""
    coco = json.loads((COCO_REAL / "train.json").read_bytes())
    coco["images"] = sorted(coco["images"], key=lambda image: int(image["id"]))[:NUM_IMAGES]
    kept = {image["id"] for image in coco["images"]}
    coco["annotations"] = [box for box in coco["annotations"] if box["image_id"] in kept]
    (folder / "few.json").write_text(json.dumps(coco))
    chips(folder / "few.json", COCO_REAL / "images", folder / "chips", Settings())
    loader = BatchLoader(ChipDataset(folder / "chips"), LoaderSettings(), batch_size, pin=device.type == "cuda")
    for epoch in itertools.count():
        for step in loader.epoch(State(0, epoch)):
            if step.num_chips == batch_size:
                yield step.micros[0].to(device)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder))


def measure(folder: Path) -> None:
    args = step_arguments(__doc__).parse_args()
    device = torch.device(args.device)
    batch = plausible_batch(args.batch_size, device)
    floats, targets = as_torchvision(batch)
    state = calibrated_state("resnet50", batch)
    ours, theirs = our_model("resnet50", state).to(device), their_model("resnet50", state).to(device)
    rois = ours.settings.proposals
    same = their_model("resnet50", state, box_batch_size_per_image=rois).to(device)

    steps = {
        "ours_fixed_batch": stepper(ours, losses_of(ours, batch), args.precision),
        "torchvision": stepper(theirs, lambda: theirs(floats, targets), args.precision),
        "torchvision_same_rois": stepper(same, lambda: same(floats, targets), args.precision),
    }
    if COCO_REAL.is_dir():
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
    result |= {"device": device_name(device), "batch_size": args.batch_size, "precision": args.precision, "rois": rois}
    tell(result, args.json)


if __name__ == "__main__":
    main()
