"""Every public function takes paths as text, and any name of a folder; copies of manifests are no shards."""

import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from pipeline.commands.check import check
from pipeline.commands.chips import chips
from pipeline.commands.negatives import negatives
from pipeline.commands.verify import verify
from pipeline.insight.show import show
from schemas.errors import UsageError
from schemas.settings import ChipSettings, Settings
from tests.builders import sound_set
from tests.s3 import S3

SETTINGS = ChipSettings(images_per_shard=1)


def test_functions__take_paths_as_text_and_odd_folder_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sound_set(tmp_path / "in [1]")
    monkeypatch.chdir(tmp_path)
    annotations, images = (os.path.relpath(path, tmp_path) for path in (data.write(), data.image_root))
    out = "a[1]*"
    assert not list(check(annotations, images, Settings(chips=SETTINGS)).rejects)
    assert chips(annotations, images, out, Settings(chips=SETTINGS)).num_made == 2
    assert negatives(out, images=images, random=1).num_made == 2
    assert verify(out).problems == []
    assert show(out, "sheet.png") > 0
    assert Path("sheet.png").stat().st_size > 0


def test_functions__a_path_that_is_no_text_is_refused_before_any_work(tmp_path: Path) -> None:
    data = sound_set(tmp_path / "in")
    odd = tmp_path / os.fsdecode(b"im\xe9")
    shutil.copytree(data.image_root, odd)
    with pytest.raises(UsageError, match=r"im\\udce9': the path is no text in UTF-8"):
        chips(data.write(), odd, tmp_path / "out", Settings(chips=SETTINGS))
    assert not (tmp_path / "out").exists()
    moved = data.path.rename(odd / "train.json")
    with pytest.raises(UsageError, match="the path is no text in UTF-8"):
        check(moved, data.image_root, Settings(chips=SETTINGS))


def test_functions__take_no_copy_of_a_manifest_for_a_shard(tmp_path: Path) -> None:
    data, out = sound_set(tmp_path / "in"), tmp_path / "out"
    chips(data.write(), data.image_root, out, Settings(chips=SETTINGS))
    drawn = show(out, tmp_path / "sheet.png", columns=50)
    copy = out / "positives" / "chips-00000 (1).parquet"
    shutil.copy(out / "positives" / "chips-00000.parquet", copy)
    assert verify(out).problems == []
    assert show(out, tmp_path / "sheet.png", columns=50) == drawn
    assert chips(data.write(), data.image_root, out, Settings(chips=SETTINGS)).num_made == 0
    chips(data.write(), data.image_root, out, Settings(chips=SETTINGS), overwrite=True)
    assert copy.exists(), "it is the user's"
    assert pl.read_parquet(copy).height > 0


def test_chips__finds_a_missing_bucket_before_the_annotations_are_read(tmp_path: Path, s3: S3) -> None:
    data = sound_set(tmp_path / "in")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UsageError, match="bucket does not exist; make the bucket"):
        chips(tmp_path / "bad.json", data.image_root, f"{s3.url}-absent/out", Settings(chips=SETTINGS))
    assert s3.keys() == []
