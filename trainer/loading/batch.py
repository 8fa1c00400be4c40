"""The batch that the loader hands to the objective, and how its chips are mirrored."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from schemas.codes import Status


@dataclass(frozen=True)
class Batch:
    """B chips and their M boxes. B and M may be 0, and a chip may have any number of boxes.

    Attributes:
        keys: the chips' keys, B of them. What `repeat_threshold` takes once more has the number of the copy behind it,
            such as KEY~1, so that each copy has draws of its own.
        images: uint8 [B, 3, S, S], RGB, channels_last memory; content top left, the rest padding of any value.
        sizes: int64 [B, 2], height and width of the content, chip pixels.
        scales: float32 [B], factor from source to chip pixels.
        scale_indices: int64 [B], the scale's place among the settings' scales, the finest 0.
        ranges: float32 [B, 2], valid range [lo, hi) of sqrt(width * height), source pixels; hi may be infinite.
        boxes: float32 [M, 4], x1 y1 x2 y2, chip pixels, clipped to the content.
        labels: int64 [M], 1..K.
        status: uint8 [M], schemas.codes.Status.
        visible: float32 [M], share of the whole box that the chip shows, above 0 and up to 1.
        offsets: int64 [B + 1]; chip b owns the boxes offsets[b]:offsets[b + 1].
        max_boxes: the most boxes of one chip. Left at -1 it is counted here, which reads tensors; so build batches on
            the CPU, and no step on a GPU waits for a shape.
        max_rescued: the most rescued boxes of one chip, counted in the same way.
    """

    keys: list[str]
    images: Tensor
    sizes: Tensor
    scales: Tensor
    scale_indices: Tensor
    ranges: Tensor
    boxes: Tensor
    labels: Tensor
    status: Tensor
    visible: Tensor
    offsets: Tensor
    max_boxes: int = -1
    max_rescued: int = -1

    def __post_init__(self) -> None:
        if self.max_boxes < 0:
            object.__setattr__(self, "max_boxes", _longest(self.offsets))
        if self.max_rescued < 0:
            rescued = torch.zeros(len(self.status) + 1, dtype=torch.int64, device=self.status.device)
            rescued[1:] = (self.status == Status.RESCUED).cumsum(0)
            object.__setattr__(self, "max_rescued", _longest(rescued[self.offsets]))

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Return the batch on a device; with `non_blocking` the copy of page-locked memory goes on meanwhile."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = value.to(device, non_blocking=non_blocking)
        return Batch(**values)


def _longest(offsets: Tensor) -> int:
    return int(offsets.diff().max()) if len(offsets) > 1 else 0


def flip(batch: Batch, flags: Tensor) -> Batch:
    """Mirror the content and the boxes of some chips, left to right; the padding stays at the right.

    Args:
        batch: on any device.
        flags: bool [B], on the batch's device; the chips to mirror.

    Returns:
        The batch, with new memory for images and boxes.
    """
    if not len(batch):
        return batch
    width = batch.sizes[:, 1]
    column = torch.arange(batch.images.shape[3], device=flags.device).expand(len(batch), -1)
    mirrored = torch.where(flags[:, None] & (column < width[:, None]), width[:, None] - 1 - column, column)
    pixels = batch.images.permute(0, 2, 3, 1)  # [B, S, S, 3], as they lie in memory
    images = pixels.gather(2, mirrored[:, None, :, None].expand(pixels.shape)).permute(0, 3, 1, 2)
    counts = batch.offsets.diff()
    total = len(batch.boxes)
    flipped = flags.repeat_interleave(counts, output_size=total)[:, None]
    edge = width.to(batch.boxes.dtype).repeat_interleave(counts, output_size=total)
    x1, y1, x2, y2 = batch.boxes.unbind(1)
    boxes = torch.where(flipped, torch.stack([edge - x2, y1, edge - x1, y2], 1), batch.boxes)
    return replace(batch, images=images, boxes=boxes)
