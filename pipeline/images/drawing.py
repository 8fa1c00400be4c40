"""Colours of the pictures that the commands draw, and their labels, in any script that a font of this machine has."""

import os
import sys
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

PAPER, INK, FAINT = "#16181d", "#f2f2f2", "#9aa0aa"
PROPOSAL_COLOR = "#ff5c6c"
DETECTION_COLOR = "#ff8c1a"
STATUS_COLORS = {
    "valid": "#35d04f",
    "rescued": "#19d3e0",
    "cut": "#ffd21f",
    "out_of_range": "#ff8c1a",
    "ignore": "#b0b0b0",
    "crowd": "#e03bd8",
}
CLASS_COLORS = ("#35d04f", "#ff8c1a", "#19d3e0", "#e03bd8", "#ffd21f", "#6b8cff", "#ff5252")
"""Of detections, by the number of their category."""

FONT_FOLDERS = {
    "darwin": ["/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"],
    "win32": [os.path.expandvars(r"%WINDIR%\Fonts")],
}.get(sys.platform, ["/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"])
"""Where systems keep their fonts."""
PLAIN_FONTS = (
    "dejavusans.",
    "notosans-regular",
    "notosanscjk-regular",
    "notosans",
    "unifont",
    "wqy",
    "arialuni",
    "arial",
)
"""Starts of the names of fonts that are tried first, in lower case; all others follow by name."""
MISSING = "\U0010ffff"  # no character, so every font draws it as it draws what it lacks

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def label_font(size: int) -> Font:
    """Return Pillow's own font in `size` pixels; its small fixed one where Pillow was built without FreeType."""
    try:
        return ImageFont.load_default(size)
    except (ImportError, OSError):
        return ImageFont.load_default()


def draw_label(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, color: str, size: int, *, above: bool = False
) -> None:
    r"""Draw a text in one line on a dark backing, inside the picture.

    A character is drawn in the first font that has it: Pillow's own, then those of this machine. One that none has is
    escaped, such as `\u4e2d`.

    Args:
        draw: the picture; a label that would reach beyond its edge is moved inside.
        corner: x and y of the label's upper left corner, pixels; with `above` of its lower left corner.
        text: what is written.
        color: its colour, a light one.
        size: height of the font, pixels.
        above: whether the label stands above the corner.
    """
    pieces = [("".join(c for c, _ in group), font) for font, group in groupby(_chosen(text, size), lambda c: c[1])]
    width = sum(font.getlength(piece) for piece, font in pieces)
    height = 1.25 * size
    picture = draw.im.size
    x = max(0.0, min(corner[0], picture[0] - width - 2))
    y = max(0.0, min(corner[1] - (height if above else 0), picture[1] - height))
    draw.rectangle((x, y, x + width + 2, y + height), fill=PAPER)
    x += 1
    for piece, font in pieces:
        if isinstance(font, ImageFont.FreeTypeFont):  # on one baseline, since fonts differ in height
            draw.text((x, y + size), piece, color, font, anchor="ls")
        else:
            draw.text((x, y), piece, color, font)
        x += font.getlength(piece)


def _chosen(text: str, size: int) -> Iterator[tuple[str, Font]]:
    """Yield each character of a text, escaped where no font has it, with the font that draws it."""
    for character in unicodedata.normalize("NFC", text):
        number = _font_number(character)
        if number is None:
            yield from ((escaped, _font(0, size)) for escaped in character.encode("unicode_escape").decode())
        else:
            yield character, _font(number, size)


@lru_cache(maxsize=4096)
def _font_number(character: str) -> int | None:
    """Return the number of the first font that has a character, None where none has it. Font 0 is Pillow's own."""
    for number in range(1 + len(_font_files())):
        try:
            if _has(_font(number, 16), character):
                return number
        except (OSError, ImportError, ValueError):
            continue  # not a font that this Pillow can read
    return None


def _has(font: Font, character: str) -> bool:
    """Tell whether a font has a character: it is drawn otherwise than what the font lacks."""
    if character == " ":
        return True
    if unicodedata.category(character).startswith("C"):
        return False  # of no shape, such as a line end
    try:
        mask = font.getmask(character)
        if isinstance(font, ImageFont.FreeTypeFont):
            missing = font.getmask(MISSING)
            return (mask.size, bytes(mask)) != (missing.size, bytes(missing))
    except UnicodeEncodeError:  # beyond Latin-1 in Pillow's fixed font
        return False
    return True


@lru_cache(maxsize=64)
def _font(number: int, size: int) -> Font:
    """Return a font of _font_number in `size` pixels."""
    return ImageFont.truetype(_font_files()[number - 1], size) if number else label_font(size)


@lru_cache(maxsize=1)
def _font_files() -> list[str]:
    """Return the font files of this machine, plain ones of wide coverage first."""
    places = (Path(folder).expanduser() for folder in FONT_FOLDERS)
    found = [path for place in places for path in place.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc")]

    def rank(path: Path) -> tuple[int, str]:
        starts = [number for number, start in enumerate(PLAIN_FONTS) if path.name.lower().startswith(start)]
        return min(starts, default=len(PLAIN_FONTS)), str(path)

    return [str(path) for path in sorted(found, key=rank)]
