"""Pixels and labels agree; a shard holds what was planned."""

import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from PIL import Image, ImageDraw

from pipeline.commands.chips import chips
from schemas.settings import ChipSettings, SideScale


def half_level(profile: npt.NDArray[np.float64], rising: bool) -> float:
    """Position, in pixel-edge coordinates, where a step profile crosses half its height."""
    values = profile if rising else profile[::-1]
    level = (values.min() + values.max()) / 2
    i = int(np.argmax(values > level))
    # values[i - 1] was sampled at i - 0.5, a pixel before values[i]
    position = i - 0.5 + (level - values[i - 1]) / (values[i] - values[i - 1])
    return float(position if rising else len(values) - position)


@pytest.mark.parametrize(
    ("size", "scales"),
    [
        ((640, 427), [3.0, 1.667, SideScale(long_side=512)]),
        ((333, 500), [3.0, 1.667, SideScale(long_side=512)]),
        ((1601, 1203), [1.2345, 0.777, SideScale(long_side=512)]),
        ((911, 607), [SideScale(short_side=1400, long_side=2000), SideScale(short_side=480, long_side=512)]),
    ],
)
def test_cut__labels_sit_on_the_pixels_they_were_drawn_on(
    tmp_path: Path, size: tuple[int, int], scales: list[float | SideScale]
) -> None:
    """Bright rectangles on black, found again in the chips by their edges, to a tenth of a pixel."""
    rng = np.random.default_rng(size[0])
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    for image_id in range(12):
        picture = Image.new("RGB", size, "black")
        side = rng.integers(14, 60, 2)
        low = rng.integers(8, np.array(size) - side - 8)
        high = low + side
        ImageDraw.Draw(picture).rectangle((*low.tolist(), *(high - 1).tolist()), fill="white")
        picture.save(tmp_path / f"images/{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": size[0], "height": size[1]})
        bbox = [*low.tolist(), *side.tolist()]
        annotations.append({"id": image_id, "image_id": image_id, "category_id": 1, "bbox": bbox})
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    options = ChipSettings(scales=scales, ranges=[(0, None)] * len(scales), quality=100, subsampling="444")
    chips(tmp_path / "coco.json", tmp_path / "images", tmp_path / "out", options)

    errors = []
    for chip in pl.read_parquet(tmp_path / "out/positives/chips-*.parquet").to_dicts():
        with (tmp_path / "out" / chip["shard"]).open("rb") as tar:
            tar.seek(chip["offset"])
            pixels = np.asarray(Image.open(io.BytesIO(tar.read(chip["size"]))).convert("L"), np.float64)
        assert pixels.shape == (chip["height"], chip["width"])
        (box,) = chip["boxes"]
        row = pixels[int((box["y1"] + box["y2"]) / 2)]
        column = pixels[:, int((box["x1"] + box["x2"]) / 2)]
        middle = [int((box[f"{axis}1"] + box[f"{axis}2"]) / 2) for axis in "xy"]
        for axis, profile, centre in (("x", row, middle[0]), ("y", column, middle[1])):
            if box[f"{axis}1"] > 2:
                errors.append(half_level(profile[:centre], rising=True) - box[f"{axis}1"])
            if box[f"{axis}2"] < len(profile) - 2:
                errors.append(centre + half_level(profile[centre:], rising=False) - box[f"{axis}2"])
    assert len(errors) > 60
    assert np.abs(errors).max() < 0.12
    assert abs(np.mean(errors)) < 0.02  # no constant shift


def test_cut__partly_filled_last_column_repeats_its_neighbour(tmp_path: Path) -> None:
    Image.new("RGB", (640, 427), "white").save(tmp_path / "white.png")
    coco = {
        "images": [{"id": 1, "file_name": "white.png", "width": 640, "height": 427}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 640, 427]}],
        "categories": [{"id": 1, "name": "all"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    chips(tmp_path / "coco.json", tmp_path, tmp_path / "out", ChipSettings())
    (chip,) = pl.read_parquet(tmp_path / "out/positives/chips-*.parquet").to_dicts()
    with (tmp_path / "out" / chip["shard"]).open("rb") as tar:
        tar.seek(chip["offset"])
        pixels = np.asarray(Image.open(io.BytesIO(tar.read(chip["size"]))))
    assert pixels.shape == (342, 512, 3)  # 427 * 512 / 640 = 341.6
    assert pixels.min() > 250
    assert chip["boxes"][0]["y2"] == pytest.approx(341.6)
    assert chip["boxes"][0]["status"] == "valid"
