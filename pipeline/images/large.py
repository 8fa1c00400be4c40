"""Reads windows of a large TIFF in bounded memory: each tile or strip goes through the decoder of small files.

A block (a tile, or a strip of rows) is wrapped as a TIFF of its own, with the tags that say how its bytes become
pixels. So a large image has the colours, the refusals and the identity that a small one has.
"""

import io
import struct
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.images.chip import Large
from pipeline.images.decode import ImageRefusedError, Opened, check_samples, size_mismatch, to_rgb, undecodable
from pipeline.images.frames import DECODE_ERRORS, TURNS, find_frames
from schemas.codes import Reason

MOST_BLOCK_PIXELS = 16_000_000  # of one tile or strip; larger ones cannot be read in bounded memory
CACHE_BYTES = 96 << 20  # of decoded blocks that an image keeps
LEAST_CACHED = 4  # blocks: the corner of a window meets four tiles

_WIDTH, _HEIGHT, _ROWS_PER_STRIP, _SAMPLES, _PLANAR = 256, 257, 278, 277, 284
_STRIP_OFFSETS, _STRIP_BYTES = 273, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
# What says how bytes become pixels: bits, compression, colours, fill order, samples, planes, options of fax 3 and 4,
# predictor, palette, extra samples, kind of values, JPEG tables, and subsampling and reference of YCbCr.
_COPIED = (258, 259, 262, 266, 277, 284, 292, 293, 317, 320, 338, 339, 347, 529, 530, 532)
_FORMATS = {1: "B", 3: "H", 4: "I", 7: "B", 12: "d"}  # kind of a tag's values -> how struct packs one
_RATIONAL, _LONG8, _LONG, _SHORT = 5, 16, 4, 3

_WRITE_ANEW = "write all of them, such as with `gdal_translate -co SPARSE_OK=FALSE IN OUT`"

_Tags = dict[int, tuple[int, list[int] | bytes]]  # tag -> kind and values


