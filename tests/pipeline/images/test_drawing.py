"""Labels on pictures: every script, or an escape, and a backing that keeps them legible."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from PIL._util import DeferredError

from pipeline.images import drawing
from pipeline.images.drawing import PAPER, draw_label


def label(text: str, *, size: int = 16, **options: object) -> np.ndarray:
    """Pixels of a white picture with a label near its upper left corner."""
    picture = Image.new("RGB", (300, 60), "white")
    draw_label(ImageDraw.Draw(picture), (10, 30), text, "#35d04f", size, **options)
    return np.asarray(picture)


@pytest.fixture
def _no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fonts but Pillow's own."""
    monkeypatch.setattr(drawing, "_font_files", list)
    drawing._font_number.cache_clear()
    yield
    drawing._font_number.cache_clear()


@pytest.fixture
def _no_freetype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow as it is when built without FreeType."""
    monkeypatch.setattr(ImageFont, "core", DeferredError(ImportError("The _imagingft C module is not installed")))
    for cached in (drawing._font_number, drawing._font):
        cached.cache_clear()
    yield
    for cached in (drawing._font_number, drawing._font):
        cached.cache_clear()


def assert_distinct(*texts: str) -> None:
    pictures = [label(text).tobytes() for text in texts]
    assert len(set(pictures)) == len(texts)


def test_draw_label__letters_that_differ_are_drawn_differently() -> None:
    assert_distinct("Möwe", "Mäwe", "Méwe", "чайка", "кошка", "中文", "中国", "🐱", "🐶")


@pytest.mark.usefixtures("_no_fonts")
def test_draw_label__what_no_font_has_is_escaped() -> None:
    assert (label("中 cat") == label("\\u4e2d cat")).all()
    assert (label("a\nb") == label("a\\nb")).all()


@pytest.mark.usefixtures("_no_freetype")
def test_draw_label__without_freetype_latin_is_drawn_and_the_rest_escaped() -> None:
    assert_distinct("Möwe", "Mäwe", "Méwe")
    assert (label("中") == label("\\u4e2d")).all()


def test_draw_label__composed_and_decomposed_letters_look_alike() -> None:
    assert (label("Mo\u0308we") == label("Möwe")).all()


def test_draw_label__stands_on_a_dark_backing_inside_the_picture() -> None:
    dark = np.array(Image.new("RGB", (1, 1), PAPER).getpixel((0, 0)))
    for corner, above in (((10, 30), False), ((10, 30), True), ((295, 55), False), ((-20, -20), True)):
        picture = Image.new("RGB", (300, 60), "white")
        draw_label(ImageDraw.Draw(picture), corner, "gull 0.98", "#35d04f", 16, above=above)
        pixels = np.asarray(picture)
        rows, columns = np.nonzero((pixels == dark).all(axis=2))
        assert 18 <= np.ptp(rows) <= 22, corner
        assert np.ptp(columns) > 50, corner
        edge = pixels[rows.min() : rows.max() + 1, [columns.min(), columns.max()]]
        assert (edge == dark).all(), corner  # the text keeps off the backing's edges, so it is there as a whole
    assert np.nonzero((label("x", above=True) == dark).all(axis=2))[0].max() <= 31
