"""Tiles in titled rows on one picture, below a legend of strokes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from pipeline.images.drawing import FAINT, INK, PAPER, Font, label_font
from pipeline.images.pictures import Stroke, draw_box

GAP, LINE, HEADER = 10, 16, 30  # pixels


class Row(NamedTuple):
    """Tiles side by side; where there are more than a sheet has columns, they go on in the next line.

    Attributes:
        title: stands above them.
        tiles: square pictures of one size, each with its caption.
    """

    title: str
    tiles: Sequence[tuple[Image.Image, str]]


def sheet_width(columns: int, tile: int) -> int:
    """Return the width of a sheet of so many tiles of `tile` pixels side by side."""
    return GAP + columns * (tile + GAP)


def draw_sheet(
    rows: Sequence[Row], columns: int, tile: int, strokes: Mapping[str, Stroke], head: Image.Image | None = None
) -> Image.Image:
    """Draw a sheet.

    Args:
        rows: from top to bottom.
        columns: tiles side by side.
        tile: side of a tile, pixels.
        strokes: what the legend explains, by what it means.
        head: a picture above all rows, at most as wide as the sheet less a gap on each side.
    """
    width = sheet_width(columns, tile)
    font = label_font(12)
    lines = [-(-len(row.tiles) // columns) for row in rows]
    top = HEADER + (head.height + GAP if head else 0)
    height = top + sum(LINE + number * (tile + LINE) + GAP for number in lines)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_legend(draw, strokes, font)
    if head is not None:
        sheet.paste(head, (GAP, HEADER))
    for row, number in zip(rows, lines, strict=True):
        draw.text((GAP, top), row.title, INK, font)
        for place, (picture, caption) in enumerate(row.tiles):
            left = GAP + place % columns * (tile + GAP)
            low = top + LINE + place // columns * (tile + LINE)
            sheet.paste(picture, (left, low))
            draw.text((left, low + tile + 1), caption, FAINT, font)
        top += LINE + number * (tile + LINE) + GAP
    return sheet


def _draw_legend(draw: ImageDraw.ImageDraw, strokes: Mapping[str, Stroke], font: Font) -> None:
    left = float(GAP)
    for name, stroke in strokes.items():
        draw_box(draw, (left, 8, left + 30, 21), stroke)
        draw.text((left + 36, 8), name, INK, font)
        left += 36 + draw.textlength(name, font) + 2 * GAP
