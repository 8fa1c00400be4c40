"""The batch that the loader hands to the objective, and how its chips are mirrored and turned."""

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
        max_rescued, max_crowds: the most rescued boxes, and the most crowds, of one chip, counted in the same way.
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
    max_crowds: int = -1

    def __post_init__(self) -> None:
        if self.max_boxes < 0:
            object.__setattr__(self, "max_boxes", _longest(self.offsets))
        if self.max_rescued < 0:
            object.__setattr__(self, "max_rescued", self._most(Status.RESCUED))
        if self.max_crowds < 0:
            object.__setattr__(self, "max_crowds", self._most(Status.CROWD))

    def _most(self, status: Status) -> int:
        """Count the boxes of a status in the chip that has most of them."""
        before = torch.zeros(len(self.status) + 1, dtype=torch.int64, device=self.status.device)
        before[1:] = (self.status == status).cumsum(0)
        return _longest(before[self.offsets])

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


def per_box(batch: Batch, values: Tensor) -> Tensor:
    """Repeat what each chip has, [B, ...], for each of its boxes, [M, ...]."""
    return values.repeat_interleave(batch.offsets.diff(), 0, output_size=len(batch.boxes))


def flip(batch: Batch, flags: Tensor, *, vertical: bool = False) -> Batch:
    """Mirror the content and the boxes of some chips, left to right; the padding stays where it is.

    Args:
        batch: on any device.
        flags: bool [B], on the batch's device; the chips to mirror.
        vertical: mirror top to bottom instead.

    Returns:
        The batch, with new memory for images and boxes.
    """
    if not len(batch):
        return batch
    length = batch.sizes[:, 0 if vertical else 1]
    place = torch.arange(batch.images.shape[3], device=flags.device).expand(len(batch), -1)
    mirrored = torch.where(flags[:, None] & (place < length[:, None]), length[:, None] - 1 - place, place)
    pixels = batch.images.permute(0, 2, 3, 1)  # [B, S, S, 3], as they lie in memory
    index = mirrored[:, :, None, None] if vertical else mirrored[:, None, :, None]
    images = pixels.gather(1 if vertical else 2, index.expand(pixels.shape)).permute(0, 3, 1, 2)
    edge = per_box(batch, length.to(batch.boxes.dtype))
    x1, y1, x2, y2 = batch.boxes.unbind(1)
    other = [x1, edge - y2, x2, edge - y1] if vertical else [edge - x2, y1, edge - x1, y2]
    boxes = torch.where(per_box(batch, flags)[:, None], torch.stack(other, 1), batch.boxes)
    return replace(batch, images=images, boxes=boxes)


def transpose(batch: Batch, flags: Tensor) -> Batch:
    """Exchange rows and columns of some chips, of content, padding and boxes.

    Args:
        batch: on any device.
        flags: bool [B], on the batch's device; the chips to transpose.

    Returns:
        The batch, with new memory for images, sizes and boxes.
    """
    pixels = batch.images.permute(0, 2, 3, 1)
    images = torch.where(flags[:, None, None, None], pixels.transpose(1, 2), pixels).contiguous().permute(0, 3, 1, 2)
    sizes = torch.where(flags[:, None], batch.sizes.flip(1), batch.sizes)
    boxes = torch.where(per_box(batch, flags)[:, None], batch.boxes[:, [1, 0, 3, 2]], batch.boxes)
    return replace(batch, images=images, sizes=sizes, boxes=boxes)
