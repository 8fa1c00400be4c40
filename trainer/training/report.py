"""What is worth knowing about the data before a training starts."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from pipeline.planning.scales import box_sizes, scale_factors, scale_name
from pipeline.storage.parquet import read_frame
from schemas.arrays import IntArray
from schemas.codes import Status
from schemas.settings import ChipSettings, ModelSettings
from trainer.loading.dataset import ChipDataset
from trainer.loading.manifest import Manifest
from trainer.model.anchors import anchor_layout, best_anchor_iou

RECALL_WANTED, RECALL_IOU, RECALL_BOXES = 0.9, 0.5, 50_000
TRIED_BOXES = 5_000  # for each choice of anchors that is tried
SEEN, MOST_UNSEEN = 3.0, 0.1
"""Pixels of an object's size that a focus head can make something of, and the share below it that is passed over."""
GAIN = 0.01  # that more anchors must bring, since each costs time


def anchor_report(dataset: ChipDataset, chips: ChipSettings, model: ModelSettings) -> str:
    """Say per scale what share of the valid boxes some anchor meets at IoU 0.5, and warn where it is below 0.9.

    Args:
        dataset: the chips.
        chips: settings that they were made with.
        model: the network, for its anchors.

    Returns:
        A line for each scale with valid boxes, and warnings; empty where there is no valid box.
    """
    m = dataset.manifest
    rows, chip = _valid_boxes(m)
    some = slice(None, None, max(1, len(rows) // RECALL_BOXES))
    rows, chip = rows[some], chip[some]
    boxes = torch.tensor(m.corners[rows])
    contents = torch.tensor(m.contents[chip], dtype=torch.int64)
    best = best_anchor_iou(boxes, contents, model)
    lines = []
    scales = torch.tensor(m.scale_indices[chip])
    for index in sorted(set(scales.tolist())):
        here = scales == index
        recall = (best[here] >= RECALL_IOU).double().mean().item()  # in float32, 18 of 20 would be below 0.9
        low, high = chips.ranges[index]
        sizes = f"from {low:g} px" + ("" if high is None else f" to {high:g} px")
        lines.append(
            f"anchors meet {recall:.1%} of the valid boxes at scale {scale_name(chips.scales[index])}, sizes {sizes}"
        )
        if recall < RECALL_WANTED:
            missed = boxes[here & (best < RECALL_IOU)]
            pixels = Counter(map(tuple, (missed[:, 2:] - missed[:, :2]).round().int().tolist()))
            worst = ", ".join(f"{w}x{h}" for (w, h), _ in pixels.most_common(5))
            lines.append(f"  WARNING: below {RECALL_WANTED:.0%}; missed most in chip pixels: {worst}")
    if any("WARNING" in line for line in lines):
        lines.append(f"  {_better_anchors(boxes, contents, model)}")
    return "\n".join(lines)


def focus_report(dataset: ChipDataset, chips: ChipSettings, limits: Sequence[float]) -> str:
    """Warn where many small objects are too small at the coarsest scale for a focus head to see them there.

    Args:
        dataset: the chips.
        chips: settings that they were made with.
        limits: size for each scale below which an object calls for the next finer one, source pixels.

    Returns:
        A warning; empty where there is no need of one.
    """
    m = dataset.manifest
    rows, chip = _valid_boxes(m)
    sizes = box_sizes(m.corners[rows]) / m.scales[chip]  # source pixels
    small = sizes < limits[-1]
    images = read_frame(dataset.data / "images.parquet").select("image_id", "width", "height").sort("image_id")
    ids, widths, heights = (images[name].to_numpy().astype(np.int64) for name in images.columns)
    factors = scale_factors(chips, widths, heights)[:, -1]
    coarse = sizes * factors[np.searchsorted(ids, m.image_ids[chip])]  # pixels at the coarsest scale
    share = float((coarse[small] < SEEN).mean()) if small.any() else 0.0
    if share <= MOST_UNSEEN:
        return ""
    return (
        f"WARNING: {share:.0%} of the objects that finer scales are for have less than {SEEN:g} px at the coarsest "
        "scale, where a focus head can hardly see them, so that they may never be searched for. Give the coarsest of "
        "chips.scales more pixels, or detect with detect.focus=off (docs/focus.md)"
    )


def _valid_boxes(m: Manifest) -> tuple[IntArray, IntArray]:
    """Return the valid boxes of positive chips, int64 [N] each: rows of the boxes, and of the chips that hold them."""
    offsets = m.box_offsets[: m.num_positives + 1]
    chip = np.repeat(np.arange(m.num_positives), np.diff(offsets))
    rows = np.flatnonzero(m.status[: offsets[-1]] == Status.VALID)
    return rows, chip[rows]


def _better_anchors(boxes: torch.Tensor, contents: torch.Tensor, model: ModelSettings) -> str:
    """Name the anchors, of some that come near those of the settings, which meet the most boxes, if any meet more.

    Args:
        boxes: float32 [N, 4], chip pixels.
        contents: int64 [N, 2], height and width of the content of each box's chip.
        model: the network as it is set.
    """
    some = slice(None, None, max(1, len(boxes) // TRIED_BOXES))
    areas = [width * height for width, height in anchor_layout(model).shapes]
    finest, coarsest = min(areas) ** 0.5, max(areas) ** 0.5
    scales = [round(scale, 1) for scale in model.anchor_scales or sorted({finest, coarsest})]
    wider = [
        sorted({*scales, *(round(finest / f, 1) for f in less), *(round(coarsest * f, 1) for f in more)})
        for less in ((), (1.4,), (1.4, 2.0))
        for more in ((), (1.4,), (1.4, 2.0))
    ]
    ratios = [model.anchor_ratios, sorted({0.25, *model.anchor_ratios, 4.0})]

    def met_by(tried: ModelSettings) -> float:
        return (best_anchor_iou(boxes[some], contents[some], tried) >= RECALL_IOU).float().mean().item()

    best, advice = met_by(model), "no anchors near these meet more"
    for shape in ratios:
        for scale in wider:
            share = met_by(model.model_copy(update={"anchor_scales": scale, "anchor_ratios": shape}))
            if share > best + GAIN:
                also = f" and model.anchor_ratios={shape}" if shape != model.anchor_ratios else ""
                best = share
                advice = f"try model.anchor_scales={scale}{also}, which meets {share:.1%} of all valid boxes"
    is_finest = model.neck == "c5" or model.levels[0] == 2
    return f"{advice}; a {'larger scale of chips' if is_finest else 'finer model.levels'} meets smaller ones, too"
