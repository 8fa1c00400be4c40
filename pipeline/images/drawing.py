"""Colours and fonts of the pictures that the commands draw."""

from PIL import ImageFont

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


def label_font(size: int) -> ImageFont.ImageFont:
    """Return a font of `size` pixels; a small fixed one where Pillow was built without FreeType."""
    try:
        return ImageFont.load_default(size)  # type: ignore[return-value]  # needs FreeType, which a build may lack
    except (ImportError, OSError):
        return ImageFont.load_default()  # type: ignore[return-value]
