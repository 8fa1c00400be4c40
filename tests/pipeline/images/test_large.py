"""Large TIFFs read by windows: the pixels, frames and refusals of small files, in bounded memory."""

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import xxhash
from PIL import Image, features

from pipeline.coco import SourceImage
from pipeline.commands.check import check
from pipeline.commands.chips import chips
from pipeline.images import chip, sources
from pipeline.images.chip import Large, cut_chip
from pipeline.images.decode import ImageRefusedError, decode_given
from pipeline.images.frames import TURNS
from pipeline.images.sources import Findings, open_sources
from pipeline.insight.show import show
from pipeline.storage import Location, location, read_range
from schemas.codes import Reason
from schemas.errors import DataError
from schemas.settings import ChipSettings, Settings
from tests.builders import CocoSet, encoded, read_image, texture

SIZE = (150, 120)
PIXELS = texture(*SIZE)
if not features.check("libtiff"):
    pytest.skip("Pillow was built without libtiff", allow_module_level=True)


def tiled(
    image: Image.Image, tile: int = 64, *, planar: bool = False, lost: int | None = None, packed: bool = True
) -> bytes:
    """A TIFF of deflated tiles, or of plain ones; tile number `lost` was never written."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    down, across = -(-height // tile), -(-width // tile)
    padded = np.zeros((down * tile, across * tile, 3), np.uint8)
    padded[:height, :width] = pixels
    corners = [(y * tile, x * tile) for y in range(down) for x in range(across)]
    blocks = [padded[y : y + tile, x : x + tile] for y, x in corners]
    parts = [block[..., band] for band in range(3) for block in blocks] if planar else blocks
    pack = zlib.compress if packed else bytes
    data = [b"" if i == lost else pack(part.tobytes()) for i, part in enumerate(parts)]
    return tiff_of(data, width, height, tile, planar=planar, packed=packed)


def tiff_of(
    data: list[bytes], width: int, height: int, tile: int, *, planar: bool = False, packed: bool = True
) -> bytes:
    """A TIFF whose tiles are these, in RGB; equal ones are written once, and empty ones stand nowhere."""
    tags: dict[int, list[int]] = {256: [width], 257: [height], 258: [8] * 3, 262: [2], 277: [3]}
    tags[259] = [8 if packed else 1]
    tags |= {284: [2 if planar else 1], 322: [tile], 323: [tile], 324: [0] * len(data), 325: [len(d) for d in data]}
    start = 8 + 2 + 12 * len(tags) + 4
    end = start + sum(4 * len(values) for values in tags.values() if len(values) > 1)
    place: dict[bytes, int] = {b"": 0}
    for part in data:
        if part not in place:
            place[part] = end
            end += len(part)
    tags[324] = [place[part] for part in data]
    entries, extra = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += packed if len(packed) == 4 else struct.pack("<I", start + len(extra))
        extra += b"" if len(packed) == 4 else packed
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + extra + b"".join(place)


FILES: dict[str, bytes] = {
    "tiles": tiled(PIXELS),
    "tiles of planes": tiled(PIXELS, planar=True),
    "strips": encoded(PIXELS, "TIFF", tiffinfo={278: 16}),
    "LZW strips": encoded(PIXELS, "TIFF", compression="tiff_lzw", tiffinfo={278: 16}),
    "LZW strips with a predictor": encoded(PIXELS, "TIFF", compression="tiff_lzw", tiffinfo={278: 16, 317: 2}),
    "packed bits": encoded(PIXELS, "TIFF", compression="packbits", tiffinfo={278: 7}),
    "JPEG": encoded(PIXELS, "TIFF", compression="jpeg", tiffinfo={278: 16}),
    "grey": encoded(PIXELS.convert("L"), "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: 16}),
    "palette": encoded(PIXELS.convert("P"), "TIFF", compression="tiff_lzw", tiffinfo={278: 16}),
    "alpha": encoded(PIXELS.convert("RGBA"), "TIFF", compression="tiff_lzw", tiffinfo={278: 16}),
    "black and white": encoded(PIXELS.convert("1"), "TIFF", compression="group4", tiffinfo={278: 16}),
    "fax in two dimensions": encoded(PIXELS.convert("1"), "TIFF", compression="group3", tiffinfo={278: 16, 292: 1}),
}


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every TIFF counts as large, and every resize takes several bands."""
    monkeypatch.setattr(sources, "LARGE_PIXELS", 100)
    monkeypatch.setattr(chip, "BAND_PIXELS", 5_000)


