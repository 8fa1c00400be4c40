"""Where a chip shows something small: what the focus head learns (docs/method.md, 16.1)."""

import torch
from torch import Tensor

from schemas.codes import Status
from trainer.learning.ground_truth import PaddedBoxes
from trainer.loading.batch import Batch
from trainer.model.boxes import box_area, constant

UNSURE = 1.4
"""Up to this many times the limit a size gives no loss (docs/method.md, 16.1)."""
SMALLEST = 5 / 16
"""A size below this share of a cell's side gives no loss, it may be too small to be seen (docs/method.md, 16.1)."""


def label_cells(
    batch: Batch, boxes: PaddedBoxes, limits: tuple[float, ...], shape: tuple[int, int], stride: int
) -> Tensor:
    """Label every cell of the map that the focus head reads.

    1: a box touches it whose whole size, clipped or not, is below the limit of the chip's scale. -1 (no loss): else a
    box touches it whose size is a little above the limit, or too small to be seen, or a crowd does; or it lies beyond
    the content; or the chip is of the finest scale, beyond which nothing is searched. 0: all others.

    Args:
        batch: the chips.
        boxes: of the batch.
        limits: size for each scale, source pixels, as `pipeline.pyramid.focus.focus_limits` gives them.
        shape: height and width of the map, in cells.
        stride: side of a cell, chip pixels.

    Returns:
        int8 [B, H, W].
    """
    size = (box_area(boxes.boxes) / boxes.visible).sqrt()
    limit = (constant(limits, size.device)[batch.scale_indices] * batch.scales)[:, None]
    crowd = boxes.having(Status.CROWD)
    seen = size >= SMALLEST * stride
    asks = boxes.real & ~crowd & seen & (size < limit)
    unsure = boxes.real & ~asks & (crowd | ~seen | (size < UNSURE * limit))
    y, x = (torch.arange(0, cells * stride, stride, device=size.device) for cells in shape)
    near_x, near_y = (
        (at < boxes.boxes[:, :, axis + 2, None]) & (at + stride > boxes.boxes[:, :, axis, None])
        for axis, at in ((0, x), (1, y))
    )

    def touched(chosen: Tensor) -> Tensor:
        """Tell which cells one of the chosen boxes touches, bool [B, H, W]."""
        return (near_y & chosen[:, :, None]).float().transpose(1, 2) @ near_x.float() > 0

    beyond = (y[:, None] >= batch.sizes[:, 0, None, None]) | (x >= batch.sizes[:, 1, None, None])
    finest = batch.scale_indices[:, None, None] == 0
    labels = torch.where(touched(unsure), -1, 0).masked_fill(touched(asks), 1)
    return labels.masked_fill(beyond | finest, -1).to(torch.int8)
