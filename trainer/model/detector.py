"""The detector, a Faster R-CNN (docs/method.md, 6). How it learns stands in `trainer.learning`."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from pipeline.pyramid.views import CELLS
from schemas.settings import ModelSettings
from trainer.model.anchors import AnchorLayout, anchor_grid, anchor_layout, on_content
from trainer.model.backbone import build_backbone, normalise, stored_statistics
from trainer.model.boxes import ROI_WEIGHTS, clip, constant, decode
from trainer.model.heads import BinShifts, BoxHead, FocusHead, Rpn, full_precision
from trainer.model.pooling import flatten_maps, roi_align
from trainer.model.proposals import select


class Features(NamedTuple):
    """What the backbone and the neck make of images.

    Attributes:
        maps: [B, C, H, W] per level, what the RPN slides over.
        rows: [B, cells, C], the same numbers as `flatten_maps` orders them.
        pooled: [B, cells, width], what proposals are pooled from; for a feature pyramid the same tensor as `rows`.
        focus: [B, width, H, W], what the focus head reads.
    """

    maps: list[Tensor]
    rows: Tensor
    pooled: Tensor
    focus: Tensor

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Return height and width of every level's map, in cells."""
        return tuple((level.shape[2], level.shape[3]) for level in self.maps)


class RawDetections(NamedTuple):
    """What the network finds in one image, before any range filter or NMS of detections.

    Attributes:
        boxes: float32 [N, 4], pixels of the given image (a chip or a view), clipped to its content.
        scores: float32 [N], in [0, 1].
        labels: int64 [N], 1..K.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Detector(nn.Module):
    """The network: called with images it gives features, and `detect` runs the box head on them.

    `predict` and `propose` run the whole network without gradient; `trainer.learning` computes its losses.
    """

    def __init__(self, settings: ModelSettings, num_classes: int, chip_size: int) -> None:
        """Build the network with random numbers (docs/method.md, 6.4).

        Args:
            settings: of the network.
            num_classes: K, without the background.
            chip_size: side of the chips it trains on, chip pixels.
        """
        super().__init__()
        self.settings, self.num_classes, self.chip_size = settings, num_classes, chip_size
        self.rpn_only = False
        self.layout: AnchorLayout = anchor_layout(settings)
        self.backbone = build_backbone(settings)
        channels = self.backbone.channels
        if settings.neck == "fpn":
            finest, coarsest = settings.levels
            extra = LastLevelMaxPool() if coarsest == 6 else None  # level 5, every other cell
            self.neck: nn.Module = FeaturePyramidNetwork(channels[finest - 2 :], settings.width, extra)
            rpn_channels, rpn_hidden = settings.width, settings.width
        else:
            self.c5_inputs = 1 if settings.backbone == "mobilenet_v2" else 2  # C5, or C4 and C5 (docs/method.md, 6.2)
            rpn_channels, rpn_hidden = sum(channels[-self.c5_inputs :]), 256 * self.c5_inputs
            self.neck = nn.Conv2d(rpn_channels, settings.width, 1)
        self.rpn = Rpn(rpn_channels, rpn_hidden, len(self.layout.shapes))
        self.head = BoxHead(
            settings.pooled**2 * settings.width, settings.head_width, num_classes, class_boxes=settings.class_boxes
        )
        self.shifts = BinShifts(settings.pooled, settings.width) if settings.deformable else None
        self.focus = FocusHead(settings.width) if settings.focus else None
        # the level whose cells are nearest to CELLS along a chip's side (docs/method.md, 16.2)
        self.focus_level = min(
            range(len(self.layout.strides)), key=lambda i: abs(math.log2(self.layout.strides[i] * CELLS / chip_size))
        )
        fresh = [self.rpn, self.head, *([self.focus] if self.focus else [])]
        if settings.neck == "c5":
            fresh.append(self.neck)
        for layer in (layer for module in fresh for layer in module.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)  # (docs/method.md, 6.4)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.to(memory_format=torch.channels_last)

    def keep_rpn_only(self) -> None:
        """Freeze all that lies behind the RPN, for the run that finds negatives (docs/method.md, 5.1)."""
        self.rpn_only = True
        behind: list[nn.Module | None] = [self.head, self.shifts, self.focus]
        if self.settings.neck == "c5":
            behind.append(self.neck)  # it feeds the heads alone
        for module in behind:
            if module is not None:
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> "Detector":
        """Switch between training and eval mode; batch norms that are frozen use stored statistics in both."""
        super().train(mode)
        stored_statistics(self)
        return self

    def forward(self, images: Tensor, sizes: Tensor) -> Features:
        """Compute the feature maps of images.

        Args:
            images: uint8 [B, 3, H, W], RGB, content top left, any side.
            sizes: int64 [B, 2], height and width of the content, pixels.

        Returns:
            The features, in the type that autocast gives.
        """
        maps = self.backbone(normalise(images, sizes))
        if self.settings.neck == "fpn":
            used = maps[self.settings.levels[0] - 2 :]
            maps = list(self.neck({str(i): level for i, level in enumerate(used)}).values())
            rows = flatten_maps(maps)
            return Features(maps, rows, rows, maps[self.focus_level])
        joined = torch.cat(maps[-self.c5_inputs :], 1)
        narrowed = F.relu_(self.neck(joined))
        return Features([joined], flatten_maps([joined]), flatten_maps([narrowed]), narrowed)

    def detect(self, features: Features, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Run the box head on boxes of each image.

        Args:
            features: of B images.
            rois: float32 [B, P, 4], pixels of the image.

        Returns:
            Class logits float32 [B, P, K + 1], column 0 is the background; deltas float32 [B, P, 1 or K, 4], times
            ROI_WEIGHTS.
        """
        levels = [i for i, stride in enumerate(self.layout.strides) if stride <= 32]  # level 6 serves the RPN only
        shapes, strides = features.shapes()[: len(levels)], self.layout.strides[: len(levels)]
        pooled = roi_align(features.pooled, shapes, strides, rois, self.settings.pooled)
        if self.shifts is not None:
            shifts = self.shifts(pooled).view(*rois.shape[:2], self.settings.pooled, self.settings.pooled, 2)
            pooled = roi_align(features.pooled, shapes, strides, rois, self.settings.pooled, shifts)
        logits, deltas = self.head(pooled)
        num_chips, num = rois.shape[:2]
        return logits.view(num_chips, num, logits.shape[1]), deltas.view(num_chips, num, *deltas.shape[1:])


