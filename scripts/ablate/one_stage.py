"""A one-stage detector on the same chips: torchvision's RetinaNet with the backbone of all other rows.

It reads the project's loader and is searched through the project's pyramid. Only what SNIPER asks of the labels is
added to it: a box that a chip shows and that is no target there is neither object nor background.
"""

import io
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, box_iou

from pipeline.pyramid.reading import Pixels
from pipeline.pyramid.search import search
from pipeline.storage import write_atomic
from pipeline.storage.parquet import read_frame
from schemas.codes import Status
from schemas.settings import REFERENCE_BATCH, ModelSettings, Settings
from scripts.ablate.data import Data
from scripts.ablate.two_stage import DECAY_AT, KEEP_EVERY, OutOfTimeError, Pace, Stopwatch
from scripts.scoring import score_found
from trainer.evaluation.ground_truth import open_ground_truth
from trainer.evaluation.matching import MAX_DETS
from trainer.learning.optim import make_optimizer
from trainer.learning.schedule import Schedule
from trainer.learning.targets import OTHER_IOU
from trainer.loading.batch import Batch
from trainer.loading.dataset import ChipDataset
from trainer.loading.loader import BatchLoader
from trainer.loading.order import State
from trainer.model.backbone import build_backbone
from trainer.runtime.ranks import joined

RATE = 0.25
"""Share of the two-stage rate: 0.01 for 16 chips, what RetinaNet's authors take for 16 images. Four times as much left
a higher loss on training chips after 160 steps."""
KEPT = "last.pt"


class Maps(nn.Module):
    """The backbone and the neck of all other rows, in the form that torchvision's detectors take."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.backbone = build_backbone(settings)
        self.neck = FeaturePyramidNetwork(self.backbone.channels[settings.levels[0] - 2 :], settings.width)
        self.finest, self.out_channels = settings.levels[0], settings.width

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.backbone(images)[self.finest - 2 :]
        named: OrderedDict[str, Tensor] = self.neck(OrderedDict((str(i), level) for i, level in enumerate(maps)))
        return named


class AsTheyAre(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Normalises and pads; views and chips have their scale already."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


class ChipRetinaNet(RetinaNet):  # type: ignore[misc]
    """RetinaNet that takes the anchors on boxes which are no targets out of the loss (docs/method.md, 7.2)."""

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        matched = []
        for own, target in zip(anchors, targets, strict=True):
            found = torch.full((len(own),), self.proposal_matcher.BELOW_LOW_THRESHOLD, device=own.device)
            if len(target["boxes"]):
                found = self.proposal_matcher(box_iou(target["boxes"], own))
            if len(target["others"]):
                near = box_iou(target["others"], own).amax(0) > OTHER_IOU
                found[near & (found < 0)] = self.proposal_matcher.BETWEEN_THRESHOLDS
            matched.append(found)
        losses: dict[str, Tensor] = self.head.compute_loss(targets, head_outputs, anchors, matched)
        return losses


def make_network(settings: ModelSettings, num_classes: int) -> ChipRetinaNet:
    """Make the network with random numbers; its anchors are those of the two-stage rows."""
    finest, coarsest = settings.levels
    assert settings.anchor_scales is not None
    sizes = tuple(tuple(scale * 2**level for scale in settings.anchor_scales) for level in range(finest, coarsest + 1))
    anchors = AnchorGenerator(sizes, (tuple(settings.anchor_ratios),) * len(sizes))
    num_anchors = anchors.num_anchors_per_location()[0]
    # as in torchvision's second version; without these norms 600 steps from scratch are too few. Class 0 is never used
    head = RetinaNetHead(settings.width, num_anchors, num_classes + 1, partial(nn.GroupNorm, 32))
    network = ChipRetinaNet(
        Maps(settings), num_classes + 1, anchor_generator=anchors, head=head, score_thresh=0.01, nms_thresh=0.7
    )
    transform = network.transform
    network.transform = AsTheyAre(800, 1333, transform.image_mean, transform.image_std)
    return network


def as_targets(batch: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return the chips of a batch and their boxes as torchvision's detectors take them; `others` are no targets."""
    images, targets = [], []
    offsets = batch.offsets.tolist()
    is_target = (batch.status == Status.VALID) | (batch.status == Status.RESCUED)
    for b, (height, width) in enumerate(batch.sizes.tolist()):
        own = slice(offsets[b], offsets[b + 1])
        boxes, labels, learn = batch.boxes[own], batch.labels[own], is_target[own]
        images.append(batch.images[b, :, :height, :width].float() / 255)
        targets.append({"boxes": boxes[learn], "labels": labels[learn], "others": boxes[~learn]})
    return images, targets


