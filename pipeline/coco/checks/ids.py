"""What ids, sizes and names of a COCO file must be, and how what is found instead is told."""

from typing import Any

import numpy as np

from schemas.arrays import IntArray

INT64_RANGE = range(-(2**63), 2**63)


class StringIds:
    """Strings found where integer ids should be: the first of them, and how many there are."""

    def __init__(self, name: str, key: str) -> None:
        self.name, self.key = name, key
        self.count = 0
        self._row, self._value = -1, ""

    def look(self, records: list[Any], first_row: int) -> None:
        """Count those of a run that starts at row `first_row`."""
        for row, record in enumerate(records, first_row):
            value = getattr(record, self.key, None)
            if isinstance(value, str):
                if not self.count:
                    self._row, self._value = row, value
                self.count += 1

    def lines(self) -> list[str]:
        """At most one: the first, and how many there are."""
        if not self.count:
            return []
        return [
            f"{self.name}[{self._row}].{self.key} is the string {shown(self._value)}{_and_more(self.count)}; "
            "ids must be integers. Renumber the file; pycocotools would not match such ids either."
        ]


def repeated_ids(name: str, ids: IntArray, rows: IntArray) -> list[str]:
    """At most one line: the first id that occurs twice, and how many do.

    Args:
        ids, rows: int64 [n], of all records with an id, rows ascending.
    """
    again = repeats(ids)
    if not len(again):
        return []
    value = ids[again[0]]
    first = np.flatnonzero(ids == value)[0]
    return [
        f"{name}[{rows[first]}] and {name}[{rows[again[0]]}] both have id {value}{_and_more(len(again))}; "
        "ids must be unique. If files were merged, renumber one of them."
    ]


def repeats(ids: IntArray) -> IntArray:
    """Positions of ids [n] that occur before, ascending."""
    if (ids[1:] > ids[:-1]).all():
        return np.empty(0, np.int64)
    order = np.argsort(ids, kind="stable")
    same = ids[order[1:]] == ids[order[:-1]]
    return np.sort(order[1:][same])


def _and_more(count: int) -> str:
    return f" (and {count - 1} more such)" if count > 1 else ""


def shown(value: Any) -> str:
    """A found value, for a message."""
    return f"{value!r:.80}"


def is_id(value: Any) -> bool:
    return type(value) is int and value in INT64_RANGE


def id_or_none(value: Any) -> int | None:
    return value if is_id(value) else None


def is_text(value: Any) -> bool:
    """A string that can be stored: JSON may hold half of a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
