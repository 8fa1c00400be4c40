"""From the RPN's outputs to the boxes that the head sees. Shapes are static: N slots per chip, some in use."""

import torch
from torch import Tensor

from trainer.model.boxes import nms, sides

NMS_IOU = 0.7  # (docs/method.md, 7.4)


def select(boxes: Tensor, logits: Tensor, eligible: Tensor, pre_nms: int, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best `pre_nms` eligible boxes of each chip, then NMS, then the best `num`.

    All levels compete in one list, in top-k as in NMS: a chip has one scale, so its range singles out the levels
    that matter, and this is the paper's one map generalised (docs/method.md, 7.4).

    Args:
        boxes: float32 [B, A, 4], decoded and clipped; logits: float32 [B, A]; eligible: bool [B, A]

    Returns:
        boxes float32 [B, num, 4], best first, 0 where not in use; used bool [B, num]; logits float32 [B, num].
    """
    width, height = sides(boxes)
    eligible = eligible & (width > 0) & (height > 0)
    scores, order = logits.masked_fill(~eligible, -torch.inf).topk(min(pre_nms, logits.shape[1]))
    ranked = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    keep = nms(ranked, scores > -torch.inf, NMS_IOU)
    with_scores = torch.cat([ranked, scores.masked_fill(~keep, 0)[:, :, None]], 2)
    chosen, used = compact(with_scores, keep, num)
    return chosen[:, :, :4], used, chosen[:, :, 4]


def compact(boxes: Tensor, keep: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The first `num` kept boxes of each chip, in order. boxes: [B, N, D]; keep: bool [B, N]."""
    order = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :num]
    used = keep.gather(1, order)
    chosen = boxes.gather(1, order[:, :, None].expand(-1, -1, boxes.shape[2])) * used[:, :, None]
    short = num - order.shape[1]
    if short > 0:
        chosen = torch.nn.functional.pad(chosen, (0, 0, 0, short))
        used = torch.nn.functional.pad(used, (0, short))
    return chosen, used