def opened(folder: Path, content: bytes, size: tuple[int, int] = SIZE, **options: Any) -> tuple[Any, Findings]:
    (folder / "a.tif").write_bytes(content)
    findings = Findings()
    source = SourceImage(1, "a.tif", *size)
    [(_, _, picture)] = open_sources(folder, [source], 200_000_000, findings, **options)
    return picture, findings


def whole(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    return image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.usefixtures("all_large")
def test_open_large__windows_have_the_pixels_of_the_whole(name: str, tmp_path: Path) -> None:
    picture, _ = opened(tmp_path, FILES[name])
    assert isinstance(picture, Large)
    expected = np.asarray(whole(FILES[name]))
    for x1, y1, x2, y2 in ((0, 0, *SIZE), (3, 5, 50, 47), (60, 70, *SIZE), (64, 64, 128, 120), (149, 119, *SIZE)):
        assert (np.asarray(picture.region(x1, y1, x2, y2)) == expected[y1:y2, x1:x2]).all()


@pytest.mark.usefixtures("all_large")
def test_open_large__a_tile_that_was_never_written_is_black(tmp_path: Path) -> None:
    picture, _ = opened(tmp_path, tiled(PIXELS, lost=1))
    expected = np.asarray(PIXELS).copy()
    expected[:64, 64:128] = 0
    assert (np.asarray(picture.region(0, 0, *SIZE)) == expected).all()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize("lost", [0, 1, 5])
def test_read_image__of_a_sparse_tiff_has_the_pixels_of_its_windows(packed: bool, planar: bool, lost: int) -> None:
    """Pillow takes the first bytes of the file for a plain tile that was never written, and fails at a packed one."""
    content = tiled(PIXELS, planar=planar, lost=lost, packed=packed)
    for read in (
        lambda: read_image(content, *SIZE, 1_000_000),
        lambda: decode_given(Image.open(io.BytesIO(content))),
    ):
        if planar:
            with pytest.raises(ImageRefusedError, match="was written for some of its bands only"):
                read()
            continue
        expected = np.asarray(PIXELS).copy()
        y, x = 64 * (lost // 3), 64 * (lost % 3)
        expected[y : y + 64, x : x + 64] = 0
        assert (np.asarray(read())[..., :3] == expected).all()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_read_image__of_a_sparse_tiff_is_in_the_annotated_frame(orientation: int) -> None:
    content = bytearray(encoded(PIXELS, "TIFF", tiffinfo={278: 16, 274: orientation}))
    with Image.open(io.BytesIO(content)) as image:
        first = struct.pack("<I", image.tag_v2[273][0])
    place = content.index(first + struct.pack("<I", image.tag_v2[273][1]))
    content[place : place + 4] = bytes(4)
    stored = np.asarray(PIXELS).copy()
    stored[:16] = 0
    turned = Image.fromarray(stored).transpose(TURNS[orientation])
    assert (np.asarray(read_image(bytes(content), *turned.size, 1_000_000))[..., :3] == np.asarray(turned)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.usefixtures("all_large")
def test_open_large__windows_are_those_of_the_frame_that_is_annotated(orientation: int, tmp_path: Path) -> None:
    content = encoded(PIXELS, "TIFF", compression="tiff_lzw", tiffinfo={278: 16, 274: orientation})
    turned = PIXELS.transpose(TURNS[orientation]) if orientation > 1 else PIXELS
    for expected in (turned, PIXELS) if orientation >= 5 else (turned,):
        picture, _ = opened(tmp_path, content, expected.size)
        for box in ((0, 0, *expected.size), (11, 23, 80, 101)):
            assert (np.asarray(picture.region(*box)) == np.asarray(expected.crop(box))).all()


@pytest.mark.usefixtures("all_large")
def test_open_large__reads_windows_from_a_store_and_never_the_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    root = location("memory://large-images")
    (root / "a.tif").write_bytes(FILES["tiles"])
    asked: list[tuple[int, int]] = []

    def watched(place: Location, offset: int, size: int) -> bytes:
        asked.append((offset, size))
        return read_range(place, offset, size)

    monkeypatch.setattr(sources, "read_range", watched)
    options: dict[str, Any] = {"thorough": False}
    [(_, image_hash, picture)] = open_sources(root, [SourceImage(1, "a.tif", *SIZE)], 1, Findings(), **options)
    assert image_hash is None
    assert asked == []
    assert (np.asarray(picture.region(70, 70, 100, 100)) == np.asarray(PIXELS)[70:100, 70:100]).all()
    assert len(asked) == 1  # the one tile that holds the window
    [(_, image_hash, _)] = open_sources(root, [SourceImage(1, "a.tif", *SIZE)], 1, Findings())
    assert image_hash == xxhash.xxh3_128_hexdigest(FILES["tiles"])


@pytest.mark.usefixtures("all_large")
def test_cut_chip__of_a_large_image_is_that_of_a_small_one(tmp_path: Path) -> None:
    picture, _ = opened(tmp_path, FILES["tiles"])
    for window, scale, size in (
        ((0.0, 0.0, 150.0, 120.0), 64 / 150, (64, 52)),
        ((10.3, 20.7, 60.9, 71.3), 3.0, (152, 152)),
        ((100.25, 80.5, 150.0, 120.0), 1.667, (83, 66)),
    ):
        expected = cut_chip(PIXELS, window, scale, *size).astype(int)
        found = cut_chip(picture, window, scale, *size).astype(int)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1
        assert (found != expected).mean() < 0.02


@pytest.mark.usefixtures("all_large")
def test_open_large__a_damaged_tile_refuses_the_image_as_a_whole(tmp_path: Path) -> None:
    data = bytearray(FILES["tiles"])
    data[-200:] = bytes(200)
    picture, findings = opened(tmp_path, bytes(data))
    assert picture is None
    assert findings.rejects[0].reason == Reason.UNDECODABLE
    assert "the tile at 128,64 cannot be decoded" in findings.rejects[0].message
    lazily, _ = opened(tmp_path, bytes(data), thorough=False)
    assert lazily.region(0, 0, 64, 64).size == (64, 64)  # what is sound can be searched


@pytest.mark.usefixtures("all_large")
def test_open_large__has_the_refusals_of_small_files(tmp_path: Path) -> None:
    deep = Image.fromarray(np.zeros(SIZE[::-1], np.uint16))
    for content, size, reason in (
        (encoded(deep, "TIFF", tiffinfo={278: 16}), SIZE, Reason.UNSUPPORTED_DEPTH),
        (FILES["tiles"], (151, 120), Reason.SIZE_MISMATCH),
        (FILES["tiles"][:100], SIZE, Reason.UNDECODABLE),
        (b"nothing", SIZE, Reason.NOT_AN_IMAGE),
        (b"", SIZE, Reason.EMPTY_FILE),
    ):
        _, findings = opened(tmp_path, content, size)
        assert [reject.reason for reject in findings.rejects] == [reason]
    missing = Findings()
    list(open_sources(tmp_path, [SourceImage(1, "none.tif", *SIZE)], 1, missing))
    assert [reject.reason for reject in missing.rejects] == [Reason.MISSING_FILE]


def test_open_sources__a_large_file_of_another_kind_is_refused_with_the_command_that_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LARGE_PIXELS", 100)
    for name, content in (("a.jpg", encoded(PIXELS)), ("a.tif", encoded(PIXELS, "PNG"))):
        (tmp_path / name).write_bytes(content)
        findings = Findings()
        list(open_sources(tmp_path, [SourceImage(1, name, *SIZE)], 1000, findings))
        assert findings.rejects[0].reason == Reason.TOO_MANY_PIXELS
        assert "gdal_translate -of COG" in findings.rejects[0].message


def test_chips__of_a_tiled_tiff_above_max_pixels(tmp_path: Path) -> None:
    """A picture of 9,000 x 9,000 px, annotated near two corners, is checked and cut in one piece of work."""
    side, tile = 9_000, 512
    object_tile = np.full((tile, tile, 3), 90, np.uint8)
    object_tile[100:140, 100:140] = 255
    blocks = [zlib.compress(np.full((tile, tile, 3), 90, np.uint8).tobytes()), zlib.compress(object_tile.tobytes())]
    across = -(-side // tile)
    data = [blocks[i in (0, 16 * across + 16)] for i in range(across**2)]
    coco = CocoSet(tmp_path)
    far = 16 * tile + 100
    boxes = [[100, 100, 40, 40], [far, far, 40, 40]]
    coco.add_image(1, tiff_of(data, side, side, tile), "a.tif", side, side, boxes=boxes)
    settings = ChipSettings(max_pixels=1_000_000)
    assert not check(coco.write(), coco.image_root, Settings(chips=ChipSettings(max_pixels=1_000_000))).rejects
    report = chips(coco.path, coco.image_root, tmp_path / "out", Settings(chips=settings))
    assert not report.rejects
    found = 0
    for row in pl.read_parquet(tmp_path / "out/positives/chips-*.parquet").to_dicts():
        with (tmp_path / "out" / row["shard"]).open("rb") as tar:
            tar.seek(row["offset"])
            pixels = np.asarray(Image.open(io.BytesIO(tar.read(row["size"]))))
        for box in row["boxes"]:
            x, y = int((box["x1"] + box["x2"]) / 2), int((box["y1"] + box["y2"]) / 2)
            if box["x2"] - box["x1"] > 30:
                found += 1
                assert pixels[y, x] == pytest.approx((255, 255, 255), abs=6)
    assert found >= 2


MEMORY = """
import resource, sys
from pathlib import Path
from pipeline.coco import SourceImage
from pipeline.images.chip import cut_chip
from pipeline.images.sources import Findings, open_sources
import pipeline.images.large
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
findings = Findings()
width, height = 30_000, 8_000
[(_, _, picture)] = open_sources(Path(sys.argv[1]), [SourceImage(1, "a.tif", width, height)], 200_000_000, findings)
assert not findings.rejects, findings.rejects
cut_chip(picture, (0, 0, width, height), 512 / width, 512, 136)
cut_chip(picture, (29_000, 7_000, 29_171, 7_171), 3.0, 512, 512)
print((peak() - before) / (width * height))
"""


def test_open_large__takes_bounded_memory(tmp_path: Path) -> None:
    """240 million pixels would take 960 MB as a whole; a third of that is left for the tiles and a band."""
    block = zlib.compress(np.full((512, 512, 3), 90, np.uint8).tobytes())
    (tmp_path / "a.tif").write_bytes(tiff_of([block] * (59 * 16), 30_000, 8_000, 512))
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 4 / 3


@pytest.mark.usefixtures("all_large")
def test_show__of_a_large_image_that_was_damaged_since(tmp_path: Path) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 30]}
    image = {"id": 1, "file_name": "a.tif", "width": SIZE[0], "height": SIZE[1]}
    coco = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(coco))
    file = tmp_path / "images/a.tif"
    file.parent.mkdir()
    file.write_bytes(FILES["tiles"])
    settings = ChipSettings.model_validate({"size": 64, "scales": [1.0], "ranges": [[0, None]]})
    chips(tmp_path / "a.json", file.parent, tmp_path / "out", Settings(chips=settings))
    file.write_bytes(FILES["tiles"][:-200] + bytes(200))
    with pytest.raises(DataError, match=r"a\.tif: .*the tile at 128,64 cannot be decoded"):
        show(tmp_path / "out", tmp_path / "sheet.png", image=1)


@pytest.mark.usefixtures("all_large")
def test_chips__a_large_image_that_fails_between_its_check_and_its_chips_stops_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.tif").write_bytes(FILES["tiles"])
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 30]}
    image = {"id": 1, "file_name": "a.tif", "width": SIZE[0], "height": SIZE[1]}
    coco = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(coco))
    settings = ChipSettings.model_validate({"size": 64, "scales": [1.0], "ranges": [[0, None]]})

    def fails(*_: object) -> None:
        raise ImageRefusedError(Reason.UNDECODABLE, "the tile at 0,0 cannot be decoded")

    monkeypatch.setattr("pipeline.dataset.cutting.cut_chip", fails)
    with pytest.raises(DataError, match=r"a\.tif: the tile at 0,0 .* which was in order when it was opened"):
        chips(tmp_path / "a.json", tmp_path / "images", tmp_path / "out", Settings(chips=settings))
