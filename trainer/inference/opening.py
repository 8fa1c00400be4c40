"""From a checkpoint to a network that is ready to run over whole images."""

from typing import NamedTuple

import torch

from pipeline.storage import Location
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, DetectSettings, Precision, Settings
from trainer.model import Detector
from trainer.runtime.checkpoint import Checkpoint, make_detector, read_checkpoint


class Inference(NamedTuple):
    """A network and how it is run over whole images.

    model: in eval mode, on `device`; chips: settings of those it was trained on, its scales and ranges
    precision: that it was trained in; a CPU always computes in fp32
    """

    model: Detector
    chips: ChipSettings
    options: DetectSettings
    device: torch.device
    precision: Precision


def open_inference(path: Location, settings: Settings, device: torch.device) -> tuple[Checkpoint, Inference]:
    """A checkpoint, and its network ready to be run.

    Args:
        settings: `detect` is used, and chips.max_pixels where it was given. What else was given must be as the
            checkpoint has it.

    Raises:
        DataError: as read_checkpoint, or its network cannot be made.
        UsageError: other scales, ranges or network than the checkpoint's.
    """
    checkpoint = read_checkpoint(path)
    chips = dict(checkpoint.chips)
    if "max_pixels" in settings.chips.model_fields_set:
        chips["max_pixels"] = settings.chips.max_pixels
    there = {"chips": {name: chips[name] for name in ("scales", "ranges")}, "model": checkpoint.settings["model"]}
    differing = []
    for section, values in there.items():
        given, now = getattr(settings, section).model_fields_set, settings.model_dump(mode="json")[section]
        differing += [
            f"{section}.{name}: {value!r} there, {now[name]!r} given"
            for name, value in values.items()
            if name in given and now[name] != value
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
    """As open_inference, of a network that detects.

    Raises:
        DataError: nothing behind its RPN was trained; or as open_inference. UsageError: as open_inference.
    """
    checkpoint, inference = open_inference(path, settings, device)
    if checkpoint.rpn_only:
        raise DataError(
            f"{path}: is the RPN alone, trained for `sniper negatives`; its head has learnt nothing. "
            "`sniper evaluate --proposals` scores it"
        )
    return checkpoint, inference
