"""Where the network's numbers come from, and which of them learn."""

import io
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.storage import is_file, location, read_bytes
from schemas.errors import DataError, UsageError
from schemas.settings import Norm
from trainer.model import Detector

CLASS_LAYERS = ("head.scores.", "head.deltas.")
"""The layers whose shape follows the number of classes."""


def load_weights(model: Detector, source: str) -> list[str]:
    """Load pretrained numbers in place.

    Args:
        source: a torchvision weights name such as "ResNet50_Weights.IMAGENET1K_V2" (a download, unless cached), or a
            file: torchvision's classification model, a Detector's state, or a checkpoint with one under "model".

    Returns:
        The parameters that the source has not, or has for other classes: they keep their initial numbers. Say so.

    Raises:
        UsageError, DataError: the source is unknown, cannot be had or read, or belongs to another network.
    """
    state = _read(source)
    own = model.state_dict()
    if not any(name.startswith("backbone.body.") for name in state):
        state = {f"backbone.body.{name}": value for name, value in state.items()}
        state = {name: value for name, value in state.items() if name in own}  # classifier, stages not in use
    kept = [n for n in own if n in state and n.startswith(CLASS_LAYERS) and own[n].shape != state[n].shape]
    state = {name: value for name, value in state.items() if name not in kept}
    wrong = [f"{n} {list(v.shape)}" for n, v in state.items() if n not in own or own[n].shape != v.shape]
    absent = [n for n in own if n not in state]
    wrong += [f"{n} is missing" for n in absent if n.startswith("backbone.body.") and "num_batches" not in n]
    if wrong:
        raise DataError(
            f"{source}: not weights of this network ({model.settings.backbone}, {model.settings.neck}): "
            f"{len(wrong)} entries do not fit, first {wrong[0]}; choose the source's network, or another source"
        )
    model.load_state_dict(state, strict=False)
    return [name for name in absent if "num_batches" not in name]


def _read(source: str) -> dict[str, Any]:
    path = location(source)
    if is_file(path):
        try:
            state = torch.load(io.BytesIO(read_bytes(path)), map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever its unpickler meets
            raise DataError(f"{path}: not a file of weights that torch can read safely: {error}") from error
        state = state.get("model", state) if isinstance(state, dict) else state
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise DataError(f"{path}: expected a state dict, names with tensors, or one under `model`")
        return state
    try:
        weights = torchvision.models.get_weight(source)
    except (ValueError, KeyError, AttributeError) as error:
        raise UsageError(
            f"weights {source!r}: neither a file nor a torchvision name; expected for example "
            "ResNet50_Weights.IMAGENET1K_V2 or a path to a .pth file"
        ) from error
    try:
        downloaded: dict[str, Any] = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"weights {source}: cannot be downloaded from {weights.url}: {error}; fetch that file where there is a "
            "network and pass its path"
        ) from error
    return downloaded


def set_norm_policy(model: Detector, policy: Norm, *, freeze_stem: bool = True, momentum: float = 0.005) -> None:
    """Decide what of the backbone learns; call before the optimiser and DDP are made.

    A norm whose affine parameters are frozen uses stored statistics, in train mode too.

    Args:
        policy: "train": norms use the rank's batch, "sync": the batch of all ranks, "frozen": stored statistics
            everywhere, for few chips per rank (docs/method.md, 6.5)
        freeze_stem: keep stem and first stage (docs/method.md, 6.5); False when training from scratch, where they
            are noise
        momentum: of the running statistics (docs/method.md, 6.5); a run of under some thousand steps needs more
    """
    backbone = model.backbone
    backbone.requires_grad_(True)
    if freeze_stem:
        for module in (module for stage in backbone.stages()[:2] for module in stage):
            module.requires_grad_(False)
    for norm in backbone.modules():
        if isinstance(norm, _BatchNorm):
            norm.momentum = momentum
            if policy == "frozen":
                norm.requires_grad_(False)
    if policy == "sync":
        nn.SyncBatchNorm.convert_sync_batchnorm(backbone)  # type: ignore[no-untyped-call]
    model.train(model.training)
