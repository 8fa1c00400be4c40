"""The contact sheet shows the chips, with boxes in their status colours."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor, features

from pipeline.commands.chips import chips
from pipeline.images.drawing import STATUS_COLORS
from pipeline.images.pictures import STATUS_STROKES
from pipeline.insight.show import show
from schemas.codes import STATUS_NAMES
from schemas.errors import UsageError
from schemas.settings import ChipSettings
from tests.pipeline.conftest import DataSet


def count_pixels(picture: np.ndarray, color: str) -> int:  # type: ignore[type-arg]
    return int((picture == ImageColor.getrgb(color)).all(axis=2).sum())


def test_show__draws_a_row_per_scale_from_the_shards(demo_set: DataSet, tmp_path: Path) -> None:
    chips(demo_set.annotations, demo_set.images, tmp_path / "out", ChipSettings())
    number = show(tmp_path / "out", tmp_path / "sheet.png", columns=4)
    assert number == 12
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))
    legend, sheet = picture[:28], picture[28:]
    for color in STATUS_COLORS.values():
        assert count_pixels(legend, color) > 20
    strokes = [(stroke.width, stroke.dash) for stroke in STATUS_STROKES.values()]
    assert len(set(strokes)) == len(STATUS_NAMES)  # without colours, too, all are told apart
    assert count_pixels(sheet, STATUS_COLORS["valid"]) > 500
    assert (sheet.std(axis=(0, 1)) > 20).all()  # there are pictures on it
    show(tmp_path / "out", tmp_path / "again.png", columns=4)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "sheet.png").read_bytes()


def test_show__brackets_in_the_name_of_a_folder_are_no_pattern(demo_set: DataSet, tmp_path: Path) -> None:
    out = tmp_path / "run[1] (a)"
    chips(demo_set.annotations, demo_set.images, out, ChipSettings())
    assert show(out, tmp_path / "sheet.png", columns=1) == 3


def test_show__every_status_has_a_color() -> None:
    assert set(STATUS_COLORS) == set(STATUS_NAMES)


def test_show__says_when_there_are_none(demo_set: DataSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no positive chips"):
        show(tmp_path, tmp_path / "sheet.png")


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.webp", "WEBP"), ("a.tif", "TIFF")]
)
def test_show__writes_the_format_that_the_name_says(demo_set: DataSet, tmp_path: Path, name: str, kind: str) -> None:
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("Pillow was built without libwebp")
    chips(demo_set.annotations, demo_set.images, tmp_path / "out", ChipSettings())
    show(tmp_path / "out", tmp_path / name, columns=1)
    assert Image.open(tmp_path / name).format == kind


@pytest.mark.parametrize("name", ["sheet", "sheet.txt", "sheet.json"])
def test_show__a_name_that_says_no_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="expected a name that ends in .png"):
        show(tmp_path / "out", tmp_path / name)
