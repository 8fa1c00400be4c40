"""Proposals for `sniper negatives`: a short training of the RPN alone, then what it proposes on every image."""

from pipeline.dataset.build_file import read_build
from pipeline.engines.progress import log
from pipeline.storage import Location, remove_folder
from schemas.settings import Settings
from trainer.inference.extract import extract_proposals
from trainer.runtime.checkpoint import find_checkpoints, read_checkpoint
from trainer.runtime.ranks import joined, wait_for_all
from trainer.training.train import train

RUN_FOLDER = "rpn"  # below data/proposals


def make_proposals(data: Location, images: Location, settings: Settings, *, overwrite: bool = False) -> Location:
    """Train the RPN on the positives alone and write its proposals, doing only what is missing.

    Under torchrun all processes take part. The schedule is `settings.train` with `negatives.rpn_epochs` epochs and
    no decay of the rate (docs/method.md, 9.4).

    Args:
        data: folder that `sniper chips` wrote.
        images: folder that the chips were cut from.
        settings: the sections `model`, `loader`, `train`, `negatives` and `detect` are used.
        overwrite: train anew in place of a run with other settings.

    Returns:
        The folder of proposals, data/proposals.

    Raises:
        DataError: the data set, the weights or an image cannot be read.
        UsageError: the settings do not go together, or the run there was made with others.
    """
    folder = data / "proposals"
    options = settings.train.model_copy(update={"epochs": settings.negatives.rpn_epochs, "decay_epochs": []})
    with joined() as rank:
        if rank.is_first and (overwrite or _is_stale(data, folder / RUN_FOLDER)):
            remove_folder(folder)
        wait_for_all()
        run_settings = settings.model_copy(update={"train": options})
        checkpoint = train(data, folder / RUN_FOLDER, run_settings, resume=True, rpn_only=True)
        data_wait = extract_proposals(data, checkpoint, images, settings.detect)
        if rank.is_first:
            log.info(f"{folder}: proposals of all images; the network waited for pixels {data_wait:.0%}")
    return folder


def _is_stale(data: Location, run: Location) -> bool:
    """Tell whether the RPN was trained on positives that have changed since."""
    checkpoints = find_checkpoints(run)
    fingerprint = read_build(data, "sniper chips")["fingerprint"]
    return bool(checkpoints) and read_checkpoint(checkpoints[-1]).data != {"positives": fingerprint}
