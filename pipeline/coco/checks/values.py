"""What the values of a COCO file may be written as, and how what is found is told."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.arrays import IntArray

ABSENT = -(2**63)
"""Stands for an id that is none. The one number of 64 bits that an id cannot be."""

EXACT = 2**53  # beyond this a float may stand for several whole numbers

_is_number = re.compile(r"\s*[+-]?\d{1,4000}(\.0*)?\s*", re.ASCII).fullmatch


class Seen:
    """Counts what was read though it is not written as it should be, with the first example of each kind."""

    def __init__(self) -> None:
        """Start without any."""
        self._kinds: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, example: Any = None, number: int = 1) -> None:
        """Count one, or `number` of them.

        Args:
            kind: a line about all of its kind, with {count} and {example} in it.
            example: the value found.
            number: how many.
        """
        count, first = self._kinds.get(kind, (0, ""))
        self._kinds[kind] = count + number, first or shown(example)

    def update(self, other: "Seen") -> None:
        """Add the counts of another file, whose lines come behind."""
        for kind, (count, example) in other._kinds.items():
            self._kinds[kind] = self._kinds.get(kind, (0, ""))[0] + count, self._kinds.get(kind, (0, example))[1]

    def lines(self) -> list[str]:
        """Return one line for each kind, in the order in which they were met."""
        return [kind.format(count=f"{count:,}", example=first) for kind, (count, first) in self._kinds.items()]


def whole(value: Any, name: str, seen: Seen) -> int:
    """Return a whole number of 64 bits, also where it is written as a float or as text; else ABSENT.

    Args:
        value: as the JSON has it.
        name: the field's name, for a remark about such numbers.
        seen: counts them.
    """
    if type(value) is int:
        return value if ABSENT < value < -ABSENT else ABSENT
    if type(value) is float and value.is_integer() and abs(value) < EXACT:
        seen.add(
            f"{{count}} {name} are whole numbers written as floats (first {{example}}); read as whole numbers", value
        )
        return int(value)
    if type(value) is str and _is_number(value):
        number = int(value.partition(".")[0])
        if ABSENT < number < -ABSENT:
            seen.add(f"{{count}} {name} are numbers written as text (first {{example}}); read as numbers", value)
            return number
    return ABSENT


def id_or_none(value: int) -> int | None:
    """Return None for ABSENT."""
    return None if value == ABSENT else value


def shifted(value: int | None, shift: int) -> int | None:
    """Return an id with a number added to it; None where there is none, or where the sum has more than 64 bits."""
    return None if value is None or not -(2**63) < value + shift < 2**63 else value + shift


def why_no_id(value: Any) -> str:
    """Return what is wrong with an id that `whole` does not read, for a message."""
    if type(value) is int or (type(value) is str and _is_number(value)):
        return f"{shown(value)}, beyond 64 bits; renumber the file"
    if type(value) is float and value.is_integer():
        return f"{shown(value)}, a float too large to be exact; write ids as integers"
    if type(value) is str:
        return f"the text {shown(value)}; expected an integer. Renumber the file"
    return f"{shown(value)}; expected an integer"


def shown(value: Any) -> str:
    """Return a found value, shortened, for a message."""
    return f"{value!r:.80}"


def repeats(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the values that occur more than once, sorted."""
    if (ids[1:] > ids[:-1]).all():
        return ids[:0]
    ids = np.sort(ids)
    return np.unique(ids[1:][ids[1:] == ids[:-1]])


def repeated_ids(name: str, ids: IntArray, rows: IntArray) -> list[str]:
    """Return at most one line: an id that two records have which differ, and how many there are.

    Args:
        name: the list's name.
        ids: int64 [n], of all records with an id; without those that are repeated.
        rows: int64 [n], their positions in the list, ascending.
    """
    again = repeats(ids)
    if not len(again):
        return []
    first, second = rows[np.flatnonzero(ids == again[0])[:2]]
    more = f" (and {len(again) - 1} more such)" if len(again) > 1 else ""
    return [f"{name}[{first}] and {name}[{second}] both have id {again[0]} and differ{more}; ids must be unique"]
