"""From the RPN's outputs to the boxes that the box head sees.

Shapes are static: each chip has a fixed number of slots, of which some are in use. So no step waits for a count.
"""

import torch
from torch import Tensor

from trainer.model.boxes import has_area, nms

NMS_IOU = 0.7
"""A proposal goes when a better one overlaps it with an IoU above this (docs/method.md, 7.4)."""


def select(boxes: Tensor, logits: Tensor, eligible: Tensor, pre_nms: int, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take the best `pre_nms` eligible boxes of each chip, run NMS, and keep the best `num`.

    All levels compete in one list, in top-k and in NMS: a chip has one scale, so its range singles out the levels that
    matter (docs/method.md, 7.4).

    Args:
        boxes: float32 [B, A, 4], decoded and clipped, pixels of the image.
        logits: float32 [B, A], objectness.
        eligible: bool [B, A]; empty boxes are not eligible in any case.
        pre_nms: boxes of each chip that enter NMS.
        num: slots of each chip in the result.

    Returns:
        Boxes float32 [B, num, 4], best first, 0 where not in use; used bool [B, num]; logits float32 [B, num].
    """
    eligible = eligible & has_area(boxes)
    best, order = torch.where(eligible, logits, -torch.inf).topk(min(pre_nms, logits.shape[1]))
    ranked = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    keep = nms(ranked, best > -torch.inf, NMS_IOU)
    with_logits = torch.cat([ranked, torch.where(keep, best, 0)[:, :, None]], 2)
    chosen, used = compact(with_logits, keep, num)
    return chosen[:, :, :4], used, chosen[:, :, 4]


def compact(boxes: Tensor, keep: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Move the first `num` kept rows of each chip to the front, in their order.

    Args:
        boxes: [B, N, D], rows of any width.
        keep: bool [B, N].
        num: slots of each chip in the result.

    Returns:
        Rows [B, num, D], 0 where not in use; used bool [B, num].
    """
    order = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :num]
    used = keep.gather(1, order)
    chosen = boxes.gather(1, order[:, :, None].expand(-1, -1, boxes.shape[2])) * used[:, :, None]
    short = num - order.shape[1]
    if short > 0:
        chosen = torch.nn.functional.pad(chosen, (0, 0, 0, short))
        used = torch.nn.functional.pad(used, (0, short))
    return chosen, used
