"""`sniper show`: draw a contact sheet of chips, read back from the shards, so that the eye can check them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image, ImageDraw

from pipeline.dataset.build_file import COMMANDS, NEGATIVES, POSITIVES, find_build
from pipeline.dataset.shards import shard_files
from pipeline.images.drawing import FAINT, INK, PAPER, PROPOSAL_COLOR, Font, draw_label, label_font
from pipeline.images.pictures import STATUS_STROKES, Stroke, draw_box, picture_format, write_picture
from pipeline.planning.scales import box_sizes
from pipeline.storage import (
    Location,
    is_file,
    is_folder,
    location,
    read_all,
    read_range,
)
from pipeline.storage.parquet import read_frame
from schemas.errors import DataError, UsageError

PROPOSAL = Stroke(PROPOSAL_COLOR, 1)
SHOWN = 10  # proposals of a chip, the best: hundreds would hide what the chip shows
LABELLED = ("valid", "rescued")
GAP, LINE, HEADER = 10, 16, 30  # pixels


def show(
    data: Location | str,
    out: Location | str,
    *,
    kind: str = "positive",
    columns: int = 6,
    tile: int = 320,
    seed: int = 0,
) -> int:
    """Draw sampled chips, one row per scale, boxes coloured by status, with source image id and scale.

    Negative chips are drawn with the proposals of their scale's range that lie whole in them, where the file that
    they were mined from is still there.

    Args:
        data: a chip data set.
        out: picture to write, in the format that its suffix says.
        kind: positive or negative.
        columns: chips per scale.
        tile: side of a drawn chip, pixels.
        seed: another seed draws other chips.

    Returns:
        The number of chips drawn.

    Raises:
        UsageError: there are no such chips, or the name of the picture says no format.
        DataError: a chip's bytes cannot be read.
    """
    data, out = location(data), location(out)
    picture_format(out)
    folder = f"{kind}s"
    manifests = shard_files(data / folder, ".parquet")
    if not manifests:
        command = f"sniper chips --out {data}" if kind == "positive" else f"sniper negatives --data {data}"
        raise UsageError(f"{data}: holds no {kind} chips; `{command}` writes them")
    # bytes, since Polars would read an object store with settings of its own
    # and no pattern, since the folder's name may hold brackets
    chips = pl.scan_parquet([*(manifests if isinstance(data, Path) else read_all(manifests))], glob=False)
    try:
        counts = dict(chips.group_by("scale_index").len().collect().iter_rows())
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{data / folder}: a manifest is damaged: {error}; `sniper verify` names it") from error
    if not counts:
        raise UsageError(f"{data}: its shards hold no {kind} chips at all; see rejects.parquet")
    names = dict(read_frame(data / "categories.parquet").select("id", "name").iter_rows())
    sheet = Image.new("RGB", _sheet_size(len(counts), columns, tile), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = label_font(12)
    samples = {
        scale_index: _sample(chips.filter(pl.col("scale_index") == scale_index), counts[scale_index], columns, seed)
        for scale_index in sorted(counts)
    }
    drawn = [chip for sample in samples.values() for chip in sample]
    proposals = _add_proposals(data, drawn) if kind == "negative" else False
    _draw_legend(draw, STATUS_STROKES | ({f"proposal (the {SHOWN} best)": PROPOSAL} if proposals else {}), font)
    for row, (scale_index, sample) in enumerate(samples.items()):
        top = HEADER + row * (tile + 2 * LINE + GAP)
        for column, chip in enumerate(sample):
            left = GAP + column * (tile + GAP)
            if column == 0:
                draw.text((left, top), _row_title(chip, counts[scale_index]), INK, font)
            sheet.paste(_draw_chip(_read_chip(data, chip), chip, names, tile), (left, top + LINE))
            draw.text((left, top + LINE + tile + 1), _caption(chip), FAINT, font)
    write_picture(out, sheet)
    return len(drawn)


def _add_proposals(data: Location, chips: list[dict[str, Any]]) -> bool:
    """Give each negative chip its `proposals`, float64 [n, 4], chip pixels; tell whether there were any to read."""
    from pipeline.dataset.proposals import Extents, find_parts, read_parts, read_proposals
    from pipeline.planning.mine import merge_scales  # compiled code, which sheets of positives do without

    pool = find_build(data / NEGATIVES, COMMANDS[NEGATIVES])
    positives = find_build(data, COMMANDS[POSITIVES])
    if pool is None:  # unfinished
        return False
    path, threshold = pool.proposals, pool.settings["negatives"]["nms"]
    names = {pool.positives or ""} | (positives.names if positives else set())
    if path is None or not (is_file(place := location(path)) or is_folder(place)):
        return False
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
    return True


def _inside(boxes: npt.NDArray[np.float64], chip: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Return those of `boxes` [n, 4], source pixels, in the chip's range and whole in its window, in chip pixels."""
    size = box_sizes(boxes)
    low, high = (chip["x1"], chip["y1"]), (chip["x2"], chip["y2"])
    held = (boxes[:, :2] >= low).all(axis=1) & (boxes[:, 2:] <= high).all(axis=1)
    chosen = boxes[held & (size >= chip["range_min"]) & (size < chip["range_max"])]
    in_chip: npt.NDArray[np.float64] = (chosen - np.tile(low, 2)) * chip["scale"]
    return in_chip


