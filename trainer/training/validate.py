"""Scores and pictures of a network in training."""

from contextlib import suppress
from functools import partial

import torch
import torchvision

from pipeline.coco.rejects import describe_rejects
from pipeline.storage import Location
from schemas.errors import StoppedError
from trainer.evaluation.evaluate import Evaluation, score_model
from trainer.evaluation.ground_truth import GroundTruth, check_images, open_ground_truth
from trainer.evaluation.matching import MAX_DETS
from trainer.evaluation.seen import refuse_seen
from trainer.inference.opening import Inference
from trainer.inference.predictor import focus_of
from trainer.loading.batch import Batch
from trainer.model import RawDetections, predict
from trainer.runtime.checkpoint import (
    BEST,
    Checkpoint,
    Score,
    best_ap,
    checkpoint_path,
    make_detector,
    write_checkpoint,
    write_scores,
)
from trainer.runtime.ranks import from_first, stop_together
from trainer.training.journal import PICTURED, auxiliary, draw_batch
from trainer.training.run import Run


def open_validation(run: Run, annotations: Location, images: Location, *, allow_seen: bool = False) -> GroundTruth:
    """Read what is to be scored against, and say before the first step what is odd in it.

    Args:
        run: before its first step.
        annotations: COCO JSON file.
        images: folder that its file names are relative to.
        allow_seen: score on images that are trained on, too.

    Raises:
        DataError: the file cannot be trusted, it has no category of the run, images are missing, or some are trained
            on.
        UsageError: there is no such image folder.
    """
    options = run.settings.detect
    truth = open_ground_truth(annotations, images, run.chip_settings, run.categories, MAX_DETS, options)
    from_first(lambda: check_images(truth))
    if not allow_seen:
        from_first(lambda: refuse_seen(run.out, truth))
    for line in (*truth.notes, *describe_rejects(truth.source.rejects)):
        run.tell(f"validation data: {line}")
    return truth


def is_due(run: Run) -> bool:
    """Tell whether the epoch that has just ended is to be scored and has not been: each n-th one, and the last one."""
    options, state = run.settings.train, run.state
    if state.position > 0 or state.epoch == 0 or any(score.step == run.step for score in run.scores):
        return False
    return state.epoch % options.evaluate_every == 0 or state.epoch >= options.epochs


def validate(run: Run, truth: GroundTruth) -> dict[str, float]:
    """Score the network, or its average of weights, on whole images. All ranks take part.

    A network that is better than all before is kept as RUN/best.pt, and the score is noted in RUN/scores.json.

    Returns:
        The values of COCO's summary by name, on the first rank; nothing on the others.

    Raises:
        DataError: a checkpoint cannot be written.
        StoppedError: a signal asked for an end. The validation is made again when the run is resumed.
    """
    model = make_detector(run.checkpoint()).to(run.rank.device).eval()
    inference = Inference(model, run.chip_settings, run.settings.detect, run.rank.device, run.precision)
    report = None
    with suppress(StoppedError):  # perhaps on this rank alone; all ranks end below
        report = score_model(inference, truth, run.rank, None, MAX_DETS)
    run.settle()
    stop_together(f"step {run.step} is kept in {checkpoint_path(run.out, run.step)}, its validation is not done")
    run.scores = from_first(lambda: _noted(run, report))
    if report is None:
        return {}
    for line in describe_rejects(reject for reject in report.rejects if reject.kind == "image"):
        run.tell(f"validation: left out {line}")
    values = {name: value for name, value in report.summary.items() if value is not None}
    if focus_of(inference) is not None:
        values["searched"] = report.searched.share
    told = [f"{name} {values[name]:.3f}" for name in ("AP", "AP50", "AP75") if name in values]
    run.tell("validation: " + (", ".join(told) or "no score, for the images that were read hold no object"))
    return values


def _noted(run: Run, report: Evaluation | None) -> list[Score]:
    """Have the network kept where it is the best so far, and return all scores with the new one."""
    assert report is not None, "the first rank has the report"
    ap = report.summary.get("AP")
    before = best_ap(run.scores)
    run.scores = [*run.scores, Score(run.step, run.state.epoch, ap)]
    if ap is not None and ap > before:
        run.write_later(partial(_keep_best, run.out, run.scores))
    else:
        write_scores(run.out, run.scores)
    return run.scores


def _keep_best(out: Location, scores: list[Score], checkpoint: Checkpoint) -> None:
    """Write the best checkpoint, and only then the score that tells of it."""
    write_checkpoint(out / BEST, checkpoint)
    write_scores(out, scores)


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
    names = [name for _, name in run.categories]
    with auxiliary("pictures", run.warned):
        draw_batch(run.out / f"pictures/step-{run.step:08d}.png", batch, distinct, names)
