"""From a batch to its losses."""

from torch import Tensor, nn

from trainer.loading.batch import Batch


def training_losses(model: nn.Module, batch: Batch, *, seed: int, epoch: int, global_chips: int) -> dict[str, Tensor]:
    """One forward pass of training.

    Args:
        model: a Detector, or DDP around one
        batch: on the model's device; chips of the side the model was built for; may be empty
        seed, epoch: with the key they decide which anchors are drawn
        global_chips: chips of the whole optimiser step, over all ranks and accumulation steps. DDP averages
            gradients over ranks: multiply the losses by their number.

    Returns:
        rpn_class, rpn_box, roi_class, roi_box (the first two after `keep_rpn_only`): float32 scalars to be added up;
        finite for any boxes, and every parameter that learns is in their graph.
    """
    losses: dict[str, Tensor] = model(batch, seed=seed, epoch=epoch, global_chips=global_chips)
    return losses
