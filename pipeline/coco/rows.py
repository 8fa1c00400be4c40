"""Rows of a named tuple kept as Arrow columns: some 100 bytes a row, where Python objects take 800."""

from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice
from typing import Any, Generic, TypeVar

import pyarrow as pa

BATCH = 4096  # rows that wait as Python objects

Row = TypeVar("Row", bound=tuple[Any, ...])


class Rows(Generic[Row], Iterable[Row], Sized):
    """A list of rows that is only added to, and read from its start."""

    def __init__(self, make: Callable[..., Row], schema: pa.Schema) -> None:
        """Make an empty list.

        Args:
            make: makes a row of the values of its fields; Arrow gives enumerations back as their plain values.
            schema: the Arrow schema of the rows, in the order of the tuple's fields.
        """
        self._make, self._schema = make, schema
        self._batches: list[pa.RecordBatch] = []
        self._last: list[Row] = []

    def append(self, row: Row) -> None:
        """Add one row."""
        self._last.append(row)
        if len(self._last) >= BATCH:
            self.pack()

    def pack(self) -> None:
        """Turn the rows that wait as Python objects into columns, too."""
        if self._last:
            columns = zip(*self._last, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
            self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
            self._last = []

    def plus(self, rows: Iterable[Row]) -> "Rows[Row]":
        """Return these rows and others behind them; what both hold is held once."""
        longer = Rows(self._make, self._schema)
        longer._batches, longer._last = self._batches.copy(), self._last.copy()
        for row in rows:
            longer.append(row)
        return longer

    def first(self, size: int) -> "Rows[Row]":
        """Return the first `size` rows alone."""
        return Rows(self._make, self._schema).plus(islice(self, size))

    def table(self) -> pa.Table:
        """Return the rows as a table of their schema."""
        self.pack()
        return pa.Table.from_batches(self._batches, self._schema)

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(len(batch) for batch in self._batches) + len(self._last)

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows in order."""
        for batch in self._batches:
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield self._make(*values)
        yield from self._last
