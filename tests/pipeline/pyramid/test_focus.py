"""From focus maps to windows: nothing that calls for the finer scale is left out, and nothing costs more than all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.coco import SourceImage
from pipeline.planning.scales import content_size
from pipeline.pyramid.focus import FocusMap, focus_limits, focus_windows, painted_map
from pipeline.pyramid.views import CELLS, View
from schemas.errors import UsageError
from schemas.settings import ChipSettings

CHIPS = ChipSettings(size=128)
INFINITE = float("inf")


def whole_view(image: SourceImage, scale: float) -> View:
    window = (0.0, 0.0, float(image.width), float(image.height))
    width, height = content_size(np.array([window]), np.array([scale]), 2**14).tolist()[0]
    return View(0, 2, scale, window, width, height)


def test_focus_limits__are_what_a_scale_leaves_to_finer_ones() -> None:
    assert focus_limits([(0, 80), (32, 150), (120, INFINITE)]) == [0, 32, 75]
    assert focus_limits([(0, 80), (0, INFINITE)]) == [0, 90], (
        "a range without a lower end leaves what the finer one has"
    )
    assert focus_limits([(0, 80), (32, INFINITE)], given=[7, 50]) == [0, 50]
    assert focus_limits([(0, INFINITE)]) == [0]
    with pytest.raises(UsageError, match="40 for scale 2, which detects from 75 px on"):
        focus_limits([(0, 80), (32, 150), (120, INFINITE)], given=[0, 32, 40])


def test_focus_windows__fine_cells_give_as_much_margin_as_is_not_searched() -> None:
    """Detections within a 32nd of a chip of a window's edge are dropped, however fine the map is."""
    image, chips = SourceImage(0, "", 2000, 2000), ChipSettings()
    view = View(0, 2, 0.25, image.whole, 500, 500)
    for cell in (1.0, 2.0, 4.0, 16.0):
        values = np.zeros((round(500 / cell), round(500 / cell)), np.float32)
        values[round(300 / cell), round(200 / cell)] = 1
        [(x1, y1, x2, y2)] = focus_windows([(view, FocusMap(values, (cell, cell)))], 0.5, image, 3.0, chips)
        margin = chips.size / CELLS / 3.0
        x, y, side = (cell * round(200 / cell) / 0.25, cell * round(300 / cell) / 0.25, cell / 0.25)
        assert x1 <= x - margin
        assert y1 <= y - margin
        assert x2 >= x + side + margin
        assert y2 >= y + side + margin


