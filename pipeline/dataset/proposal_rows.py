"""The rows of a file of proposals, Parquet or COCO results, as columns. What is no number is named by its row."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Location, local_copy, read_bytes
from schemas.arrays import FloatArray, IntArray
from schemas.errors import DataError
from schemas.tables import PROPOSALS

BATCH_ROWS = 1 << 20
COLUMNS = [name for name in PROPOSALS.names if name != "scale_index"]
EXACT = 2.0**53
"""Up to here every whole number is a float of its own."""


class Batch(NamedTuple):
    """Rows of one file.

    Attributes:
        first_row: number of the first row in its file, from 0.
        image_id: int64 [k], ids as the file has them.
        box: float64 [k, 4], x1 y1 x2 y2, source pixels; NaN stands for null.
        score: float64 [k]; NaN stands for null.
        faults: what is wrong with rows that have no numbers at all, by the row's number in the file.
    """

    first_row: int
    image_id: IntArray
    box: FloatArray
    score: FloatArray
    faults: dict[int, str]


def read_batches(file: Location) -> Iterator[Batch]:
    """Read a file, some rows at a time.

    Args:
        file: COCO results where the name ends in .json, else Parquet.

    Raises:
        DataError: it is neither, cannot be read, or columns are missing or hold no numbers.
    """
    if file.suffix.lower() == ".json":
        yield _json_batch(file)
        return
    with local_copy(file) as path:
        try:
            reader = pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{file}: is not Parquet, nor named *.json: {error}; expected one of both") from error
        _check_columns(file, reader.schema_arrow)
        yield from _parquet_batches(reader, file)


def _parquet_batches(reader: Any, file: Location) -> Iterator[Batch]:
    row = 0
    try:
        for batch in reader.iter_batches(BATCH_ROWS, columns=COLUMNS):
            columns = [batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False) for name in COLUMNS[1:]]
            ids = batch.column("image_id")
            nulls = np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False)).tolist()
            faults = {row + i: "image_id is null" for i in nulls}
            if pa.types.is_floating(ids.type):
                values = ids.cast(pa.float64()).fill_null(0).to_numpy()
                is_id = (values == np.floor(values)) & (np.abs(values) <= EXACT)
                faults |= {
                    row + i: f"image_id is {values[i]:g}; expected an integer" for i in np.flatnonzero(~is_id).tolist()
                }
                image_id = np.where(is_id, values, 0).astype(np.int64)
            else:
                image_id = ids.fill_null(0).cast(pa.int64()).to_numpy()
            yield Batch(row, image_id, np.stack(columns[:4], axis=1), columns[4], faults)
            row += len(batch)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file}: cannot be read beyond row {row}: {error}; write it anew") from error


def _check_columns(file: Location, schema: pa.Schema) -> None:
    faults = []
    for name in COLUMNS:
        kind = schema.field(name).type if name in schema.names else None
        expected = "integers" if name == "image_id" else "numbers"
        if kind is None:
            faults.append(f"column {name} is missing")
        elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            faults.append(f"column {name} is {kind}; expected {expected}")
    if faults:
        raise DataError(
            f"{file}: wrong columns: {'; '.join(faults)}. Expected {', '.join(COLUMNS)}: boxes in source pixels, "
            f"x2 and y2 exclusive; found {', '.join(schema.names)}"
        )


class _Result(msgspec.Struct, gc=False):
    """One record of COCO results, of which anything may stand in any field."""

    image_id: Any = None
    bbox: Any = None
    score: Any = None


def _json_batch(file: Location) -> Batch:
    records = _parse(file)
    image_id = np.zeros(len(records), np.int64)
    numbers = np.zeros((len(records), 5))
    faults: dict[int, str] = {}
    for row, record in enumerate(records):
        if not isinstance(record, _Result):
            faults[row] = f"is {record!r:.80}; expected an object"
        elif (number := _as_id(record.image_id)) is None:
            faults[row] = f"image_id is {record.image_id!r:.80}; expected an integer"
        elif type(record.bbox) is not list or len(record.bbox) != 4 or not all(map(_is_number, record.bbox)):
            faults[row] = f"bbox is {record.bbox!r:.80}; expected four numbers [x, y, width, height]"
        elif not _is_number(record.score):
            faults[row] = f"score is {record.score!r:.80}; expected a number"
        else:
            image_id[row], numbers[row] = number, [*record.bbox, record.score]
    box = np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:4]], axis=1)
    return Batch(0, image_id, box, numbers[:, 4], faults)


def _as_id(value: Any) -> int | None:
    """Return a value as an id. Some programs write whole numbers as floats, such as 1.0; None where it is no id."""
    if type(value) is float and value.is_integer() and abs(value) <= EXACT:
        return int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def _is_number(value: Any) -> bool:
    """Tell whether a value is a number. NaN is one, to be named as such; what no float holds is none."""
    return type(value) is float or (type(value) is int and abs(value) < 2**1000)


def _parse(file: Location) -> list[Any]:
    try:
        data = read_bytes(file)
        try:
            return msgspec.json.decode(data, type=list[_Result | bool | int | float | str | list[Any] | None])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            loaded = json.loads(data)  # NaN and Infinity are not JSON but occur in the wild
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is not JSON: {error}; expected COCO results or Parquet") from error
    if not isinstance(loaded, list):
        raise DataError(
            f"{file}: expected COCO results, a list of {{image_id, bbox, score}}, found {type(loaded).__name__}"
        )
    return [msgspec.convert(record, _Result) if isinstance(record, dict) else record for record in loaded]
