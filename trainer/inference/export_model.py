"""`sniper export-model`: the network of a checkpoint for other programs, or its weights alone.

The ONNX file holds everything from bytes to scored boxes of one view: normalising, network, decoding and the NMS of
proposals. What lies around it, the views of an image and their merging, is `pipeline.pyramid`, which needs no torch.
"""

import json
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.engines.extras import needed
from pipeline.engines.progress import log
from pipeline.pyramid.views import ALIGN
from pipeline.storage import Location, location, read_bytes, refuse_foreign, write_atomic
from schemas.errors import DataError, UsageError
from schemas.settings import Settings, settings_or_defaults
from trainer.inference.opening import open_detector
from trainer.model import Detector
from trainer.model.detector import chips_in, score_boxes
from trainer.runtime.checkpoint import chosen_file, origin, read_checkpoint, write_checkpoint
from trainer.runtime.memory import explained_memory

OPSET = 18
MOST_FOUND = 1000
"""Detections per view for each chip's area in it; a view's proposals times classes where those are fewer."""
KEY = "sniper"
"""Of the metadata of an exported file: what a program that runs it must know, as JSON."""
TOLERANCE = 1e-3
"""Largest difference of a score, or of a box as a share of the view's side, that counts as rounding."""
COMPARED = 100
"""Detections of each picture that the exported network is compared by, the best."""


class ViewNetwork(nn.Module):
    """A detector from the bytes of views to a fixed number of detections for each."""

    def __init__(self, model: Detector, *, by_area: bool) -> None:
        """Wrap a detector in eval mode, which is shared and not copied.

        Args:
            model: the detector.
            by_area: whether counts grow with the area of a view over that of a chip.
        """
        super().__init__()
        self.model, self.by_area = model, by_area

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect on views.

        Args:
            images: uint8 [B, H, W, 3], RGB, content top left, the rest of any value.
            sizes: int64 [B, 2], height and width of the content, pixels.

        Returns:
            Boxes float32 [B, N, 4], x1 y1 x2 y2 in pixels of the view; scores float32 [B, N], best first, 0 where
            there is no detection; labels int64 [B, N], 1..K. No NMS of detections: the pyramid's merging does that.
        """
        pixels = images.permute(0, 3, 1, 2)
        num_chips = chips_in(self.model, pixels) if self.by_area else 1.0
        boxes, scores = score_boxes(self.model, pixels, sizes, num_chips)
        classes = scores.shape[2]
        most = min(scores.shape[1] * classes, int(MOST_FOUND * num_chips))
        best, place = scores.flatten(1).topk(most)
        row = place // classes if boxes.shape[2] == 1 else place
        found = boxes.flatten(1, 2).gather(1, row[:, :, None].expand(-1, -1, 4))
        return found, best, place % classes + 1


def export_model(
    checkpoint: Location | str,
    out: Location | str,
    *,
    size: tuple[int, int] | None = None,
    settings: Settings | None = None,
) -> float:
    """Write the network of a checkpoint as an ONNX file for views of one size, and compare it with the network.

    Inputs and outputs are those of `ViewNetwork.forward`: `images`, `sizes`, `boxes`, `scores` and `labels`; the
    number of views in a batch is free. The metadata has classes, scales, ranges and sizes under the key `sniper`.

    Args:
        checkpoint: a checkpoint file, or the folder of a run: its best checkpoint, else its last.
        out: file to write, NAME.onnx.
        size: height and width of the views, multiples of 32; None: those of the chips.
        settings: `detect.by_area` says whether larger views have more detections.

    Returns:
        The largest difference between both on two pictures: of a score, or of a box as a share of the view's side.

    Raises:
        UsageError: the extra `onnx` is not installed, the size is no multiple of 32, the name has another suffix, or a
            file of another origin is there.
        DataError: the checkpoint cannot be read, is of the RPN alone, or the exported network gives something else.
        OutOfMemoryError: the views are too large for this machine.
    """
    with needed("onnx"):
        import onnxruntime
        import onnxscript  # noqa: F401  the exporter of torch needs it
    place = location(out)
    _check_place(place, ".onnx", _is_exported)
    settings = settings_or_defaults(settings)
    state, inference = open_detector(location(checkpoint), settings, torch.device("cpu"))
    height, width = size or (inference.model.chip_size,) * 2
    if height % ALIGN or width % ALIGN or min(height, width) < ALIGN:
        raise UsageError(f"export-model: views of {height} x {width} pixels; give multiples of {ALIGN} as the size")
    network = ViewNetwork(inference.model, by_area=settings.detect.by_area).eval()
    about = {
        "size": [height, width],
        "classes": state.categories,
        "chips": {name: state.chips[name] for name in ("size", "scales", "ranges")},
        "step": state.step,
    }
    with explained_memory(inference.device, lambda: f"give a size below {height} x {width}"):
        pictures, sizes = _pictures(height, width)
        with torch.no_grad():
            expected = [values.numpy() for values in network(pictures, sizes)]  # makes the constants that both share
            program = _exported(network, pictures, sizes)
        program.model.metadata_props[KEY] = json.dumps(about)
        content = program.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        found = session.run(None, {"images": pictures.numpy(), "sizes": sizes.numpy()})
    worst = largest_difference(expected, found, max(height, width))
    if worst > TOLERANCE:
        raise DataError(
            f"{checkpoint}: the exported network gives other detections than the network itself: they differ by "
            f"{worst:.2g}, expected at most {TOLERANCE}; nothing was written. Try other versions of onnxscript and "
            "onnxruntime (requirements.lock has those that are tested)"
        )
    write_atomic(place, content)
    return worst


def slim_checkpoint(checkpoint: Location | str, out: Location | str) -> None:
    """Write a checkpoint with the weights that detect alone: it can be run and started from, but not gone on with.

    Args:
        checkpoint: a checkpoint file, or the folder of a run: its best checkpoint, else its last.
        out: file to write, NAME.pt.

    Raises:
        UsageError: the name has another suffix, or a file of another origin is there, such as a whole checkpoint.
        DataError: the checkpoint cannot be read.
    """
    path, place = chosen_file(location(checkpoint)), location(out)
    _check_place(place, ".pt", _is_slim)
    whole = read_checkpoint(path)
    log.info(origin(path, whole))
    slim = whole._replace(model=whole.ema or whole.model, ema=None, optimizer={}, scaler={})
    write_checkpoint(place, slim)


def largest_difference(expected: list[npt.NDArray[Any]], found: list[npt.NDArray[Any]], side: int) -> float:
    """Compare what two networks find, whatever the order of detections with nearly the same score.

    Args:
        expected: boxes [B, N, 4], scores [B, N] and labels [B, N]; the best COMPARED of each image are compared.
        found: the same of the other network.
        side: of the views, pixels.

    Returns:
        The largest distance of a detection to the nearest one of its class: the difference of the scores, or of a box
        as a share of the side, whichever is larger; infinity where there is none of its class.
    """
    worst = 0.0
    for boxes, scores, labels, *other in zip(*expected, *found, strict=True):
        for box, score, label in zip(boxes[:COMPARED], scores[:COMPARED], labels[:COMPARED], strict=True):
            if score > 0:
                of_class = (other[2] == label) & (other[1] > 0)
                apart = np.abs(other[0][of_class] - box).max(1, initial=0) / side
                worst = max(worst, np.maximum(apart, np.abs(other[1][of_class] - score)).min(initial=np.inf))
    return float(worst)


def _exported(network: ViewNetwork, pictures: Tensor, sizes: Tensor) -> Any:
    """Export a network that has been run before, for any number of views; without the exporter's chatter."""
    batch = torch.export.Dim("batch", min=1)
    chatty = logging.getLogger("onnxscript"), logging.getLogger("onnx_ir")
    levels = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                network,
                (pictures, sizes),
                dynamo=True,
                dynamic_shapes=({0: batch}, {0: batch}),
                input_names=["images", "sizes"],
                output_names=["boxes", "scores", "labels"],
                custom_translation_table=_translations(),
                opset_version=OPSET,
                verbose=False,
            )
    finally:
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)


