"""verify finds what was damaged, and names it."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from pipeline.chips import chips
from pipeline.verify import verify
from schemas.errors import UsageError
from schemas.settings import ChipSettings
from tests.pipeline.conftest import DataSet


@pytest.fixture(scope="module")
def built(demo_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    chips(demo_set.annotations, demo_set.images, out, ChipSettings(images_per_shard=4))
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


def test_verify__finds_a_shard_of_another_build(copy: Path, demo_set: DataSet, tmp_path: Path) -> None:
    coco = json.loads(demo_set.annotations.read_bytes())
    coco["annotations"][0]["bbox"][2] -= 1
    (tmp_path / "other.json").write_text(json.dumps(coco))
    chips(tmp_path / "other.json", demo_set.images, tmp_path / "other", ChipSettings(images_per_shard=4))
    swapped = [path for path in (tmp_path / "other/positives").iterdir() if path.suffix in (".tar", ".parquet")]
    for path in swapped:
        shutil.copy(path, copy / "positives")
    (problem,) = verify(copy).problems
    assert "positives: the shards are not all those that run.json was written for" in problem
    chips(demo_set.annotations, demo_set.images, copy, ChipSettings(images_per_shard=4))
    assert verify(copy).problems == []


def test_verify__refuses_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no chips"):
        verify(tmp_path)
