"""Errors a user can cause. The command line prints their text and exits with their status; never a traceback."""

from collections.abc import Iterable, Sequence

AGAIN = "run the same command again: what is finished is kept"

MORE_PIXELS = (
    "make a tiled TIFF of it, which is read by windows, with `gdal_translate -of COG -co COMPRESS=DEFLATE IN OUT.tif` "
    "or `vips tiffsave IN OUT.tif --tile --compression deflate --bigtiff`, and name that one; or raise the limit with "
    "--set chips.max_pixels=N (decoding takes 4 bytes per pixel); of finished chips only the shards it changes are "
    "made anew"
)


class SniperError(Exception):
    """What was expected, what was found, where, and what to do. Ends a command with `exit_status`."""

    exit_status = 1


class DataError(SniperError):
    """The data fell short: an annotation file, an image folder, a shard."""


class MissingError(DataError):
    """A file or folder that a command was given, or needs, is not there: wrong use."""

    exit_status = 2


class UsageError(SniperError):
    """Wrong use: a folder that holds something else, a missing extra, contradicting options."""

    exit_status = 2


class SettingsError(UsageError):
    """An unknown setting or a wrong value."""


class StoppedError(SniperError):
    """A signal asked for an end. What was under way has been kept, and the text says how to go on."""

    def __init__(self, text: str, exit_status: int) -> None:
        """Keep the text and the status, by custom 128 and the signal's number."""
        super().__init__(text, exit_status)
        self.exit_status = exit_status

    def __str__(self) -> str:
        """Return the text alone."""
        return str(self.args[0])


def refuse_unknown(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a text that is none of those that there are to choose from.

    Raises:
        UsageError: it is none of them.
    """
    if value not in (known := [*choices]):
        raise UsageError(f"{name}: expected one of {', '.join(known)}, found {value!r}")


def refuse_other_number(name: str, values: object, parts: Sequence[str]) -> None:
    """Refuse anything but a tuple or list of as many values as there are parts, such as one text in its place.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(values, tuple | list) or len(values) != len(parts):
        raise UsageError(f"{name}: expected ({', '.join(parts)}), found {values!r}")


def refuse_text(name: str, values: Iterable[str]) -> None:
    """Refuse a text where a list of texts is expected: each of its letters would be taken for one.

    Raises:
        UsageError: it is a text.
    """
    if isinstance(values, str):
        raise UsageError(f"{name}: expected a list, found the text {values!r}; give [{values!r}]")
