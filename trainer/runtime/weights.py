"""Where the network's numbers come from, and which of them learn."""

import re
from collections import Counter
from typing import Any, NamedTuple

import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.storage import is_file, is_folder, location
from schemas.errors import DataError, UsageError
from schemas.settings import Norm
from trainer.model import Detector
from trainer.runtime.checkpoint import Checkpoint, as_checkpoint, chosen_file, read_content, refuse_not_finite

CLASS_LAYERS = ("head.scores.", "head.deltas.")
"""The layers that have rows for each class."""
BACKGROUND = "__background__"
NAMED = 6
"""Names that a line of the report holds at most."""

WRAPPERS = ("module.", "model.", "_orig_mod.")
"""What DistributedDataParallel, trainers of others, and torch.compile put before every name."""
INSIDE = ("state_dict", "model", "model_state_dict")
"""Where files of others keep the state of the network."""
TORCHVISION_DETECTOR = {
    r"^backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)$": r"neck.\1_blocks.\2.0.\3",  # before version 0.13
    r"^backbone\.fpn\.": "neck.",
    r"^rpn\.head\.conv\.(0\.0\.)?(?=weight|bias)": "rpn.conv.",
    r"^rpn\.head\.cls_logits\.": "rpn.logits.",
    r"^rpn\.head\.bbox_pred\.": "rpn.deltas.",
    r"^roi_heads\.box_head\.fc6\.": "head.layers.0.",
    r"^roi_heads\.box_head\.fc7\.": "head.layers.2.",
    r"^roi_heads\.box_predictor\.cls_score\.": "head.scores.",
    r"^roi_heads\.box_predictor\.bbox_pred\.": "head.deltas.",
}
"""Names in a Faster R-CNN of torchvision, as patterns, and what stands for them here."""


class Weights(NamedTuple):
    """Numbers for a network.

    Attributes:
        origin: where they come from, for the user.
        state: by the names that the parameters and buffers have in our Detector, where they have one there.
        classes: name of each class by label from 1; None where the source does not name its classes.
    """

    origin: str
    state: dict[str, Tensor]
    classes: list[str] | None


def load_weights(model: Detector, source: str, classes: list[str]) -> str:
    """Load pretrained numbers in place: whatever fits, while the rest keeps its initial numbers.

    Rows of the head that belong to a class are taken by the class's name, wherever it stands in the source.

    Args:
        model: the network, with initial numbers.
        source: a torchvision weights name such as "ResNet50_Weights.IMAGENET1K_V2" (a download, unless cached), the
            folder of a run, or a file: a checkpoint of ours, of which the average of weights is taken where there is
            one, a classification network or a Faster R-CNN of torchvision, or another state dict with their names.
        classes: name of each class of the network, by label from 1.

    Returns:
        A table for the user: what was taken, which classes, what starts anew, and what was not used.

    Raises:
        UsageError: the source is unknown.
        DataError: it cannot be had or read, its backbone is another one, or values to be taken are not finite.
    """
    weights = _open(source)
    own = model.state_dict()
    layers = CLASS_LAYERS if model.settings.class_boxes else CLASS_LAYERS[:1]
    taken = {}
    for name, value in weights.state.items():
        fitting: Tensor | None = value
        if name in own and name.startswith(layers):
            fitting = _by_name(own[name], value, classes, weights.classes, int(name.startswith(CLASS_LAYERS[0])))
        if name in own and fitting is not None and fitting.shape == own[name].shape:
            taken[name] = fitting
    fresh = ("num_batches", ".offsets.")  # networks of others have no deformable convolutions
    missing = [n for n in own if n.startswith("backbone.") and n not in taken and not any(part in n for part in fresh)]
    if missing:
        raise DataError(
            f"{weights.origin}: not weights of this network ({model.settings.backbone}, {model.settings.neck}): "
            f"{len(missing)} tensors of the backbone are missing there or have other shapes, first {missing[0]}, here "
            f"{list(own[missing[0]].shape)}; set model.backbone to the source's network, or choose another source"
        )
    refuse_not_finite(weights.origin, taken)
    unused = [
        f"{name} {list(value.shape)}"
        for name, value in weights.state.items()
        if name not in taken and "num_batches" not in name
    ]
    model.load_state_dict(taken, strict=False)
    return _report(weights, own, taken, unused, classes)


def _by_name(
    own: Tensor, theirs: Tensor, classes: list[str], their_classes: list[str] | None, background: int
) -> Tensor | None:
    """Return a layer with rows for each class, filled with the source's rows of the classes of the same name.

    Args:
        own: [rows, ...] of the network: rows of the background, then of the classes by label, as many for each.
        theirs: [rows, ...] of the source, in the same order.
        classes: of the network, by label from 1.
        their_classes: of the source, by label from 1; None where it does not name them.
        background: rows of the background.

    Returns:
        None where nothing can be taken, so that the layer starts anew.
    """
    per_class = (len(own) - background) // len(classes)
    if own.shape[1:] != theirs.shape[1:] or their_classes is None:
        return None
    if len(theirs) != background + per_class * len(their_classes):
        return None
    found = own.clone()
    found[:background] = theirs[:background]
    for label, their_label in _matches(classes, their_classes):
        first, their_first = (background + per_class * each for each in (label, their_label))
        found[first : first + per_class] = theirs[their_first : their_first + per_class]
    return found


def _matches(classes: list[str], their_classes: list[str]) -> list[tuple[int, int]]:
    """Pair the positions of classes with the same name; a name that comes twice on one side pairs with none."""
    counts, their_counts = Counter(classes), Counter(their_classes)
    place = {name: i for i, name in enumerate(their_classes) if their_counts[name] == 1}
    return [(i, place[name]) for i, name in enumerate(classes) if counts[name] == 1 and name in place]


