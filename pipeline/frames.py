"""The ledgers of a data set as Polars frames."""

import polars as pl

from pipeline.storage import Location, read_bytes
from schemas.errors import DataError


def read_frame(place: Location) -> pl.DataFrame:
    """A Parquet file that a build wrote.

    Raises:
        DataError: it is missing or damaged. OSError: it cannot be read.
    """
    try:
        return pl.read_parquet(read_bytes(place))
    except (FileNotFoundError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{place}: is missing or damaged: {error}; run the build again") from error
