"""Reading one image file: what is accepted, in which frame and colours, and what is refused."""

import io
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.images.chip import cut_chip, encode_jpeg
from pipeline.images.decode import ImageRefusedError, to_rgb, undecodable
from schemas.codes import Reason
from tests.builders import deep_png, encoded, exif, read_image, texture, with_size

LIMIT = 200_000_000
GREY = (128, 128, 128)


def read(content: bytes, width: int, height: int) -> np.ndarray:
    """Pixels [h, w, 3] as the pipeline sees them."""
    image = read_image(content, width, height, LIMIT)
    assert image.mode in ("RGB", "RGBX")
    assert image.size == (width, height)
    return np.asarray(image.convert("RGB")).astype(int)


def refusal(content: bytes, width: int = 64, height: int = 64, limit: int = LIMIT) -> ImageRefusedError:
    with pytest.raises(ImageRefusedError) as caught:
        read_image(content, width, height, limit)
    return caught.value


def halves(mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue, 40 x 24."""
    image = Image.new("RGB", (40, 24), (250, 10, 10))
    image.paste((10, 10, 250), (20, 0, 40, 24))
    return image.convert(mode)


def assert_halves(pixels: np.ndarray) -> None:
    assert pixels[12, 5] == pytest.approx((250, 10, 10), abs=12)
    assert pixels[12, 34] == pytest.approx((10, 10, 250), abs=12)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM", "JPEG"])
def test_read_image_plain_rgb_keeps_its_colours(kind: str) -> None:
    assert_halves(read(encoded(halves(), kind), 40, 24))


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_read_image_png_modes_become_rgb(mode: str) -> None:
    assert_halves(read(encoded(halves(mode), "PNG"), 40, 24))


def test_read_image_cmyk_jpeg_keeps_its_colours() -> None:
    pixels = read(encoded(halves("CMYK"), quality=95), 40, 24)
    assert pixels[12, 5, 0] > 200 > 100 > pixels[12, 5, 2]
    assert pixels[12, 34, 2] > 200 > 100 > pixels[12, 34, 0]


def test_read_image_inverted_adobe_cmyk_jpeg_keeps_its_colours() -> None:
    plain = encoded(halves("CMYK"), quality=95)
    assert b"Adobe" in plain  # Pillow writes it inverted, as Photoshop does
    assert read(plain, 40, 24)[12, 5, 0] > 200


@pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255])])
def test_read_image_transparent_palette_keeps_the_colours_below(transparency: int | bytes) -> None:
    assert_halves(read(encoded(halves("P"), "PNG", transparency=transparency), 40, 24))


def test_read_image_alpha_is_dropped_not_blended() -> None:
    image = halves("RGBA")
    image.putalpha(0)
    assert_halves(read(encoded(image, "PNG"), 40, 24))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_read_image_grey_has_three_equal_channels(kind: str) -> None:
    pixels = read(encoded(Image.new("L", (40, 24), 77), kind), 40, 24)
    assert np.abs(pixels - 77).max() <= 1


def test_read_image_grey_with_alpha_keeps_its_grey() -> None:
    image = Image.new("LA", (40, 24), (77, 3))
    assert (read(encoded(image, "PNG"), 40, 24) == 77).all()


def test_read_image_one_bit_becomes_black_and_white() -> None:
    image = Image.new("1", (40, 24), 1)
    assert (read(encoded(image, "PNG"), 40, 24) == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "MPO", "TIFF", "PNG"])
def test_read_image_first_of_several_frames_is_used(kind: str) -> None:
    other = Image.new("RGB", (40, 24), (0, 255, 0))
    if kind == "TIFF":
        content = encoded(halves(), kind, save_all=True, append_images=[other])
    else:
        content = encoded(halves(), kind, save_all=True, append_images=[other, other])
    assert getattr(Image.open(io.BytesIO(content)), "n_frames", 1) > 1
    assert_halves(read(content, 40, 24))


def test_read_image_damage_behind_the_first_frame_does_no_harm() -> None:
    frames = [texture(16, 12, seed).quantize(16) for seed in range(2)]
    first = encoded(frames[0], "GIF")
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    for end in range(len(first), len(content)):
        assert (read(content[:end], 16, 12) == read(first, 16, 12)).all()


def test_read_image_progressive_jpeg_equals_what_pillow_decodes() -> None:
    content = encoded(texture(40, 24), progressive=True, quality=90)
    expected = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    assert np.abs(read(content, 40, 24) - expected).max() <= 3


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_read_image_square_is_turned_as_exif_says(orientation: int) -> None:
    raw = texture(32, 32, orientation)
    content = encoded(raw, "PNG", exif=exif(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert (read(content, 32, 32) == expected).all()
    assert not (read(content, 32, 32) == np.asarray(raw)).all()


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_read_image_orientation_that_does_not_exist_changes_nothing(orientation: int) -> None:
    raw = texture(32, 32)
    assert (read(encoded(raw, "PNG", exif=exif(orientation)), 32, 32) == np.asarray(raw)).all()


@pytest.mark.parametrize(
    "damage", [b"Exif\0\0", b"Exif\0\0MM", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"x" * 50]
)
def test_read_image_damaged_exif_costs_nothing(damage: bytes, recwarn: pytest.WarningsRecorder) -> None:
    raw = texture(32, 32)
    content = encoded(raw, exif=damage, quality=95)
    assert np.abs(read(content, 32, 32) - np.asarray(raw)).mean() < 12
    assert len(recwarn) == 0


def test_read_image_jpeg_cut_anywhere_is_refused() -> None:
    content = encoded(texture(64, 64), quality=90)
    for length in range(1, len(content) - 1, 7):
        assert refusal(content[:length]).reason in (Reason.NOT_AN_IMAGE, Reason.UNDECODABLE), length


def test_read_image_progressive_jpeg_cut_anywhere_is_refused() -> None:
    content = encoded(texture(64, 64), quality=90, progressive=True)
    for length in range(1, len(content) - 1, 7):
        assert refusal(content[:length]).reason in (Reason.NOT_AN_IMAGE, Reason.UNDECODABLE), length


def test_read_image_png_cut_anywhere_is_refused() -> None:
    content = encoded(texture(32, 32), "PNG")
    for length in range(1, len(content) - 1, 11):
        assert refusal(content[:length], 32, 32).reason in (Reason.NOT_AN_IMAGE, Reason.UNDECODABLE), length


def test_read_image_png_with_any_changed_byte_of_pixels_is_refused() -> None:
    content = encoded(texture(32, 32), "PNG")
    start = content.index(b"IDAT") + 4
    for position in range(start, len(content) - 16, 13):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        assert refusal(bytes(damaged), 32, 32).reason == Reason.UNDECODABLE, position


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_read_image_zeros_in_a_jpeg_are_noticed_nearly_always(options: dict[str, bool]) -> None:
    """A JPEG has no checksums: damage whose bits happen to end where the sound ones would cannot be noticed."""
    content = encoded(texture(96, 96), quality=90, **options)
    start, length = content.index(b"\xff\xda") + 14, len(content) // 10
    positions = range(start, len(content) - length - 2, 29)
    noticed = 0
    for position in positions:
        try:
            read(content[:position] + bytes(length) + content[position + length :], 96, 96)
        except ImageRefusedError:
            noticed += 1
    assert noticed >= 0.95 * len(positions)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_read_image_padding_before_the_end_mark_is_harmless(options: dict[str, bool]) -> None:
    content = encoded(texture(64, 64), quality=90, **options)
    padded = content[:-2] + bytes(10) + content[-2:]
    with pytest.raises(ValueError, match="extraneous bytes before marker 0xd9"):
        simplejpeg.decode_jpeg(padded)
    assert np.abs(read(padded, 64, 64) - read(content, 64, 64)).max() <= 3


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_read_image_16_bit_png_is_refused_and_not_clipped(channels: int) -> None:
    error = refusal(deep_png(8, 8, channels), 8, 8)
    assert error.reason == Reason.UNSUPPORTED_DEPTH
    assert "8 bits" in error.message


def tiff(
    width: int, height: int, num_bands: int, planar: int = 1, others: dict[int, list[int]] | None = None
) -> bytes:
    """An RGB TIFF of 8 bits with further bands of no meaning, uncompressed; planar 2: band after band.

    `others` are the values of further tags, such as 258, bits per sample.
    """
    offset = 1000
    band = width * height * max((others or {}).get(258, [8])) // 8
    plane_bytes, planes = (band, num_bands) if planar == 2 else (num_bands * band, 1)
    lists = {258: [8] * num_bands, 338: [0] * (num_bands - 3)} | (others or {})
    lists = {tag: values for tag, values in lists.items() if values}
    if planes > 1:
        lists |= {273: [offset + i * band for i in range(planes)], 279: [plane_bytes] * planes}
    fields = {256: width, 257: height, 259: 1, 262: 2, 273: offset, 277: num_bands, 278: height, 279: plane_bytes}
    entries, extra = [], b""
    start = 8 + 2 + 12 * (len(fields | lists) + 1) + 4
    for tag in sorted(fields | lists | {284: 0}):
        values = lists.get(tag) or [{284: planar, **fields}.get(tag, 0)]
        packed = struct.pack(f"<{len(values)}I", *values)
        where = packed if len(packed) == 4 else struct.pack("<I", start + len(extra))
        extra += b"" if len(packed) == 4 else packed
        entries.append(struct.pack("<HHI", tag, 4, len(values)) + where)
    head = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4) + extra
    return head.ljust(offset, b"\0") + bytes(range(256)) * (num_bands * band // 256 + 1)


@pytest.mark.parametrize("num_bands", [5, 6])
@pytest.mark.parametrize("planar", [1, 2])
def test_read_image_tiff_of_more_bands_than_four_is_refused_and_not_taken_for_rgb(num_bands: int, planar: int) -> None:
    assert read(tiff(16, 8, 4), 16, 8).shape == (8, 16, 3)
    error = refusal(tiff(16, 8, num_bands, planar), 16, 8)
    assert error.reason == Reason.UNSUPPORTED_DEPTH
    assert f"has {num_bands} bands" in error.message


@pytest.mark.parametrize("planar", [1, 2])
def test_read_image_16_bit_tiff_is_refused_and_not_clipped_in_any_layout(planar: int) -> None:
    content = tiff(16, 8, 3, planar, {258: [16] * 3})
    error = refusal(content, 16, 8)
    assert error.reason == Reason.UNSUPPORTED_DEPTH
    assert "gdal_translate -ot Byte" in error.message


@pytest.mark.parametrize("kind_of_values", [2, 3])
def test_read_image_signed_and_floating_tiff_is_refused_and_not_taken_for_unsigned(kind_of_values: int) -> None:
    assert read(tiff(16, 8, 3, 1, {339: [1] * 3}), 16, 8).shape == (8, 16, 3)
    signed_grey = encoded(Image.new("L", (16, 8)), "TIFF", tiffinfo={339: kind_of_values})
    for content in (signed_grey, tiff(16, 8, 3, 1, {339: [kind_of_values] * 3})):
        assert refusal(content, 16, 8).reason == Reason.UNSUPPORTED_DEPTH


def test_read_image_says_what_a_file_is_that_is_no_image() -> None:
    assert "git lfs pull" in refusal(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n").message
    assert "HTML page" in refusal(b"<!DOCTYPE html><html>404</html>").message
    assert "a HEIC or AVIF file" in refusal(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic").message
    damaged = refusal(encoded(texture(16, 16))[:100], 16, 16)
    assert damaged.reason == Reason.UNDECODABLE
    assert "JPEG file that cannot be opened" in damaged.message


def test_read_image_limit_stands_before_decoding_and_is_named() -> None:
    error = refusal(with_size(encoded(texture(64, 64)), 20_000, 20_000), 20_000, 20_000)
    assert error.reason == Reason.TOO_MANY_PIXELS
    for part in ("20000x20000", "200,000,000", "chips.max_pixels", "gdal_translate"):
        assert part in error.message


def test_read_image_exactly_at_the_limit_is_read() -> None:
    content = encoded(texture(64, 32))
    assert read_image(content, 64, 32, 64 * 32).size == (64, 32)
    assert refusal(content, 64, 32, 64 * 32 - 1).reason == Reason.TOO_MANY_PIXELS


def test_image_refused_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageRefusedError(Reason.EMPTY_FILE, "nothing")))
    assert (error.reason, error.message) == (Reason.EMPTY_FILE, "nothing")


MEASURE = """
import io, resource, sys
from pathlib import Path
from pipeline.images.decode import ImageRefusedError, decode_image, open_image, to_rgb
from pipeline.images.chip import cut_chip
import pipeline.images, simplejpeg
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
data = Path(sys.argv[1]).read_bytes()
width, height = int(sys.argv[2]), int(sys.argv[3])
before = peak()
try:
    image = decode_image(open_image(io.BytesIO(data)), width, height, 200_000_000)
    for i in range(20):
        cut_chip(image, (i * 100, i * 90, i * 100 + 171, i * 90 + 171), 3.0, 512, 512)
except ImageRefusedError as error:
    print(error.reason, end=" ")
else:
    print("read", end=" ")
print((peak() - before) / (width * height))
"""


def measure(content: bytes, width: int, height: int, folder: Path) -> tuple[str, float]:
    """Outcome, and bytes of memory per pixel that reading and cutting took at their peak, in a new process."""
    path = folder / "image"
    path.write_bytes(content)
    command = [sys.executable, "-c", MEASURE, str(path), str(width), str(height)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    outcome, per_pixel = done.stdout.split()
    return outcome, float(per_pixel)


@pytest.mark.parametrize(
    ("mode", "kind", "options", "bytes_per_pixel"),
    [
        ("RGB", "JPEG", {}, 4),  # what the pipeline holds: RGBX
        ("RGB", "JPEG", {"exif": exif(6)}, 8),  # and once more while it is turned
        ("P", "PNG", {"compress_level": 1}, 9),
        ("RGBA", "PNG", {"compress_level": 1}, 8),
    ],
)
def test_read_image_large_image_takes_bounded_memory(
    mode: str, kind: str, options: dict[str, object], bytes_per_pixel: float, tmp_path: Path
) -> None:
    content = encoded(Image.new("RGB", (6000, 5000), GREY).convert(mode), kind, **options)
    size = (5000, 6000) if "exif" in options else (6000, 5000)
    outcome, per_pixel = measure(content, *size, tmp_path)
    assert outcome == "read"
    assert per_pixel < bytes_per_pixel + 1


def test_read_image_20000_x_20000_is_refused_without_its_memory(tmp_path: Path) -> None:
    outcome, per_pixel = measure(with_size(encoded(texture(64, 64)), 20_000, 20_000), 20_000, 20_000, tmp_path)
    assert outcome == "too_many_pixels"
    assert per_pixel < 0.1


ODD_SEEDS = [
    encoded(texture(16, 12), exif=exif(6)),
    encoded(texture(16, 12), progressive=True),
    encoded(texture(16, 12).convert("CMYK")),
    encoded(texture(16, 12), "PNG", exif=exif(3)),
    encoded(texture(16, 12).convert("P"), "PNG", transparency=3),
    encoded(texture(16, 12), "GIF", save_all=True, append_images=[texture(16, 12, 1)]),
    encoded(texture(16, 12), "BMP"),
    encoded(texture(16, 12), "TIFF"),
    encoded(texture(16, 12), "PPM"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=600)
@given(st.data())
def test_read_image_mangled_file_is_read_or_refused_and_never_raises_anything_else(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(ODD_SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, max(len(content) - 1, 0)))
        if data.draw(st.booleans()):
            content[position : position + 1] = data.draw(st.binary(min_size=0, max_size=4))
        else:
            del content[position : position + data.draw(st.integers(1, 40))]
    try:
        image = read_image(bytes(content), 16, 12, 1_000_000)
    except ImageRefusedError:
        return
    assert image.size == (16, 12)


@pytest.mark.parametrize(("subsampling", "mode"), [("420", "RGB"), ("422", "RGB"), ("444", "RGBX")])
def test_encode_jpeg_of_cut_chip_can_be_read_back(subsampling: str, mode: str) -> None:
    image = texture(64, 48)
    if mode == "RGBX":
        image = read_image(encoded(image, quality=95), 64, 48, LIMIT)
        assert image.mode == "RGBX"
    pixels = cut_chip(image, (0, 0, 64, 48), 2.0, 128, 96)
    assert pixels.shape[:2] == (96, 128)
    again = read(encode_jpeg(pixels, 95, subsampling), 128, 96)
    assert np.abs(again - pixels[:, :, :3].astype(int)).mean() < 6


def test_read_image_cielab_and_modes_that_pillow_cannot_convert_are_refused() -> None:
    lab = encoded(Image.frombytes("LAB", (64, 64), bytes(64 * 64 * 3)), "TIFF")
    refused = refusal(lab)
    assert refused.reason == Reason.UNSUPPORTED_DEPTH
    assert "CIELAB" in refused.message
    with pytest.raises(ImageRefusedError, match="La cannot be converted to RGB"):
        to_rgb(Image.new("La", (2, 2)))


def test_read_image__a_bmp_of_5_6_and_5_bits_is_none_of_16() -> None:
    pixels = struct.pack("<2H", 0xF800, 0x001F)  # red, blue
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    start = 14 + len(header) + len(masks)
    content = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + masks + pixels
    found = read_image(content, 2, 1, 1000).convert("RGB")
    assert [found.getpixel((x, 0)) for x in range(2)] == [(255, 0, 0), (0, 0, 255)]


def test_undecodable__a_missing_decoder_is_told_from_damage_with_what_mends_it() -> None:
    missing = undecodable(OSError("decoder libtiff not available"), "the tile at 0,0 cannot be decoded")
    assert missing.reason == Reason.NO_DECODER
    assert "apt-get install libtiff-dev" in missing.message
    damaged = undecodable(OSError("-2"), "the tile at 0,0 cannot be decoded")
    assert (damaged.reason, damaged.message) == (Reason.UNDECODABLE, "the tile at 0,0 cannot be decoded: -2")
