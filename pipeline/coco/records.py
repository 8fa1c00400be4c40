"""What other rooms know of an annotation file: its images one by one, and what was refused."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from schemas.codes import Reason


class SourceImage(NamedTuple):
    """One image of the annotation file."""

    image_id: int
    file_name: str
    width: int  # as annotated, pixels
    height: int

    @property
    def whole(self) -> tuple[float, float, float, float]:
        """The window that holds all of it, x1 y1 x2 y2, source pixels."""
        return 0.0, 0.0, float(self.width), float(self.height)


def is_tiff(file_name: str) -> bool:
    """Tell by its name whether a file is a TIFF, which is read by windows where it is large."""
    return file_name.lower().endswith((".tif", ".tiff"))


def is_text(value: Any) -> bool:
    """Return whether a value is a string that can be stored: JSON may hold half of a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class Reject(NamedTuple):
    """A refused image or box: one row of rejects.parquet."""

    kind: str  # image or annotation
    id: int | None
    file: str | None
    reason: Reason
    message: str

    @classmethod
    def of(cls, kind: str, id_: int | None, file: str | None, reason: str, message: str) -> "Reject":
        """Make a row of plain values."""
        return cls(kind, id_, file, Reason(reason), message)


def class_names(categories: Sequence[tuple[Any, str]]) -> list[str]:
    """Return the names of categories, (id, name), with the id behind each one that is not the only one of its name."""
    counts = Counter(name for _, name in categories)
    return [f"{name} #{id_}" if counts[name] > 1 else name for id_, name in categories]
