"""From a checkpoint to a network that is ready to run over whole images."""

import os
from typing import NamedTuple

import torch
import xxhash

from pipeline.engines.progress import log
from pipeline.storage import Location
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, DetectSettings, Precision, Settings
from schemas.settings.section import contradictions
from trainer.model import Detector
from trainer.runtime.checkpoint import Checkpoint, chosen_file, make_detector, origin, read_checkpoint


class Inference(NamedTuple):
    """A network and how it is run over whole images.

    Attributes:
        model: in eval mode, on `device`.
        chips: settings of the chips that it was trained on: they give the scales and the ranges of sizes.
        options: how images are read and detections merged.
        device: where it runs.
        precision: what it was trained in; used on a GPU. A CPU always computes in fp32.
    """

    model: Detector
    chips: ChipSettings
    options: DetectSettings
    device: torch.device
    precision: Precision


def open_inference(path: Location, settings: Settings, device: torch.device) -> tuple[Checkpoint, Inference]:
    """Read a checkpoint and make its network ready to be run.

    Args:
        path: a checkpoint file, or the folder of a run: its best checkpoint, else its last.
        settings: the section `detect` is used, and chips.max_pixels where it was given. The scales, the ranges and the
            section `model` are the checkpoint's; where they were given, they must agree with it.
        device: where the network is to run.

    Returns:
        The checkpoint, and its network.

    Raises:
        DataError: there is no checkpoint, it is damaged or none of ours, or its network cannot be made again.
        UsageError: other scales, ranges or network settings were given than those it was trained with.
    """
    path = chosen_file(path)
    checkpoint = read_checkpoint(path)
    if int(os.environ.get("RANK", 0)) == 0:
        log.info(origin(path, checkpoint))
    chips = dict(checkpoint.chips)
    if "max_pixels" in settings.chips.model_fields_set:
        chips["max_pixels"] = settings.chips.max_pixels
    there = {"chips": {name: chips[name] for name in ("scales", "ranges")}, "model": checkpoint.settings["model"]}
    differing = [
        line
        for section, values in there.items()
        for line in contradictions(section, getattr(settings, section), values)
    ]
    if differing:
        raise UsageError(
            f"{path}: was trained with other settings, which stay as they are:\n  " + "\n  ".join(differing)
        )
    try:
        model = make_detector(checkpoint)
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"{path}: its network cannot be made again: {str(error).splitlines()[0]}; train anew"
        ) from error
    ready = model.to(device).eval()
    return checkpoint, Inference(
        ready, ChipSettings.model_validate(chips), settings.detect, device, checkpoint.precision
    )


def open_detector(path: Location, settings: Settings, device: torch.device) -> tuple[Checkpoint, Inference]:
    """Read a checkpoint of a whole detector and make it ready to be run.

    Args:
        path: a checkpoint file, or the folder of a run: its best checkpoint, else its last.
        settings: the section `detect` is used, and chips.max_pixels where it was given. The scales, the ranges and the
            section `model` are the checkpoint's; where they were given, they must agree with it.
        device: where the network is to run.

    Returns:
        The checkpoint, and its network.

    Raises:
        DataError: there is no checkpoint, it is damaged or none of ours, its network cannot be made again, or nothing
            behind its RPN was trained.
        UsageError: other scales, ranges or network settings were given than those it was trained with.
    """
    checkpoint, inference = open_inference(path, settings, device)
    if checkpoint.rpn_only:
        raise DataError(
            f"{path}: is the RPN alone, trained for `sniper negatives`; its head has learnt nothing. "
            "`sniper evaluate --proposals` scores it"
        )
    return checkpoint, inference


def fingerprint(model: Detector) -> str:
    """Return a hash of all weights, by which results of the same network are known."""
    digest = xxhash.xxh3_128()
    for name, values in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
