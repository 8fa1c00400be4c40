"""The detector: a Faster R-CNN. What it computes stands here; how it learns, in `trainer.learning`."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from schemas.settings import ModelSettings
from trainer.model.anchors import AnchorLayout, anchor_grid, anchor_layout, on_content
from trainer.model.backbone import build_backbone, normalise, stored_statistics
from trainer.model.boxes import ROI_WEIGHTS, clip, constant, decode
from trainer.model.heads import BoxHead, Rpn, full_precision
from trainer.model.pooling import flatten_maps, roi_align
from trainer.model.proposals import select


class Features(NamedTuple):
    """maps: what the RPN slides over, [B, C, H, W] per level; rows: the same, [B, cells, C]; pooled: the rows that
    proposals are pooled from (for fpn the same tensor)."""

    maps: list[Tensor]
    rows: Tensor
    pooled: Tensor

    def shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple((level.shape[2], level.shape[3]) for level in self.maps)


class RawDetections(NamedTuple):
    """boxes: float32 [N, 4], pixels of the given image; scores: float32 [N]; labels: int64 [N], 1..K"""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Detector(nn.Module):
    """The network. Called with images it gives features; `detect` runs the box head on them; `predict` does both."""

    def __init__(self, settings: ModelSettings, num_classes: int, chip_size: int) -> None:
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
        fresh = [self.rpn, self.head] if settings.neck == "fpn" else [self.rpn, self.head, self.neck]
        for layer in (layer for module in fresh for layer in module.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)  # (docs/method.md, 6.4)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.to(memory_format=torch.channels_last)

    def keep_rpn_only(self) -> None:
        """Train what proposes and nothing behind it, as the run that mines negatives does (docs/method.md, 5.1)."""
        self.rpn_only = True
        self.head.requires_grad_(False)
        if self.settings.neck == "c5":
            self.neck.requires_grad_(False)  # it feeds the head alone

    def train(self, mode: bool = True) -> "Detector":
        super().train(mode)
        stored_statistics(self)
        return self

    def forward(self, images: Tensor, sizes: Tensor) -> Features:
        """Compute the feature maps of images.

        Args:
            images: uint8 [B, 3, H, W], RGB, content top left, any side.
            sizes: int64 [B, 2], height and width of the content, pixels.
        """
        maps = self.backbone(normalise(images, sizes))
        if self.settings.neck == "fpn":
            used = maps[self.settings.levels[0] - 2 :]
            maps = list(self.neck({str(i): level for i, level in enumerate(used)}).values())
            rows = flatten_maps(maps)
            return Features(maps, rows, rows)
        joined = torch.cat(maps[-self.c5_inputs :], 1)
        return Features([joined], flatten_maps([joined]), flatten_maps([F.relu_(self.neck(joined))]))

    def detect(self, features: Features, rois: Tensor) -> tuple[Tensor, Tensor]:
        """The head on rois [B, P, 4]: scores [B, P, K + 1], offsets [B, P, 1 or K, 4]; float32."""
        levels = [i for i, stride in enumerate(self.layout.strides) if stride <= 32]  # level 6 serves the RPN only
        shapes, strides = features.shapes()[: len(levels)], self.layout.strides[: len(levels)]
        pooled = roi_align(features.pooled, shapes, strides, rois, self.settings.pooled)
        scores, deltas = self.head(pooled)
        num_chips, num = rois.shape[:2]
        return scores.view(num_chips, num, scores.shape[1]), deltas.view(num_chips, num, *deltas.shape[1:])


def _propose(model: Detector, features: Features, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Proposals of any size, without a range filter (docs/method.md, 10.2); as `select` gives them."""
    logits, deltas = model.rpn.everywhere(features.maps)
    with full_precision(logits):
        anchors = anchor_grid(model.layout, features.shapes(), logits.device)
        proposals = clip(decode(deltas, anchors), sizes)
        eligible = on_content(anchors, sizes)
        return select(proposals, logits, eligible, model.settings.pre_nms, model.settings.proposals)


@torch.no_grad()
def propose(model: Detector, images: Tensor, sizes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What the RPN alone finds. Arguments as of `predict`.

    Returns:
        One (boxes float32 [N, 4], scores float32 [N]) per image, best first, clipped to the content, after NMS.
    """
    boxes, used, logits = _propose(model, model(images, sizes), sizes)
    return [(b[u], s[u].sigmoid()) for b, u, s in zip(boxes, used, logits, strict=True)]


@torch.no_grad()
def predict(model: Detector, images: Tensor, sizes: Tensor, min_score: float = 0.001) -> list[RawDetections]:
    """Detect on chips or whole images: all classes above `min_score`, no range filter, no NMS after the head.

    Args:
        model: in eval mode
        images: uint8 [B, 3, H, W], any side, content top left; sizes: int64 [B, 2], height and width of the content
        min_score: the default is that of docs/method.md, 10.2

    Returns:
        One RawDetections per image, highest proposal first, clipped to the content.
    """
    features = model(images, sizes)
    rois, used, _ = _propose(model, features, sizes)
    scores, deltas = model.detect(features, rois)
    with full_precision(images):
        boxes = clip(
            decode(deltas / constant(ROI_WEIGHTS, deltas.device), rois[:, :, None]), sizes
        )  # [B, P, 1 or K, 4]
        scores = scores.softmax(2)[:, :, 1:]
        chip, slot, column = ((scores > min_score) & used[:, :, None]).nonzero(as_tuple=True)
        found = boxes[chip, slot, column if boxes.shape[2] > 1 else torch.zeros_like(column)]
        counts = torch.bincount(chip, minlength=len(images)).tolist()
        columns = (found, scores[chip, slot, column], column + 1)
        parts = zip(*(torch.split(values, counts) for values in columns), strict=True)
    return [RawDetections(*part) for part in parts]
