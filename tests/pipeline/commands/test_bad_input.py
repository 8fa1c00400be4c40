"""Bad images and bad records, through the real build: each is refused with its reason and nothing else is lost."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import simplejpeg
from PIL import Image

from pipeline.commands.check import check
from pipeline.commands.chips import chips
from schemas.errors import DataError
from schemas.settings import ChipSettings, Settings
from tests.builders import (
    ABSENT,
    SIDE,
    CocoSet,
    assert_reconciles,
    build,
    chip_boxes,
    chip_sums,
    deep_png,
    digest,
    encoded,
    exif,
    fates,
    sound_set,
    states,
    texture,
    with_size,
)
from tests.conftest import RunSniper
from tests.paths import shared_data

BAD = 50  # id of the image a test adds between the two sound ones
GOOD_JPEG = encoded(texture(SIDE, SIDE, 5), quality=95)
GOOD_PNG = encoded(texture(SIDE, SIDE, 5), "PNG")
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 133\n"
COVERED = ("covered", None)
SOUND = [COVERED] * 3  # fates of the boxes of sound_set


@pytest.fixture(scope="module")
def sound_chips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The chips of the two sound images when there is nothing wrong with the set."""
    folder = tmp_path_factory.mktemp("sound")
    build(sound_set(folder / "set"), folder / "out")
    return chip_sums(folder / "out")


def zeroed(data: bytes, start: float, stop: float) -> bytes:
    """A file with a stretch of zeros, from and to shares of its length."""
    a, b = int(len(data) * start), int(len(data) * stop)
    return data[:a] + bytes(b - a) + data[b:]