HEAD_BOXES = 4800
"""Boxes that the box head takes at a time, those of 16 chips: a large view has tens of thousands."""


def _propose(
    model: Detector, features: Features, sizes: Tensor, num_chips: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Find proposals of any size, without a range filter (docs/method.md, 10.2).

    Args:
        model: in eval mode.
        features: of B images.
        sizes: int64 [B, 2], height and width of the content, pixels.
        num_chips: there are this many times the proposals of a chip.

    Returns:
        Boxes float32 [B, num, 4], used bool [B, num] and objectness logits float32 [B, num], best first.
    """
    logits, deltas = model.rpn.everywhere(features.maps)
    with full_precision(logits):
        anchors = anchor_grid(model.layout, features.shapes(), logits.device)
        proposals = clip(decode(deltas, anchors), sizes)
        eligible = on_content(anchors, sizes)
        pre_nms, num = (math.ceil(num_chips * count) for count in (model.settings.pre_nms, model.settings.proposals))
        return select(proposals, logits, eligible, pre_nms, num)


def _detect_in_slices(model: Detector, features: Features, rois: Tensor) -> tuple[Tensor, Tensor]:
    """Run the box head as `Detector.detect` does, in bounded memory whatever the number of boxes."""
    if torch.compiler.is_exporting():  # of any number of images
        return model.detect(features, rois)
    slices = torch.split(rois, max(1, HEAD_BOXES // len(rois)), 1)
    logits, deltas = zip(*(model.detect(features, part) for part in slices), strict=True)
    return torch.cat(logits, 1), torch.cat(deltas, 1)


@torch.no_grad()
def propose(model: Detector, images: Tensor, sizes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Find proposals on chips or whole images, with the RPN alone.

    Args:
        model: in eval mode.
        images: uint8 [B, 3, H, W], RGB, any side, content top left.
        sizes: int64 [B, 2], height and width of the content, pixels.

    Returns:
        For each image boxes float32 [N, 4], pixels of the image, clipped to the content and after NMS, best first; and
        their scores float32 [N], in [0, 1].
    """
    boxes, used, logits = _propose(model, model(images, sizes), sizes)
    counts = used.sum(1).tolist()  # the slots in use come first; a mask would be a wait for each image
    return [(b[:n], o[:n].contiguous().sigmoid()) for b, o, n in zip(boxes, logits, counts, strict=True)]


@torch.no_grad()
def score_boxes(model: Detector, images: Tensor, sizes: Tensor, num_chips: float = 1.0) -> tuple[Tensor, Tensor]:
    """Find boxes on chips or whole images with a score for every class, in slots of which some may be empty.

    Args:
        model: in eval mode.
        images: uint8 [B, 3, H, W], RGB, any side, content top left.
        sizes: int64 [B, 2], height and width of the content, pixels.
        num_chips: there are this many times the boxes of a chip.

    Returns:
        Boxes float32 [B, P, 1 or K, 4], one for all classes or one for each, pixels of the image, clipped to the
        content, best proposal first; scores float32 [B, P, K] in [0, 1], all 0 in an empty slot.
    """
    features = model(images, sizes)
    return _score(model, features, sizes, _propose(model, features, sizes, num_chips))


def _score(
    model: Detector, features: Features, sizes: Tensor, proposed: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Run the box head on what `_propose` gives; the result is that of `score_boxes`."""
    rois, used, _ = proposed
    logits, deltas = _detect_in_slices(model, features, rois)
    with full_precision(rois):
        unweighted = deltas / constant(ROI_WEIGHTS, deltas.device)
        boxes = clip(decode(unweighted, rois[:, :, None]), sizes)
        return boxes, logits.softmax(2)[:, :, 1:] * used[:, :, None]


def chips_in(model: Detector, images: Tensor) -> float:
    """Return how many chips have the area of an image of this batch, [B, 3, H, W]; at least 1."""
    return max(1.0, images.shape[2] * images.shape[3] / model.chip_size**2)


@torch.no_grad()
def predict(
    model: Detector, images: Tensor, sizes: Tensor, min_score: float = 0.001, *, by_area: bool = False
) -> list[RawDetections]:
    """Detect on chips or whole images: all classes above `min_score`, no range filter, no NMS after the head.

    Args:
        model: in eval mode.
        images: uint8 [B, 3, H, W], RGB, any side, content top left.
        sizes: int64 [B, 2], height and width of the content, pixels.
        min_score: classes with a score up to this are left out (docs/method.md, 10.2).
        by_area: whether an image larger than a chip gets as many proposals as the chips that it has the area of.

    Returns:
        One RawDetections per image, best proposal first.
    """
    return _above(*score_boxes(model, images, sizes, chips_in(model, images) if by_area else 1.0), min_score)


@torch.no_grad()
def predict_and_focus(
    model: Detector, images: Tensor, sizes: Tensor, min_score: float = 0.001, *, by_area: bool = False
) -> list[tuple[Tensor, ...]]:
    """Detect as `predict` does, and say where something may be small.

    Args:
        model, images, sizes, min_score, by_area: as `predict` takes them.

    Returns:
        For each image boxes, scores and labels as in RawDetections; then, where the network has a focus head, its map
        float32 [rows, columns] of probabilities, whose cells are `layout.strides[focus_level]` pixels wide; else its
        proposals, boxes float32 [N, 4], pixels of the image, and their objectness float32 [N], in [0, 1].
    """
    features = model(images, sizes)
    proposed = _propose(model, features, sizes, chips_in(model, images) if by_area else 1.0)
    found = _above(*_score(model, features, sizes, proposed), min_score)
    if model.focus is None:
        proposals = ((rois[used], logits[used].sigmoid()) for rois, used, logits in zip(*proposed, strict=True))
        return [(*one, *own) for one, own in zip(found, proposals, strict=True)]
    stride = model.layout.strides[model.focus_level]
    maps = model.focus(features.focus).sigmoid()
    cells = [[-(-side // stride) for side in size] for size in sizes.tolist()]
    return [(*one, level[:rows, :columns]) for one, level, (rows, columns) in zip(found, maps, cells, strict=True)]


def _above(boxes: Tensor, scores: Tensor, min_score: float) -> list[RawDetections]:
    """Return of each image what scores more than `min_score`, best proposal first; takes what `score_boxes` gives."""
    chip, slot, column = (scores > min_score).nonzero(as_tuple=True)
    found = boxes[chip, slot, column if boxes.shape[2] > 1 else torch.zeros_like(column)]
    counts = torch.bincount(chip, minlength=len(boxes)).tolist()
    columns = (found, scores[chip, slot, column], column + 1)
    parts = zip(*(torch.split(values, counts) for values in columns), strict=True)
    return [RawDetections(*part) for part in parts]
