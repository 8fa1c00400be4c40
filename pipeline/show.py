"""`sniper show`: a contact sheet of chips, read back from the shards, so that the eye can check them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image, ImageDraw, ImageFont

from schemas.errors import DataError, UsageError

STATUS_COLORS = {
    "valid": "#35d04f",
    "rescued": "#19d3e0",
    "cut": "#ffd21f",
    "out_of_range": "#ff8c1a",
    "ignore": "#b0b0b0",
    "crowd": "#e03bd8",
}
PAPER, INK, FAINT = "#16181d", "#f2f2f2", "#9aa0aa"
GAP, LINE, HEADER = 10, 16, 30  # pixels
SEPARATOR = "  ·  "


def show(data: Path, out: Path, *, kind: str = "positive", columns: int = 6, tile: int = 320, seed: int = 0) -> int:
    """Draw sampled chips, one row per scale, boxes coloured by status, with source image id and scale.

    Args:
        data: a chip data set.
        out: picture to write; its suffix decides the format.
        kind: positive or negative.
        columns: chips per scale; tile: side of a drawn chip, pixels.
        seed: another seed draws other chips.

    Returns:
        The number of chips drawn.

    Raises:
        UsageError: there are no such chips.
        DataError: a chip's bytes cannot be read.
    """
    folder = f"{kind}s"
    if not any((data / folder).glob("chips-*.parquet")):
        raise UsageError(f"{data}: holds no {kind} chips; `sniper chips --out {data}` writes positive ones")
    chips = pl.scan_parquet(data / folder / "chips-*.parquet")
    counts = dict(chips.group_by("scale_index").len().collect().iter_rows())
    if not counts:
        raise UsageError(f"{data}: its shards hold no {kind} chips at all; see rejects.parquet")
    names = dict(pl.read_parquet(data / "categories.parquet").select("id", "name").iter_rows())
    sheet = Image.new("RGB", _sheet_size(len(counts), columns, tile), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = _font(12)
    _draw_legend(draw, font)
    num_drawn = 0
    for row, scale_index in enumerate(sorted(counts)):
        of_scale = chips.filter(pl.col("scale_index") == scale_index)
        sample = _sample(of_scale, counts[scale_index], columns, seed)
        top = HEADER + row * (tile + 2 * LINE + GAP)
        for column, chip in enumerate(sample):
            left = GAP + column * (tile + GAP)
            if column == 0:
                draw.text((left, top), _row_title(chip, counts[scale_index]), INK, font)
            sheet.paste(_draw_chip(_read_chip(data, chip), chip, names, tile, font), (left, top + LINE))
            draw.text((left, top + LINE + tile + 1), _caption(chip), FAINT, font)
            num_drawn += 1
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
    return num_drawn


def _sheet_size(rows: int, columns: int, tile: int) -> tuple[int, int]:
    return GAP + columns * (tile + GAP), HEADER + rows * (tile + 2 * LINE + GAP)


def _sample(chips: pl.LazyFrame, count: int, number: int, seed: int) -> list[dict[str, Any]]:
    """Up to `number` chips, drawn by seed from the whole data set, in key order; those with targets first."""
    keys = chips.select("key", "num_valid").sort("key").collect()
    rng = np.random.default_rng([seed, count])
    order = rng.permutation(len(keys))
    order = order[np.argsort(keys["num_valid"].to_numpy()[order] == 0, kind="stable")][:number]
    return (
        chips.filter(pl.col("key").is_in(keys["key"].gather(np.sort(order)).implode()))
        .sort("key")
        .collect()
        .to_dicts()
    )


def _read_chip(data: Path, chip: dict[str, Any]) -> Image.Image:
    with (data / chip["shard"]).open("rb") as file:
        file.seek(chip["offset"])
        content = file.read(chip["size"])
    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except OSError as error:
        raise DataError(
            f"{data / chip['shard']}: chip {chip['key']} is damaged; run `sniper verify {data}`"
        ) from error


def _draw_chip(
    image: Image.Image, chip: dict[str, Any], names: dict[int, str], tile: int, font: ImageFont.ImageFont
) -> Image.Image:
    """The chip on a square of its full size, boxes on top, scaled to `tile` pixels."""
    side = max(chip["width"], chip["height"])
    zoom = tile / side
    canvas = Image.new("RGB", (tile, tile), "#000000")
    size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
    canvas.paste(image.resize(size, Image.Resampling.BICUBIC))
    draw = ImageDraw.Draw(canvas)
    for box in chip["boxes"]:
        corners = [round(box[name] * zoom) for name in ("x1", "y1", "x2", "y2")]
        corners[2:] = [max(corners[0], corners[2] - 1), max(corners[1], corners[3] - 1)]
        color = STATUS_COLORS[box["status"]]
        draw.rectangle(corners, outline=color, width=2 if box["status"] in ("valid", "rescued") else 1)
        if box["status"] in ("valid", "rescued"):
            draw.text((corners[0] + 3, corners[1] + 1), names.get(box["category_id"], "?"), color, font)
    return canvas


def _draw_legend(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont) -> None:
    left = float(GAP)
    for status, color in STATUS_COLORS.items():
        draw.rectangle((left, 9, left + 11, 20), outline=color, width=2)
        draw.text((left + 17, 8), status, INK, font)
        left += 17 + draw.textlength(status, font) + 2 * GAP


def _row_title(chip: dict[str, Any], count: int) -> str:
    hi = "inf" if chip["range_max"] == float("inf") else f"{chip['range_max']:g}"
    return f"scale {chip['scale_index']}: {count} {chip['kind']} chips, valid sizes [{chip['range_min']:g}, {hi}) px"


def _caption(chip: dict[str, Any]) -> str:
    return f"image {chip['image_id']}  x{chip['scale']:.3g}  at {chip['x1']:.0f},{chip['y1']:.0f}"


def _font(size: int) -> ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)  # type: ignore[return-value]  # needs FreeType, which a build may lack
    except (ImportError, OSError):
        return ImageFont.load_default()  # type: ignore[return-value]