REFUSED_FILES = {
    "zero bytes": (b"", "empty_file"),
    "text": (b"This is a readme, not a picture.\n" * 20, "not_an_image"),
    "html": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not_an_image"),
    "LFS pointer": (LFS_POINTER, "not_an_image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n%%EOF\n", "not_an_image"),
    "JPEG cut in its header": (GOOD_JPEG[:100], "undecodable"),
    "JPEG cut after its header": (GOOD_JPEG[:700], "undecodable"),
    "JPEG cut in the middle": (GOOD_JPEG[: len(GOOD_JPEG) // 2], "undecodable"),
    "JPEG cut near the end": (GOOD_JPEG[:-40], "undecodable"),
    "JPEG without its end mark": (GOOD_JPEG[:-2], "undecodable"),
    "JPEG zeroed in the middle": (zeroed(GOOD_JPEG, 0.5, 0.6), "undecodable"),
    "JPEG zeroed to its end": (zeroed(GOOD_JPEG, 0.6, 1.0), "undecodable"),
    "progressive JPEG cut": (encoded(texture(SIDE, SIDE), progressive=True)[:-400], "undecodable"),
    "CMYK JPEG zeroed in the middle": (zeroed(encoded(texture(SIDE, SIDE).convert("CMYK")), 0.5, 0.7), "undecodable"),
    "PNG cut in the middle": (GOOD_PNG[: len(GOOD_PNG) // 2], "undecodable"),
    "PNG cut after its pixels": (GOOD_PNG[:-12], "undecodable"),
    "PNG zeroed in the middle": (zeroed(GOOD_PNG, 0.5, 0.52), "undecodable"),
    "PNG of 16-bit grey": (deep_png(SIDE, SIDE, 1), "unsupported_depth"),
    "PNG of 16-bit grey with alpha": (deep_png(SIDE, SIDE, 2), "unsupported_depth"),
    "PNG of 16-bit RGB": (deep_png(SIDE, SIDE, 3), "unsupported_depth"),
    "PNG of 16-bit RGBA": (deep_png(SIDE, SIDE, 4), "unsupported_depth"),
    "TIFF of floats": (encoded(Image.new("F", (SIDE, SIDE)), "TIFF"), "unsupported_depth"),
    "PPM of 16 bits": (b"P6 64 64 65535\n" + bytes(SIDE * SIDE * 6), "unsupported_depth"),
    "another size": (encoded(texture(SIDE - 1, SIDE)), "size_mismatch"),
    "another size, turned": (encoded(texture(SIDE, 32), exif=exif(6)), "size_mismatch"),
    "20,000 x 20,000 in its header": (with_size(GOOD_JPEG, 20_000, 20_000), "too_many_pixels"),
}


@pytest.mark.parametrize("case", REFUSED_FILES)
def test_chips_refused_file_costs_only_itself(case: str, tmp_path: Path, sound_chips: dict[str, int]) -> None:
    content, reason = REFUSED_FILES[case]
    made = sound_set(tmp_path)
    made.add_image(BAD, content, "bad.jpg", boxes=[[1, 1, 30, 30], [2, 2, 0, 9]])
    report = build(made, tmp_path / "out")
    out = tmp_path / "out"
    assert states(out) == {1: None, BAD: reason, 999: None}
    assert fates(out) == [*SOUND, ("image_refused", reason), ("refused", "no_area")]
    assert chip_sums(out, (1, BAD, 999)) == sound_chips
    assert_reconciles(out, made.content())
    (message,) = [reject.message for reject in report.rejects if reject.kind == "image"]
    assert message.startswith("bad.jpg: ")


READ_FILES = {
    "greyscale JPEG": encoded(texture(SIDE, SIDE).convert("L")),
    "CMYK JPEG": encoded(texture(SIDE, SIDE).convert("CMYK")),
    "progressive JPEG": encoded(texture(SIDE, SIDE), progressive=True),
    "MPO of two frames": encoded(texture(SIDE, SIDE), "MPO", save_all=True, append_images=[texture(SIDE, SIDE, 1)]),
    "JPEG with bytes after its end": GOOD_JPEG + b"maker's notes" * 9,
    "JPEG with damaged EXIF": encoded(texture(SIDE, SIDE), exif=b"Exif\0\0not a TIFF header"),
    "greyscale PNG": encoded(texture(SIDE, SIDE).convert("L"), "PNG"),
    "PNG of one bit": encoded(texture(SIDE, SIDE).convert("1"), "PNG"),
    "palette PNG": encoded(texture(SIDE, SIDE).convert("P"), "PNG"),
    "palette PNG with a transparent colour": encoded(texture(SIDE, SIDE).convert("P"), "PNG", transparency=3),
    "palette PNG with transparency": encoded(texture(SIDE, SIDE).convert("P"), "PNG", transparency=bytes(range(200))),
    "RGBA PNG": encoded(texture(SIDE, SIDE).convert("RGBA"), "PNG"),
    "LA PNG": encoded(texture(SIDE, SIDE).convert("LA"), "PNG"),
    "GIF": encoded(texture(SIDE, SIDE), "GIF"),
    "animated GIF": encoded(texture(SIDE, SIDE), "GIF", save_all=True, append_images=[texture(SIDE, SIDE, 1)]),
    "BMP": encoded(texture(SIDE, SIDE), "BMP"),
    "TIFF": encoded(texture(SIDE, SIDE), "TIFF"),
}


def test_chips_unusual_files_are_all_read(tmp_path: Path, sound_chips: dict[str, int]) -> None:
    made = sound_set(tmp_path)
    for i, content in enumerate(READ_FILES.values()):
        made.add_image(BAD + i, content, f"file{i}.jpg")
    report = build(made, tmp_path / "out")
    assert not report.rejects
    assert set(states(tmp_path / "out").values()) == {None}
    assert chip_sums(tmp_path / "out") == sound_chips
    assert_reconciles(tmp_path / "out", made.content())


@pytest.mark.parametrize("kind", ["missing", "folder", "below a file", "too long a name"])
def test_chips_file_that_cannot_be_opened_costs_only_itself(
    kind: str, tmp_path: Path, sound_chips: dict[str, int]
) -> None:
    made = sound_set(tmp_path)
    name = {"below a file": "1.jpg/bad.jpg", "too long a name": "n" * 300}.get(kind, "bad.jpg")
    made.add_image(BAD, file_name=name, write=False)
    if kind == "folder":
        (made.image_root / "bad.jpg").mkdir()
    report = build(made, tmp_path / "out")
    assert states(tmp_path / "out")[BAD] == ("missing_file" if kind == "missing" else "unreadable_file")
    assert chip_sums(tmp_path / "out") == sound_chips
    assert len(report.rejects) == 1
    assert_reconciles(tmp_path / "out", made.content())


@pytest.mark.parametrize(
    "name",
    [
        "../secret.jpg",
        "sub/../../secret.jpg",
        "..",
        "..\\secret.jpg",
        "sub\\..\\..\\secret.jpg",
        "/etc/hostname",
        "\\\\server\\share\\a.jpg",
        "C:\\pictures\\a.jpg",
        "C:/pictures/a.jpg",
        "http://images.cocodataset.org/val2017/a.jpg",
        "nul\0byte.jpg",
    ],
)
def test_chips_file_name_outside_the_image_folder_is_never_opened(
    name: str, tmp_path: Path, sound_chips: dict[str, int]
) -> None:
    made = sound_set(tmp_path)
    made.add_image(BAD, file_name=name, write=False)
    (tmp_path / "secret.jpg").write_bytes(GOOD_JPEG)
    build(made, tmp_path / "out")
    rows = pl.read_parquet(tmp_path / "out/images.parquet").filter(pl.col("image_id") == BAD)
    assert rows.select("file_name", "reason", "hash").rows() == [(name, "unsafe_path", None)]
    assert fates(tmp_path / "out") == [*SOUND, ("image_refused", "unsafe_path")]
    assert chip_sums(tmp_path / "out", (1, BAD, 999)) == sound_chips
    assert_reconciles(tmp_path / "out", made.content())


def test_chips_file_names_in_sub_folders_and_other_scripts_are_used_as_they_are(tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    names = ["été/图像 01.JPG", "a/b/c/0.jpeg", "b/b/c/0.jpeg", "dots..in.name.jpg", "emoji-\U0001f98a", "..x/y.jpg"]
    for i, name in enumerate(names):
        made.add_image(i, file_name=name)
    build(made, tmp_path / "out")
    assert set(states(tmp_path / "out").values()) == {None}
    assert pl.read_parquet(tmp_path / "out/images.parquet")["file_name"].to_list() == names
    assert len({key[:12] for key in chip_sums(tmp_path / "out", tuple(range(6)))}) == 6
    assert_reconciles(tmp_path / "out", made.content())


BAD_BOXES: dict[str, tuple[Any, str]] = {
    "zero width": ([5, 5, 0, 9], "no_area"),
    "zero height": ([5, 5, 9, 0], "no_area"),
    "negative width": ([5, 5, -3, 9], "no_area"),
    "negative height": ([5, 5, 9, -3.5], "no_area"),
    "both negative": ([30, 30, -9, -9], "no_area"),
    "a width lost in rounding": ([5, 5, 1e-300, 9], "no_area"),
    "an area too small for a number": ([0, 0, 1e-200, 1e-200], "no_area"),
    "NaN": ([5, 5, math.nan, 9], "bad_numbers"),
    "infinite": ([5, 5, math.inf, 9], "bad_numbers"),
    "minus infinite": ([-math.inf, 5, 9, 9], "bad_numbers"),
    "huge": ([5, 5, 1e300, 9], "bad_numbers"),
    "an integer of 60 digits": ([5, 5, 10**60, 9], "bad_numbers"),
    "strings": (["5", "5", "9", "9"], "bad_numbers"),
    "one string": ([5, 5, "9", 9], "bad_numbers"),
    "booleans": ([5, 5, True, True], "bad_numbers"),
    "a null among them": ([5, 5, None, 9], "bad_numbers"),
    "nested": ([[5, 5], [9, 9], 1, 1], "bad_numbers"),
    "three numbers": ([5, 5, 9], "bad_numbers"),
    "five numbers": ([5, 5, 9, 9, 1], "bad_numbers"),
    "none": ([], "bad_numbers"),
    "null": (None, "bad_numbers"),
    "absent": (ABSENT, "bad_numbers"),
    "an object": ({"x": 5, "y": 5, "w": 9, "h": 9}, "bad_numbers"),
    "a string": ("5,5,9,9", "bad_numbers"),
    "right of the image": ([64, 5, 9, 9], "outside_image"),
    "left of the image": ([-9, 5, 9, 9], "outside_image"),
    "far below the image": ([5, 4000, 9, 9], "outside_image"),
}


def test_chips_bad_boxes_are_refused_one_by_one(tmp_path: Path, sound_chips: dict[str, int]) -> None:
    made = sound_set(tmp_path)
    for bbox, _ in BAD_BOXES.values():
        made.add_box(1, bbox)
    build(made, tmp_path / "out")
    refused = [("refused", reason) for _, reason in BAD_BOXES.values()]
    assert fates(tmp_path / "out") == [*SOUND, *refused]
    assert chip_sums(tmp_path / "out") == sound_chips
    assert_reconciles(tmp_path / "out", made.content())
    rejects = pl.read_parquet(tmp_path / "out/rejects.parquet")
    assert rejects["file"].to_list() == ["1.jpg"] * len(BAD_BOXES)
    rows = [int(message.split("]")[0].removeprefix("annotations[")) for message in rejects["message"]]
    assert rows == list(range(3, 3 + len(BAD_BOXES)))  # in the order of the file


def test_chips_box_partly_outside_is_clipped(tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    made.add_image(1, boxes=[[-10, -4, 30, 20], [50, 40, 100, 1000], [-5, -5, 999, 999]])
    report = build(made, tmp_path / "out")
    rows = pl.read_parquet(tmp_path / "out/annotations.parquet").select("x1", "y1", "x2", "y2").rows()
    assert rows == [(0, 0, 20, 16), (50, 40, 64, 64), (0, 0, 64, 64)]
    assert report.counts["boxes"]["clipped_to_image"] == 3
    assert_reconciles(tmp_path / "out", made.content())


BAD_ANNOTATIONS: dict[str, tuple[Any, str]] = {
    "image unknown": ({"id": 70, "image_id": 77, "category_id": 3, "bbox": [1, 1, 9, 9]}, "unknown_image"),
    "no image": ({"id": 71, "category_id": 3, "bbox": [1, 1, 9, 9]}, "unknown_image"),
    "image is a list": ({"id": 72, "image_id": [1], "category_id": 3, "bbox": [1, 1, 9, 9]}, "unknown_image"),
    "category unknown": ({"id": 73, "image_id": 1, "category_id": 4, "bbox": [1, 1, 9, 9]}, "unknown_category"),
    "no category": ({"id": 74, "image_id": 1, "bbox": [1, 1, 9, 9]}, "unknown_category"),
    "iscrowd is a word": (
        {"id": 75, "image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9], "iscrowd": "no"},
        "bad_record",
    ),
    "iscrowd is 2": ({"id": 76, "image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9], "iscrowd": 2}, "bad_record"),
    "a null for a record": (None, "bad_record"),
    "a number for a record": (5, "bad_record"),
    "a string for a record": ("box", "bad_record"),
    "a list for a record": ([1, 1, 9, 9], "bad_record"),
}


def test_chips_bad_annotation_records_are_refused_one_by_one(tmp_path: Path, sound_chips: dict[str, int]) -> None:
    made = sound_set(tmp_path)
    made.annotations += [record for record, _ in BAD_ANNOTATIONS.values()]
    build(made, tmp_path / "out")
    assert fates(tmp_path / "out") == [*SOUND, *(("refused", reason) for _, reason in BAD_ANNOTATIONS.values())]
    assert chip_sums(tmp_path / "out") == sound_chips
    assert_reconciles(tmp_path / "out", made.content())


@pytest.mark.parametrize("ids", [[1, 1, 1], [None, 7.5, True], [2**63, "a", -1]])
def test_chips_ids_of_annotations_are_only_names(ids: list[Any], tmp_path: Path, sound_chips: dict[str, int]) -> None:
    made = sound_set(tmp_path)
    for i, record in enumerate(made.annotations[:3]):
        record["id"] = ids[i]
    build(made, tmp_path / "out")
    assert fates(tmp_path / "out") == SOUND
    assert_reconciles(tmp_path / "out", made.content())
    assert chip_sums(tmp_path / "out") == sound_chips


BAD_IMAGES: dict[str, tuple[Any, str]] = {
    "no id": ({"file_name": "a.jpg", "width": 64, "height": 64}, "bad_record"),
    "id is a fraction": ({"id": 5.5, "file_name": "b.jpg", "width": 64, "height": 64}, "bad_record"),
    "no file_name": ({"id": 50, "width": 64, "height": 64}, "bad_record"),
    "file_name is empty": ({"id": 51, "file_name": "", "width": 64, "height": 64}, "bad_record"),
    "file_name is a number": ({"id": 52, "file_name": 7, "width": 64, "height": 64}, "bad_record"),
    "file_name is half a letter": ({"id": 53, "file_name": "\ud800.jpg", "width": 64, "height": 64}, "bad_record"),
    "no width": ({"id": 54, "file_name": "c.jpg", "height": 64}, "bad_record"),
    "width is a string": ({"id": 55, "file_name": "d.jpg", "width": "wide", "height": 64}, "bad_record"),
    "width is zero": ({"id": 56, "file_name": "e.jpg", "width": 0, "height": 64}, "bad_record"),
    "height is negative": ({"id": 57, "file_name": "f.jpg", "width": 64, "height": -64}, "bad_record"),
    "height is NaN": ({"id": 58, "file_name": "g.jpg", "width": 64, "height": math.nan}, "bad_record"),
    "height is infinite": ({"id": 59, "file_name": "h.jpg", "width": 64, "height": math.inf}, "bad_record"),
    "width is a fraction": ({"id": 60, "file_name": "i.jpg", "width": 64.5, "height": 64}, "bad_record"),
    "file of another image": ({"id": 61, "file_name": "1.jpg", "width": 64, "height": 64}, "repeated_file"),
    "the same, spelled otherwise": ({"id": 62, "file_name": "./1.jpg", "width": 64, "height": 64}, "repeated_file"),
    "the same, with a detour": ({"id": 63, "file_name": ".//1.jpg", "width": 64, "height": 64}, "repeated_file"),
    "a null for a record": (None, "bad_record"),
    "a number for a record": (5, "bad_record"),
    "a string for a record": ("1.jpg", "bad_record"),
}


def test_chips_bad_image_records_are_refused_one_by_one(tmp_path: Path, sound_chips: dict[str, int]) -> None:
    made = sound_set(tmp_path)
    made.images += [record for record, _ in BAD_IMAGES.values()]
    for image_id in range(50, 64):
        made.add_box(image_id, [1, 1, 9, 9])
    build(made, tmp_path / "out")
    out = tmp_path / "out"
    assert states(out)[1] is states(out)[999] is None
    reasons = [reason for _, reason in BAD_IMAGES.values()]
    assert pl.read_parquet(out / "rejects.parquet")["reason"].to_list() == reasons
    assert fates(out)[3:] == [("image_refused", reason) for reason in reasons[2:16]]
    assert chip_sums(out) == sound_chips
    assert_reconciles(out, made.content())


def test_chips_whole_number_written_as_float_is_a_size(tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    made.add_image(1, encoded(texture(SIDE, SIDE)), width=64.0, height=64.0)
    build(made, tmp_path / "out")
    assert states(tmp_path / "out") == {1: None}


def test_chips_optional_keys_may_be_missing(tmp_path: Path, sound_chips: dict[str, int]) -> None:
    made = sound_set(tmp_path)
    for annotation in made.annotations:
        del annotation["iscrowd"]
    assert {"info", "licenses"}.isdisjoint(made.content())
    assert not any("area" in annotation for annotation in made.annotations)
    del made.categories[0]["name"]
    build(made, tmp_path / "out")
    assert chip_sums(tmp_path / "out") == sound_chips
    assert fates(tmp_path / "out") == SOUND
    assert pl.read_parquet(tmp_path / "out/categories.parquet").rows() == [(3, "3", 1)]


@pytest.mark.parametrize(
    "segmentation",
    [
        {"counts": [272, 2, 4, 4], "size": [SIDE, SIDE]},
        {"counts": "\\`_>1O0000", "size": [SIDE, SIDE]},
        [[1, 1, 30, 1, 30, 30]],
        [[1, 1, 30, 30, 30, 1, 1, 30]],
        [],
        None,
        "nonsense",
        [[1, 2], "x", None],
    ],
)
def test_chips_crowd_is_one_whatever_its_segmentation(segmentation: Any, tmp_path: Path) -> None:
    made = sound_set(tmp_path)
    made.add_box(1, [0, 0, 60, 60], iscrowd=1, segmentation=segmentation)
    made.add_box(1, [4, 4, 50, 50], segmentation=segmentation)
    build(made, tmp_path / "out")
    assert fates(tmp_path / "out") == [*SOUND, ("crowd", None), COVERED]
    rows = chip_boxes(tmp_path / "out")
    assert set(rows.filter(pl.col("annotation_id") == 4)["status"]) == {"crowd"}
    assert_reconciles(tmp_path / "out", made.content())


def test_chips_category_ids_with_gaps_and_zero_give_labels_from_one(tmp_path: Path) -> None:
    made = CocoSet(tmp_path, categories=[{"id": i, "name": f"c{i}"} for i in (90, 0, 7, -2)])
    made.add_image(1, boxes=[])
    for category_id in (0, 7, 90, -2):
        made.add_box(1, [8, 8, 40, 40], category_id=category_id)
    build(made, tmp_path / "out")
    expected = [(-2, "c-2", 1), (0, "c0", 2), (7, "c7", 3), (90, "c90", 4)]
    assert pl.read_parquet(tmp_path / "out/categories.parquet").rows() == expected
    boxes = chip_boxes(tmp_path / "out")
    assert set(boxes.select("category_id", "label").rows()) == {(i, label) for i, _, label in expected}
    assert pl.read_parquet(tmp_path / "out/annotations.parquet")["category_id"].to_list() == [0, 7, 90, -2]
    assert_reconciles(tmp_path / "out", made.content())


@pytest.mark.parametrize("image_id", [0, -7, 2**62])
def test_chips_unusual_image_id_is_kept(image_id: int, tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    made.add_image(image_id, encoded(texture(SIDE, SIDE)), "a.jpg")
    build(made, tmp_path / "out")
    assert states(tmp_path / "out") == {image_id: None}
    assert all("." not in key and "/" not in key for key in chip_sums(tmp_path / "out", (image_id,)))
    assert_reconciles(tmp_path / "out", made.content())


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 3000), (3000, 1), (2, 2)])
def test_chips_tiny_and_narrow_images_are_cut(width: int, height: int, tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    made.add_image(1, width=width, height=height, boxes=[[0, 0, width, height], [0, 0, 0.5, 0.5]])
    build(made, tmp_path / "out")
    assert states(tmp_path / "out") == {1: None}
    assert_reconciles(tmp_path / "out", made.content())


def test_chips_images_without_boxes_stay(tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    made.add_image(1, boxes=[])
    made.add_image(2, boxes=[[0, 0, 0, 0]])
    made.add_image(3, boxes=[], write=False)
    report = build(made, tmp_path / "out")
    assert states(tmp_path / "out") == {1: None, 2: None, 3: "missing_file"}
    assert report.counts["images"]["without_boxes"] == 2  # of those that are kept
    assert_reconciles(tmp_path / "out", made.content())


def quarters(width: int, height: int) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right."""
    image = Image.new("RGB", (width, height), (255, 255, 255))
    image.paste((220, 20, 20), (0, 0, width // 2, height // 2))
    image.paste((20, 220, 20), (width // 2, 0, width, height // 2))
    image.paste((20, 20, 220), (0, height // 2, width // 2, height))
    return image


STORED_AS = {  # how an upright picture is stored under each orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 64)])
def test_chips_exif_frame_that_matches_the_json_counts_for_pixels_and_boxes(
    width: int, height: int, orientation: int, kind: str, tmp_path: Path
) -> None:
    turn = STORED_AS[orientation]
    upright = quarters(width, height)
    raw = upright if turn is None else upright.transpose(turn)
    content = encoded(raw, kind, exif=exif(orientation), **({"quality": 95} if kind == "JPEG" else {}))
    made = CocoSet(tmp_path)
    # one box on the red quarter, in the frame that the annotated size means
    made.add_image(1, content, "upright", width, height, [[0, 0, width / 2, height / 2]])
    is_raw_frame = raw.size != upright.size
    if is_raw_frame:
        x, y = np.argwhere(np.asarray(raw)[:, :, 0] - 100.0 > np.asarray(raw)[:, :, 1])[0][::-1]
        made.add_image(2, content, "raw", *raw.size, [[int(x), int(y), height / 2, width / 2]])
    build(made, tmp_path / "out")
    assert set(states(tmp_path / "out").values()) == {None}
    chips = pl.read_parquet(tmp_path / "out/positives/*.parquet").rows(named=True)
    assert {chip["image_id"] for chip in chips} == ({1, 2} if is_raw_frame else {1})
    for chip in chips:
        tar = (tmp_path / "out" / chip["shard"]).read_bytes()
        pixels = simplejpeg.decode_jpeg(tar[chip["offset"] : chip["offset"] + chip["size"]]).astype(int)
        red = (pixels[:, :, 0] > 150) & (pixels[:, :, 1] < 100) & (pixels[:, :, 2] < 100)
        rows, columns = np.nonzero(red)
        (box,) = chip["boxes"]
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        expected = tuple(box[name] for name in ("x1", "y1", "x2", "y2"))
        assert found == pytest.approx(expected, abs=2 + chip["scale"] * 0.6)


def test_chips_size_that_fits_neither_frame_names_both(tmp_path: Path) -> None:
    made = sound_set(tmp_path)
    made.add_image(BAD, encoded(texture(96, 64), exif=exif(6)), "turned.jpg", width=100, height=64)
    report = build(made, tmp_path / "out")
    (reject,) = report.rejects
    assert reject.reason == "size_mismatch"
    assert all(part in reject.message for part in ("turned.jpg", "100x64", "96x64", "64x96"))


def test_chips_pixel_limit_is_a_setting_and_the_message_names_it(tmp_path: Path) -> None:
    made = sound_set(tmp_path)
    report = build(made, tmp_path / "out", ChipSettings(max_pixels=SIDE * SIDE - 1))
    assert set(states(tmp_path / "out").values()) == {"too_many_pixels"}
    assert "chips.max_pixels" in next(iter(report.rejects)).message
    assert "64x64" in next(iter(report.rejects)).message
    assert_reconciles(tmp_path / "out", made.content())
    build(made, tmp_path / "second", ChipSettings(max_pixels=SIDE * SIDE))
    assert set(states(tmp_path / "second").values()) == {None}


def test_chips_all_cases_at_once_give_the_same_for_two_workers(tmp_path: Path, sound_chips: dict[str, int]) -> None:
    made = sound_set(tmp_path)
    for i, (content, _) in enumerate(REFUSED_FILES.values()):
        made.add_image(100 + i, content, f"file{i}.jpg")
    made.annotations += [record for record, _ in BAD_ANNOTATIONS.values()]
    made.images += [record for record, _ in BAD_IMAGES.values()]
    settings = ChipSettings(images_per_shard=5)
    for workers in (1, 2):
        build(made, tmp_path / f"out{workers}", settings, workers=workers)
        assert chip_sums(tmp_path / f"out{workers}") == sound_chips
        assert_reconciles(tmp_path / f"out{workers}", made.content())
    assert digest(tmp_path / "out1") == digest(tmp_path / "out2")


def test_check_lists_all_faults_at_once_and_changes_nothing(tmp_path: Path) -> None:
    made = sound_set(tmp_path)
    for i, (content, _) in enumerate(REFUSED_FILES.values()):
        made.add_image(100 + i, content, f"file{i}.jpg")
    made.add_image(40, file_name="missing.jpg", write=False)
    made.images += [record for record, _ in BAD_IMAGES.values()]
    for bbox, _ in BAD_BOXES.values():
        made.add_box(1, bbox)
    made.annotations += [record for record, _ in BAD_ANNOTATIONS.values()]
    path = made.write()
    before = digest(tmp_path)
    report = check(path, made.image_root)
    assert digest(tmp_path) == before
    all_cases = (REFUSED_FILES, BAD_IMAGES, BAD_ANNOTATIONS, BAD_BOXES)
    expected = [reason for cases in all_cases for _, reason in cases.values()]
    assert sorted(reject.reason for reject in report.rejects) == sorted([*expected, "missing_file"])
    build(made, tmp_path / "out")
    stored = pl.read_parquet(tmp_path / "out/rejects.parquet")["message"].to_list()
    assert [reject.message for reject in report.rejects] == stored


def test_check_more_images_than_a_batch_in_two_workers_keeps_their_order(tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    content = encoded(texture(8, 8))
    for i in range(150):
        made.add_image(i, content if i % 3 else b"", f"{i}.jpg", 8, 8, [])
    report = check(made.write(), made.image_root, Settings(chips=ChipSettings(max_pixels=100)), workers=2)
    assert report.num_read == 100
    assert [reject.id for reject in report.rejects] == list(range(0, 150, 3))


def test_check_without_images_checks_the_file_alone(tmp_path: Path) -> None:
    made = sound_set(tmp_path)
    made.add_image(BAD, file_name="missing.jpg", write=False)
    made.add_box(1, [1, 1, 0, 0])
    report = check(made.write(), None)
    assert [reject.reason for reject in report.rejects] == ["no_area"]
    assert report.num_read == 0


def test_chips_an_image_annotated_as_huge_is_refused_before_it_is_planned(tmp_path: Path) -> None:
    """Planning it would take memory in proportion to its area."""
    made = sound_set(tmp_path)
    made.add_image(60, encoded(texture(8, 8)), "huge.jpg", 2_000_000_000, 2_000_000_000, [])
    for i in range(600):
        made.add_box(60, [3_000_000.0 * i, 3_000_000.0 * i, 20, 20])
    report = build(made, tmp_path / "out")
    assert [reject.reason for reject in report.rejects] == ["too_many_pixels"]
    assert "images[" in next(iter(report.rejects)).message
    assert_reconciles(tmp_path / "out", made.content())


@pytest.mark.parametrize("name", ["bccd/train.json", "coco-real/train.json"])
def test_chips_real_data_builds_cleanly(name: str, tmp_path: Path) -> None:
    source = shared_data(name)
    content = json.loads(source.read_bytes())
    ids = {image["id"] for image in content["images"][:4]}
    made = CocoSet(
        tmp_path,
        [image for image in content["images"] if image["id"] in ids],
        [annotation for annotation in content["annotations"] if annotation["image_id"] in ids],
        content["categories"],
    )
    made.root.mkdir(exist_ok=True)
    (tmp_path / "images").symlink_to(source.parent.resolve() / "images")
    report = build(made, tmp_path / "out")
    assert {reject.reason for reject in report.rejects} <= {"no_area", "outside_image"}
    assert report.counts["images"]["kept"] == 4
    assert report.counts["chips"]["total"] >= 4
    assert_reconciles(tmp_path / "out", made.content())


@pytest.mark.parametrize("name", ["odd/visdrone_train_first50.json", "odd/lvis_val_100.json"])
def test_chips_real_odd_files_are_read_though_their_images_are_missing(name: str, tmp_path: Path) -> None:
    content = json.loads(shared_data(name).read_bytes())
    made = CocoSet(tmp_path, content["images"], content["annotations"], content["categories"])
    report = build(made, tmp_path / "out")
    assert report.counts["images"]["kept"] == 0
    assert report.counts["boxes"]["total"] == len(content["annotations"])
    assert_reconciles(tmp_path / "out", made.content())


@pytest.mark.parametrize("name", ["odd/lfs_pointer_instead_of_json.json", "odd/BloodImage_00338.xml"])
def test_chips_real_file_that_is_not_coco_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = shared_data(name)
    with pytest.raises(DataError) as caught:
        chips(path, tmp_path, tmp_path / "out", Settings())
    assert str(caught.value).startswith(f"{path}: ")
    assert ("git lfs pull" in str(caught.value)) == ("lfs" in name)
    assert not (tmp_path / "out").exists()


def test_check_says_that_nothing_can_be_trained_on_as_chips_does(tmp_path: Path, sniper: RunSniper) -> None:
    """Of crowds and of a box that is too small, each in order by itself, no chip can be made."""
    made = sound_set(tmp_path)
    for box in made.annotations[1:]:
        box["iscrowd"] = 1
    made.annotations[0]["bbox"] = [1, 1, 1.2, 9]
    path, said = made.write(), "is a target in any chip, so nothing can be trained on: the commonest reason is"
    data = ("--annotations", path, "--images", made.image_root, "--set", "chips.ranges=[[0, null]]", "--set")
    checked = sniper("check", *data, "chips.scales=[1]")
    assert checked.status == 1
    assert said in checked.out
    assert "nothing wrong" not in checked.out
    assert said in sniper("chips", *data, "chips.scales=[1]", "--out", tmp_path / "out").err
    assert sniper("check", *data, "chips.scales=[9]").status == 0  # the box is large enough there


def test_check_report_is_written_over_nothing_but_a_report(tmp_path: Path, sniper: RunSniper) -> None:
    made = sound_set(tmp_path)
    made.add_box(1, [1, 1, 0, 0])
    path, mine = made.write(), tmp_path / "labels.csv"
    mine.write_text("file,label\n")
    told = sniper("check", "--annotations", path, "--report", mine)
    assert told.status == 2
    assert "was not written by `sniper check --report`" in told.err
    assert mine.read_text() == "file,label\n"
    (tmp_path / "mine.parquet").write_text("mine")
    assert sniper("check", "--annotations", path, "--report", tmp_path / "mine.parquet").status == 2
    for name in ("a.csv", "a.CSV", "a.parquet"):
        for _ in range(2):
            assert sniper("check", "--annotations", path, "--report", tmp_path / "new" / name).status == 1
    assert (tmp_path / "new/a.CSV").read_bytes() == (tmp_path / "new/a.csv").read_bytes()
