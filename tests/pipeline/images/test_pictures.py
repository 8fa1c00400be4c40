"""Pictures: outlines are told apart by their lines."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.images.pictures import Stroke, draw_box


def test_draw_box__dashes_leave_gaps_and_begin_at_the_corners() -> None:
    solid, dashed = (Image.new("L", (60, 40)) for _ in range(2))
    draw_box(ImageDraw.Draw(solid), (5, 5, 50, 30), Stroke("white", 1))
    draw_box(ImageDraw.Draw(dashed), (5, 5, 50, 30), Stroke("white", 1, 4))
    whole, part = (np.asarray(picture) > 0 for picture in (solid, dashed))
    assert not (part & ~whole).any()
    assert 0.4 < part.sum() / whole.sum() < 0.8
    assert all(part[y, x] for x in (5, 50) for y in (5, 30))


@pytest.mark.parametrize("corners", [(3, 3, 3, 3), (3, 3, 4, 3), (0, 0, 200, 1)])
def test_draw_box__of_hardly_any_size(corners: tuple[int, int, int, int]) -> None:
    picture = Image.new("L", (100, 10))
    draw_box(ImageDraw.Draw(picture), corners, Stroke("white", 2, 4))
    assert np.asarray(picture).any()
