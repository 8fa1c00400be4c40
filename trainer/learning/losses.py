"""The four losses: sums over constants times the chips of the global batch, so ranks and accumulation change nothing.

All take and give float32. What gives no loss is multiplied out of the sum, never cut out of the graph.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.learning.targets import RPN_SAMPLES, AnchorSample

RPN_BOX_WEIGHT = 3.0  # (docs/method.md, 8.2)
ROI_BOX_SHARE = 188 / 300  # the original's 188 for 300 proposals (docs/method.md, 8.2)


def rpn_losses(logits: Tensor, deltas: Tensor, sample: AnchorSample, chips: int) -> tuple[Tensor, Tensor]:
    """Objectness and box loss of the sampled anchors. logits: [B, S]; deltas: [B, S, 4]; chips: of the global batch.

    The original's softmax over two logits is, as a function of their difference, this sigmoid.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, sample.positive.to(logits.dtype), reduction="none")
    distance = F.smooth_l1_loss(deltas, sample.deltas, reduction="none", beta=1.0)
    constant = RPN_SAMPLES * chips
    return (
        torch.where(sample.used, entropy, 0).sum() / constant,
        torch.where(sample.positive[:, :, None], distance, 0).sum() * (RPN_BOX_WEIGHT / constant),
    )


def roi_losses(scores: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor, chips: int) -> tuple[Tensor, Tensor]:
    """Class and box loss of the proposals.

    Args:
        scores: [B, P, K + 1]; deltas: [B, P, 1 or K, 4], one box for all classes or one each
        labels: int64 [B, P], -1 gives no loss; targets: [B, P, 4]
        chips: of the global batch
    """
    constant = labels.shape[1] * chips
    entropy = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum")
    column = (labels - 1).clamp(0, deltas.shape[2] - 1)
    own = deltas.gather(2, column[:, :, None, None].expand(-1, -1, 1, 4)).squeeze(2)
    distance = F.smooth_l1_loss(own, targets, reduction="none", beta=1.0)
    box = torch.where((labels > 0)[:, :, None], distance, 0).sum()
    return entropy / constant, box / (constant * ROI_BOX_SHARE)