@st.composite
def focused(draw: st.DrawFn) -> tuple[SourceImage, View, FocusMap, float]:
    image = SourceImage(1, "", draw(st.integers(1, 900)), draw(st.integers(1, 900)))
    scale = draw(st.floats(0.05, 1))
    view = whole_view(image, scale)
    cell = draw(st.sampled_from([4, 16]))
    values = np.zeros((-(-view.height // cell), -(-view.width // cell)), np.float32)
    for _ in range(draw(st.integers(0, 6))):
        values[draw(st.integers(0, values.shape[0] - 1)), draw(st.integers(0, values.shape[1] - 1))] = 0.9
    return image, view, FocusMap(values, (cell, cell)), draw(st.floats(0.5, 3))


@settings(max_examples=100)
@given(focused())
def test_focus_windows__hold_every_cell_with_a_margin_and_never_cost_more_than_the_image(
    case: tuple[SourceImage, View, FocusMap, float],
) -> None:
    image, view, found, finer = case
    windows = np.array(focus_windows([(view, found)], 0.5, image, finer, CHIPS)).reshape(-1, 4)
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2] <= image.width + 1e-9).all()
    assert (windows[:, 3] <= image.height + 1e-9).all()
    cell = found.cell[0] / view.scale
    for row, column in np.argwhere(found.values > 0.5).tolist():
        wanted = np.array([column - 1, row - 1, column + 2, row + 2]) * cell
        wanted = np.clip(wanted, 0, [image.width, image.height] * 2)
        inside = (windows[:, :2] <= wanted[:2] + 1e-6).all(1) & (windows[:, 2:] >= wanted[2:] - 1e-6).all(1)
        assert inside.any(), "the cell and those around it lie in one window"
    assert (len(windows) > 0) == bool((found.values > 0.5).any())
    sides = windows[:, 2:] - windows[:, :2]
    assert sides.prod(axis=1).sum() <= image.width * image.height * (1 + 1e-9)
    least = np.minimum(CHIPS.size / 2 / finer, [image.width, image.height])
    assert (sides >= least - 1e-6).all()


def test_focus_windows__two_far_apart_stay_two_and_neighbours_become_one() -> None:
    image = SourceImage(1, "", 2000, 1000)
    view = whole_view(image, 0.1)
    values = np.zeros((25, 50), np.float32)
    values[3, 3] = values[3, 6] = values[20, 45] = 0.9
    windows = focus_windows([(view, FocusMap(values, (4, 4)))], 0.5, image, 0.5, CHIPS)
    assert len(windows) == 2
    assert focus_windows([(view, FocusMap(values, (4, 4)))], 0.95, image, 0.5, CHIPS) == []


def test_focus_windows__many_cells_give_way_to_the_whole_image_and_so_does_an_unknown_map() -> None:
    image = SourceImage(1, "", 640, 480)
    view, whole = whole_view(image, 0.2), [(0.0, 0.0, 640.0, 480.0)]
    values = np.zeros((24, 32), np.float32)
    values[::3, ::3] = 0.9
    assert focus_windows([(view, FocusMap(values, (4, 4)))], 0.5, image, 0.75, CHIPS) == whole
    assert focus_windows([(view, None)], 0.5, image, 0.75, CHIPS) == whole


def test_focus_windows__the_edge_of_a_window_calls_for_nothing_where_the_image_goes_on() -> None:
    image = SourceImage(1, "", 1000, 800)
    window = (0.0, 400.0, 256.0, 656.0)
    view = View(0, 1, 0.5, window, 128, 128, region=window)
    values = np.full((32, 32), 0.0, np.float32)
    values[0, 10] = values[31, 10] = values[10, 31] = 0.9
    assert focus_windows([(view, FocusMap(values, (4, 4)))], 0.5, image, 1.0, CHIPS) == []
    assert focus_windows([(view._replace(region=None), FocusMap(values, (4, 4)))], 0.5, image, 1.0, CHIPS) != []
    values[10, 0] = 0.9  # here the image ends
    [(x1, y1, x2, y2)] = focus_windows([(view, FocusMap(values, (4, 4)))], 0.5, image, 1.0, CHIPS)
    assert x1 == 0
    assert y1 <= 480 <= 488 <= y2


def test_focus_windows__thousands_of_cells_are_joined_in_bounded_time() -> None:
    image = SourceImage(1, "", 40_000, 30_000)
    view = whole_view(image, 0.1)
    values = (np.random.default_rng(0).random((750, 1000)) < 0.01).astype(np.float32)
    windows = focus_windows([(view, FocusMap(values, (4, 4)))], 0.5, image, 1.0, CHIPS)
    assert len(windows) > 1000


def test_painted_map__boxes_that_begin_outside_the_view_paint_what_they_show() -> None:
    view = View(0, 1, 1.0, (0, 0, 64, 64), 64, 64)
    boxes = np.array([[-40, -40, 10, 10], [60, 60, 200, 200], [-50, 0, -20, 10]], np.float32)
    found = painted_map(view, boxes, np.array([0.5, 0.7, 0.9], np.float32), 1000, 512)
    assert found.values[0, 0] == 0.5
    assert found.values[3, 3] == pytest.approx(0.7)
    assert (found.values > 0).sum() == 2


def test_painted_map__a_cell_has_the_best_score_of_the_small_boxes_that_touch_it() -> None:
    view = View(0, 2, 0.5, (0, 0, 200, 100), 100, 50)
    boxes = np.array([[4, 4, 12, 12], [0, 0, 9, 9], [0, 0, 100, 50], [99, 49, 100, 50]], np.float32)
    found = painted_map(view, boxes, np.array([0.3, 0.8, 0.9, 0.2], np.float32), 40, 128)
    assert found.cell == (4, 4)
    assert found.values.shape == (13, 25)
    assert found.values[0, 0] == found.values[2, 2] == np.float32(0.8)
    assert found.values[2, 1] == np.float32(0.8)
    assert found.values[12, 24] == np.float32(0.2)
    assert found.values[3:12].max() == 0, "the large box is not painted"
