"""A data set as a user reads it: its manifest rows, and its pixels by tarfile and Pillow."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from pipeline.dataset.shards import read_rows


def rows_of(out: Path) -> pl.DataFrame:
    """Positives first, then the pool, each in the order of shards and rows."""
    paths = [path for name in ("positives", "negatives") for path in sorted((out / name).glob("chips-*.parquet"))]
    return pl.concat([pl.DataFrame(read_rows(path)) for path in paths])


def reference_pixels(out: Path, row: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A chip as tarfile and Pillow read it."""
    with tarfile.open(out / row["shard"]) as tar:
        member = tar.extractfile(f"{row['key']}.jpg")
        assert member is not None
        return np.asarray(Image.open(io.BytesIO(member.read())).convert("RGB"))