def _translations() -> dict[Any, Any]:
    """Return the operations that the exporter does not know, as functions over ONNX's."""
    from onnxscript import ir, opset18

    op: Any = opset18  # its types are those of single elements

    def nms(boxes: Any, valid: Any, threshold: float) -> Any:
        """Take ranks for scores, since boxes come best first, and make a mask of the boxes chosen."""
        shape = op.Shape(valid)
        count = op.Slice(shape, op.Constant(value_ints=[1]), op.Constant(value_ints=[2]))
        zero, minus = op.Constant(value_int=0), op.Constant(value_int=-1)
        ranks = op.Cast(op.Range(op.Squeeze(count), zero, minus), to=1)
        scores = op.Unsqueeze(op.Where(valid, ranks, op.Constant(value_float=-1.0)), op.Constant(value_ints=[1]))
        limits = op.Constant(value_floats=[threshold]), op.Constant(value_floats=[0.0])
        chosen = op.NonMaxSuppression(boxes, scores, count, *limits)  # [M, 3]: image, class, box
        where = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
        none, one = (op.Constant(value=ir.tensor(np.array([flag]))) for flag in (False, True))
        ones = op.Expand(one, op.Slice(op.Shape(where), op.Constant(value_ints=[0]), op.Constant(value_ints=[1])))
        return op.ScatterND(op.Expand(none, shape), where, ones)

    def sort(values: Any, stable: bool = False, dim: int = -1, descending: bool = False) -> Any:
        """TopK of all values; it puts the first of equals first, so it is stable."""
        count = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
        found, places = op.TopK(op.Cast(values, to=1), count, axis=dim, largest=int(descending), sorted=1)
        return op.CastLike(found, values), places

    return {torch.ops.sniper_chips.nms.default: nms, torch.ops.aten.sort.stable: sort}


def _pictures(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return two pictures of coloured patches, uint8 [2, height, width, 3], the second padded; and their sizes."""
    coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    sizes = torch.tensor([[height, width], [height - ALIGN // 2, width - ALIGN // 4]])
    return smooth.permute(0, 2, 3, 1).byte().contiguous(), sizes


def _check_place(place: Location, suffix: str, is_ours: Callable[[Location], bool]) -> None:
    """Look, before any work, whether a file can be written.

    Raises:
        UsageError: its name has another suffix, its folder cannot be written to, or something of another origin is
            there.
    """
    if place.suffix.lower() != suffix:
        raise UsageError(f"{place}: expected a name that ends in {suffix}")
    refuse_foreign(place, is_ours, "this command")


def _is_exported(place: Location) -> bool:
    import onnx

    try:
        properties = onnx.load_model_from_string(read_bytes(place)).metadata_props
    except Exception:  # whatever the parser of protobuf meets
        return False
    return any(entry.key == KEY for entry in properties)


def _is_slim(place: Location) -> bool:
    try:
        kept = read_checkpoint(place)
    except DataError:
        return False
    return not kept.optimizer
