"""Decides the frame of an image: as it is stored (raw) or as a viewer shows it (turned). Only this module does."""

import re
import struct
import warnings
from typing import NamedTuple

from PIL import Image, ImageFile
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

ORIENTATION = 0x0112  # the tag of EXIF and of TIFF
TURNS = {  # orientation -> what brings the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES = range(5, 9)
_BACK = {6: 8, 8: 6}  # the orientation whose turn undoes a turn; the others undo themselves
_XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])")

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
"""What Pillow's plugins raise on damaged files; anything else is a fault of ours and must surface."""


class Frames(NamedTuple):
    """The two frames that the pixels of a file may be seen in.

    Attributes:
        raw: width and height as stored, pixels.
        orientation: 1 to 8, as EXIF numbers them; 1 is upright.
        loads_turned: whether Pillow turns the pixels while it loads them, as it does with TIFF alone.
    """

    raw: tuple[int, int]
    orientation: int
    loads_turned: bool

    @property
    def turned(self) -> tuple[int, int]:
        """Width and height as a viewer shows the image, pixels."""
        return self.raw[::-1] if self.orientation in SWAPS_SIDES else self.raw

    def fits(self, size: tuple[int, int]) -> bool:
        """Tell whether one of the frames has this width and height."""
        return size in (self.raw, self.turned)

    def is_ambiguous(self, size: tuple[int, int]) -> bool:
        """Tell whether both frames have this width and height although they differ."""
        return self.orientation != 1 and size == self.raw == self.turned

    def bring(self, loaded: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Bring the pixels that Pillow has loaded into the frame of this size.

        Args:
            loaded: the whole image as Pillow loads it.
            size: width and height that one of the frames has; where both have it, the turned one is taken.

        Returns:
            The image in that frame; the one given where nothing is to be turned.
        """
        wants_turned = size == self.turned
        if wants_turned == self.loads_turned or self.orientation == 1:
            return loaded
        turn = self.orientation if wants_turned else _BACK.get(self.orientation, self.orientation)
        return loaded.transpose(TURNS[turn])


def find_frames(image: ImageFile.ImageFile, exif: bytes | None = None, xmp: bytes = b"") -> Frames:
    """Find the frames of an image by EXIF, else by XMP.

    Args:
        image: an opened image, not loaded yet.
        exif: the EXIF data of the file where Pillow was not shown them; None asks Pillow, which
            would decode a PNG for it.
        xmp: the XMP packet of the file where Pillow was not shown it.
    """
    orientation = _orientation(image, exif, xmp)
    if isinstance(image, TiffImageFile):  # Pillow swaps the sides of a turned one when it opens it
        return Frames((int(image.tag_v2[IMAGEWIDTH]), int(image.tag_v2[IMAGELENGTH])), orientation, True)
    return Frames(image.size, orientation, False)


def _orientation(image: ImageFile.ImageFile, exif: bytes | None, xmp: bytes) -> int:
    """Return the orientation, 1 to 8; 1 where neither EXIF nor XMP says anything sound."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Corrupt EXIF data", of images that are sound
        try:
            found = image.getexif() if exif is None else Image.Exif()
            if exif:
                found.load(exif)
            orientation = found.get(ORIENTATION)
        except DECODE_ERRORS:
            orientation = None
    if orientation is None and not isinstance(image, TiffImageFile):  # getexif of a TIFF is all that Pillow turns by
        packet = xmp or image.info.get("xmp", b"")
        match = _XMP.search(packet if isinstance(packet, bytes) else str(packet).encode())
        orientation = int(match[1]) if match else None
    return orientation if orientation in TURNS else 1
