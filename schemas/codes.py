"""Closed lists of the words that stand in status, fate and reason columns."""

from enum import IntEnum, StrEnum


class Status(IntEnum):
    """What a box is in one chip; the manifest stores the lower-case name. The first that applies counts."""

    CROWD = 0  # iscrowd in the source: gives no loss either way
    IGNORE = 1  # too little of it is visible, or it is too small in the chip, to be a target or background
    RESCUED = 2  # out of range or too long at every scale it belongs to; this is the one chip that trains it
    OUT_OF_RANGE = 3  # its full size lies outside the valid range of this chip's scale
    CUT = 4  # in range, but it crosses the window's edge
    VALID = 5  # in range and wholly inside


STATUS_NAMES = [status.name.lower() for status in Status]

TARGETS = (Status.VALID, Status.RESCUED)
"""The statuses of boxes that a chip trains."""

IGNORED = (Status.CROWD, Status.IGNORE)
"""The statuses of boxes that nothing is to be learnt from: they are neither targets nor background."""

TARGET_NAMES, IGNORED_NAMES = ([STATUS_NAMES[status] for status in group] for group in (TARGETS, IGNORED))


class Fate(IntEnum):
    """What became of one source box; exactly one applies. The ledger stores the lower-case name."""

    COVERED = 0  # a target (`valid`) in some chip
    RESCUED = 1  # covered at no scale; whole inside one chip of the nearest scale where it fits
    FITS_NO_CHIP = 2  # uncovered: longer than a chip at every scale
    CROWD = 3
    IMAGE_REFUSED = 4
    REFUSED = 5
    TOO_SMALL = 6  # uncovered: too small to be a target at every scale where a chip can hold it


UNCOVERED = (Fate.TOO_SMALL, Fate.FITS_NO_CHIP)
"""The fates that the ledger calls `uncovered`; its reason tells them apart."""

FATE_NAMES = ["uncovered" if fate in UNCOVERED else fate.name.lower() for fate in Fate]


class Reason(StrEnum):
    """Why an image or a box was refused, or a box left uncovered."""

    # images, found in the annotation file
    BAD_RECORD = "bad_record"  # a field is missing or has the wrong type (images and boxes)
    UNSAFE_PATH = "unsafe_path"  # file_name is absolute or climbs out of the image root
    REPEATED_FILE = "repeated_file"  # an earlier image record has the same file_name
    # images, found while reading pixels
    MISSING_FILE = "missing_file"
    UNREADABLE_FILE = "unreadable_file"  # the file is there, the system would not give its bytes
    EMPTY_FILE = "empty_file"
    NOT_AN_IMAGE = "not_an_image"
    NO_DECODER = "no_decoder"  # an image of a known format whose decoder this Pillow was built without
    TOO_MANY_PIXELS = "too_many_pixels"
    UNSUPPORTED_DEPTH = "unsupported_depth"  # not 8 bits per channel of grey or RGB: never clipped silently
    SIZE_MISMATCH = "size_mismatch"  # neither the size as stored nor the turned one is the annotated one
    UNDECODABLE = "undecodable"  # truncated or damaged
    KILLS_WORKER = "kills_worker"  # worker processes die over it, of a fault in a decoder or for lack of memory
    # boxes
    UNKNOWN_IMAGE = "unknown_image"
    UNKNOWN_CATEGORY = "unknown_category"
    BAD_NUMBERS = "bad_numbers"  # not four finite numbers
    NO_AREA = "no_area"  # width or height is zero or negative
    OUTSIDE_IMAGE = "outside_image"
    # boxes that are in order but in no chip
    FITS_NO_CHIP = "fits_no_chip"  # longer than a chip at every scale
    TOO_SMALL = "too_small"  # its shorter side is under min_side at every scale where a chip can hold it
