"""From a checkpoint to a network that is ready to run over the views of whole images."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import xxhash
from torch import Tensor

from pipeline.engines.progress import log
from pipeline.pyramid.reading import Pixels, ViewBatch
from pipeline.pyramid.views import Output
from pipeline.storage import Location
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, DetectSettings, ModelSettings, Precision, Settings
from schemas.settings.section import contradictions
from trainer.model import Detector
from trainer.model.heads import autocast
from trainer.runtime.checkpoint import (
    Checkpoint,
    chosen_file,
    make_detector,
    origin,
    read_checkpoint,
    refuse_not_finite,
)
from trainer.runtime.memory import explained_memory


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
        settings: the section `detect` is used, and chips.max_pixels where it was given. Size, scales and ranges of the
            chips and the section `model` are the checkpoint's; where they were given, they must agree with it.
        device: where the network is to run.

    Returns:
        The checkpoint, and its network.

    Raises:
        DataError: there is no checkpoint, it is damaged or none of ours, its network cannot be made again, or its
            weights are not finite.
        UsageError: another size, scales, ranges or network settings were given than those it was trained with.
    """
    path = chosen_file(path)
    checkpoint = read_checkpoint(path)
    if int(os.environ.get("RANK", 0)) == 0:
        log.info(origin(path, checkpoint))
    chips = dict(checkpoint.chips)
    for name in ("max_pixels", "ignore_categories"):
        if name in settings.chips.model_fields_set:
            chips[name] = getattr(settings.chips, name)
    there = {
        "chips": {name: chips[name] for name in ("size", "scales", "ranges")},
        "model": ModelSettings().model_dump(mode="json") | checkpoint.settings["model"],
    }
    differing = [
        line
        for section, values in there.items()
        for line in contradictions(section, getattr(settings, section), values)
    ]
    if differing:
        raise UsageError(
            f"{path}: was trained with other settings, which stay as they are:\n  "
            + "\n  ".join(differing)
            + "\nLeave these out of --config and --set"
        )
    try:
        model, chip_settings = make_detector(checkpoint), ChipSettings.model_validate(chips)
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"{path}: its network cannot be made again: {str(error).splitlines()[0]}; train anew"
        ) from error
    refuse_not_finite(str(path), model.state_dict())
    ready = model.to(device).eval()
    return checkpoint, Inference(ready, chip_settings, settings.detect, device, checkpoint.precision)


def open_detector(path: Location, settings: Settings, device: torch.device) -> tuple[Checkpoint, Inference]:
    """Read a checkpoint of a whole detector and make it ready to be run, as `open_inference` does.

    Raises:
        DataError: also where nothing behind its RPN was trained.
    """
    checkpoint, inference = open_inference(path, settings, device)
    if checkpoint.rpn_only:
        raise DataError(
            f"{path}: is the RPN alone, trained for `sniper negatives`; its head has learnt nothing. "
            "`sniper evaluate --proposals` scores it"
        )
    return checkpoint, inference


Forward = Callable[[Detector, Tensor, Tensor], Sequence[Sequence[Tensor]]]
"""Takes the network, images uint8 [B, 3, H, W] and the sizes of their contents int64 [B, 2], both on the device; it
returns for each image a sequence of tensors, such as boxes and scores."""


def as_network(inference: Inference, forward: Forward) -> Callable[[ViewBatch], list[Output]]:
    """Make of a network what `pipeline.pyramid.search` runs over batches of views.

    Raises:
        OutOfMemoryError: what is made raises it where a batch needs more memory than there is.
    """
    model, _, options, device, precision = inference
    used = precision if device.type == "cuda" else "fp32"

    def network(batch: ViewBatch) -> list[Output]:
        sizes = torch.tensor([(view.height, view.width) for view in batch.views], dtype=torch.int64)
        images = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2)
        with (
            explained_memory(device, partial(_remedy, batch, options)),
            torch.inference_mode(),
            autocast(device, used),
        ):
            on_device = (tensor.to(device, non_blocking=True) for tensor in (images, sizes))
            return [[values.cpu().numpy() for values in output] for output in forward(model, *on_device)]

    return network


def allocator(device: torch.device) -> Callable[[tuple[int, ...]], Pixels] | None:
    """Return what allocates pixels in pinned memory, from which a GPU copies faster; None for a CPU."""
    if device.type != "cuda":
        return None
    return lambda shape: torch.zeros(shape, dtype=torch.uint8, pin_memory=True).numpy()


def _remedy(batch: ViewBatch, options: DetectSettings) -> str:
    """Tell what to lower when there is no memory for a batch."""
    count, height, width, _ = batch.pixels.shape
    setting = "batch_pixels" if count > 1 else "max_side"
    lower = count * height * width // 2 if count > 1 else max(width, height) // 2
    return (
        f"the batch is {count} views of {width}x{height}; detect.batch_pixels is {options.batch_pixels}, "
        f"detect.max_side {options.max_side}. Try --set detect.{setting}={lower}"
    )


def fingerprint(model: Detector) -> str:
    """Return a hash of all weights, by which results of the same network are known."""
    digest = xxhash.xxh3_128()
    for name, values in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
