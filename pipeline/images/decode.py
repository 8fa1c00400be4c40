"""Decodes an image file to 8-bit RGB in the annotated frame, or refuses it with a reason."""

import io
import re
import warnings
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile, WebPImagePlugin, features
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    STRIPOFFSETS,
    TILEOFFSETS,
    TiffImageFile,
)

from pipeline.coco import Reject
from pipeline.images.frames import DECODE_ERRORS, Frames, find_frames
from schemas.codes import Reason
from schemas.errors import MORE_PIXELS

Image.MAX_IMAGE_PIXELS = None  # a limit of our own, which can be set, stands in decode_image
Image.preinit()  # registers the formats below; WebP and TIFF register themselves when imported

MOST_BANDS = 4

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Pillow's names of what is read. It would also take text for a TGA, start programs for an EPS, and clip deep
JPEG 2000 and AVIF files to 8 bits without a word."""
_TO_BYTES = "convert it to 8 bits, such as with `gdal_translate -ot Byte -scale IN OUT`"
_TO_RGB = "keep three of them, such as with `gdal_translate -b 1 -b 2 -b 3 IN OUT`"
_FROM_LAB = "convert it to RGB, such as with `vips icc_export IN OUT` or ImageMagick's `-colorspace sRGB`"
_INSTALL = "install it (Debian: `apt-get install libtiff-dev libwebp-dev`) and run `make setup`, or convert the file"
_HEIF = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif")
_UNSIGNED = (1, 4)  # what TIFF says of unsigned whole numbers, and of values without a type
_SUBFILE_TYPE = 254
_REDUCED_OR_MASK = 0b101  # the bits of it that say: an overview, or a mask, of another page

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

    def as_reject(self, image_id: int, file_name: str) -> Reject:
        """Return the row of the ledger for the image, whose message begins with the file's name."""
        return Reject("image", image_id, file_name, self.reason, f"{file_name}: {self.message}")


class Opened(NamedTuple):
    """An image file that is opened and not decoded yet.

    Attributes:
        image: the file as Pillow has opened it.
        frames: its frames.
        has_several: whether it holds several pages or frames, of which the first is used.
    """

    image: ImageFile.ImageFile
    frames: Frames
    has_several: bool


def decoders() -> dict[str, str]:
    """Return, for each format whose decoder may be missing, its decoder's name, or "none" where it is missing."""
    return {
        "TIFF": "libtiff" if features.check("libtiff") else "none",  # uncompressed TIFF is read without it
        "WEBP": "libwebp" if WebPImagePlugin.SUPPORTED else "none",
    }


def format_names() -> list[str]:
    """Return the names of the formats that are read, with the version of each decoder that may be missing."""
    here = decoders()
    said = {name: f"{here[name]} {features.version('webp' if name == 'WEBP' else here[name])}" for name in here}
    missing = {"TIFF": "uncompressed only, without libtiff", "WEBP": "not read, without libwebp"}
    said |= {name: text for name, text in missing.items() if here[name] == "none"}
    return [f"{name} ({said[name]})" if name in said else name for name in FORMATS]


def format_of(prefix: bytes) -> str | None:
    """Return Pillow's name of the format that a file's first 16 bytes announce, None where it is none of FORMATS."""
    for name in FORMATS:
        _, accepts = Image.OPEN[name]
        if accepts is not None and accepts(prefix):  # a text where the build lacks the decoder
            return name
    return None


