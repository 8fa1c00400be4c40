"""What a page is made of: each block turns into a piece of HTML."""

import base64
import html
import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image

JPEG_QUALITY = 82
LONG = 30  # characters of a cell that may be broken into lines
LAYOUT = {"width": "container", "height": 220, "autosize": {"type": "fit-x", "contains": "padding"}}


class Text(NamedTuple):
    """A paragraph; the text is shown as it is."""

    text: str

    def html(self) -> str:
        """Return the paragraph."""
        return f"<p>{html.escape(self.text)}</p>"


class Remarks(NamedTuple):
    """A list of what is worth a look, or one line that says that nothing is."""

    lines: Sequence[str]
    nothing: str

    def html(self) -> str:
        """Return the list."""
        if not self.lines:
            return f'<p class="good">{html.escape(self.nothing)}</p>'
        return '<ul class="remarks">' + "".join(f"<li>{html.escape(line)}</li>" for line in self.lines) + "</ul>"


class Figures(NamedTuple):
    """A few numbers that matter most: (number as text, what it counts)."""

    values: Sequence[tuple[str, str]]

    def html(self) -> str:
        """Return one tile for each number."""
        tiles = (f"<div><b>{html.escape(value)}</b>{html.escape(what)}</div>" for value, what in self.values)
        return f'<div class="figures">{"".join(tiles)}</div>'


class Table(NamedTuple):
    """A table. Whole numbers get separators of thousands, numbers stand to the right, None is left empty.

    Attributes:
        columns: the headings.
        rows: the cells: text, whole numbers, floats or None. A float between 0 and 1 in a column whose heading begins
            with "share" is shown as a percentage.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def html(self) -> str:
        """Return the table in a box that scrolls sideways where the screen is too narrow."""
        numeric = [any(isinstance(row[i], int | float) for row in self.rows) for i in range(len(self.columns))]
        head = "".join(
            f'<th class="number">{html.escape(name)}</th>' if right else f"<th>{html.escape(name)}</th>"
            for name, right in zip(self.columns, numeric, strict=True)
        )
        body = "".join(
            "<tr>" + "".join(_cell(name, value) for name, value in zip(self.columns, row, strict=True)) + "</tr>"
            for row in self.rows
        )
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, str):
        return f"<td{' class=long' * (len(value) > LONG)}>{html.escape(value)}</td>"
    if isinstance(value, int):
        shown = f"{value:,}"
    elif column.startswith("share"):
        shown = f"{value:.1%}"
    else:
        shown = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f'<td class="number">{shown}</td>'


class Chart(NamedTuple):
    """A chart that answers on hover.

    Attributes:
        title: what it shows, in one line.
        spec: Vega-Lite, with the data in it and without a width: it takes the width that the page gives.
    """

    title: str
    spec: dict[str, Any]

    def html(self) -> str:
        """Return the place of the chart, and its specification for the script of the page to draw."""
        spec = json.dumps({**LAYOUT, **self.spec}).replace("<", "\\u003c")
        return (
            f'<figure class="chart"><figcaption>{html.escape(self.title)}</figcaption><div class="vega"></div>'
            f'<script type="application/json">{spec}</script></figure>'
        )


class Picture(NamedTuple):
    """A picture with a line below it. It is kept in the page as JPEG."""

    image: Image.Image
    caption: str

    def html(self) -> str:
        """Return the picture."""
        encoded = io.BytesIO()
        self.image.convert("RGB").save(encoded, "JPEG", quality=JPEG_QUALITY)
        data = base64.b64encode(encoded.getvalue()).decode()
        caption = html.escape(self.caption)
        return (
            f'<figure class="picture"><img src="data:image/jpeg;base64,{data}" alt="{caption}" '
            f'width="{self.image.width}" height="{self.image.height}"><figcaption>{caption}</figcaption></figure>'
        )


class Row(NamedTuple):
    """Charts or pictures side by side, as many as the screen is wide."""

    blocks: "Sequence[Chart] | Sequence[Picture]"

    def html(self) -> str:
        """Return the blocks in one flowing row."""
        kind = "charts" if any(isinstance(block, Chart) for block in self.blocks) else "pictures"
        return f'<div class="{kind}">{"".join(block.html() for block in self.blocks)}</div>'


Block = Text | Remarks | Figures | Table | Row


class Section(NamedTuple):
    """A part of a page with a heading of its own."""

    title: str
    blocks: Sequence[Block]

    def html(self) -> str:
        """Return the heading and all blocks."""
        return f"<section><h2>{html.escape(self.title)}</h2>{''.join(block.html() for block in self.blocks)}</section>"
