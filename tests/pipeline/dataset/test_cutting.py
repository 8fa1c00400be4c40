"""Pixels and labels agree; a shard holds what was planned."""

import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from PIL import Image, ImageDraw, WebPImagePlugin, features

from pipeline.commands.chips import chips
from pipeline.dataset.shards import read_record
from schemas.errors import DataError
from schemas.settings import ChipSettings, Settings, SideScale
from tests.builders import SIDE, CocoSet, encoded, exif, texture


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
    chips(tmp_path / "coco.json", tmp_path / "images", tmp_path / "out", Settings(chips=options))

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
    chips(tmp_path / "coco.json", tmp_path, tmp_path / "out", Settings())
    (chip,) = pl.read_parquet(tmp_path / "out/positives/chips-*.parquet").to_dicts()
    with (tmp_path / "out" / chip["shard"]).open("rb") as tar:
        tar.seek(chip["offset"])
        pixels = np.asarray(Image.open(io.BytesIO(tar.read(chip["size"]))))
    assert pixels.shape == (342, 512, 3)  # 427 * 512 / 640 = 341.6
    assert pixels.min() > 250
    assert chip["boxes"][0]["y2"] == pytest.approx(341.6)
    assert chip["boxes"][0]["status"] == "valid"


@pytest.mark.skipif(not features.check("webp"), reason="Pillow was built without libwebp")
def test_make_shard__is_made_anew_when_a_decoder_that_it_lacked_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shards of one image each: the one of a JPEG stays what it is when WebP arrives, the other is tried again."""
    coco = CocoSet(tmp_path)
    coco.add_image(1)
    webp = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\0\0\0\x10\x07\x10\x11\x11\x88\x88\xfe\x07\0"
    coco.add_image(2, webp, "2.webp", 1, 1, boxes=[[0, 0, 1, 1]])
    settings = ChipSettings(images_per_shard=1, min_side=0)
    with monkeypatch.context() as patch:
        patch.setattr(WebPImagePlugin, "SUPPORTED", False)
        report = chips(coco.write(), coco.image_root, tmp_path / "out", Settings(chips=settings), max_bad=1)
        assert [reject.reason for reject in report.rejects] == ["no_decoder"]
        assert chips(coco.path, coco.image_root, tmp_path / "out", Settings(chips=settings), max_bad=1).num_made == 0
    report = chips(coco.path, coco.image_root, tmp_path / "out", Settings(chips=settings))
    assert report.num_made == 1
    assert list(report.rejects) == []
    records = [read_record(tmp_path / f"out/positives/chips-0000{i}.parquet") for i in range(2)]
    assert [record.decoders for record in records] == [{}, {"WEBP": "libwebp"}]


def test_make_shard__a_worker_that_reads_other_formats_stops_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coco = CocoSet(tmp_path)
    coco.add_image(1)
    monkeypatch.setattr(
        "pipeline.commands.chips.decoders", lambda: {"TIFF": "another", "WEBP": "another"}
    )  # the command's
    with pytest.raises(DataError, match="reads other formats"):
        chips(coco.write(), coco.image_root, tmp_path / "out", Settings())


def test_chips__say_which_images_could_be_read_in_two_ways(tmp_path: Path) -> None:
    coco = CocoSet(tmp_path)
    coco.add_image(1, encoded(texture(SIDE, SIDE), exif=exif(6)))
    coco.add_image(2, encoded(texture(SIDE, SIDE), "GIF", save_all=True, append_images=[texture(SIDE, SIDE, 1)]))
    turned, several = chips(coco.write(), coco.image_root, tmp_path / "out", Settings()).notes
    assert "both as stored and as their orientation turns them" in turned
    assert "several pages or frames" in several
    again = chips(coco.path, coco.image_root, tmp_path / "out", Settings())  # from the records
    assert (again.num_made, again.notes) == (0, [turned, several])