def open_image(file: IO[bytes]) -> Opened:
    """Open an image file and find its frames, without decoding its pixels.

    Args:
        file: the image file at its start; it stays open for as long as the image is used.

    Raises:
        ImageRefusedError: it is empty, or no image, or its decoder is missing, or it is damaged.
    """
    prefix = file.read(16)
    file.seek(0)
    if not prefix:
        raise ImageRefusedError(Reason.EMPTY_FILE, "the file has no bytes")
    name = format_of(prefix)
    if name is None:
        raise ImageRefusedError(Reason.NOT_AN_IMAGE, _what_else(prefix))
    if name == "WEBP" and decoders()[name] == "none":
        raise ImageRefusedError(Reason.NO_DECODER, f"is a WebP file, and Pillow was built without libwebp; {_INSTALL}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata, which decide nothing
        try:
            exif, xmp, has_several = None, b"", False
            if name == "PNG":
                from pipeline.images.png import split_png  # loaded with the first PNG

                pixels, exif, xmp, has_several = split_png(file.read())
                file = io.BytesIO(pixels)
            factory, _ = Image.OPEN[name]
            image = factory(file, "")
            has_several = has_several or _has_several(image)
            return Opened(image, find_frames(image, exif, xmp), has_several)
        except DECODE_ERRORS as error:
            if "unknown pixel mode" in str(error):
                message = f"{name} file whose bits, bands and kind of values Pillow cannot read together; {_TO_BYTES}"
                raise ImageRefusedError(Reason.UNSUPPORTED_DEPTH, message) from error
            raise ImageRefusedError(Reason.UNDECODABLE, f"{name} file that cannot be opened: {error}") from error


def _what_else(prefix: bytes) -> str:
    """Say what a file is that is no image of a known format, by its first 16 bytes."""
    if prefix.startswith(b"version https://"):
        return "a Git-LFS pointer, not the image itself; fetch it with `git lfs pull`"
    if prefix.lstrip()[:5].lower() in (b"<html", b"<!doc"):
        return "an HTML page, not an image, such as a server sends instead of a file; fetch the image again"
    if prefix[4:12] in _HEIF:
        return "a HEIC or AVIF file, as phones make them; convert it, such as with `heif-convert IN OUT.jpg`"
    return f"not an image file of a known format ({', '.join(FORMATS)})"


def _has_several(image: ImageFile.ImageFile) -> bool:
    """Tell whether a file holds several pages or frames; overviews and masks of a TIFF's first page do not count."""
    try:
        if not getattr(image, "is_animated", False):
            return False
        if not isinstance(image, TiffImageFile):
            return True
        for page in range(1, image.n_frames):
            image.seek(page)
            if not int(image.tag_v2.get(_SUBFILE_TYPE, 0)) & _REDUCED_OR_MASK:
                return True
    except DECODE_ERRORS:
        pass  # damage behind the first page or frame leaves that one sound
    finally:
        image.seek(0)
    return False


def decode_image(opened: Opened, width: int, height: int, max_pixels: int) -> Image.Image:
    """Decode an opened image in full, in the frame whose size is the annotated one.

    The turned frame is taken where its size is the annotated one, else the frame as stored. Alpha is dropped, palettes
    and CMYK are converted, colour profiles are not applied, and of several frames the first is used. Damage is noticed
    as far as the format allows; a JPEG has no checksums.

    Args:
        opened: the image.
        width: annotated width, pixels.
        height: annotated height, pixels.
        max_pixels: a file with more pixels is refused before it is decoded.

    Returns:
        A Pillow image of width x height pixels, mode RGB or RGBX.

    Raises:
        ImageRefusedError: the file cannot be used; its `reason` says why.
    """
    image, frames, _ = opened
    raw = frames.raw
    if raw[0] * raw[1] > max_pixels:
        raise ImageRefusedError(
            Reason.TOO_MANY_PIXELS,
            f"{raw[0]}x{raw[1]} is more than {max_pixels:,} pixels; {MORE_PIXELS}",
        )
    check_samples(image)
    if not frames.fits((width, height)):
        raise size_mismatch(frames, width, height)
    return frames.bring(_decode(image), (width, height))


def size_mismatch(frames: Frames, width: int, height: int) -> ImageRefusedError:
    """Return the refusal of an image of which no frame has the annotated width and height, pixels."""
    (w, h), turned = frames.raw, frames.turned
    also = f" or, turned by its metadata, {turned[0]}x{turned[1]}" if turned != frames.raw else ""
    message = f"annotated as {width}x{height}, the file is {w}x{h}{also}"
    return ImageRefusedError(Reason.SIZE_MISMATCH, message)


def check_samples(image: Image.Image) -> None:
    """Check that an image has 8-bit unsigned values of at most four bands, which are no CIELAB colours.

    Pillow would clip 16-bit RGB to 8 bits, take signed values for unsigned ones, and drop bands beyond the fourth,
    without a word.

    Raises:
        ImageRefusedError: it has others.
    """
    if (num_bands := _num_bands(image)) > MOST_BANDS:
        message = f"has {num_bands} bands; expected at most {MOST_BANDS}, such as RGB and alpha; {_TO_RGB}"
        raise ImageRefusedError(Reason.UNSUPPORTED_DEPTH, message)
    if image.mode == "LAB":
        message = f"holds CIELAB colours, which are not converted; expected RGB or grey; {_FROM_LAB}"
        raise ImageRefusedError(Reason.UNSUPPORTED_DEPTH, message)
    if _is_deep(image):
        message = f"mode {image.mode} has more than 8 bits per channel; {_TO_BYTES}"
        raise ImageRefusedError(Reason.UNSUPPORTED_DEPTH, message)
    if isinstance(image, TiffImageFile) and not set(image.tag_v2.get(SAMPLEFORMAT, (1,))) <= set(_UNSIGNED):
        message = f"has signed or floating-point values; expected unsigned ones; {_TO_BYTES}"
        raise ImageRefusedError(Reason.UNSUPPORTED_DEPTH, message)


def _is_deep(image: Image.Image) -> bool:
    """Tell whether an image, or the file that it comes from, has more than 8 bits per channel."""
    if image.mode.startswith(("I", "F")):
        return True
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(BITSPERSAMPLE, (1,)))) > 8
    for tile in image.tile if isinstance(image, ImageFile.ImageFile) else ():
        if ";16" in str(tile.args).replace("BGR;16", ""):  # which has 5, 6 and 5 bits
            return True
        maxval = tile.args[-1] if tile.codec_name.startswith("ppm") and isinstance(tile.args, tuple) else 0
        if isinstance(maxval, int) and maxval > 255:
            return True
    return False