def fit(folders: list[Path], out: Path, settings: Settings, steps: int, deadline: float) -> Pace | None:
    """Take so many optimiser steps on the chips of one data set; goes on where it stood.

    Args, returned value and errors are those of `two_stage.fit`.
    """
    watch = Stopwatch(deadline)
    (folder,) = folders
    options = settings.train
    warmup = min(options.warmup_steps, steps // 4)
    schedule = Schedule(RATE * options.learning_rate * options.batch_size / REFERENCE_BATCH, warmup, (DECAY_AT,))
    out.mkdir(parents=True, exist_ok=True)
    with joined() as rank:
        torch.manual_seed(options.seed)
        loader = BatchLoader(ChipDataset(folder), settings.loader, options.batch_size)
        network = make_network(settings.model, len(read_frame(folder / "categories.parquet"))).to(rank.device).train()
        optimizer = make_optimizer(network, options)
        step, state = 0, State(options.seed)
        if (out / KEPT).exists():
            kept = torch.load(out / KEPT, map_location=rank.device, weights_only=True)
            network.load_state_dict(kept["network"])
            optimizer.load_state_dict(kept["optimizer"])
            step, state = kept["step"], State(*kept["state"])
        while step < steps:
            for taken in loader.epoch(state):
                for group in optimizer.param_groups:
                    group["lr"] = schedule.rate(step, step / steps)
                (micro,) = taken.micros
                losses = network(*as_targets(micro.to(rank.device)))
                loss = torch.stack(list(losses.values())).sum()
                assert math.isfinite(loss.item()), f"step {step}: {losses}"
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(network.parameters(), options.clip_gradient or math.inf)
                optimizer.step()
                optimizer.zero_grad()
                step, state = step + 1, taken.after
                is_late = watch.step() and step < steps
                if step % KEEP_EVERY == 0 or step == steps or is_late:
                    kept = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                    written = io.BytesIO()
                    torch.save({**kept, "step": step, "state": tuple(state)}, written)
                    write_atomic(out / KEPT, written.getvalue())
                if is_late:
                    raise OutOfTimeError(f"step {step} of {steps}")
                if step == steps:
                    break
    return watch.pace()


def score(data: Data, out: Path, settings: Settings, steps: int) -> dict[str, Any]:
    """Score the run in `out` on the whole images of the validation set, through the pyramid for any detector."""
    with joined() as rank:
        began = time.process_time()
        truth = open_ground_truth(data.val, data.val_images, settings.chips, None, MAX_DETS)
        kept = torch.load(out / KEPT, map_location=rank.device, weights_only=True)
        assert kept["step"] == steps
        network = make_network(settings.model, len(truth.source.categories)).to(rank.device).eval()
        network.load_state_dict(kept["network"])
        network.detections_per_img = 300  # of a view
        sources = truth.source.images(0, truth.source.num_images)
        files = [data.val_images / source.file_name for source in sources]
        found = search(files, _detector(network, rank.device), settings)
        summary, results = score_found(truth, sources, found, settings.chips.bounds())
        taken = time.process_time() - began
    scores = {name: value for name, value in summary.items() if "[" not in name}
    return {"scores": scores, "found": results, "detect_cpu_s": taken}


def _detector(network: nn.Module, device: torch.device) -> Callable[[list[Pixels]], list[list[np.ndarray[Any, Any]]]]:
    """Make of the network what `search` takes."""

    def detector(views: list[Pixels]) -> list[list[np.ndarray[Any, Any]]]:
        images = [torch.from_numpy(view).to(device).permute(2, 0, 1).float() / 255 for view in views]
        with torch.inference_mode():
            return [[one[name].cpu().numpy() for name in ("boxes", "scores", "labels")] for one in network(images)]

    return detector
