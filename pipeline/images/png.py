"""Parts a PNG into what its pixels need and what stands beside them (text, profiles, XMP), which may be damaged."""

import struct
import zlib
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Every other chunk says how to show the pixels, not what they are: alpha is dropped, so tRNS is not needed, and the
# first or only picture of an animation stands in IDAT.
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_XMP = b"XML:com.adobe.xmp\0"
_MOST_XMP = 64 << 20  # bytes that a packed XMP packet is unpacked to at most


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
