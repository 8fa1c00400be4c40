"""Checks the category records of a COCO file. One that is wrong refuses the file: boxes would get wrong classes."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pipeline.coco.checks.values import ABSENT, Seen, repeated_ids, shown, whole, why_no_id
from schemas.errors import DataError

REPEATED = "{count} category records repeat the id and name of another (first id {example}); each is read once"


class Categories(NamedTuple):
    """The category records of a file.

    Attributes:
        known: (id, name) sorted by id.
        faults: lines about what is wrong. Where there are any, the file cannot be used.
        num_records: all of them.
    """

    known: list[tuple[int, str]]
    faults: list[str]
    num_records: int


def check_categories(records: Iterable[Any], seen: Seen) -> Categories:
    """Check category records, given in file order. One that is repeated is read once."""
    faults, known, rows = [], [], []
    there: set[tuple[int, str]] = set()
    num_records = 0
    for row, record in enumerate(records):
        num_records += 1
        if not isinstance(record, dict):
            faults.append(f"categories[{row}] is {shown(record)}; expected an object")
            continue
        category_id = whole(record.get("id"), "ids of categories", seen)
        if category_id == ABSENT:
            faults.append(f"categories[{row}].id is {why_no_id(record.get('id'))}")
            continue
        category = category_id, _name(record.get("name"), category_id, seen)
        if category in there:
            seen.add(REPEATED, category_id)
            continue
        there.add(category)
        known.append(category)
        rows.append(row)
    ids = np.array([category_id for category_id, _ in known], np.int64)
    faults += repeated_ids("categories", ids, np.array(rows, np.int64))
    return Categories(sorted(known), faults, num_records)


def _name(name: Any, category_id: int, seen: Seen) -> str:
    if isinstance(name, str):
        return name.encode("utf-8", "replace").decode()  # lone surrogates cannot be stored
    if type(name) in (int, float):
        seen.add(
            "{count} categories have numbers for names (first {example}); they are called as these are written", name
        )
        return str(name)
    seen.add("{count} categories have no name (first {example}); they are called by their ids", name)
    return str(category_id)


def merged(files: list[Categories]) -> list[tuple[int, str]]:
    """Return the categories of several files as one list, sorted by id. The same name is the same category.

    An id keeps its name as in the first file that has it; a name whose id is taken gets the next free one.

    Raises:
        DataError: a file calls two categories by one name, so that boxes of the others cannot be told apart.
    """
    if len(files) == 1:
        return files[0].known
    id_of: dict[str, int] = {}
    for file in files:
        if twice := doubles(file.known):
            raise DataError(f"several files become one by the names of categories, but {twice[0]}; rename one")
        for category_id, name in file.known:
            if name not in id_of:
                taken = set(id_of.values())
                id_of[name] = category_id if category_id not in taken else max(taken) + 1
    return sorted((category_id, name) for name, category_id in id_of.items())


def doubles(known: list[tuple[int, str]]) -> list[str]:
    """Return a line for each name that several categories have."""
    often = [name for name, count in Counter(name for _, name in known).items() if count > 1]
    return [f"categories {', '.join(str(i) for i, n in known if n == name)} are all called {name!r}" for name in often]
