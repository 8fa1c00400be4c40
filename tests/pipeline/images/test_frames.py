"""The frame of an image: EXIF and XMP of every format, the frame as stored and the turned one."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from pipeline.images.decode import open_image
from pipeline.images.frames import TURNS
from tests.builders import encoded, exif, read_image, texture

LIMIT = 1_000_000
STORED = texture(24, 16).resize((48, 32))
KINDS = {
    "PNG": {},
    "JPEG": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF packed": {"compression": "tiff_lzw"},
}
needs_decoders = pytest.mark.skipif(
    not (features.check("webp") and features.check("libtiff")), reason="Pillow was built without libtiff or libwebp"
)


def files(kind: str, orientation: int) -> Iterator[bytes]:
    """One picture that EXIF, an XMP attribute and an XMP element each say to turn."""
    name, options = kind.split()[0], KINDS[kind]
    yield encoded(STORED, name, exif=exif(orientation), **options)
    for packet in (
        f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>',
        f"<x:xmpmeta><tiff:Orientation>{orientation}</tiff:Orientation></x:xmpmeta>",
    ):
        if name == "PNG":
            info = PngImagePlugin.PngInfo()
            info.add_itxt("XML:com.adobe.xmp", packet, zip=packet.endswith("Orientation></x:xmpmeta>"))
            yield encoded(STORED, name, pnginfo=info)
        elif name == "TIFF":
            yield encoded(STORED, name, tiffinfo={700: packet.encode()}, **options)
        else:
            yield encoded(STORED, name, xmp=packet.encode(), **options)


def difference(content: bytes, expected: Image.Image) -> int:
    """Largest difference of a pixel from those expected, when read in the frame of `expected`."""
    found = read_image(content, *expected.size, LIMIT)
    assert found.size == expected.size
    return int(np.abs(np.asarray(found.convert("RGB")).astype(int) - np.asarray(expected)).max())


@needs_decoders
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_image__takes_the_frame_that_has_the_annotated_size(kind: str, orientation: int) -> None:
    shown = STORED.transpose(TURNS[orientation]) if orientation > 1 else STORED
    lost = 24 if kind == "JPEG" else 0
    for number, content in enumerate(files(kind, orientation)):
        assert difference(content, shown) <= lost, (number, "turned")
        if orientation >= 5:
            assert difference(content, STORED) <= lost, (number, "as stored")


@needs_decoders
@pytest.mark.parametrize("kind", KINDS)
def test_frames__both_fit_where_a_turn_keeps_the_size(kind: str) -> None:
    for orientation, is_ambiguous in ((1, False), (3, True), (6, False)):
        for content in files(kind, orientation):
            frames = open_image(io.BytesIO(content)).frames
            assert frames.raw == STORED.size
            assert frames.turned == (STORED.size[::-1] if orientation == 6 else STORED.size)
            assert frames.is_ambiguous(STORED.size) is is_ambiguous
