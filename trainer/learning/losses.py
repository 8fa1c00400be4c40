"""The losses: sums divided by constants times the batch size (docs/method.md, 8).

So neither ranks nor accumulation nor a short step change what a chip adds to the gradient. All take and give float32.
What gives no loss is multiplied out of the sum and never cut out of the graph, so every parameter that learns has a
gradient, even from an empty batch.
"""

import torch.nn.functional as F
from torch import Tensor

from trainer.learning.targets import RPN_SAMPLES, AnchorSample

RPN_BOX_WEIGHT = 3.0
"""Factor of the RPN's box loss (docs/method.md, 8.2)."""
ROI_BOX_SHARE = 188 / 300
"""The box head's box loss is divided by this share of the proposals (docs/method.md, 8.2)."""


def rpn_losses(logits: Tensor, deltas: Tensor, sample: AnchorSample, batch_size: int) -> tuple[Tensor, Tensor]:
    """Compute the class loss and the box loss of the RPN.

    Args:
        logits: float32 [B, S], objectness of the drawn anchors.
        deltas: float32 [B, S, 4], theirs.
        sample: what was drawn.
        batch_size: chips of a whole optimiser step, `train.batch_size`.

    Returns:
        Two float32 scalars.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, sample.positive.to(logits.dtype), reduction="none")
    distance = F.smooth_l1_loss(deltas, sample.deltas, reduction="none", beta=1.0)
    constant = RPN_SAMPLES * batch_size
    return (
        (entropy * sample.used).sum() / constant,
        (distance * sample.positive[:, :, None]).sum() * (RPN_BOX_WEIGHT / constant),
    )


def roi_losses(
    logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Compute the class loss and the box loss of the box head.

    Args:
        logits: float32 [B, P, K + 1], column 0 is the background.
        deltas: float32 [B, P, 1 or K, 4], of one box for all classes or one for each, times ROI_WEIGHTS.
        labels: int64 [B, P], 0 background, 1..K, -1 gives no loss.
        targets: float32 [B, P, 4], the deltas to learn, times ROI_WEIGHTS.
        batch_size: chips of a whole optimiser step, `train.batch_size`.

    Returns:
        Two float32 scalars.
    """
    constant = labels.shape[1] * batch_size
    entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum")
    own = deltas[:, :, 0]
    if deltas.shape[2] > 1:
        column = (labels - 1).clamp(0, deltas.shape[2] - 1)
        own = deltas.gather(2, column[:, :, None, None].expand(-1, -1, 1, 4)).squeeze(2)
    distance = F.smooth_l1_loss(own, targets, reduction="none", beta=1.0)
    box = (distance * (labels > 0)[:, :, None]).sum()
    return entropy / constant, box / (constant * ROI_BOX_SHARE)


def focus_loss(logits: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Compute the class loss of the focus head, the mean over a chip's cells.

    Args:
        logits: float32 [B, H, W].
        labels: int8 [B, H, W], from `label_cells`.
        batch_size: chips of a whole optimiser step, `train.batch_size`.

    Returns:
        A float32 scalar.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, (labels > 0).to(logits.dtype), reduction="none")
    return (entropy * (labels >= 0)).sum() / (labels.shape[1] * labels.shape[2] * batch_size)
