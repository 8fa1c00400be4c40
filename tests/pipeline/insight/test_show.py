"""The contact sheet shows the chips, with boxes in their status colours."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageColor, features

from pipeline.commands.chips import chips
from pipeline.commands.negatives import negatives
from pipeline.images.drawing import STATUS_COLORS
from pipeline.images.pictures import STATUS_STROKES
from pipeline.insight.image_picture import WINDOW_COLORS
from pipeline.insight.manifests import manifests
from pipeline.insight.sheet import Row, draw_sheet, sheet_width
from pipeline.insight.show import show
from schemas.codes import STATUS_NAMES
from schemas.errors import UsageError
from schemas.settings import Settings
from tests.pipeline.conftest import DataSet


def count_pixels(picture: np.ndarray, color: str) -> int:  # type: ignore[type-arg]
    return int((picture == ImageColor.getrgb(color)).all(axis=2).sum())


def test_show__draws_a_row_per_scale_from_the_shards(demo_set: DataSet, tmp_path: Path) -> None:
    chips(demo_set.annotations, demo_set.images, tmp_path / "out", Settings())
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
    chips(demo_set.annotations, demo_set.images, out, Settings())
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
    chips(demo_set.annotations, demo_set.images, tmp_path / "out", Settings())
    show(tmp_path / "out", tmp_path / name, columns=1)
    assert Image.open(tmp_path / name).format == kind


@pytest.mark.parametrize("name", ["sheet", "sheet.txt", "sheet.pdf", "sheet.gif"])
def test_show__a_name_that_says_no_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="expected a name that ends in .png"):
        show(tmp_path / "out", tmp_path / name)


@pytest.fixture(scope="module")
def data(demo_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chips and random negatives of the demo's scenes."""
    out = tmp_path_factory.mktemp("show") / "out"
    chips(demo_set.annotations, demo_set.images, out, Settings())
    negatives(out, random=2)
    return out


def rows_of(data: Path) -> pl.DataFrame:
    return manifests(data).chips.collect()


def test_show__of_one_image_draws_its_windows_and_all_its_chips(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "image.png"
    image = rows_of(data)["image_id"][0]
    mine = rows_of(data).filter(pl.col("image_id") == image)
    assert show(data, out, image=image, tile=64) == len(mine)
    assert set(mine["kind"]) == {"positive", "negative"}
    picture = np.asarray(Image.open(out))
    head = picture[30:]
    source = manifests(data).images.filter(pl.col("image_id") == image).collect().row(0, named=True)
    zoom = min((picture.shape[1] - 20) / source["width"], 1200 / source["height"])
    for chip in mine.sort("scale_index").to_dicts()[:1]:  # of the finest scale, so that it lies on top
        left = round(chip["x1"] * zoom) + 10
        rows = slice(round(chip["y1"] * zoom), round(chip["y2"] * zoom) - 1)
        edge = head[rows, left]
        assert (edge == ImageColor.getrgb(WINDOW_COLORS[chip["scale_index"]])).all(axis=1).mean() > 0.9
    assert show(data, out, image=image, kind="negative", tile=64) == mine["kind"].to_list().count("negative")


def test_show__of_one_image_finds_images_that_were_moved(demo_set: DataSet, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(data, out)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"images": str(tmp_path / "gone")}))
    with pytest.raises(UsageError, match="no such image folder"):
        show(out, tmp_path / "image.png", image=1)
    assert show(out, tmp_path / "image.png", image=1, images=demo_set.images, tile=64) > 0


@pytest.mark.parametrize("status", ["cut", "out_of_range", "crowd"])
def test_show__draws_only_chosen_statuses(data: Path, tmp_path: Path, status: str) -> None:
    show(data, tmp_path / "sheet.png", statuses=[status], columns=3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))[30:]
    for other, color in STATUS_COLORS.items():
        assert (count_pixels(sheet, color) > 20) == (other == status), other


def test_show__draws_only_chips_of_chosen_classes(data: Path, tmp_path: Path) -> None:
    held = {
        name: rows_of(data).filter(
            pl.col("kind") == "positive",
            pl.col("boxes").list.eval(pl.element().struct.field("category_id") == id_).list.any(),
        )
        for id_, name in pl.read_parquet(data / "categories.parquet").select("id", "name").iter_rows()
    }
    for name, chips_of_class in held.items():
        assert show(data, tmp_path / "sheet.png", classes=[name], columns=50, tile=8) == sum(
            min(50, count) for count in Counter(chips_of_class["scale_index"]).values()
        )


def test_show__says_what_it_did_not_find(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    with pytest.raises(UsageError, match="has no class cow; it has disc, square, triangle"):
        show(data, out, classes=["cow"])
    with pytest.raises(UsageError, match="no image 12345 in images.parquet"):
        show(data, out, image=12345)
    with pytest.raises(UsageError, match="no negative chips of image 1 with a box with status valid"):
        show(data, out, image=1, kind="negative", statuses=["valid"])
    with pytest.raises(UsageError, match="negative chips with a box of class disc with status valid at all"):
        show(data, out, kind="negative", classes=["disc"], statuses=["valid"])


def test_show__refuses_kinds_and_statuses_that_there_are_not(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="kind: expected one of positive, negative, found 'negatives'"):
        show(data, tmp_path / "a.png", kind="negatives")
    with pytest.raises(UsageError, match="statuses: expected one of .*, found 'covered'"):
        show(data, tmp_path / "a.png", statuses=["covered"])


def test_show__more_chips_than_columns_go_on_in_the_next_line() -> None:
    tile = Image.new("RGB", (20, 20), "#ff0000")
    sheet = draw_sheet([Row("title", [(tile, "")] * 5)], 2, 20, {})
    assert sheet.width == sheet_width(2, 20)
    red = (np.asarray(sheet) == (255, 0, 0)).all(axis=2)
    assert red.sum() == 5 * 400
    assert red[:, : sheet.width // 2].sum() == 3 * 400