def _num_bands(image: Image.Image) -> int:
    """Count the values per pixel, of a TIFF those in the file."""
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2.get(SAMPLESPERPIXEL, 1))
    return len(image.getbands())


def _decode(image: ImageFile.ImageFile) -> Image.Image:
    """Decode an opened image to RGB or RGBX as Pillow loads it: a TIFF turned, others as stored."""
    if image.format in ("JPEG", "MPO"):
        assert image.fp is not None  # until it is loaded
        image.fp.seek(0)
        pixels = _decode_jpeg(image.fp.read())
        # Pillow knows which CMYK files are stored inverted
        if pixels is not None and image.mode != "CMYK" and pixels.shape[:2] == image.size[::-1]:
            # no copy: Pillow keeps RGB as four bytes per pixel too
            return Image.frombuffer("RGBX", image.size, pixels, "raw", "RGBX", 0, 1)
    return _loaded(image)


def decode_given(image: Image.Image) -> Image.Image:
    """Decode an image that a program has opened or made with Pillow, in the frame that Pillow gives it.

    Pillow reads a file when its pixels are first asked for, which two threads must not do at the same time; so this is
    for one thread at a time, and what it returns for any number.

    Returns:
        RGB.

    Raises:
        ImageRefusedError: its values have more than 8 bits, its colours cannot be converted, or its file is damaged.
    """
    check_samples(image)
    return _loaded(image)


def _loaded(image: Image.Image) -> Image.Image:
    """Decode an image by Pillow, to RGB."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if isinstance(image, TiffImageFile) and _has_gaps(image):
                from pipeline.images.large import decode_sparse  # loaded with the first of them

                return decode_sparse(image)
            content = _content(image) if image.format == "PNG" and isinstance(image, ImageFile.ImageFile) else b""
            image.load()
            if content and _ends_at_0(image):
                from pipeline.images.png import has_all_rows  # loaded with the first PNG

                if not has_all_rows(content):
                    raise ImageRefusedError(Reason.UNDECODABLE, "cannot be decoded in full: it has too few rows")
            return to_rgb(image)
        except DECODE_ERRORS as error:
            raise undecodable(error, "cannot be decoded in full") from error


def undecodable(error: Exception, what: str) -> ImageRefusedError:
    """Return the refusal of an image that Pillow cannot decode: its decoder is missing, or it is damaged.

    Args:
        error: one of DECODE_ERRORS, which Pillow raised.
        what: what of it cannot be decoded, for the message about a damaged one.
    """
    if "decoder libtiff not available" in str(error):
        message = f"is a compressed TIFF, and Pillow was built without libtiff; {_INSTALL}"
        return ImageRefusedError(Reason.NO_DECODER, message)
    return ImageRefusedError(Reason.UNDECODABLE, f"{what}: {error}")


def _has_gaps(image: TiffImageFile) -> bool:
    """Tell whether some tile or strip of a TIFF that is not loaded yet was never written, so that it has no place."""
    offsets = image.tag_v2.get(TILEOFFSETS, image.tag_v2.get(STRIPOFFSETS, ()))
    return image.fp is not None and 0 in offsets


def _content(image: ImageFile.ImageFile) -> bytes:
    """Return the bytes of an opened image's file, which Pillow lets go of when it decodes it; none where it has."""
    if image.fp is None:
        return b""
    here = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(here)
    return content


def _ends_at_0(image: Image.Image) -> bool:
    """Tell whether one of the last two rows is 0, of which the last pass of an interlaced file brings one.

    Of a picture of one row, that pass brings every second pixel alone, so its row counts as 0 whatever it holds.
    """
    width, height = image.size
    if height == 1:
        return True
    rows = (image.crop((0, row, width, row + 1)) for row in range(height - 2, height))
    return any(row.getbbox(alpha_only=False) is None for row in rows)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert decoded pixels to RGB; alpha is dropped and not blended.

    Raises:
        ImageRefusedError: this Pillow cannot convert such pixels.
    """
    if image.mode == "RGB":
        return image
    try:
        if image.mode == "P":
            return image.convert("RGBA").convert("RGB")  # transparent palettes warn otherwise
        return image.convert("RGB")
    except (ImportError, ValueError) as error:
        message = f"mode {image.mode} cannot be converted to RGB: {error}; convert the file to RGB"
        raise ImageRefusedError(Reason.UNSUPPORTED_DEPTH, message) from error


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
