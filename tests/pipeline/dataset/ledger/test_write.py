"""The ledgers: same bytes for any way there, written by row groups, left alone where they stand."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from pipeline.coco import Reject
from pipeline.coco.source import Source
from pipeline.dataset.ledger import write as ledger
from pipeline.dataset.ledger.summary import Summary
from pipeline.dataset.ledger.write import write_ledger
from pipeline.planning.plan import plan_span
from schemas.codes import Reason
from schemas.settings import ChipSettings
from schemas.tables import ANNOTATIONS, CATEGORIES, IMAGES, REJECTS
from tests.pipeline.sources import make_source

NAMES = ["images.parquet", "annotations.parquet", "categories.parquet", "rejects.parquet"]
REJECT = Reject("image", 33, "3.jpg", Reason.UNDECODABLE, "3.jpg: is damaged")


def summarise(source: Source, length: int, backwards: bool = False) -> Summary:
    """A build in runs of `length` images: image 33 is refused; every third file could not be read."""
    summary = Summary(source, ChipSettings())
    starts = list(range(0, source.num_images, length))
    for start in starts[::-1] if backwards else starts:
        stop = min(start + length, source.num_images)
        hashes = [f"{i:032x}" if i % 3 else None for i in range(start, stop)]
        summary.add(plan_span(source, start, stop, ChipSettings()), start, stop, {33: Reason.UNDECODABLE}, hashes)
    return summary


@pytest.fixture(scope="module")
def source() -> Source:
    return make_source(5, 40)


def test_summary_counts_do_not_depend_on_the_runs(source: Source) -> None:
    whole = summarise(source, 40)
    for other in (summarise(source, 7), summarise(source, 3, backwards=True)):
        assert other.counts() == whole.counts()
        for name in ("fate", "scale_mask", "num_chips", "hash", "has_hash"):
            assert np.array_equal(getattr(other, name), getattr(whole, name))
    assert whole.counts()["scales"][1]["boxes_covered"] > 0


def test_write_ledger_is_the_same_for_any_runs_and_says_its_digests(source: Source, tmp_path: Path) -> None:
    found = []
    for i, summary in enumerate((summarise(source, 40), summarise(source, 7, backwards=True))):
        folder = tmp_path / str(i)
        folder.mkdir()
        found.append(write_ledger(folder, summary, [REJECT], {}))
        assert found[i] == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in NAMES}
        assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    assert found[0] == found[1]
    for name, schema in zip(NAMES, (IMAGES, ANNOTATIONS, CATEGORIES, REJECTS), strict=True):
        assert pq.read_schema(tmp_path / "0" / name).equals(schema)


def test_write_ledger_by_row_groups_holds_the_same_rows(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = summarise(source, 7)
    for folder, rows in (("whole", 1 << 16), ("parts", 7)):
        monkeypatch.setattr(ledger, "ROWS", rows)
        (tmp_path / folder).mkdir()
        write_ledger(tmp_path / folder, summary, [REJECT] * 9, {})
    for name in NAMES:
        assert pq.read_table(tmp_path / "whole" / name).equals(pq.read_table(tmp_path / "parts" / name))
    assert pq.read_metadata(tmp_path / "parts/images.parquet").num_row_groups == 6
    assert pq.read_metadata(tmp_path / "parts/rejects.parquet").num_row_groups == 2


def test_write_ledger_rows(source: Source, tmp_path: Path) -> None:
    write_ledger(tmp_path, summarise(source, 9), [REJECT], {})
    images = pl.read_parquet(tmp_path / "images.parquet")
    assert images["image_id"].to_list() == source.image_id.tolist()
    assert images["hash"].to_list() == [f"{i:032x}" if i % 3 else None for i in range(40)]
    refused = images.filter(pl.col("state") == "refused")
    assert refused.select("image_id", "reason", "num_chips").rows() == [(33, "undecodable", 0)]
    boxes = pl.read_parquet(tmp_path / "annotations.parquet")
    assert boxes["row"].to_list() == source.row.tolist()
    assert boxes["image_id"].to_list() == np.repeat(source.image_id, np.diff(source.offsets)).tolist()
    assert boxes["category_id"].to_list() == source.category_of_label[source.label].tolist()
    assert boxes.select("x1", "y1", "x2", "y2").to_numpy().tolist() == source.box.tolist()
    of_refused = boxes.filter(pl.col("image_id") == 33)
    assert set(of_refused.select("fate", "reason").rows()) == {("image_refused", "undecodable")}
    assert of_refused["scales"].list.len().sum() == 0


def test_write_ledger_leaves_known_files_and_drops_run_json_before_others(source: Source, tmp_path: Path) -> None:
    known = write_ledger(tmp_path, summarise(source, 40), [REJECT], {})
    (tmp_path / "run.json").touch()
    before = times(tmp_path)
    assert write_ledger(tmp_path, summarise(source, 40), [REJECT], known) == known
    assert times(tmp_path) == before
    changed = write_ledger(tmp_path, summarise(source, 40), [], known)
    assert {name for name in NAMES if changed[name] != known[name]} == {"rejects.parquet"}
    after = times(tmp_path)
    assert {name for name, time in before.items() if after.get(name) != time} == {"rejects.parquet", "run.json"}
    assert "run.json" not in after
    (tmp_path / "images.parquet").unlink()
    assert write_ledger(tmp_path, summarise(source, 40), [], changed) == changed
    assert set(times(tmp_path)) == set(NAMES)


def times(folder: Path) -> dict[str, Any]:
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}