def _report(
    weights: Weights, own: dict[str, Tensor], taken: dict[str, Tensor], unused: list[str], classes: list[str]
) -> str:
    """Write down what was taken, as a table with one line per subject."""
    lines = [f"weights from {weights.origin}:"]
    fresh = [name for name in own if name not in taken and "num_batches" not in name]
    for part in ("backbone", "neck", "rpn", "shifts", "head", "focus"):
        names = [name for name in own if name.startswith(f"{part}.") and "num_batches" not in name]
        number = sum(name in taken for name in names)
        lines += [f"  {part:<16}{number} of {len(names)} tensors taken"] if names else []
    if "head.scores.weight" in taken and weights.classes is not None:
        known = {label for label, _ in _matches(classes, weights.classes)}
        new = [name for label, name in enumerate(classes) if label not in known]
        gone = [name for name in weights.classes if name not in classes]
        named = _some([classes[label] for label in sorted(known)])
        lines.append(f"  {'classes':<16}{len(known)} of {len(classes)} taken by name: {named}")
        lines += [f"  {'new classes':<16}{_some(new)}"] if new else []
        lines += [f"  {'not needed':<16}{_some(gone)}"] if gone else []
    lines += [f"  {'start anew':<16}{_some(fresh)}"] if fresh else []
    lines += [f"  {'not used':<16}{_some(unused)}"] if unused else []
    return "\n".join(lines)


def _some(names: list[str]) -> str:
    """List names, the first of them where there are many."""
    shown = ", ".join(names[:NAMED]) or "none"
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def _open(source: str) -> Weights:
    """Read numbers from wherever they are, by our names.

    Raises:
        UsageError: the source is unknown. DataError: it cannot be had or read.
    """
    path = location(source)
    if is_file(path) or is_folder(path):
        path = chosen_file(path)
        content = read_content(path)
        if isinstance(content, dict) and "format" in content:
            return _of_checkpoint(str(path), as_checkpoint(path, content))
        return Weights(str(path), _our_names(_tensors(str(path), content)), None)
    try:
        published = torchvision.models.get_weight(source)
    except (ValueError, KeyError, AttributeError) as error:
        raise UsageError(
            f"weights {source!r}: neither a file, nor a folder of a run, nor a torchvision name; expected for example "
            "ResNet50_Weights.IMAGENET1K_V2 or a path to a .pth file"
        ) from error
    try:
        downloaded: dict[str, Any] = published.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"weights {source}: cannot be downloaded from {published.url}: {error}; fetch that file where there is a "
            "network and pass its path"
        ) from error
    names = list(published.meta.get("categories", ()))
    return Weights(source, _our_names(downloaded), names[1:] if names[:1] == [BACKGROUND] else None)


def _of_checkpoint(path: str, checkpoint: Checkpoint) -> Weights:
    """Take the numbers that are scored: the average of weights where there is one."""
    what = "the average of weights" if checkpoint.ema else "the weights"
    names = [name for _, name in checkpoint.categories]
    return Weights(f"{path} ({what} after step {checkpoint.step})", checkpoint.ema or checkpoint.model, names)


def _tensors(path: str, content: Any) -> dict[str, Tensor]:
    """Find the state of a network in the content of a file, and take off what was put before all its names."""
    while isinstance(content, dict) and (inner := next((k for k in INSIDE if isinstance(content.get(k), dict)), None)):
        content = content[inner]
    items = content.items() if isinstance(content, dict) else ()
    state = {name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        raise DataError(f"{path}: expected a state dict, names with tensors, or one under {', '.join(INSIDE)}")
    while prefix := next((p for p in WRAPPERS if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state of a network of others; names that are ours, or unknown, stay as they are."""
    if any(name.startswith("roi_heads.") for name in state):
        return _of_torchvision_detector(state)
    if any(name.startswith("backbone.body.") for name in state):
        return state
    before = "backbone." if any(name.startswith("backbone.") for name in state) else ""
    return {
        f"backbone.body.{name.removeprefix(before)}" if name.startswith(before) else name: value
        for name, value in state.items()
    }


def _of_torchvision_detector(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a Faster R-CNN of torchvision, and bring what its head reads and gives into our order."""
    renamed = {}
    for name, value in state.items():
        for pattern, ours in TORCHVISION_DETECTOR.items():
            name = re.sub(pattern, ours, name)
        renamed[name] = value
    channels = [v.shape[0] for n, v in renamed.items() if n == "neck.layer_blocks.0.0.weight"]
    first = renamed.get("head.layers.0.weight")
    if first is not None and channels and first.shape[1] % channels[0] == 0:
        # its pooled maps lie channel by channel, ours bin by bin
        renamed["head.layers.0.weight"] = first.reshape(len(first), channels[0], -1).transpose(1, 2).flatten(1)
    for name in ("head.deltas.weight", "head.deltas.bias"):
        if name in renamed and len(renamed[name]) > 4:
            renamed[name] = renamed[name][4:]  # it has a box for the background, too
    return renamed


def set_norm_policy(model: Detector, policy: Norm, *, freeze_stem: bool = True, momentum: float = 0.005) -> None:
    """Decide what of the backbone learns; call before the optimiser and DDP are made.

    A norm whose affine parameters are frozen uses stored statistics, in train mode too.

    Args:
        model: the network, changed in place.
        policy: "train": norms use the rank's batch, "sync": the batch of all ranks, "frozen": stored statistics
            everywhere, for few chips per rank (docs/method.md, 6.5).
        freeze_stem: keep stem and first stage (docs/method.md, 6.5); False when training from scratch, where they
            are noise.
        momentum: of the running statistics (docs/method.md, 6.5); a run of under some thousand steps needs more.
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
