"""`sniper train`: opens the data and the run, says what is worth knowing, and runs the loop."""

import signal

import torch

from pipeline.engines.progress import log
from pipeline.storage import Location, is_file, make_folder
from schemas.errors import UsageError
from schemas.settings import ChipSettings, Settings
from trainer.evaluation.evaluate import open_ground_truth
from trainer.loading.cache import cache_of
from trainer.loading.dataset import ChipDataset
from trainer.runtime.checkpoint import (
    BEST,
    Checkpoint,
    DamagedError,
    check_resumable,
    find_checkpoints,
    read_checkpoint,
    read_last,
)
from trainer.runtime.ranks import from_first, joined
from trainer.training.loop import run_loop
from trainer.training.report import anchor_report, pool_report
from trainer.training.run import make_run


def train(
    data: Location,
    out: Location,
    settings: Settings,
    *,
    resume: bool = False,
    rpn_only: bool = False,
    validation: tuple[Location, Location] | None = None,
) -> Location:
    """Train a detector on a chip data set. Under torchrun, this process is one of several that train together.

    Args:
        data: folder that `sniper chips` wrote; a pool of negatives in it is used, too.
        out: folder of the run: checkpoints, log, pictures. It must hold no other run unless `resume`.
        settings: the sections `model`, `loader`, `train` and, for validation, `detect` are used.
        resume: go on from the last checkpoint in `out`, at the very next batch.
        rpn_only: train nothing behind the RPN, on positive chips alone.
        validation: annotation file and image folder to score on; the best checkpoint stays as RUN/best.pt.

    Returns:
        The last checkpoint.

    Raises:
        DataError: the data set, the weights or the validation data cannot be read.
        UsageError: the settings do not go together, or the run in `out` cannot be resumed with them.
        StoppedError: SIGTERM came; a checkpoint has been written.
    """
    with joined() as rank:
        torch.manual_seed(settings.train.seed)
        last = from_first(lambda: _last_checkpoint(out, resume))  # the others need not see the folder
        make_folder(out)
        dataset = ChipDataset(data, pool=not rpn_only, cache=cache_of(settings.loader))
        run = make_run(dataset, out, settings, rank, last=last, rpn_only=rpn_only)
        if last is None:
            run.tell(f"{pool_report(dataset)}, {len(run.categories)} classes")
            run.tell(anchor_report(dataset, settings))
        else:
            check_resumable(last, out, run.settings_tree(), run.data)
            run.restore(last)
            run.tell(f"resumed: epoch {run.state.epoch}, step {run.step}")
        truth = None
        if validation is not None:
            truth = open_ground_truth(*validation, ChipSettings.model_validate(run.chips), run.categories)
        # SIGTERM asks for an end after the step at hand; all ranks learn of it with that step's losses
        before = signal.signal(signal.SIGTERM, lambda *_: setattr(run, "terminated", True))
        try:
            return run_loop(run, truth)
        finally:
            signal.signal(signal.SIGTERM, before)


def _last_checkpoint(out: Location, resume: bool) -> Checkpoint | None:
    """Read the last checkpoint of the run in `out`; None where there is no run."""
    checkpoints = find_checkpoints(out)
    if not checkpoints:
        return None
    if not resume:
        raise UsageError(f"{out}: holds a run already ({checkpoints[-1].name}); --resume it, or choose another --out")
    last = read_last(out)
    if last is None or not is_file(out / BEST):
        return last
    try:
        best_ap = max(last.best_ap, read_checkpoint(out / BEST).best_ap)  # scored after the last one was saved
    except DamagedError as error:
        log.warning(f"WARNING: {error}. The next validation writes a new one")
        best_ap = -1.0
    return last._replace(best_ap=best_ap)
