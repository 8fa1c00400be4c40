"""Several annotation files and image folders as one data set."""

from pathlib import Path

import polars as pl
import pytest

from pipeline.commands.check import check
from pipeline.commands.chips import chips
from pipeline.commands.inputs import read_inputs
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, Settings
from tests.builders import CocoSet, chip_sums, sound_set
from tests.conftest import RunSniper

LIMIT = 10**8


def two_sets(folder: Path) -> list[CocoSet]:
    """Two sets with the same ids and names of files, and categories that have other ids in the second."""
    made = []
    for name in ("train", "val"):
        (folder / name).mkdir()
        made.append(sound_set(folder / name))
    second = made[1]
    second.categories = [{"id": 1, "name": "new"}, {"id": 9, "name": "thing"}]
    for box in second.annotations:
        box["category_id"] = 9
    return made


def test_chips__of_several_files_are_one_data_set(tmp_path: Path, sniper: RunSniper) -> None:
    first, second = two_sets(tmp_path)
    given = [part for made in (first, second) for part in ("--annotations", made.write(), "--images", made.image_root)]
    assert sniper("check", *given).status == 0
    assert sniper("chips", *given, "--out", tmp_path / "out").status == 0
    images = pl.read_parquet(tmp_path / "out/images.parquet")
    names = [str(made.image_root.relative_to(tmp_path)) + f"/{i}.jpg" for made in (first, second) for i in (1, 999)]
    assert images["file_name"].to_list() == names
    assert images["image_id"].n_unique() == 4
    boxes = pl.read_parquet(tmp_path / "out/annotations.parquet")
    assert boxes["row"].sort().to_list() == list(range(6))
    assert boxes["category_id"].unique().to_list() == [3]
    assert pl.read_parquet(tmp_path / "out/categories.parquet")["name"].to_list() == ["new", "thing"]
    chips(first.path, first.image_root, tmp_path / "alone", Settings())
    assert chip_sums(tmp_path / "out") == chip_sums(tmp_path / "alone")  # of the first file, whose ids stay


def test_read_inputs__one_folder_serves_all_files_that_name_other_images(tmp_path: Path) -> None:
    first, second = two_sets(tmp_path)
    with pytest.raises(DataError, match="2 images are named by more than one"):
        read_inputs([first.write(), second.write()], first.image_root, LIMIT, ())
    for image in second.images:
        image["file_name"] = "other-" + image["file_name"]
    source, root = read_inputs([first.write(), second.write()], first.image_root, LIMIT, ())
    assert root == first.image_root
    assert source.file_name.to_pylist() == ["1.jpg", "999.jpg", "other-1.jpg", "other-999.jpg"]


def test_read_inputs__folders_must_be_one_or_one_for_each_file(tmp_path: Path) -> None:
    made = two_sets(tmp_path)[0]
    with pytest.raises(UsageError, match="2 image folders for 1 annotation files"):
        read_inputs(made.write(), [made.image_root, tmp_path], LIMIT, ())
    with pytest.raises(UsageError, match="no such image folder"):
        check(made.path, tmp_path / "none", Settings(chips=ChipSettings(max_pixels=LIMIT)))
