"""Shards as others read them: tarfile, webdataset and Polars see what our reader sees."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pipeline.commands.chips import chips
from pipeline.dataset.shards import UNBOUNDED, TarWriter, chip_json, read_record, read_rows, shard_files, shard_name
from schemas.errors import DataError
from schemas.settings import ChipSettings, Settings
from schemas.tables import MANIFEST
from tests.pipeline.conftest import DataSet


@pytest.fixture(scope="module")
def built(demo_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    chips(demo_set.annotations, demo_set.images, out, Settings(chips=ChipSettings(images_per_shard=5)))
    return out


def test_tar_writer__is_what_tarfile_would_write() -> None:
    contents = {"a.jpg": b"x" * 1000, "name-with-0123.json": b"", "b" * 96 + ".jpg": b"\0" * 512}
    ours, theirs = io.BytesIO(), io.BytesIO()
    writer = TarWriter(ours)
    for name, data in contents.items():
        writer.add(name, data)
    writer.close()
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    # tarfile pads the end to 10,240 bytes
    assert theirs.getvalue().rstrip(b"\0") == ours.getvalue().rstrip(b"\0")
    assert len(ours.getvalue()) % 512 == 0


def test_manifest__polars_and_offsets_agree_with_tarfile(built: Path) -> None:
    manifest = pl.scan_parquet(built / "*/chips-*.parquet").collect()
    assert manifest.columns == MANIFEST.names
    members: dict[str, bytes] = {}
    for path in sorted((built / "positives").glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                extracted = tar.extractfile(info)
                assert extracted is not None
                members[info.name] = extracted.read()
                assert (info.mtime, info.uid, info.gid) == (0, 0, 0)
    assert len(members) == 2 * len(manifest)
    for chip in manifest.to_dicts():
        with (built / chip["shard"]).open("rb") as tar_file:
            tar_file.seek(chip["offset"])
            assert tar_file.read(chip["size"]) == members[f"{chip['key']}.jpg"]
        row = {name: chip[name] for name in MANIFEST.names[:-4] if chip[name] is not None}
        row["range_max"] = min(row["range_max"], UNBOUNDED)
        assert json.loads(members[f"{chip['key']}.json"]) == row


def test_shards__webdataset_reads_the_same_chips(built: Path) -> None:
    import webdataset

    rows = {row["key"]: row for row in pl.read_parquet(built / "positives/chips-*.parquet").to_dicts()}
    urls = [str(path) for path in sorted((built / "positives").glob("*.tar"))]
    samples: list[dict[str, Any]] = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == list(rows)
    for sample in samples:
        row = rows[sample["__key__"]]
        assert sample["jpg"].shape == (row["height"], row["width"], 3)
        assert [box["annotation_id"] for box in sample["json"]["boxes"]] == [b["annotation_id"] for b in row["boxes"]]
        with (built / row["shard"]).open("rb") as tar:
            tar.seek(row["offset"])
            ours = np.asarray(Image.open(io.BytesIO(tar.read(row["size"]))))
        np.testing.assert_array_equal(sample["jpg"], ours)


def test_chip_json__holds_nothing_whose_type_another_chip_would_contradict() -> None:
    """Readers such as Hugging Face datasets guess the type of a key from the first five chips."""
    row = {"key": "a", "range_max": np.inf, "boxes": [], "num_proposals": None, "mean_score": None, "scale": 0.5}
    assert json.loads(chip_json(row)) == {"key": "a", "range_max": UNBOUNDED, "scale": 0.5}
    box = {"label": 1, "x1": 0.0}
    said = json.loads(chip_json({**row, "boxes": [box], "range_max": 80.0, "num_proposals": 3, "mean_score": 0.25}))
    assert said == {
        "key": "a",
        "range_max": 80.0,
        "boxes": [box],
        "num_proposals": 3,
        "mean_score": 0.25,
        "scale": 0.5,
    }


def test_shard_files__are_in_order_past_99_999_and_leave_out_copies(tmp_path: Path) -> None:
    names = [shard_name(index) for index in (99_998, 99_999, 100_000, 100_001)]
    for name in (*names, "chips-00000 (1)", "chips-099999", "chips-7"):
        (tmp_path / f"{name}.parquet").touch()
    assert [path.stem for path in shard_files(tmp_path, ".parquet")] == names


def test_read_record__names_the_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "chips-00000.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(DataError, match="chips-00000.parquet"):
        read_record(path)
    with pytest.raises(DataError, match="chips-00000.parquet"):
        read_rows(path)
    pl.DataFrame({"a": [1]}).write_parquet(path)
    with pytest.raises(DataError, match="not a chip manifest"):
        read_record(path)