def _sheet_size(rows: int, columns: int, tile: int) -> tuple[int, int]:
    return GAP + columns * (tile + GAP), HEADER + rows * (tile + 2 * LINE + GAP)


def _sample(chips: pl.LazyFrame, count: int, number: int, seed: int) -> list[dict[str, Any]]:
    """Draw up to `number` chips by seed from the whole data set, in key order; positives with targets come first."""
    keys = chips.select("key", empty=(pl.col("num_valid") == 0) & (pl.col("kind") == "positive")).sort("key").collect()
    rng = np.random.default_rng([seed, count])
    order = rng.permutation(len(keys))
    order = order[np.argsort(keys["empty"].to_numpy()[order], kind="stable")][:number]
    return (
        chips.filter(pl.col("key").is_in(keys["key"].gather(np.sort(order)).implode()))
        .sort("key")
        .collect()
        .to_dicts()
    )


def _read_chip(data: Location, chip: dict[str, Any]) -> Image.Image:
    content = read_range(data / chip["shard"], chip["offset"], chip["size"])
    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except OSError as error:
        raise DataError(
            f"{data / chip['shard']}: chip {chip['key']} is damaged; run `sniper verify {data}`"
        ) from error


def _draw_chip(image: Image.Image, chip: dict[str, Any], names: dict[int, str], tile: int) -> Image.Image:
    """Draw the chip on a square of its full size, boxes on top, scaled to `tile` pixels."""
    side = max(chip["width"], chip["height"])
    zoom = tile / side
    canvas = Image.new("RGB", (tile, tile), "#000000")
    size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
    canvas.paste(image.resize(size, Image.Resampling.BICUBIC))
    draw = ImageDraw.Draw(canvas)
    for proposal in chip.get("proposals", ())[:SHOWN][::-1]:
        draw_box(draw, _corners(proposal.tolist(), zoom), PROPOSAL)
    labels = []
    for box in sorted(chip["boxes"], key=lambda box: box["status"] in LABELLED):  # those that are learnt lie on top
        corners = _corners([box[name] for name in ("x1", "y1", "x2", "y2")], zoom)
        stroke = STATUS_STROKES[box["status"]]
        draw_box(draw, corners, stroke)
        if box["status"] in LABELLED:
            labels.append(((corners[0] + 2, corners[1] + 2), names.get(box["category_id"], "?"), stroke.color))
    for corner, name, color in labels:  # last, so that no box crosses them
        draw_label(draw, corner, name, color, 12)
    return canvas


def _corners(box: list[float], zoom: float) -> list[int]:
    """Return the outermost pixels of a box x1 y1 x2 y2 that is enlarged by `zoom`."""
    x1, y1, x2, y2 = (round(value * zoom) for value in box)
    return [x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)]


def _draw_legend(draw: ImageDraw.ImageDraw, strokes: dict[str, Stroke], font: Font) -> None:
    left = float(GAP)
    for name, stroke in strokes.items():
        draw_box(draw, (left, 8, left + 30, 21), stroke)
        draw.text((left + 36, 8), name, INK, font)
        left += 36 + draw.textlength(name, font) + 2 * GAP


def _row_title(chip: dict[str, Any], count: int) -> str:
    hi = "inf" if chip["range_max"] == float("inf") else f"{chip['range_max']:g}"
    return f"scale {chip['scale_index']}: {count} {chip['kind']} chips, valid sizes [{chip['range_min']:g}, {hi}) px"


def _caption(chip: dict[str, Any]) -> str:
    place = f"image {chip['image_id']}  x{chip['scale']:.3g}  at {chip['x1']:.0f},{chip['y1']:.0f}"
    if chip.get("mean_score") is None:
        return place
    return f"{place}  {chip['num_proposals']} new, mean {chip['mean_score']:.2f}"
