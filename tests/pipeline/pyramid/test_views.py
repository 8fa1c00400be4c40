"""Views: they cover every image, and waste little."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.coco import SourceImage
from pipeline.pyramid.merging import widened_ranges
from pipeline.pyramid.views import View, compose, plan_views, tile_region
from schemas.settings import ChipSettings


def test_widened_ranges__are_the_papers() -> None:
    assert widened_ranges(ChipSettings().bounds()) == [(0, 90), (32, 180), (75, float("inf"))]


def test_views__cover_every_image_within_the_side_and_waste_little() -> None:
    images = [SourceImage(1, "a", 640, 480), SourceImage(2, "b", 20_000, 11_111), SourceImage(3, "c", 40, 3000)]
    views = plan_views(images, ChipSettings(), 2048, [90, 180, float("inf")])
    for m, image in enumerate(images):
        for s in range(3):
            windows = [v.window for v in views if (v.image, v.scale_index) == (m, s)]
            covered = np.zeros((image.height // 10 + 1, image.width // 10 + 1), bool)
            for x1, y1, x2, y2 in windows:
                assert 0 <= x1 < x2 <= image.width
                assert 0 <= y1 < y2 <= image.height
                covered[int(y1 // 10) : int(y2 // 10) + 1, int(x1 // 10) : int(x2 // 10) + 1] = True
            assert covered.all()
    assert all(view.width <= 2048 and view.height <= 2048 for view in views)
    batches = compose(views, 4_000_000)
    assert sorted(view for batch in batches for view in batch) == sorted(views)
    for batch in batches:
        assert len({(view.scale_index, view.shape) for view in batch}) == 1
        for view in batch:
            assert 0 <= view.shape[0] - view.height < 32
            assert 0 <= view.shape[1] - view.width < 32
        assert len(batch) * batch[0].shape[0] * batch[0].shape[1] <= 4_000_000 or len(batch) == 1


@given(st.floats(0, 3000), st.floats(600, 3000), st.integers(256, 512), st.floats(0, 900), st.floats(0.2, 2))
def test_tile_region__ends_where_the_region_ends(
    start: float, extent: float, max_side: int, overlap: float, scale: float
) -> None:
    """To the last bit, since an edge of the image is told from an inner edge by its number."""
    region = View(0, 0, scale, (start, start, start + extent, start + extent), 0, 0)
    tiles = [view.window for view in tile_region(region, max_side, overlap)]
    assert max(x2 for _, _, x2, _ in tiles) == start + extent
    assert max(y2 for _, _, _, y2 in tiles) == start + extent
    assert {x1 for x1, _, _, _ in tiles if x1 <= start} == {start}


def test_compose__images_are_done_one_after_the_other() -> None:
    """So that progress moves: at each quarter of the pixels about a quarter of the images is done."""
    images = [SourceImage(i, f"{i}", 640, 480) for i in range(64)]
    batches = compose(plan_views(images, ChipSettings(), 4096, [90, 180, float("inf")]), 4_000_000)
    pixels = [sum(view.width * view.height for view in batch) for batch in batches]
    last_batch = {view.image: number for number, batch in enumerate(batches) for view in batch}
    for share in (0.25, 0.5, 0.75):
        reached = np.searchsorted(np.cumsum(pixels), share * sum(pixels))
        done = sum(number < reached for number in last_batch.values()) / len(images)
        assert share - 0.2 < done <= share


@pytest.mark.parametrize("side", [512, 1333])
def test_plan_views__an_image_at_the_side_of_a_view_is_one_view(side: int) -> None:
    """Its scale is side / width, and so its width at that scale is the side but for rounding."""
    settings = ChipSettings.model_validate({"scales": [{"long_side": side}], "ranges": [[0, 700]]})
    images = [SourceImage(1, "a", width, width // 2) for width in range(side + 1, 4 * side)]
    views = plan_views(images, settings, side, [700])
    assert [view.image for view in views] == list(range(len(images)))
