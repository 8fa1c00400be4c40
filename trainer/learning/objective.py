"""From a batch to its losses: the one module that training calls, and that DistributedDataParallel wraps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.learning.focus import label_cells
from trainer.learning.ground_truth import key_states, pad_boxes
from trainer.learning.losses import focus_loss, roi_losses, rpn_losses
from trainer.learning.targets import add_ground_truth, label_anchors, label_rois, sample_anchors, trainable
from trainer.loading.batch import Batch
from trainer.model import Detector
from trainer.model.anchors import anchor_grid, on_content
from trainer.model.boxes import clip, decode
from trainer.model.heads import full_precision
from trainer.model.proposals import select


class Objective(nn.Module):
    """The losses of a detector on a batch. It adds no parameter and no state to the detector."""

    def __init__(self, detector: Detector, focus_limits: Sequence[float] = ()) -> None:
        """Wrap a detector, which is shared and not copied.

        Args:
            detector: the network.
            focus_limits: where it has a focus head, the size for each scale below which an object calls for the next
                finer scale, source pixels.
        """
        super().__init__()
        self.detector, self.focus_limits = detector, tuple(focus_limits)

    def forward(self, batch: Batch, *, seed: int, epoch: int, batch_size: int) -> dict[str, Tensor]:
        """Compute the losses of one batch.

        Args:
            batch: on the detector's device; chips of the side that the detector was built for; may be empty.
            seed, epoch: with a chip's key they decide which anchors are drawn.
            batch_size: what the sums are divided by, `train.batch_size`: the chips of a whole optimiser step, over all
                ranks and accumulation steps, and the same in a last, short step, so that a chip weighs the same in
                every step. DDP averages gradients over ranks: multiply the losses by their number.

        Returns:
            The terms that `loss_terms` names: float32 scalars to be added up; finite for any boxes,
            and every parameter that learns is in their graph.

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
            return dict(zip(loss_terms(detector), rpn, strict=True))
        logits, deltas = detector.rpn.everywhere(features.maps)
        with torch.no_grad(), full_precision(images):
            proposals = clip(decode(deltas, anchors), sizes)
            eligible = trainable(proposals, batch, truth) & on_content(anchors, sizes)
            rois, used, _ = select(proposals, logits, eligible, settings.pre_nms, settings.proposals)
            rois, used = add_ground_truth(rois, used, batch, truth, draw)
            roi_labels, roi_targets = label_rois(rois, used, truth)
        roi_logits, roi_deltas = detector.detect(features, rois)
        with full_precision(images):
            losses = [*rpn, *roi_losses(roi_logits, roi_deltas, roi_labels, roi_targets, batch_size)]
        if detector.focus is not None:
            focus_logits = detector.focus(features.focus)
            stride = detector.layout.strides[detector.focus_level]
            with full_precision(images):
                cells = label_cells(batch, truth, self.focus_limits, focus_logits.shape[1:], stride)
                losses.append(focus_loss(focus_logits, cells, batch_size))
        return dict(zip(loss_terms(detector), losses, strict=True))


def loss_terms(detector: Detector) -> tuple[str, ...]:
    """Name the terms of a detector's loss.

    They are those of the RPN; unless it learns alone those of the box head; and focus where there is a focus head.
    """
    if detector.rpn_only:
        return "rpn_class", "rpn_box"
    return "rpn_class", "rpn_box", "roi_class", "roi_box", *(["focus"] if detector.focus is not None else [])
