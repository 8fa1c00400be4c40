"""What a Parquet file says of itself, read from its end alone, on disk and in a store."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import Location, location, parquet
from pipeline.storage.parquet import read_frame, read_metadata, read_table
from schemas.errors import DataError
from tests.paths import ROOT
from tests.s3 import S3

ROWS = pa.table({"a": np.random.default_rng(0).random(50_000)})


def write(path: Path, said: bytes) -> bytes:
    pq.write_table(ROWS.replace_schema_metadata({b"said": said}), path)
    return path.read_bytes()


@pytest.mark.parametrize("said", [b"little", b"much" * 50_000])
def test_read_metadata__on_disk_and_in_a_store(said: bytes, tmp_path: Path, s3: S3) -> None:
    path = tmp_path / "a.parquet"
    s3.put("a.parquet", write(path, said))
    places: list[Location] = [path, location(f"{s3.url}/a.parquet")]
    for place in places:
        assert read_metadata(place)[b"said"] == said
        assert read_frame(place)["a"].to_numpy().tolist() == ROWS["a"].to_pylist()


def test_read_metadata__reads_the_end_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", b"little")
    read: list[int] = []

    def counted(place: Location, offset: int, size: int) -> bytes:
        read.append(size)
        assert isinstance(place, Path)
        return place.read_bytes()[offset : offset + size]

    monkeypatch.setattr(parquet, "read_range", counted)
    assert read_metadata(tmp_path / "a.parquet")[b"said"] == b"little"
    assert sum(read) == parquet.TAIL < (tmp_path / "a.parquet").stat().st_size


def test_read_table__some_columns_by_no_thread_of_arrow(tmp_path: Path) -> None:
    """Threads of Arrow that are left when the program ends may abort it."""
    path = tmp_path / "a.parquet"
    pq.write_table(ROWS.append_column("b", ROWS["a"]).append_column("c", ROWS["a"]), path)
    assert read_table(path, ["c", "a"]).column_names == ["c", "a"]
    with pytest.raises(DataError, match="it has no column d"):
        read_table(path, ["a", "d"])
    code = (
        "import os, sys; from pathlib import Path; from pipeline.storage.parquet import read_table\n"
        "before = os.listdir('/proc/self/task'); read_table(Path(sys.argv[1]), ['c', 'a'])\n"
        "print(len(os.listdir('/proc/self/task')) - len(before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "0\n"


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\xff" * 40, b"x" * 200_000, b"x" * 100 + b"\xff\xff\xff\x7fPAR1"])
def test_read__what_is_no_parquet_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: is no Parquet file"):
        read_metadata(path)
    with pytest.raises(DataError, match=r"a\.parquet: is damaged"):
        read_frame(path)
    path.unlink()
    for read in (read_metadata, read_frame):
        with pytest.raises(DataError, match=r"a\.parquet: is missing"):
            read(path)


def test_read_metadata__of_a_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    whole = write(path, b"little")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is no Parquet file"):
        read_metadata(path)
