"""Anchors: their shapes, their grid over a chip, and how well they fit given boxes."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.settings import ModelSettings
from trainer.model.boxes import constant

BORDER = 32
"""An anchor that reaches further than this beyond the content gets no label; chip pixels (docs/method.md, 7.1)."""

# Sides of square anchors in strides (docs/method.md, 6.3)
C5_SCALES: tuple[float, ...] = (2, 4, 7, 10, 13, 16, 24)  # stride 16: sides 32 to 384, 21 anchors per cell
C5_MOBILENET_SCALES: tuple[float, ...] = (1, 2, 4, 8, 12)  # stride 32: sides 32 to 384, 15 anchors per cell
FPN_SCALES: tuple[float, ...] = (8,)  # one octave per level: sides 32, 64, ... from stride 4 on


class AnchorLayout(NamedTuple):
    """The shapes of anchors, which are the same at every level when measured in strides.

    Attributes:
        strides: image pixels per cell of each level's map, finest first.
        shapes: width and height of each of a cell's k anchors, in strides; all are centred on their cell.
    """

    strides: tuple[int, ...]
    shapes: tuple[tuple[float, float], ...]


def anchor_layout(settings: ModelSettings) -> AnchorLayout:
    """Return the anchors that a network's settings ask for.

    All ratios of one scale have exactly the same area; the original rounds sides (docs/method.md, 6.3).
    """
    if settings.neck == "fpn":
        finest, coarsest = settings.levels
        strides, scales = tuple(2**level for level in range(finest, coarsest + 1)), FPN_SCALES
    elif settings.backbone == "mobilenet_v2":
        strides, scales = (32,), C5_MOBILENET_SCALES
    else:
        strides, scales = (16,), C5_SCALES
    chosen = settings.anchor_scales or scales
    shapes = tuple((s * r**-0.5, s * r**0.5) for r in settings.anchor_ratios for s in chosen)
    return AnchorLayout(strides, shapes)


@lru_cache(maxsize=8)  # views of several shapes of image at three scales; one of 4096 px has 67 MB
@torch.inference_mode(False)
def anchor_grid(layout: AnchorLayout, maps: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Lay the anchors over an image; do not write into the result, which is shared by all callers.

    Cell i has its centre at (i + 1/2) strides (docs/method.md, 6.3).

    Args:
        layout: strides and shapes.
        maps: height and width of every level's map, in cells.
        device: where the result lies.

    Returns:
        float32 [A, 4], pixels of the image that the maps were made from, ordered by level, row, column, shape.
    """
    levels = []
    shapes = constant(tuple(side for shape in layout.shapes for side in shape), device).view(-1, 2)  # [k, 2]
    for stride, (height, width) in zip(layout.strides, maps, strict=True):
        half = shapes * stride / 2
        cells = (torch.arange(side, device=device) for side in (height, width))
        y, x = torch.meshgrid(*cells, indexing="ij")
        centre = (torch.stack([x, y], -1)[:, :, None] + 0.5) * stride  # [H, W, 1, 2]
        levels.append(torch.cat([centre - half, centre + half], -1).flatten(0, 2))
    return torch.cat(levels)


def on_content(anchors: Tensor, sizes: Tensor) -> Tensor:
    """Tell which anchors have their centre on the content and not in the padding.

    Args:
        anchors: float32 [A, 4], pixels of the image.
        sizes: int64 [B, 2], height and width of each image's content, pixels.

    Returns:
        bool [B, A].
    """
    x, y = (anchors[:, :2] + anchors[:, 2:]).unbind(1)
    height, width = (2 * sizes).to(anchors.dtype)[:, :, None].unbind(1)
    return (x < width) & (y < height)


def may_learn(anchors: Tensor, sizes: Tensor) -> Tensor:
    """Tell which anchors take part in training: centre on the content, and nowhere more than BORDER beyond it.

    Args:
        anchors: float32 [A, 4], chip pixels.
        sizes: int64 [B, 2], height and width of each chip's content, chip pixels.

    Returns:
        bool [B, A].
    """
    height, width = sizes.to(anchors.dtype)[:, :, None].unbind(1)
    near = (anchors[:, :2].amin(1) >= -BORDER) & (anchors[:, 2] <= width + BORDER)
    return near & (anchors[:, 3] <= height + BORDER) & on_content(anchors, sizes)


def best_anchor_iou(boxes: Tensor, sizes: Tensor, settings: ModelSettings) -> Tensor:
    """Compute each box's best IoU over the anchors that may learn, exactly but without making the grid.

    Overlap along an axis falls with the distance of the centres, so for one shape the nearest cell is the best.

    Args:
        boxes: float32 [N, 4], chip pixels.
        sizes: int64 [N, 2], height and width of the content of each box's chip, chip pixels.
        settings: of the network, for the layout of its anchors.

    Returns:
        float32 [N]; 0 where no anchor may learn.
    """
    layout = anchor_layout(settings)
    wh = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    content = sizes.flip(1).to(boxes.dtype)  # width, height
    best = boxes.new_zeros(len(boxes))
    for stride in layout.strides:
        for shape in layout.shapes:
            anchor_wh = torch.tensor(shape, dtype=boxes.dtype) * stride
            half = anchor_wh / 2
            # cells i with half - BORDER <= (i + 1/2) stride <= content + BORDER - half, and centre < content
            first = ((half - BORDER) / stride - 0.5).ceil().clamp(min=0)
            last = torch.minimum(
                ((content + BORDER - half) / stride - 0.5).floor(), (content / stride - 0.5).ceil() - 1
            )
            cell = (centre / stride - 0.5).round().maximum(first).minimum(last)
            shift = (centre - (cell + 0.5) * stride).abs()
            iou = _shifted_iou(wh, anchor_wh, shift)
            best = torch.maximum(best, torch.where((last >= first).all(1), iou, 0))
    return best


def _shifted_iou(a: Tensor, b: Tensor, shift: Tensor) -> Tensor:
    """Return the IoU, [...], of boxes with sides a and b whose centres are `shift` apart; all [..., 2], broadcast."""
    inter = torch.minimum(torch.minimum(a, b), (a + b) / 2 - shift).clamp(min=0).prod(-1)
    return inter / (a.prod(-1) + b.prod(-1) - inter)
