"""PNG files whose pixels are sound and whose side chunks are large or damaged."""

import io
import struct
import zlib

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given
from PIL import Image

from pipeline.images.decode import ImageRefusedError, decode_given
from pipeline.images.png import split_png
from schemas.codes import Reason
from tests.builders import encoded, read_image, texture

SIZE = (40, 24)
PIXELS = texture(*SIZE)
PLAIN = encoded(PIXELS, "PNG")
HEADER = 8 + 25  # bytes of the signature and of IHDR


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


SIDE_CHUNKS = {
    "a profile's name without its end": chunk(b"iCCP", b"x" * 200),
    "a profile that does not unpack": chunk(b"iCCP", b"icc\0\0" + b"junk" * 9),
    "a profile packed otherwise": chunk(b"iCCP", b"icc\0\x09abc"),
    "a profile of 3 MB": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(3 << 20))),
    "packed text of 3 MB": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3 << 20))),
    "packed XMP of 3 MB": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(3 << 20))),
    "text with a wrong checksum": chunk(b"tEXt", b"k\0a", 1),
    "a short pHYs": chunk(b"pHYs", b"\0\0"),
    "a pHYs with a wrong checksum": chunk(b"pHYs", bytes(9), 5),
    "a short acTL": chunk(b"acTL", b"\0"),
    "a frame control of no animation": chunk(b"fcTL", bytes(26)),
    "an empty sRGB": chunk(b"sRGB", b""),
    "an empty gAMA": chunk(b"gAMA", b""),
    "a short cHRM": chunk(b"cHRM", b"\0" * 5),
    "an empty iTXt": chunk(b"iTXt", b""),
    "EXIF that is none": chunk(b"eXIf", b"junk"),
    "a short tRNS": chunk(b"tRNS", b"\1"),
    "a private chunk": chunk(b"prIv", b"x" * 99),
    "a name that is no text": chunk(b"\xff\xfe\0\1", b"ab"),
}


@pytest.mark.parametrize("name", SIDE_CHUNKS)
def test_read_image__png_with_a_bad_side_chunk_keeps_its_pixels(name: str) -> None:
    for where in (HEADER, len(PLAIN) - 12):  # before the pixels and behind them
        content = PLAIN[:where] + SIDE_CHUNKS[name] + PLAIN[where:]
        assert (np.asarray(read_image(content, *SIZE, 1_000_000)) == np.asarray(PIXELS)).all()


def test_read_image__every_changed_or_missing_byte_of_what_pixels_need_is_noticed() -> None:
    for position in range(8, len(PLAIN), 3):
        damaged = bytearray(PLAIN)
        damaged[position] ^= 0x10
        for content in (bytes(damaged), PLAIN[:position]):
            with pytest.raises(ImageRefusedError):
                read_image(content, *SIZE, 1_000_000)


def test_read_image__a_damaged_png_says_which_chunk_and_is_no_unknown_file() -> None:
    damaged = bytearray(PLAIN)
    damaged[PLAIN.index(b"IDAT") + 20] ^= 1
    with pytest.raises(ImageRefusedError, match="IDAT chunk at byte 33 is cut or its checksum is wrong") as caught:
        read_image(bytes(damaged), *SIZE, 1_000_000)
    assert caught.value.reason == Reason.UNDECODABLE


def test_read_image__a_png_without_its_palette_is_refused() -> None:
    """Pillow would show it in black or grey. One wrong bit in the chunk's name makes it a chunk that nobody knows."""
    content = encoded(PIXELS.quantize(16), "PNG")
    start = content.index(b"PLTE") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4])
    late = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    for lost in (content.replace(b"PLTE", b"PLTD"), content.replace(b"PLTE", b"pLTE"), late):
        with pytest.raises(ImageRefusedError, match="its palette") as caught:
            read_image(lost, *SIZE, 1_000_000)
        assert caught.value.reason == Reason.UNDECODABLE


def test_split_png__tells_an_animation() -> None:
    assert not split_png(PLAIN).is_animated
    assert split_png(encoded(PIXELS, "PNG", save_all=True, append_images=[texture(*SIZE, 1)])).is_animated


def packed(rows: bytes, width: int, height: int, depth: int, colour: int, *, interlaced: bool) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(range(3, 195))) if colour == 3 else b""
    stream = zlib.compress(rows)
    half = len(stream) // 2
    pixels = chunk(b"IDAT", stream[:half]) + chunk(b"IDAT", stream[half:])
    return PLAIN[:8] + chunk(b"IHDR", header) + palette + pixels + chunk(b"IEND", b"")


def lengths(width: int, height: int, bits: int, *, interlaced: bool) -> list[int]:
    """Bytes of each row as the file orders them, with the byte of its filter."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    found = []
    for x, y, dx, dy in passes if interlaced else [(0, 0, 1, 1)]:
        columns = len(range(x, width, dx))
        found += [1 + (columns * bits + 7) // 8 for _ in range(y, height, dy)] if columns else []
    return found


@given(
    width=st.integers(1, 20),
    height=st.integers(1, 20),
    kind=st.sampled_from([(1, 0, 1), (2, 3, 2), (8, 3, 8), (8, 0, 8), (8, 2, 24), (8, 4, 16), (8, 6, 32)]),
    interlaced=st.booleans(),
    is_black=st.booleans(),
)
@example(width=3, height=1, kind=(2, 3, 2), interlaced=True, is_black=False)  # the last pass is every second pixel
def test_read_image__a_png_of_too_few_rows_is_refused(
    width: int, height: int, kind: tuple[int, int, int], interlaced: bool, is_black: bool
) -> None:
    depth, colour, bits = kind
    rows = lengths(width, height, bits, interlaced=interlaced)
    filled = [bytes([0, *[0 if is_black else 0b01010101] * (length - 1)]) for length in rows]
    whole = packed(b"".join(filled), width, height, depth, colour, interlaced=interlaced)
    assert read_image(whole, width, height, 1_000_000).size == (width, height)
    for held in range(len(rows)):
        short = packed(b"".join(filled[:held]), width, height, depth, colour, interlaced=interlaced)
        with pytest.raises(ImageRefusedError) as refusal:
            read_image(short, width, height, 1_000_000)
        assert refusal.value.reason == Reason.UNDECODABLE
        with pytest.raises(ImageRefusedError):
            decode_given(Image.open(io.BytesIO(short)))
