"""Checks the category records of a COCO file. One that is wrong refuses the file: boxes would get wrong classes."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pipeline.coco.checks.ids import StringIds, is_id, repeated_ids, shown
from pipeline.coco.file import Category


class Categories(NamedTuple):
    """The category records of a file.

    Attributes:
        known: (id, name) sorted by id.
        string_ids, repeated_ids, bad_records: lines about what refuses the file.
        num_records: all of them.
    """

    known: list[tuple[int, str]]
    string_ids: list[str]
    repeated_ids: list[str]
    bad_records: list[str]
    num_records: int


def check_categories(runs: Iterable[list[Any]]) -> Categories:
    """Check category records, given in runs."""
    records = [record for run in runs for record in run]
    strings = StringIds("categories", "id")
    strings.look(records, 0)
    bad_records = []
    known: dict[int, tuple[int, str]] = {}  # by row
    for row, record in enumerate(records):
        if not isinstance(record, Category):
            bad_records.append(f"categories[{row}] is {shown(record)}; expected an object")
        elif is_id(record.id):
            known[row] = record.id, _name(record)
        elif not isinstance(record.id, str):
            bad_records.append(f"categories[{row}].id is {shown(record.id)}; expected an integer")
    ids = np.array([category_id for category_id, _ in known.values()], np.int64)
    repeated = repeated_ids("categories", ids, np.array(list(known), np.int64))
    return Categories(sorted(known.values()), strings.lines(), repeated, bad_records, len(records))


def _name(category: Category) -> str:
    if not isinstance(category.name, str):
        return str(category.id)
    return category.name.encode("utf-8", "replace").decode()  # lone surrogates cannot be stored