class _Blocks(NamedTuple):
    """How a TIFF is parted, in its stored frame.

    Attributes:
        size: width and height of the image, pixels.
        block: width and height of a block, pixels; the last strip may have fewer rows.
        is_tiled: whether the blocks are tiles; a strip reaches over the whole width.
        offsets: where each block begins in the file; with planes, all blocks of the first plane stand first.
        lengths: the bytes of each block; 0 where it was never written, which means black.
        num_planes: bands that are stored apart, else 1.
        tags: what a block needs to be a TIFF of its own.
    """

    size: tuple[int, int]
    block: tuple[int, int]
    is_tiled: bool
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    num_planes: int
    tags: _Tags

    @property
    def across(self) -> int:
        """Blocks side by side."""
        return -(-self.size[0] // self.block[0])

    @property
    def down(self) -> int:
        """Blocks one below the other."""
        return -(-self.size[1] // self.block[1])


def open_large(
    opened: Opened, read: Callable[[int, int], bytes], width: int, height: int, *, thorough: bool
) -> Large | None:
    """Prepare to read a large image by windows.

    Args:
        opened: the image; it is not used after this call.
        read: gives the bytes of the file from an offset on, as many as asked for; it is called from many threads.
        width: annotated width, pixels.
        height: annotated height, pixels.
        thorough: decode every block now, so that a damaged image is refused as a whole.

    Returns:
        The image in the annotated frame; None where it is no TIFF of small tiles or strips.

    Raises:
        ImageRefusedError: it is damaged, has other samples than 8-bit ones of at most four bands, or another size.
    """
    image, frames, _ = opened
    if not isinstance(image, TiffImageFile):
        return None
    try:
        blocks = _blocks(image)
    except DECODE_ERRORS as error:
        raise ImageRefusedError(Reason.UNDECODABLE, f"TIFF file whose tags are damaged: {error}") from error
    if blocks is None:
        return None
    check_samples(image)
    if not frames.fits((width, height)):
        raise size_mismatch(frames, width, height)
    decoded = lru_cache(max(LEAST_CACHED, CACHE_BYTES // (4 * blocks.block[0] * blocks.block[1])))(
        lambda index: _decode(blocks, read, index)
    )
    if thorough:
        for index in range(blocks.across * blocks.down):
            _decode(blocks, read, index)
    turn = frames.orientation if (width, height) == frames.turned else 1

    def region(x1: int, y1: int, x2: int, y2: int) -> Image.Image:
        stored = _crop(blocks, decoded, *_stored_window(turn, frames.raw, (x1, y1, x2, y2)))
        return stored.transpose(TURNS[turn]) if turn in TURNS else stored

    return Large(width, height, region)


def decode_sparse(image: TiffImageFile) -> Image.Image:
    """Decode a small TIFF in full of which some tiles or strips were never written; they become black.

    Pillow would take the first bytes of the file for those that are missing.

    Args:
        image: as Pillow has opened it, not loaded yet.

    Returns:
        RGB, turned as Pillow turns a TIFF that it loads.

    Raises:
        ImageRefusedError: it is damaged, its decoder is missing, or its tiles or strips are too large.
    """
    file, turn = image.fp, find_frames(image).orientation
    assert file is not None

    def read(offset: int, size: int) -> bytes:
        file.seek(offset)
        return file.read(size)

    blocks = _blocks(image)
    if blocks is None:
        message = f"has parts that were never written, in tiles or strips that are too large; {_WRITE_ANEW}"
        raise ImageRefusedError(Reason.UNDECODABLE, message)
    whole = _crop(blocks, lambda index: _decode(blocks, read, index), 0, 0, *blocks.size)
    return whole.transpose(TURNS[turn]) if turn in TURNS else whole


def _blocks(image: TiffImageFile) -> _Blocks | None:
    """Read from the tags of a TIFF how it is parted; None where its blocks are too large.

    Raises:
        DECODE_ERRORS: the tags are damaged.
    """
    tags = image.tag_v2
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    is_tiled = _TILE_OFFSETS in tags
    if is_tiled:
        block = int(tags[_TILE_WIDTH]), int(tags[_TILE_HEIGHT])
        offsets, lengths = tags[_TILE_OFFSETS], tags[_TILE_BYTES]
    else:
        block = width, min(height, int(tags.get(_ROWS_PER_STRIP, height)))
        offsets, lengths = tags[_STRIP_OFFSETS], tags[_STRIP_BYTES]
    if min(block) < 1 or block[0] * block[1] > MOST_BLOCK_PIXELS:
        return None
    num_planes = int(tags.get(_SAMPLES, 1)) if tags.get(_PLANAR, 1) == 2 else 1
    lengths = [length if offset else 0 for offset, length in zip(offsets, lengths, strict=False)]  # 0 is no place
    found = _Blocks((width, height), block, is_tiled, tuple(offsets), tuple(lengths), num_planes, _copied(image))
    expected = found.across * found.down * num_planes
    if min(len(found.offsets), len(found.lengths)) < expected:
        raise ValueError(f"{expected} tiles or strips are expected, {len(found.offsets)} are listed")
    return found


def _copied(image: TiffImageFile) -> _Tags:
    """Return the tags of a TIFF that its blocks need."""
    tags = image.tag_v2
    found: _Tags = {}
    for tag in _COPIED:
        if tag not in tags:
            continue
        kind, value = tags.tagtype[tag], tags[tag]
        values = value if isinstance(value, tuple) else (value,)
        if isinstance(value, bytes):
            found[tag] = kind, value
        elif kind == _RATIONAL:
            found[tag] = kind, [int(part) for v in values for part in (v.numerator, v.denominator)]
        else:
            found[tag] = (_SHORT if kind == _LONG8 else kind), list(values)
    return found


def _decode(blocks: _Blocks, read: Callable[[int, int], bytes], index: int) -> Image.Image | None:
    """Decode a block of all planes to RGB; None where it was never written.

    Raises:
        ImageRefusedError: it is damaged, or its decoder is missing.
    """
    per_plane = blocks.across * blocks.down
    planes = [index + plane * per_plane for plane in range(blocks.num_planes)]
    written = [i for i in planes if blocks.lengths[i]]
    if not written:
        return None
    width, rows = blocks.block
    if not blocks.is_tiled:
        rows = min(rows, blocks.size[1] - index * rows)
    place = f"the {'tile' if blocks.is_tiled else 'strip'} at {index % blocks.across * width}"
    place += f",{index // blocks.across * blocks.block[1]}"
    if written != planes:
        raise ImageRefusedError(Reason.UNDECODABLE, f"{place} was written for some of its bands only; {_WRITE_ANEW}")
    tags = blocks.tags | {_WIDTH: (_LONG, [width]), _HEIGHT: (_LONG, [rows]), _ROWS_PER_STRIP: (_LONG, [rows])}
    data = [read(blocks.offsets[i], blocks.lengths[i]) for i in planes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(_tiff(tags, data)), formats=("TIFF",)) as image:
                image.load()
                return to_rgb(image)
        except DECODE_ERRORS as error:
            raise undecodable(error, f"{place} cannot be decoded") from error


def _tiff(tags: _Tags, planes: list[bytes]) -> bytes:
    """Wrap the bytes of a block, one item per plane, as a TIFF of one strip per plane."""
    num_tags = len(tags) + 2
    start = 8 + 2 + 12 * num_tags + 4  # of what does not fit in its entry
    extra = bytearray()

    def entry(tag: int, kind: int, values: list[int] | bytes) -> bytes:
        if isinstance(values, bytes):
            count, packed = len(values), values
        elif kind == _RATIONAL:
            count, packed = len(values) // 2, struct.pack(f"<{len(values)}I", *values)
        else:
            count, packed = len(values), struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values)
        if len(packed) > 4:
            place = start + len(extra)
            extra.extend(packed + b"\0" * (len(packed) % 2))
            packed = struct.pack("<I", place)
        return struct.pack("<HHI", tag, kind, count) + packed.ljust(4, b"\0")

    entries = {tag: entry(tag, *value) for tag, value in sorted(tags.items())}
    lists = 0 if len(planes) == 1 else 8 * len(planes)  # bytes that the two entries below add to `extra`
    first = start + len(extra) + lists
    offsets = [first + sum(map(len, planes[:i])) for i in range(len(planes))]
    entries[_STRIP_OFFSETS] = entry(_STRIP_OFFSETS, _LONG, offsets)
    entries[_STRIP_BYTES] = entry(_STRIP_BYTES, _LONG, [len(plane) for plane in planes])
    head = b"II*\0" + struct.pack("<IH", 8, num_tags) + b"".join(entries[tag] for tag in sorted(entries))
    return b"".join([head, bytes(4), bytes(extra), *planes])


def _crop(
    blocks: _Blocks, decoded: Callable[[int], Image.Image | None], x1: int, y1: int, x2: int, y2: int
) -> Image.Image:
    """Put the pixels of a window together from the blocks that meet it, RGB, in the stored frame."""
    window = Image.new("RGB", (x2 - x1, y2 - y1))
    width, height = blocks.block
    for row in range(y1 // height, -(-y2 // height)):
        for column in range(x1 // width, -(-x2 // width)):
            block = decoded(row * blocks.across + column)
            if block is not None:
                window.paste(block, (column * width - x1, row * height - y1))
    return window


def _stored_window(turn: int, size: tuple[int, int], window: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return the window of the stored frame that is turned into this window of the turned one.

    Args:
        turn: the orientation that is applied, 1 to 8.
        size: width and height of the stored frame, pixels.
        window: x1 y1 x2 y2 in the turned frame, pixels.
    """
    x1, y1, x2, y2 = window
    if turn >= 5:  # the sides are swapped
        x1, y1, x2, y2 = y1, x1, y2, x2
    width, height = size
    if turn in (2, 3, 7, 8):
        x1, x2 = width - x2, width - x1
    if turn in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    return x1, y1, x2, y2
