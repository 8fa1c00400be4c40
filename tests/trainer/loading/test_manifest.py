"""The memory-mapped columns: they equal the Parquet manifests, and follow the fingerprint."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.shards import Record, commit_shard, read_record
from schemas.codes import Status
from schemas.errors import DataError
from schemas.tables import BOX, MANIFEST
from tests.trainer.manifests import rows_of
from tests.trainer.remote import PROTOCOL, remote
from trainer.loading.manifest import open_manifest


def caches(out: Path) -> list[str]:
    return sorted(path.name for path in (out / ".loader").glob("*.arrow"))


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/sniper-chips"


def test_open_manifest__equals_the_parquet_files(pool_folder: Path) -> None:
    rows = rows_of(pool_folder)
    m = open_manifest(pool_folder, pool=True)
    assert m.keys.to_pylist() == rows["key"].to_list()
    assert m.num_positives == (rows["kind"] == "positive").sum() < len(rows)
    assert (np.array(m.shards)[m.shard_indices] == rows["shard"].to_numpy()).all()
    records = [read_record((pool_folder / name).with_suffix(".parquet")) for name in m.shards]
    assert m.shard_bytes == [record.tar_bytes for record in records]
    assert m.shard_sha256 == [record.tar_sha256 for record in records]
    assert m.shard_bytes == [(pool_folder / name).stat().st_size for name in m.shards]
    for column, name in [("image_ids", "image_id"), ("jpeg_offsets", "offset"), ("jpeg_sizes", "size")]:
        assert getattr(m, column).tolist() == rows[name].to_list()
    np.testing.assert_array_equal(m.scales, rows["scale"].to_numpy().astype(np.float32))
    np.testing.assert_array_equal(m.ranges, rows["range_min", "range_max"].to_numpy())
    np.testing.assert_array_equal(m.contents, rows["height", "width"].to_numpy())
    assert np.diff(m.box_offsets).tolist() == rows["boxes"].list.len().to_list()
    boxes = rows["boxes"].explode().drop_nulls().struct.unnest()
    np.testing.assert_array_equal(m.corners, boxes["x1", "y1", "x2", "y2"].to_numpy())
    assert m.labels.tolist() == boxes["label"].to_list()
    np.testing.assert_array_equal(m.visible, boxes["visible"].to_numpy())
    assert [Status(code).name.lower() for code in m.status] == boxes["status"].to_list()


def test_open_manifest__without_pool(own_folder: Path) -> None:
    assert len(open_manifest(own_folder, pool=False).keys) == open_manifest(own_folder, pool=True).num_positives
    assert len(caches(own_folder)) == 2
    shutil.rmtree(own_folder / "negatives")
    assert len(open_manifest(own_folder, pool=True).keys) == open_manifest(own_folder, pool=False).num_positives


def test_open_manifest__columns_are_views_of_the_file(own_folder: Path) -> None:
    before = pa.total_allocated_bytes()
    m = open_manifest(own_folder, pool=True)
    del m
    m = open_manifest(own_folder, pool=True)
    assert pa.total_allocated_bytes() == before
    for column in (m.key_hashes, m.corners, m.labels, m.status, m.contents, m.box_offsets):
        assert not column.flags.owndata
        assert not column.flags.writeable


def test_open_manifest__a_changed_fingerprint_makes_a_new_file(own_folder: Path) -> None:
    open_manifest(own_folder, pool=False)
    old = caches(own_folder)
    modified = (own_folder / ".loader" / old[0]).stat().st_mtime_ns
    open_manifest(own_folder, pool=False)
    assert (own_folder / ".loader" / old[0]).stat().st_mtime_ns == modified  # used, not made again
    path = own_folder / "positives/chips-00000.parquet"
    table = pq.read_table(path).slice(1)
    pq.write_table(table, path)
    run = json.loads((own_folder / "run.json").read_bytes())
    (own_folder / "run.json").write_text(json.dumps({**run, "fingerprint": "another"}))
    m = open_manifest(own_folder, pool=False)
    assert m.keys.to_pylist() == rows_of(own_folder).filter(kind="positive")["key"].to_list()
    assert len(caches(own_folder)) == 1
    assert caches(own_folder) != old


@pytest.mark.parametrize("content", [b"", b"ARROW1 nonsense", None])
def test_open_manifest__a_damaged_file_is_made_again(own_folder: Path, content: bytes | None) -> None:
    open_manifest(own_folder, pool=True)
    path = own_folder / ".loader" / caches(own_folder)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert len(open_manifest(own_folder, pool=True).keys) == len(rows_of(own_folder))
    assert path.read_bytes() == whole


def test_open_manifest__folder_not_writable(own_folder: Path, user_cache: Path) -> None:
    (own_folder / ".loader").write_text("in the way")  # root may write everywhere, but not below a file
    m = open_manifest(own_folder, pool=True)
    assert len(m.keys) == len(rows_of(own_folder))
    assert len(list(user_cache.glob("*.arrow"))) == 1
    open_manifest(own_folder, pool=True)


def test_open_manifest__no_place_at_all(own_folder: Path, user_cache: Path) -> None:
    (own_folder / ".loader").write_text("in the way")
    user_cache.parent.write_text("in the way")
    with pytest.raises(DataError, match="can be written in neither"):
        open_manifest(own_folder, pool=True)


def test_open_manifest__remote(own_folder: Path, tmp_path: Path, user_cache: Path) -> None:
    place, cache = remote(own_folder, tmp_path / "log"), tmp_path / "own-cache"
    m = open_manifest(place, pool=True, cache=cache)
    assert m.keys == open_manifest(own_folder, pool=True).keys
    assert [path.suffix for path in cache.iterdir() if path.name != ".lock"] == [".arrow"]
    shutil.rmtree(own_folder / "positives")  # no longer asked for
    assert open_manifest(place, pool=True, cache=cache).keys == m.keys
    assert not user_cache.exists()
    cache.rename(user_cache.parent)
    with pytest.raises(DataError, match="0 found"):
        open_manifest(place, pool=True)
    (own_folder / "run.json").unlink()
    with pytest.raises(DataError, match=rf"{PROTOCOL}://.*run\.json: is missing"):
        open_manifest(place, pool=True)


def test_open_manifest__remote_without_a_place_for_the_columns(own_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(DataError, match=r"cache: the loader's index cannot be written; .* loader\.cache"):
        open_manifest(remote(own_folder, tmp_path / "log"), pool=True, cache=tmp_path / "cache")


def test_open_manifest__leftovers_of_killed_processes_go(own_folder: Path) -> None:
    (own_folder / ".loader").mkdir()
    (own_folder / ".loader/.tmp-1-positives.arrow").write_bytes(b"half")
    open_manifest(own_folder, pool=True)
    assert not list((own_folder / ".loader").glob("*tmp*"))


def test_open_manifest__unfinished(own_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `sniper chips`"):
        open_manifest(tmp_path / "nowhere", pool=True)
    (own_folder / "negatives/run.json").unlink()
    with pytest.raises(DataError, match="run `sniper negatives`"):
        open_manifest(own_folder, pool=True)
    open_manifest(own_folder, pool=False)
    (own_folder / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json.*run `sniper"):
        open_manifest(own_folder, pool=False)


def test_open_manifest__stale_pool(own_folder: Path) -> None:
    run = json.loads((own_folder / "run.json").read_bytes())
    (own_folder / "run.json").write_text(json.dumps({**run, "fingerprint": "newer"}))
    with pytest.raises(DataError, match="mined for positives .* found newer"):
        open_manifest(own_folder, pool=True)


def test_open_manifest__missing_or_damaged_manifest(own_folder: Path) -> None:
    path = own_folder / "positives/chips-00001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="chips-00001"):
        open_manifest(own_folder, pool=True)
    path.unlink()
    with pytest.raises(DataError, match=r"manifests expected, \d found"):
        open_manifest(own_folder, pool=True)
    assert not list((own_folder / ".loader").glob("*tmp*"))


def write_synthetic(out: Path, num: int, files: int) -> None:
    """A data set of `num` manifest rows with three boxes each, and no pixels."""
    (out / "positives").mkdir(parents=True)
    rows = np.arange(num)
    ones = np.ones(3 * num, np.float32)
    status = pa.DictionaryArray.from_arrays(pa.array(np.tile([0, 1, 2], num)), ["valid", "cut", "ignore"])
    values = {"annotation_id": np.arange(3 * num), "category_id": np.arange(3 * num) % 80, "status": status}
    boxes = [pa.array(values.get(field.name, ones)).cast(field.type) for field in BOX]
    lists = pa.ListArray.from_arrays(
        pa.array(np.arange(num + 1) * 3, pa.int32()), pa.StructArray.from_arrays(boxes, fields=list(BOX))
    )
    columns = {"key": [f"{i:012d}-0p000" for i in rows], "kind": ["positive"] * num, "boxes": lists}
    columns["shard"] = ["positives/chips-00000.tar"] * num
    table = pa.table([pa.array(columns.get(field.name, rows % 100)).cast(field.type) for field in MANIFEST], MANIFEST)
    for index in range(files):
        part = table.slice(index * num // files, num // files)
        commit_shard(out / f"positives/chips-{index:05d}.parquet", part, Record("", 0, "", {}, [], []))
    run = {
        "fingerprint": "synthetic",
        "num_shards": files,
        "settings": {"chips": {"size": 512}},
        "files": {},
        "counts": {},
    }
    (out / "run.json").write_text(json.dumps(run))


def test_open_manifest__a_million_rows(tmp_path: Path) -> None:
    """The second time no manifest is read."""
    write_synthetic(tmp_path, 1_000_000, 4)
    assert len(open_manifest(tmp_path, pool=True).keys) == 1_000_000
    for path in tmp_path.glob("*/chips-*.parquet"):
        path.unlink()
    m = open_manifest(tmp_path, pool=True)
    assert m.keys[999_999].as_py() == "000000999999-0p000"
    assert len(m.labels) == 3_000_000
