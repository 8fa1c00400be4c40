"""The heads: the RPN, the box head with what moves its bins, and the focus head."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.settings import Precision
from trainer.model.pooling import flatten_maps

SHIFT = 0.01
"""What one unit of the layer that moves bins is, as a share of the proposal's side (docs/method.md, 6.7)."""


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a network computes with this precision on this device (docs/method.md, 6.6)."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def full_precision(x: Tensor) -> torch.autocast:
    """Switch autocast off on the device of x, for boxes, losses and the layers that give logits and deltas.

    Half precision has a few hundred different scores, so top-k among thousands would choose among equals
    (docs/method.md, 6.6).
    """
    return torch.autocast(x.device.type, enabled=False)


class Rpn(nn.Module):
    """The region proposal network: objectness logits and deltas of k anchors per cell, with one head for all levels.

    It is a 3x3 convolution, ReLU, and a 1x1 convolution for each output (docs/method.md, 6.4).
    """

    def __init__(self, channels: int, hidden: int, k: int) -> None:
        """Build it for maps of `channels` channels, with `hidden` channels inside and k anchors per cell."""
        super().__init__()
        self.conv = nn.Conv2d(channels, hidden, 3, padding=1)
        self.logits = nn.Conv2d(hidden, k, 1)
        self.deltas = nn.Conv2d(hidden, 4 * k, 1)
        self.k = k

    @torch.no_grad()
    def everywhere(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the outputs of all anchors, without gradient.

        Args:
            maps: [B, C, H, W] per level.

        Returns:
            Objectness logits float32 [B, A]; deltas float32 [B, A, 4]; anchors in the order of `anchor_grid`.
        """
        # The weight is detached on top of no_grad: autocast caches the casts of leaves, and would hand this one, which
        # has no graph, to `at`. It is cast here, once for all levels.
        weight = self.conv.weight.detach().to(maps[0].dtype)
        logits, deltas = [], []
        for level in maps:
            x = F.relu_(F.conv2d(level, weight, self.conv.bias, padding=1))
            with full_precision(x):
                x = x.float()
                logits.append(F.conv2d(x, self.logits.weight, self.logits.bias))
                deltas.append(F.conv2d(x, self.deltas.weight, self.deltas.bias))
        rows = flatten_maps(deltas)  # [B, cells, 4 k]
        return flatten_maps(logits).flatten(1), rows.reshape(rows.shape[0], rows.shape[1] * self.k, 4)

    def at(self, rows: Tensor, shapes: tuple[tuple[int, int], ...], slots: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the outputs of the given anchors only, with gradient.

        The loss of a chip reads 256 anchors of the 65,000 that a feature pyramid has. Their gathered 3x3
        neighbourhoods make one matrix product, which has the same gradient at a hundredth of the cost.

        Args:
            rows: [B, cells, C], the maps as `flatten_maps` gives them.
            shapes: height and width of every level's map, in cells.
            slots: int64 [B, S], indices of anchors in the order of `anchor_grid`.

        Returns:
            Objectness logits float32 [B, S]; deltas float32 [B, S, 4].
        """
        num_chips, cells, channels = rows.shape
        near = neighbours(shapes, rows.device)[slots // self.k]  # [B, S, 9]
        chip = torch.arange(num_chips, device=rows.device)[:, None, None] * cells
        index = (near.clamp(min=0) + chip).int()
        patches = F.embedding(index, rows.reshape(-1, channels)) * (near >= 0)[..., None]  # [B, S, 9, C]
        weight = self.conv.weight.permute(0, 2, 3, 1).flatten(1)  # [hidden, 9 C], as the patches
        x = F.relu_(F.linear(patches.flatten(2), weight, self.conv.bias))
        shape = (slots % self.k)[..., None]
        with full_precision(x):
            x = x.float()
            logits = F.linear(x, self.logits.weight.flatten(1), self.logits.bias).gather(2, shape).squeeze(2)
            deltas = F.linear(x, self.deltas.weight.flatten(1), self.deltas.bias).view(*slots.shape, self.k, 4)
        return logits, deltas.gather(2, shape[..., None].expand(-1, -1, -1, 4)).squeeze(2)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def neighbours(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Return the 3x3 cells around each cell, as rows of `flatten_maps`; do not write into the result.

    Args:
        shapes: height and width of every level's map, in cells.
        device: where the result lies.

    Returns:
        int64 [cells, 9]; -1 outside the map.
    """
    out, first = [], 0
    for height, width in shapes:
        cells = torch.arange(first, first + height * width).view(1, 1, height, width)
        padded = F.pad(cells, (1, 1, 1, 1), value=-1).float()  # exact: far below 2^24 cells
        out.append(F.unfold(padded, 3)[0].t().long())
        first += height * width
    return torch.cat(out).to(device)


class BoxHead(nn.Module):
    """Two layers on the pooled map, then logits of K + 1 classes and the deltas of one box, or of one per class.

    The module `scores` gives logits; it keeps its name because checkpoints know it by that.
    """

    def __init__(self, inputs: int, width: int, num_classes: int, *, class_boxes: bool) -> None:
        """Build it for pooled maps of `inputs` numbers and for K = `num_classes` classes without the background."""
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(True), nn.Linear(width, width), nn.ReLU(True))
        self.scores = nn.Linear(width, num_classes + 1)
        self.deltas = nn.Linear(width, 4 * (num_classes if class_boxes else 1))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Classify pooled maps and find their boxes.

        Args:
            pooled: [N, bins, C].

        Returns:
            Class logits float32 [N, K + 1], column 0 is the background; deltas float32 [N, 1 or K, 4], times
            ROI_WEIGHTS.
        """
        x = self.layers(pooled.flatten(1))
        with full_precision(x):
            x = x.float()
            return self.scores(x), self.deltas(x).view(x.shape[0], self.deltas.out_features // 4, 4)


class BinShifts(nn.Module):
    """Says by how much each bin of a proposal is moved before it is pooled again (docs/method.md, 6.7)."""

    def __init__(self, side: int, channels: int) -> None:
        """Build it for proposals pooled to side x side bins of `channels` channels; at first nothing moves."""
        super().__init__()
        self.layer = nn.Linear(side**2 * channels, side**2 * 2)
        for parameter in self.layer.parameters():
            nn.init.zeros_(parameter)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return shifts float32 [N, bins, 2], across and down, as shares of the box's sides, of maps [N, bins, C]."""
        with full_precision(pooled):
            shifts: Tensor = self.layer(pooled.flatten(1).float()) * SHIFT
            return shifts.view(len(pooled), self.layer.out_features // 2, 2)


class FocusHead(nn.Module):
    """Says of each cell whether something there is small and calls for the next finer scale (docs/method.md, 16.2)."""

    def __init__(self, channels: int) -> None:
        """Build it for a map of `channels` channels."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(True), nn.Conv2d(channels, channels, 1), nn.ReLU(True)
        )
        self.logits = nn.Conv2d(channels, 1, 1)

    def forward(self, level: Tensor) -> Tensor:
        """Return logits float32 [B, H, W] of a map [B, C, H, W]."""
        x: Tensor = self.layers(level)
        with full_precision(x):
            logits: Tensor = self.logits(x.float())
            return logits.squeeze(1)
