"""Decodes an image file to 8-bit RGB in the annotated frame, or refuses it with a reason."""

import io
import re
import struct
import warnings

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import SAMPLESPERPIXEL, TiffImageFile

from schemas.codes import Reason
from schemas.errors import MORE_PIXELS

Image.MAX_IMAGE_PIXELS = None  # our own limit, settable and with a clear message, stands in read_image

EXIF_ORIENTATION = 0x0112
EXIF_TURNS = {  # orientation -> what brings the pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES = range(5, 9)
MOST_BANDS = 4

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Pillow's names of what is read. It would also take text for a TGA, start programs for an EPS, and clip deep
JPEG 2000 and AVIF files to 8 bits without a word."""

# What Pillow's plugins raise on damaged files; anything else is a fault of ours and must surface.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
)

# libjpeg's warnings that say pixels are lost. It goes on after them and fills the gap with anything.
_LOST_DATA = re.compile("Corrupt JPEG data|Premature end|Inconsistent progression", re.IGNORECASE)
# A few bytes of padding before the end marker are common and harmless; damage leaves more.
_PADDING = re.compile(r"Corrupt JPEG data: [1-8] extraneous bytes before marker 0xd9")


class ImageRefusedError(Exception):
    """A source image that cannot be used as it is annotated.

    Attributes:
        reason: the code that the ledger stores.
        message: what is wrong with the file, for a person, without the file's name.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type["ImageRefusedError"], tuple[Reason, str]]:
        return ImageRefusedError, (self.reason, self.message)


def read_image(data: bytes, width: int, height: int, max_pixels: int) -> Image.Image:
    """Decode an image file in full, in the frame whose size is the annotated one.

    The frame that EXIF turns upright is taken where its size is the annotated one, else the frame as stored. Alpha is
    dropped, palettes and CMYK are converted, and of several frames the first is used. Damage is noticed as far as the
    format allows; a JPEG has no checksums.

    Args:
        data: the bytes of the image file.
        width: annotated width, pixels.
        height: annotated height, pixels.
        max_pixels: a file with more pixels is refused before it is decoded.

    Returns:
        A Pillow image of width x height pixels, mode RGB or RGBX.

    Raises:
        ImageRefusedError: the file cannot be used; its `reason` says why.
    """
    if not data:
        raise ImageRefusedError(Reason.EMPTY_FILE, "the file has no bytes")
    image = _open(data)
    orientation = _orientation(image)
    raw = image.size
    if raw[0] * raw[1] > max_pixels:
        raise ImageRefusedError(
            Reason.TOO_MANY_PIXELS,
            f"{raw[0]}x{raw[1]} is more than {max_pixels:,} pixels; {MORE_PIXELS}",
        )
    if (num_bands := _num_bands(image)) > MOST_BANDS:
        raise ImageRefusedError(
            Reason.UNSUPPORTED_DEPTH, f"has {num_bands} bands; expected at most {MOST_BANDS}, such as RGB and alpha"
        )
    if _is_deep(image):
        raise ImageRefusedError(Reason.UNSUPPORTED_DEPTH, f"mode {image.mode} has more than 8 bits per channel")
    turned = raw[::-1] if orientation in SWAPS_SIDES else raw
    if (width, height) not in (raw, turned):
        also = f" or, turned by EXIF, {turned[0]}x{turned[1]}" if turned != raw else ""
        raise ImageRefusedError(
            Reason.SIZE_MISMATCH, f"annotated as {width}x{height}, the file is {raw[0]}x{raw[1]}{also}"
        )
    decoded = _decode(image, data)
    if (width, height) == turned and orientation in EXIF_TURNS:
        return decoded.transpose(EXIF_TURNS[orientation])
    return decoded


def _open(data: bytes) -> ImageFile.ImageFile:
    """Open an image file without decoding its pixels.

    Raises:
        ImageRefusedError: it is no image of a known format.
    """
    with warnings.catch_warnings(record=True) as remarks:  # Pillow warns of formats that it was built without
        warnings.simplefilter("always")
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except DECODE_ERRORS as error:
            if data.startswith(b"version https://git-lfs"):
                message = "a Git-LFS pointer, not the image itself; fetch it with `git lfs pull`"
            else:
                known = f"not an image file of a known format ({', '.join(FORMATS)})"
                message = "; ".join([known, *(str(remark.message) for remark in remarks)])
            raise ImageRefusedError(Reason.NOT_AN_IMAGE, message) from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8. It is 1 (upright) where there is none or the EXIF data are damaged."""
    if "exif" not in image.info:
        return 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Corrupt EXIF data", of images that are sound
        try:
            orientation = image.getexif().get(EXIF_ORIENTATION)
        except DECODE_ERRORS:
            return 1
    return orientation if orientation in EXIF_TURNS else 1


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Tell whether the file has more than 8 bits per channel, which Pillow would clip to 8 bits without a word."""
    if image.mode.startswith(("I", "F")):
        return True
    for tile in image.tile:
        if ";16" in str(tile.args):
            return True
        maxval = tile.args[-1] if tile.codec_name.startswith("ppm") and isinstance(tile.args, tuple) else 0
        if isinstance(maxval, int) and maxval > 255:
            return True
    return False


def _num_bands(image: ImageFile.ImageFile) -> int:
    """Count the values per pixel in the file. Of a TIFF with more than four, Pillow drops the rest in silence."""
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2.get(SAMPLESPERPIXEL, 1))
    return len(image.getbands())


def _decode(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """Decode an opened image to RGB or RGBX in the frame as stored; `data` are the bytes it was opened from."""
    if image.format in ("JPEG", "MPO"):
        pixels = _decode_jpeg(data)
        # Pillow knows which CMYK files are stored inverted
        if pixels is not None and image.mode != "CMYK" and pixels.shape[:2] == image.size[::-1]:
            # no copy: Pillow keeps RGB as four bytes per pixel too
            return Image.frombuffer("RGBX", image.size, pixels, "raw", "RGBX", 0, 1)
    try:
        image.load()
        if image.format == "PNG":  # decoding stops at the last pixel; the checksums tell whether it is the right one
            Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        if image.mode == "RGB":
            return image
        if image.mode == "P":
            return image.convert("RGBA").convert("RGB")  # transparent palettes warn otherwise
        return image.convert("RGB")
    except DECODE_ERRORS as error:
        raise ImageRefusedError(Reason.UNDECODABLE, f"cannot be decoded in full: {error}") from error


def _decode_jpeg(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Decode a JPEG to uint8 [height, width, 4], RGBX. Return None where only Pillow can read it.

    Raises:
        ImageRefusedError: some of its pixels are lost.
    """
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGBX")
    except ValueError as error:
        message = str(error)
        if _LOST_DATA.search(message) and not _PADDING.fullmatch(message):
            raise ImageRefusedError(Reason.UNDECODABLE, f"truncated or damaged: {message}") from error
        return None
    return pixels
