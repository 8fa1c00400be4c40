"""How the chips of an epoch are changed, on the device: what is drawn for each, and what the draw does to its batch.

Every draw is a hash of (seed, epoch, key) with a purpose of its own, as the mirroring is (docs/method.md, 12.2), so it
depends neither on the batch nor on the ranks. A chip's size, scale and range stay; what a change does to boxes and
statuses stands in docs/method.md, 9.5.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from schemas.arrays import FloatArray, Uint64Array
from schemas.codes import Status
from schemas.settings import LoaderSettings
from trainer.loading.batch import Batch, flip, per_box, transpose
from trainer.loading.order import Purpose, mix

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the grey of a pixel (docs/method.md, 9.5)."""
TINY = 1e-6
"""Stands for an area or a share of 0, which nothing is divided by."""
TOUCHING = 1e-3
"""Chip pixels that a box may reach beyond the content and count as inside: what rounding adds to a touching one."""


class Draws(NamedTuple):
    """What is drawn for each of B chips. None stands for a kind of change that the settings leave off.

    Attributes:
        flips: bool [B], mirrored left to right.
        vertical: bool [B], mirrored top to bottom.
        turns: int64 [B], quarter turns clockwise, 0 to 3.
        colours: float32 [B, 3], factors of brightness, contrast and saturation.
        resizes: float64 [B, 3], the factor of the content's sides, and where the part that is shown lies if it
            outgrows the chip: down and across, each in [0, 1).
    """

    flips: Tensor
    vertical: Tensor | None = None
    turns: Tensor | None = None
    colours: Tensor | None = None
    resizes: Tensor | None = None

    def take(self, places: slice) -> "Draws":
        """Return the draws of some of the chips, in memory of their own."""
        return self._each(lambda values: values[places].clone())

    def pinned(self) -> "Draws":
        """Return the draws in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Draws":
        """Return the draws on a device; copies of page-locked memory go on meanwhile."""
        return self._each(lambda values: values.to(device, non_blocking=True))

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Draws":
        flips, *others = self
        return Draws(function(flips), *(None if values is None else function(values) for values in others))


class Limits(NamedTuple):
    """What a chip must show of a box that is to be a target.

    Attributes:
        min_visible: `chips.min_visible`, the least share of it.
        min_side: `chips.min_side`, the shortest shorter side of what is shown, chip pixels.
    """

    min_visible: float = 0.1
    min_side: float = 4.0


def draw_changes(hashes: Uint64Array, settings: LoaderSettings, seed: int, epoch: int) -> Draws:
    """Draw what becomes of the chips of an epoch.

    Args:
        hashes: uint64 [T], one for each chip and copy.
        settings: which changes there are, and how strong.
        seed: of the run.
        epoch: from 0.
    """

    def uniform(purpose: Purpose) -> FloatArray:
        """Draw numbers in [0, 1), float64 [T]."""
        return (mix(hashes, seed, epoch, purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    flips = mix(hashes, seed, epoch, Purpose.FLIP) < np.uint64(settings.flip * 2**63)  # every other chip, or none
    vertical = turns = colours = resizes = None
    if settings.vertical_flip:
        vertical = torch.from_numpy(uniform(Purpose.VERTICAL) < 0.5)
    if settings.quarter_turns:
        turns = torch.from_numpy((uniform(Purpose.TURN) * 4).astype(np.int64))
    if settings.jitter:
        draws = np.stack([uniform(p) for p in (Purpose.BRIGHTNESS, Purpose.CONTRAST, Purpose.SATURATION)], 1)
        colours = torch.from_numpy((1 + settings.jitter * (2 * draws - 1)).astype(np.float32))
    if settings.scale_jitter:
        factors = (1 + settings.scale_jitter) ** (2 * uniform(Purpose.SCALE) - 1)
        resizes = torch.from_numpy(np.stack([factors, uniform(Purpose.DOWN), uniform(Purpose.ACROSS)], 1))
    return Draws(torch.from_numpy(flips), vertical, turns, colours, resizes)


def augment(batch: Batch, draws: Draws, limits: Limits) -> Batch:
    """Change the chips of a batch as was drawn: turned and mirrored, then resized, then in their colours.

    Args:
        batch: on any device.
        draws: for its chips, on the same device.
        limits: what a target must show, if chips are resized.

    Returns:
        The batch, with new memory for what has changed.
    """
    if not len(batch):
        return batch
    across, down = draws.flips, draws.vertical
    if draws.turns is not None:  # a turn is a transposition and a mirror
        batch = transpose(batch, draws.turns % 2 == 1)
        half = draws.turns >= 2
        across = across ^ (half ^ (draws.turns % 2 == 1))
        down = half if down is None else down ^ half
    batch = flip(batch, across)
    if down is not None:
        batch = flip(batch, down, vertical=True)
    if draws.resizes is not None:
        batch = resize(batch, draws.resizes, limits)
    return batch if draws.colours is None else recolour(batch, draws.colours)


def recolour(batch: Batch, factors: Tensor) -> Batch:
    """Change brightness, contrast and saturation of each chip (docs/method.md, 9.5).

    Args:
        batch: the chips.
        factors: float32 [B, 3], of brightness, contrast and saturation; 1 leaves a pixel as it is.
    """
    height, width = batch.sizes[:, 0, None, None], batch.sizes[:, 1, None, None]
    side = torch.arange(batch.images.shape[2], device=batch.images.device)
    content = (side[:, None] < height) & (side < width)  # [B, S, S]
    # whole numbers are added up, so that the mean does not hang on the order, and with it not on the batch
    sums = (batch.images * content[:, None]).sum((2, 3), dtype=torch.int64).double() / (height * width).view(-1, 1)
    mean = sum(share * sums[:, i] for i, share in enumerate(LUMA))
    assert isinstance(mean, Tensor)
    brightness, contrast, saturation = (column.view(-1, 1, 1, 1) for column in factors.unbind(1))
    pixels = batch.images.float()
    grey = LUMA[0] * pixels[:, :1] + LUMA[1] * pixels[:, 1:2] + LUMA[2] * pixels[:, 2:]
    pixels = pixels.mul_(brightness * contrast * saturation)
    pixels += grey.mul_(brightness * contrast * (1 - saturation))
    pixels += brightness * (1 - contrast) * mean.float().view(-1, 1, 1, 1)
    return replace(batch, images=pixels.round_().clamp_(0, 255).byte())


def resize(batch: Batch, draws: Tensor, limits: Limits) -> Batch:
    """Resize the content of each chip within its square, and decide anew what its boxes are (docs/method.md, 9.5).

    Content that outgrows the chip is cut to a window as large as the chip. Scale and range stay as they are: an object
    counts as one of another size.

    Args:
        batch: the chips.
        draws: float64 [B, 3], the factor, and where the window lies, down and across.
        limits: what a target must show.

    Returns:
        The batch with other pixels, contents, boxes, visible shares and statuses; a box that is not shown any more is
        empty, and `ignore` unless it is a crowd.
    """
    side, device = batch.images.shape[2], batch.images.device
    grown = (batch.sizes * draws[:, :1]).round().clamp(min=1)  # float64 [B, 2], down and across
    factors = grown / batch.sizes
    shown = grown.clamp(max=side)
    start = (draws[:, 1:] * (grown - shown + 1)).floor()
    at = torch.arange(side, device=device) + 0.5
    wanted = (at + start[:, :, None]) / factors[:, :, None] - 0.5  # float64 [B, 2, S], in cells of the old content
    wanted = wanted.clamp(min=0).minimum(batch.sizes[:, :, None] - 1.0)
    y, x = ((2 * wanted + 1) / side - 1).float().unbind(1)
    shape = len(batch), side, side
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1)  # [B, S, S, 2]
    pixels = torch.nn.functional.grid_sample(
        batch.images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    images = pixels.round_().clamp_(0, 255).byte().contiguous(memory_format=torch.channels_last)

    scaling, offset, limit = (per_box(batch, v.flip(1).repeat(1, 2).float()) for v in (factors, start, shown))
    whole = batch.boxes * scaling - offset
    boxes = whole.clamp(min=0).minimum(limit)
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    area = (whole[:, 2:] - whole[:, :2]).prod(1)
    visible = (batch.visible * width * height / area.clamp(min=TINY)).clamp(min=TINY)
    is_cut = ((whole < -TOUCHING) | (whole > limit + TOUCHING)).any(1)
    size = (area / batch.visible).sqrt()  # of the whole object, chip pixels
    low, high = per_box(batch, batch.ranges * batch.scales[:, None]).unbind(1)
    status = torch.where((batch.visible < 1) | is_cut, Status.CUT, Status.VALID)
    status = torch.where((size < low) | (size >= high), Status.OUT_OF_RANGE, status)
    status = torch.where((batch.status == Status.RESCUED) & ~is_cut, Status.RESCUED, status)
    shortest = torch.minimum(width, height)
    too_little = (visible < limits.min_visible) | (shortest < limits.min_side) | (shortest <= 0)
    status = torch.where(too_little, Status.IGNORE, status)
    status = torch.where(batch.status == Status.CROWD, Status.CROWD, status).to(torch.uint8)
    return replace(batch, images=images, sizes=shown.long(), boxes=boxes, visible=visible, status=status)
