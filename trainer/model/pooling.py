"""RoIAlign over all levels at once, as weighted sums of rows of one table.

Every output bin is the mean of 2 x 2 bilinear samples, and so a weighted sum of 16 cells. With channels last a cell is
one row, and `embedding_bag` computes that sum: vectorised over channels, on all threads, in both directions, with one
call for all levels. On two CPU threads it took a twelfth of torchvision's time; on a GPU it needs no atomic additions
and never makes the host wait.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.boxes import box_size, constant

CANONICAL_SIZE, CANONICAL_LEVEL = 224.0, 4
"""A box of this size, in pixels of the image, reads this level (docs/method.md, 6.4)."""
MOST_VALUES = 2**31 - 1
"""Values that one `embedding_bag` may give out. On a GPU its backward counts them in 32 bits: with more it would read
from wrong places."""


def flatten_maps(maps: list[Tensor]) -> Tensor:
    """Return the cells of all levels [B, C, H, W] as rows [B, cells, C], ordered by level, row, column.

    It is a view, and no copy, where there is one level and that is channels_last.
    """
    rows = [level.permute(0, 2, 3, 1).flatten(1, 2) for level in maps]
    return rows[0] if len(rows) == 1 else torch.cat(rows, 1)


def roi_align(
    table: Tensor,
    maps: tuple[tuple[int, int], ...],
    strides: tuple[int, ...],
    rois: Tensor,
    pooled: int,
    shifts: Tensor | None = None,
) -> Tensor:
    """Pool every box from the level that suits its size (docs/method.md, 6.4).

    The result equals torchvision.ops.roi_align(aligned=True, sampling_ratio=2) for boxes on the content.

    Args:
        table: [B, cells, C], from `flatten_maps`; it may hold further levels behind those pooled from.
        maps: height and width of the levels to pool from, in cells.
        strides: image pixels per cell of each of these levels, powers of two.
        rois: float32 [B, P, 4], pixels of the image; they get no gradient.
        pooled: bins along each side.
        shifts: float32 [B, P, pooled, pooled, 2], by how much each bin is moved across and down, as shares of the
            box's width and height (docs/method.md, 6.7); None: the bins lie side by side.

    Returns:
        [B * P, pooled * pooled, C], the bins of each box row by row.
    """
    num_chips, cells, channels = table.shape
    if len(strides) == 1:
        level = torch.zeros_like(rois[..., 0], dtype=torch.int64)
    else:
        finest = strides[0].bit_length() - 1  # stride 2^l is level l
        size = box_size(rois).clamp(min=1)
        level = (CANONICAL_LEVEL + (size / CANONICAL_SIZE).log2()).floor().long() - finest
        level = level.clamp(0, len(strides) - 1)
    ends = itertools.accumulate((height * width for height, width in maps), initial=0)
    # of each level its stride, its width and height in cells, and its first row in the table
    about = [n for stride, (h, w), first in zip(strides, maps, ends, strict=False) for n in (stride, w, h, first)]
    own = constant(tuple(about), rois.device).view(-1, 4)[level]  # [B, P, 4], of the box's level
    boxes = rois / own[..., :1] - 0.5  # in cells, centres at integers
    bins = pooled
    if shifts is not None:  # each bin becomes a box of its own
        boxes, own, bins = _moved_bins(boxes, shifts), own.repeat_interleave(pooled**2, 1), 1
    places, shares = _samples(boxes[..., :2], boxes[..., 2:], own[..., 1:3], bins)  # [B, P, 2, bins, 4], across, down
    (x, y), (x_weight, y_weight) = places.unbind(2), shares.unbind(2)
    chip = torch.arange(num_chips, device=rois.device)[:, None, None, None] * cells
    width, first = own[..., 1::2, None, None].long().unbind(2)  # [B, P, 1, 1]
    row = chip + first + y * width
    # [B, P, bins down, bins across, taps down, taps across]; 32 bits make the backward's sort twice as fast
    index = row.int()[..., :, None, :, None] + x.int()[..., None, :, None, :]
    weight = y_weight[..., :, None, :, None] * x_weight[..., None, :, None, :]
    rows = table.reshape(-1, channels)
    if rows.device.type == "cpu":
        rows = rows.float()  # its kernel adds up gradients in the table's type
    index, weight = index.reshape(-1, 16), weight.reshape(-1, 16).to(rows.dtype)
    if torch.compiler.is_exporting():  # formats of others have no such sum
        out = rows[index[:, 0].long()] * weight[:, 0, None]
        for tap in range(1, 16):
            out = out + rows[index[:, tap].long()] * weight[:, tap, None]
    else:
        most = MOST_VALUES // channels
        pieces = zip(torch.split(index, most), torch.split(weight, most), strict=True)
        sums = [F.embedding_bag(i, rows, per_sample_weights=w, mode="sum") for i, w in pieces]
        out = sums[0] if len(sums) == 1 else torch.cat(sums)
    return out.view(-1, pooled * pooled, channels).to(table.dtype)


def _moved_bins(boxes: Tensor, shifts: Tensor) -> Tensor:
    """Cut boxes [B, P, 4] into bins and move each by its shift; returns [B, P * bins, 4], row by row for each box."""
    pooled = shifts.shape[2]
    index = torch.arange(pooled, device=boxes.device)
    corner = torch.stack(torch.meshgrid(index, index, indexing="xy"), -1) / pooled + shifts
    low, high = (ends[:, :, None, None] for ends in (boxes[..., :2], boxes[..., 2:]))
    corner = low + (high - low) * corner
    return torch.cat([corner, corner + (high - low) / pooled], -1).flatten(1, 3)


def _samples(low: Tensor, high: Tensor, cells: Tensor, pooled: int) -> tuple[Tensor, Tensor]:
    """Find the cells and weights of samples along each axis: two samples per bin, two cells per sample.

    Args:
        low: float32 [B, P, 2], where each box begins across and down, in cells whose centres are at integers.
        high: float32 [B, P, 2], where it ends.
        cells: float32 [B, P, 2], cells of the box's level along each axis.
        pooled: bins along each axis.

    Returns:
        Cells int64 [B, P, 2, pooled, 4]; weights float32 of the same shape, which add up to 1 per bin.
    """
    steps = constant(tuple((i + 0.5) / (2 * pooled) for i in range(2 * pooled)), low.device)
    last = (cells - 1)[..., None]
    at = (low[..., None] + (high - low)[..., None] * steps).clamp(min=0).minimum(last)
    near = at.floor()
    far = (near + 1).minimum(last)
    share = (at - near) / 2  # over the two samples of a bin
    shape = (*low.shape, pooled, 4)
    return torch.stack([near, far], -1).long().view(shape), torch.stack([0.5 - share, share], -1).view(shape)
