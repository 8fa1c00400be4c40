"""Proposals for `sniper negatives`: a short training of the RPN alone, then what it proposes on every image."""

import json
import time
from contextlib import ExitStack

from pipeline.dataset.build import clear_proposals
from pipeline.dataset.build_file import POSITIVES, read_build, refuse_other_chips
from pipeline.storage import Location, is_file, location, locked, read_bytes, remove, write_atomic
from schemas.errors import UsageError
from schemas.settings import Settings, settings_or_defaults
from schemas.wording import counted, duration, shell
from trainer.inference.extract import extract_proposals
from trainer.runtime.checkpoint import find_checkpoints, read_checkpoint, write_checkpoint
from trainer.runtime.ranks import from_first, joined, stoppable
from trainer.training.run import tell
from trainer.training.train import NETWORK, train

RUN_FOLDER = "rpn"  # below data/proposals


def make_proposals(
    data: Location | str, images: Location | str, settings: Settings | None = None, *, overwrite: bool = False
) -> Location:
    """Train the RPN on the positives alone and write its proposals, doing only what is missing.

    Under torchrun all processes take part. The schedule is `settings.train` with `negatives.rpn_epochs` epochs and
    no decay of the rate (docs/method.md, 9.4).

    Args:
        data: folder that `sniper chips` wrote.
        images: folder that the chips were cut from.
        settings: the sections `model`, `loader`, `train`, `negatives` and `detect` are used. What is given of `chips`
            must be as the chips were made.
        overwrite: train anew in place of a run with other settings.

    Returns:
        The folder of proposals, data/proposals.

    Raises:
        DataError: the data set, the weights or an image cannot be read.
        UsageError: the settings do not go together, the run there was made with others or on other positives, or
            another process writes to `data`.
    """
    data, images, settings = location(data), location(images), settings_or_defaults(settings)
    refuse_other_chips(data, read_build(data).settings["chips"], settings.chips)  # before `overwrite` deletes anything
    folder = data / "proposals"
    fixed = {"epochs": settings.negatives.rpn_epochs, "decay_epochs": [], "keep": 1}
    options = settings.train.model_copy(update=fixed)
    network = settings.model.model_copy(update={"focus": False, "focus_limits": None})  # it would learn nothing here
    run_settings = settings.model_copy(update={"train": options, "model": network})
    with joined() as rank, stoppable("Run the same command again: what is finished is kept"), ExitStack() as held:
        from_first(lambda: held.enter_context(locked(data, "sniper negatives")))  # another may overwrite
        from_first(lambda: clear_proposals(data) if overwrite else _refuse_stale(data, folder))
        started = time.perf_counter()
        tell(rank, f"step 1 of 3: training the RPN, {counted(options.epochs, 'epoch')}")
        checkpoint = train(data, folder / RUN_FOLDER, run_settings, resume="auto", rpn_only=True)
        from_first(lambda: _finish(checkpoint, folder))
        tell(rank, f"step 1 of 3 took {duration(time.perf_counter() - started)}")
        started = time.perf_counter()
        tell(rank, "step 2 of 3: proposals of the RPN on all images")
        data_wait = extract_proposals(data, checkpoint, images, settings.detect)
        taken = duration(time.perf_counter() - started)
        tell(rank, f"step 2 of 3 took {taken}; the network waited for pixels {data_wait:.0%}")
    return folder


def _finish(checkpoint: Location, folder: Location) -> None:
    """Keep of the finished run what proposes, without the optimiser, and note which network that was."""
    kept = read_checkpoint(checkpoint)
    if kept.optimizer:
        write_checkpoint(checkpoint, kept._replace(model=kept.ema or kept.model, ema=None, optimizer={}))
    for other in find_checkpoints(checkpoint.parent):
        if other != checkpoint:
            remove(other)
    network = json.dumps(kept.settings["model"], indent=1).encode()
    if not is_file(folder / NETWORK) or read_bytes(folder / NETWORK) != network:
        write_atomic(folder / NETWORK, network)


def _refuse_stale(data: Location, folder: Location) -> None:
    """Refuse an RPN that was trained on positives that have changed since. It took a GPU, so it is not deleted.

    Raises:
        UsageError: it was trained on others.
    """
    checkpoints = find_checkpoints(folder / RUN_FOLDER)
    positives = read_build(data)
    if checkpoints and read_checkpoint(checkpoints[-1]).data.get(POSITIVES) not in positives.names:
        command = shell("sniper", "negatives", "--data", data, "--proposals", folder)
        raise UsageError(
            f"{folder / RUN_FOLDER}: the RPN was trained on positives that have changed since. Mine what it proposed "
            f"with `{command}`, or train it anew with --overwrite"
        )
