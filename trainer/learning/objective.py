"""From a batch to its losses: the one module that training calls, and that DistributedDataParallel wraps."""

import torch
from torch import Tensor, nn

from trainer.learning.ground_truth import key_states, pad_boxes
from trainer.learning.losses import roi_losses, rpn_losses
from trainer.learning.targets import add_ground_truth, label_anchors, label_rois, sample_anchors, trainable
from trainer.loading.batch import Batch
from trainer.model import Detector
from trainer.model.anchors import anchor_grid, on_content
from trainer.model.boxes import clip, decode
from trainer.model.heads import full_precision
from trainer.model.proposals import select


class Objective(nn.Module):
    """The losses of a detector on a batch. It adds no parameter and no state to the detector."""

    def __init__(self, detector: Detector) -> None:
        """Wrap a detector, which is shared and not copied."""
        super().__init__()
        self.detector = detector

    def forward(self, batch: Batch, *, seed: int, epoch: int, batch_size: int) -> dict[str, Tensor]:
        """Compute the losses of one batch.

        Args:
            batch: on the detector's device; chips of the side that the detector was built for; may be empty.
            seed, epoch: with a chip's key they decide which anchors are drawn.
            batch_size: what the sums are divided by, `train.batch_size`: the chips of a whole optimiser step, over all
                ranks and accumulation steps, and the same in a last, short step, so that a chip weighs the same in
                every step. DDP averages gradients over ranks: multiply the losses by their number.

        Returns:
            rpn_class, rpn_box, roi_class, roi_box (the first two after `keep_rpn_only`): float32 scalars to be added
            up; finite for any boxes, and every parameter that learns is in their graph.

        Raises:
            ValueError: the chips have another side than the detector was built for.
        """
        detector, images, sizes = self.detector, batch.images, batch.sizes
        side = detector.chip_size
        if images.shape[1:] != (3, side, side):
            raise ValueError(
                f"expected chips [B, 3, {side}, {side}], found {list(images.shape)}; nothing resizes them"
            )
        settings, device = detector.settings, images.device
        features = detector(images, sizes)
        with torch.no_grad(), full_precision(images):
            anchors = anchor_grid(detector.layout, features.shapes(), device)
            truth = pad_boxes(batch)
            draw = key_states(batch.keys, seed, epoch, device)
            labels, match = label_anchors(anchors, sizes, truth)
            sample = sample_anchors(anchors, labels, match, truth, draw)
        rpn_logits, rpn_deltas = detector.rpn.at(features.rows, features.shapes(), sample.slots)
        with full_precision(images):
            rpn = rpn_losses(rpn_logits, rpn_deltas, sample, batch_size)
        if detector.rpn_only:
            return dict(zip(("rpn_class", "rpn_box"), rpn, strict=True))
        logits, deltas = detector.rpn.everywhere(features.maps)
        with torch.no_grad(), full_precision(images):
            proposals = clip(decode(deltas, anchors), sizes)
            eligible = trainable(proposals, batch, truth) & on_content(anchors, sizes)
            rois, used, _ = select(proposals, logits, eligible, settings.pre_nms, settings.proposals)
            rois, used = add_ground_truth(rois, used, batch, truth, draw)
            roi_labels, roi_targets = label_rois(rois, used, truth)
        roi_logits, roi_deltas = detector.detect(features, rois)
        with full_precision(images):
            roi = roi_losses(roi_logits, roi_deltas, roi_labels, roi_targets, batch_size)
        return dict(zip(("rpn_class", "rpn_box", "roi_class", "roi_box"), (*rpn, *roi), strict=True))
