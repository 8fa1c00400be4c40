"""Reads Parquet files that a build wrote, wherever they lie: whole, some columns, or their metadata alone."""

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.files import size_of
from pipeline.storage.reading import read_bytes, read_range
from pipeline.storage.stores import Location
from schemas.errors import DataError, MissingError

MAKE_IT = "run the command that wrote it, `sniper chips` or `sniper negatives`: it makes what is missing"
TAIL = 1 << 16  # bytes that hold the metadata of most files
_END = 8  # bytes: the length of the metadata, and Parquet's mark


def read_table(place: Location, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns.

    Raises:
        DataError: The file is missing or damaged.
        OSError: It cannot be read.
    """
    try:
        content = read_bytes(place)
    except FileNotFoundError as error:
        raise MissingError(f"{place}: is missing; {MAKE_IT}") from error
    try:
        return parse_table(content, columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{place}: is damaged: {error}; delete it and {MAKE_IT}") from error


def parse_table(content: bytes, columns: list[str] | None = None) -> pa.Table:
    """Read the content of a Parquet file, or some of its columns, by this thread alone.

    `pq.read_table` hands the content to threads of Arrow. One of them may give it back when the program already ends,
    which aborts the program with status 134.

    Raises:
        OSError, pa.ArrowException: it is no Parquet file, or lacks a column.
    """
    file = pq.ParquetFile(pa.BufferReader(content))
    if missing := set(columns or ()) - set(file.schema_arrow.names):
        raise pa.ArrowKeyError(f"it has no column {min(missing)}")
    return file.read(columns, use_threads=False)


def read_frame(place: Location) -> pl.DataFrame:
    """Read a Parquet file as a Polars data frame.

    Raises:
        DataError: The file is missing or damaged.
        OSError: It cannot be read.
    """
    frame = pl.from_arrow(read_table(place))
    assert isinstance(frame, pl.DataFrame)
    return frame


def read_metadata(place: Location) -> dict[bytes, bytes]:
    """Read the metadata of a Parquet file: names and values that its writer put there. Only the file's end is read.

    Raises:
        DataError: The file is missing, or it is no Parquet file.
        OSError: It cannot be read.
    """
    size = size_of(place)
    if size is None:
        raise DataError(f"{place}: is missing; {MAKE_IT}")
    tail = read_range(place, max(0, size - TAIL), TAIL)
    wanted = int.from_bytes(tail[-_END:-4], "little") + _END
    if len(tail) < wanted <= size:
        tail = read_range(place, size - wanted, wanted)
    try:
        return pq.read_metadata(pa.BufferReader(tail)).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{place}: is no Parquet file: {error}; delete it and {MAKE_IT}") from error
