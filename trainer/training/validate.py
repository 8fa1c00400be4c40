"""Scores and pictures of a network in training."""

import torch
import torchvision

from schemas.settings import ChipSettings
from trainer.evaluation.evaluate import GroundTruth, score_model
from trainer.inference.opening import Inference
from trainer.loading.batch import Batch
from trainer.model import RawDetections, predict
from trainer.runtime.checkpoint import BEST, make_detector, write_checkpoint
from trainer.training.journal import PICTURED, draw_batch
from trainer.training.run import Run


def validate(run: Run, truth: GroundTruth) -> dict[str, float]:
    """Score the network, or its average of weights, on whole images. All ranks take part.

    A network that is better than all before is kept as RUN/best.pt.

    Returns:
        The values of COCO's summary by name, on the first rank; nothing on the others.
    """
    model = make_detector(run.checkpoint()).to(run.rank.device).eval()
    chips = ChipSettings.model_validate(run.chips)
    inference = Inference(model, chips, run.settings.detect, run.rank.device, run.precision)
    report = score_model(inference, run.categories, truth, run.rank, None, 100)
    if report is None:
        return {}
    values = {name: value for name, value in report.summary.items() if value is not None}
    run.tell(
        "validation: " + ", ".join(f"{name} {values[name]:.3f}" for name in ("AP", "AP50", "AP75") if name in values)
    )
    if values.get("AP", -1.0) > run.best_ap:
        run.best_ap = values["AP"]
        write_checkpoint(run.out / BEST, run.checkpoint())
    return values


@torch.no_grad()
def picture(run: Run, batch: Batch) -> None:
    """Draw the first chips of a batch, on the network's device, with their targets and what the network finds now."""
    run.model.eval()
    with run.autocast():
        found = predict(run.model, batch.images[:PICTURED], batch.sizes[:PICTURED])
    run.model.train()
    distinct = []
    for boxes, scores, labels in found:
        keep = torchvision.ops.batched_nms(boxes, scores, labels, 0.5)
        distinct.append(RawDetections(boxes[keep], scores[keep], labels[keep]))
    draw_batch(run.out / f"pictures/step-{run.step:08d}.png", batch, distinct, [name for _, name in run.categories])
