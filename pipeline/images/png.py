"""Parts a PNG into what its pixels need and what stands beside them (text, profiles, XMP), which may be damaged."""

import struct
import zlib
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Every other chunk says how to show the pixels, not what they are: alpha is dropped, so tRNS is not needed, and the
# first or only picture of an animation stands in IDAT.
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_COLOUR_TYPE = slice(25, 26)  # where it lies in a file, whose first chunk is IHDR; 3 means that there is a palette
_XMP = b"XML:com.adobe.xmp\0"
_MOST_XMP = 64 << 20  # bytes that a packed XMP packet is unpacked to at most
_PIECE = 1 << 20  # bytes that are unpacked at a time
_BANDS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> values of a pixel
# of an interlaced file: the first pixel of each pass, and how far apart its pixels are
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class Png(NamedTuple):
    """The parts of a PNG file.

    Attributes:
        pixels: the file with the chunks that its pixels need alone.
        exif: its EXIF data; empty where there are none or they are damaged.
        xmp: its XMP packet; empty where there is none or it is damaged.
        is_animated: whether the file says that it holds several frames.
    """

    pixels: bytes
    exif: bytes
    xmp: bytes
    is_animated: bool


class DamagedPngError(ValueError):
    """A chunk that the pixels need is damaged or missing."""


def split_png(data: bytes) -> Png:
    """Part a PNG file, checking the checksum of every chunk that its pixels need.

    Raises:
        DamagedPngError: one of them is damaged or missing.
    """
    kept, exif, xmp, num_frames = [memoryview(SIGNATURE)], b"", b"", 1
    view = memoryview(data)
    start = len(SIGNATURE)
    while True:
        if start + 12 > len(data):
            raise DamagedPngError(f"it ends at byte {len(data):,} without an IEND chunk, so it is cut or damaged")
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        body = view[start + 8 : end - 4]
        is_sound = end <= len(data) and zlib.crc32(view[start + 4 : end - 4]) == int.from_bytes(view[end - 4 : end])
        if kind in _PIXELS:
            if not is_sound:
                raise DamagedPngError(f"its {kind.decode()} chunk at byte {start:,} is cut or its checksum is wrong")
            if kind == b"IDAT" and data[_COLOUR_TYPE] == b"\3" and all(bytes(chunk[4:8]) != b"PLTE" for chunk in kept):
                raise DamagedPngError("its palette (the PLTE chunk) is damaged or missing, or comes too late")
            kept.append(view[start:end])
            if kind == b"IEND":
                return Png(b"".join(kept), exif, xmp, num_frames > 1)
        elif is_sound and kind == b"eXIf":
            exif = bytes(body)
        elif is_sound and kind == b"acTL" and length == 8:
            num_frames = int.from_bytes(body[:4])
        elif is_sound and kind == b"iTXt" and body[: len(_XMP)] == _XMP:
            xmp = _text(bytes(body))
        start = end


def has_all_rows(data: bytes) -> bool:
    """Tell whether the packed rows of a PNG are as long as its size asks for; Pillow leaves what is missing at 0.

    Args:
        data: a PNG file that Pillow has decoded.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, len(SIGNATURE) + 8)
    wanted = 0
    for x, y, dx, dy in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        if columns > 0 and rows > 0:
            wanted += rows * (1 + -(-columns * depth * _BANDS[colour] // 8))  # one byte names the row's filter
    unpacking, start = zlib.decompressobj(), len(SIGNATURE)
    while wanted > 0 and start + 12 <= len(data) and not unpacking.eof:
        length, kind = struct.unpack_from(">I4s", data, start)
        packed = data[start + 8 : start + 8 + length] if kind == b"IDAT" else b""
        start += 12 + length
        while packed and wanted > 0:
            try:
                wanted -= len(unpacking.decompress(packed, _PIECE))
            except zlib.error:
                return False
            packed = unpacking.unconsumed_tail
    return wanted <= 0


def _text(chunk: bytes) -> bytes:
    """Return the text of an iTXt chunk: keyword, 0, is_packed, method, language, 0, translated keyword, 0, text."""
    _, _, rest = chunk.partition(b"\0")
    parts = rest[2:].split(b"\0", 2)
    if len(parts) < 3:
        return b""
    if not rest[0]:
        return parts[2]
    try:
        return zlib.decompressobj().decompress(parts[2], _MOST_XMP)
    except zlib.error:
        return b""
