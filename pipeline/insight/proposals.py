"""The proposals that negative chips were mined from, read back for pictures."""

import numpy as np
import polars as pl

from pipeline.dataset.build_file import NEGATIVES, find_build
from pipeline.insight.chip_pictures import Chip
from pipeline.planning.scales import box_sizes
from pipeline.storage import Location, is_file, is_folder, location
from pipeline.storage.parquet import read_frame
from schemas.arrays import FloatArray


def add_proposals(data: Location, chips: list[Chip]) -> None:
    """Give each of some negative chips its `proposals`, float64 [n, 4], chip pixels, best first.

    They are those of its scale's range that lie whole in it. Chips stay without where the file that they were mined
    from is no longer there.
    """
    from pipeline.dataset.proposals import Extents, find_parts, read_parts, read_proposals
    from pipeline.planning.mine import merge_scales  # compiled code, which sheets of positives do without

    pool = find_build(data, NEGATIVES)
    positives = find_build(data)
    if pool is None:  # unfinished
        return
    path, threshold = pool.proposals, pool.settings["negatives"]["nms"]
    names = {pool.positives or ""} | (positives.names if positives else set())
    if path is None or not (is_file(place := location(path)) or is_folder(place)):
        return
    images = read_frame(data / "images.parquet").drop_nulls("image_id")
    wanted = images.filter(pl.col("image_id").is_in({chip["image_id"] for chip in chips})).sort("image_id")
    size = wanted.select("width", "height").to_numpy().astype(np.float64)
    ids = wanted["image_id"].to_numpy()
    kept = images.filter(pl.col("state") == "kept")["image_id"].sort().to_numpy()
    if parts := find_parts(place, names, len(kept)):  # of our own RPN: only what is needed
        files = {file: None for i in np.searchsorted(kept, ids).tolist() for file in parts.of(i, i + 1)}
        found = read_parts(list(files), Extents(ids, size, None))
    else:
        found = read_proposals(place, Extents(ids, size, images["image_id"].to_numpy()))
    merged = merge_scales(found, threshold)
    for chip in chips:
        m = int(np.searchsorted(ids, chip["image_id"]))
        boxes = merged.boxes[merged.offsets[m] : merged.offsets[m + 1]].astype(np.float64)
        chip["proposals"] = _inside(boxes, chip)


def _inside(boxes: FloatArray, chip: Chip) -> FloatArray:
    """Return those of `boxes` [n, 4], source pixels, in the chip's range and whole in its window, in chip pixels."""
    size = box_sizes(boxes)
    low, high = (chip["x1"], chip["y1"]), (chip["x2"], chip["y2"])
    held = (boxes[:, :2] >= low).all(axis=1) & (boxes[:, 2:] <= high).all(axis=1)
    chosen = boxes[held & (size >= chip["range_min"]) & (size < chip["range_max"])]
    in_chip: FloatArray = (chosen - np.tile(low, 2)) * chip["scale"]
    return in_chip
