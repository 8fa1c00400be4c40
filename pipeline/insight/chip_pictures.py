"""Chips read back from their shards and drawn with their boxes."""

import io
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from PIL import Image, ImageDraw

from pipeline.images.drawing import PROPOSAL_COLOR, draw_label
from pipeline.images.pictures import STATUS_STROKES, Stroke, draw_box
from pipeline.storage import Location, read_range
from schemas.codes import STATUS_NAMES, TARGET_NAMES
from schemas.errors import DataError, UsageError
from schemas.wording import shell

PROPOSAL = Stroke(PROPOSAL_COLOR, 1)
SHOWN = 10  # proposals of a chip, the best: hundreds would hide what the chip shows

Chip = dict[str, Any]
"""A row of a manifest, by the names of schema MANIFEST; `proposals`, float64 [n, 4], chip pixels, where there are."""


class Chosen(NamedTuple):
    """Which boxes of chips are shown.

    Attributes:
        statuses: their statuses.
        categories: their category ids; None: any.
    """

    statuses: Collection[str] = tuple(STATUS_NAMES)
    categories: Collection[int] | None = None

    def is_held(self) -> pl.Expr:
        """Return an expression over chips: whether a chip holds such a box."""
        box = pl.element().struct
        chosen = box.field("status").is_in(list(self.statuses))
        if self.categories is not None:
            chosen &= box.field("category_id").is_in(list(self.categories))
        return pl.col("boxes").list.eval(chosen).list.any()

    def of(self, chip: Chip) -> list[dict[str, Any]]:
        """Return such boxes of a chip."""
        return [
            box
            for box in chip["boxes"]
            if box["status"] in self.statuses and (self.categories is None or box["category_id"] in self.categories)
        ]


ALL = Chosen()


def sample_chips(chips: pl.LazyFrame, number: int, seed: int) -> list[Chip]:
    """Draw up to `number` chips by seed, in key order; positives with targets come first.

    Raises:
        UsageError: the seed is negative.
    """
    if seed < 0:
        raise UsageError(f"seed: expected 0 or more, found {seed}")
    empty = (pl.col("num_valid") == 0) & (pl.col("kind") == "positive")
    keys = chips.select("key", empty=empty).sort("key").collect()
    rng = np.random.default_rng([seed, len(keys)])
    order = rng.permutation(len(keys))
    order = order[np.argsort(keys["empty"].to_numpy()[order], kind="stable")][:number]
    chosen = keys["key"].gather(np.sort(order)).implode()
    return chips.filter(pl.col("key").is_in(chosen)).sort("key").collect().to_dicts()


def read_chip(data: Location, chip: Chip) -> Image.Image:
    """Read the pixels of a chip of a data set.

    Raises:
        DataError: its bytes are damaged.
    """
    content = read_range(data / chip["shard"], chip["offset"], chip["size"])
    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except OSError as error:
        raise DataError(
            f"{data / chip['shard']}: chip {chip['key']} is damaged; run `{shell('sniper', 'verify', data)}`"
        ) from error


def draw_chip(image: Image.Image, chip: Chip, names: dict[int, str], tile: int, chosen: Chosen = ALL) -> Image.Image:
    """Draw a chip on a square of its full size, boxes on top, scaled to `tile` pixels.

    Args:
        image: its pixels.
        chip: its row.
        names: names of the classes by category id.
        tile: side of the picture, pixels.
        chosen: which of its boxes are drawn.
    """
    side = max(chip["width"], chip["height"])
    zoom = tile / side
    canvas = Image.new("RGB", (tile, tile), "#000000")
    size = (max(1, round(image.width * zoom)), max(1, round(image.height * zoom)))
    canvas.paste(image.resize(size, Image.Resampling.BICUBIC))
    draw = ImageDraw.Draw(canvas)
    for proposal in chip.get("proposals", ())[:SHOWN][::-1]:
        draw_box(draw, corners(proposal.tolist(), zoom), PROPOSAL)
    labels = []
    for box in sorted(chosen.of(chip), key=lambda box: box["status"] in TARGET_NAMES):  # targets lie on top
        place = corners([box[name] for name in ("x1", "y1", "x2", "y2")], zoom)
        stroke = STATUS_STROKES[box["status"]]
        draw_box(draw, place, stroke)
        if box["status"] in TARGET_NAMES:
            labels.append(((place[0] + 2, place[1] + 2), names.get(box["category_id"], "?"), stroke.color))
    for corner, name, color in labels:  # last, so that no box crosses them
        draw_label(draw, corner, name, color, 12)
    return canvas


def corners(box: list[float], zoom: float) -> list[int]:
    """Return the outermost pixels of a box x1 y1 x2 y2 that is enlarged by `zoom`."""
    x1, y1, x2, y2 = (round(value * zoom) for value in box)
    return [x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)]


def caption(chip: Chip) -> str:
    """Say in a line what a chip was cut from."""
    place = f"image {chip['image_id']}  x{chip['scale']:.3g}  at {chip['x1']:.0f},{chip['y1']:.0f}"
    if chip.get("mean_score") is None:
        return place
    return f"{place}  {chip['num_proposals']} new, mean {chip['mean_score']:.2f}"
