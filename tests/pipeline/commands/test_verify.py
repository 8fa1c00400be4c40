"""verify finds what was damaged, and names it."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from pipeline.commands.chips import chips
from pipeline.commands.verify import verify
from pipeline.dataset.shards import commit_shard, read_rows, read_shard
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, Settings
from tests.pipeline.conftest import DataSet


@pytest.fixture(scope="module")
def built(demo_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    chips(demo_set.annotations, demo_set.images, out, Settings(chips=ChipSettings(images_per_shard=4)))
    return out


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


def test_verify__accepts_a_whole_build(built: Path) -> None:
    report = verify(built)
    assert report.problems == []
    assert report.num_shards == 3
    assert report.num_chips == len(pl.read_parquet(built / "positives/chips-*.parquet"))


def test_verify__names_the_chip_with_a_flipped_bit(copy: Path) -> None:
    chip = pl.read_parquet(copy / "positives/chips-00001.parquet").row(3, named=True)
    path = copy / chip["shard"]
    data = bytearray(path.read_bytes())
    data[chip["offset"] + chip["size"] // 2] ^= 1
    path.write_bytes(data)
    shard, bad_chip = verify(copy, workers=2).problems
    assert "positives/chips-00001.tar: SHA-256 differs; 1 of" in shard
    assert chip["key"] in bad_chip


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("run.json", "unfinished"),
        ("images.parquet", "images.parquet: is missing"),
        ("positives/chips-00001.parquet", "positives/chips-00001: is missing"),
        ("positives/chips-00001.tar", "positives/chips-00001.tar: is missing"),
    ],
)
def test_verify__names_what_is_missing(copy: Path, name: str, said: str) -> None:
    (copy / name).unlink()
    assert any(said in problem for problem in verify(copy).problems)


def test_verify__names_what_was_changed(copy: Path) -> None:
    (copy / "categories.parquet").write_bytes(b"other")
    (copy / "positives/chips-00000.parquet").write_bytes(b"other")
    tar = copy / "positives/chips-00002.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    text = "\n".join(verify(copy).problems)
    for said in ("categories.parquet: differs", "chips-00000.parquet: is not a chip manifest", "chips damaged"):
        assert said in text
    (copy / "run.json").write_text("{")
    assert any("run.json: is damaged" in problem for problem in verify(copy).problems)


@pytest.mark.parametrize("seed", range(4))
def test_verify__finds_every_flipped_bit_of_a_manifest_that_changes_its_rows(copy: Path, seed: int) -> None:
    """And ends with no other error, whatever the damage makes pyarrow raise."""
    path = copy / "positives/chips-00002.parquet"
    sound, rows = path.read_bytes(), read_rows(path)
    rng = random.Random(seed)
    num_changed = 0
    for _ in range(60):
        bit = rng.randrange(8 * len(sound))
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        problems = verify(copy).problems
        try:
            is_changed = not read_rows(path).equals(rows)
        except DataError:
            is_changed = True
        num_changed += is_changed
        assert not is_changed or any("positives/chips-00002.parquet" in problem for problem in problems), bit
    assert num_changed > 20


def _with(name: str, value: object, row: int) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        values = rows[name].to_pylist()
        values[row] = value
        field = rows.schema.field(name)
        return rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))

    return change


@pytest.mark.parametrize(
    ("change", "row"),
    [
        (_with("shard", "positives/chips-00002.tar", 2), 2),
        (_with("offset", 512, 2), 2),
        (_with("offset", None, 2), 2),
        (_with("size", 10, 2), 2),
        (_with("crc32", 7, 2), 2),
        (_with("range_max", float("nan"), 2), 2),
        (_with("image_id", 77, 2), 2),
        (_with("boxes", [], 2), 2),
        (lambda rows: rows.slice(1), None),
        (lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]), None),
    ],
)
def test_verify__holds_each_row_against_the_tar(
    copy: Path, change: Callable[[pa.Table], pa.Table], row: int | None
) -> None:
    path = copy / "positives/chips-00001.parquet"
    rows, record = read_shard(path)
    commit_shard(path, change(rows), record)
    problems = verify(copy).problems
    assert problems[0].startswith("positives/chips-00001.parquet: ")
    if row is None:
        assert "each once" in problems[0]
    else:
        assert problems[1:] == [f"positives/chips-00001.parquet: chip {rows['key'][row]}: its row is damaged"]


def test_verify__names_a_manifest_that_holds_no_text(copy: Path) -> None:
    path = copy / "positives/chips-00001.parquet"
    rows, record = read_shard(path)
    raw = pa.array([b"\xff" * 20] * len(rows)).view(pa.string())
    commit_shard(path, rows.set_column(0, "key", raw), record)
    (problem,) = verify(copy).problems
    assert "positives/chips-00001.parquet: is not a chip manifest" in problem


def test_verify__names_a_shard_beyond_those_of_run_json(copy: Path, demo_set: DataSet) -> None:
    for suffix in (".tar", ".parquet"):
        shutil.copy(copy / f"positives/chips-00002{suffix}", copy / f"positives/chips-00003{suffix}")
    assert verify(copy).problems[0].startswith("positives/chips-00003.parquet: is beyond the 3 shards")
    chips(demo_set.annotations, demo_set.images, copy, Settings(chips=ChipSettings(images_per_shard=4)))
    assert verify(copy).problems == []


def test_verify__finds_a_shard_of_another_build(copy: Path, demo_set: DataSet, tmp_path: Path) -> None:
    coco = json.loads(demo_set.annotations.read_bytes())
    coco["annotations"][0]["bbox"][2] -= 1
    (tmp_path / "other.json").write_text(json.dumps(coco))
    chips(
        tmp_path / "other.json", demo_set.images, tmp_path / "other", Settings(chips=ChipSettings(images_per_shard=4))
    )
    swapped = [path for path in (tmp_path / "other/positives").iterdir() if path.suffix in (".tar", ".parquet")]
    for path in swapped:
        shutil.copy(path, copy / "positives")
    (problem,) = verify(copy).problems
    assert "positives: the shards are not all those that run.json was written for" in problem
    chips(demo_set.annotations, demo_set.images, copy, Settings(chips=ChipSettings(images_per_shard=4)))
    assert verify(copy).problems == []


def test_verify__refuses_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no chips"):
        verify(tmp_path)
