"""What was written down as kept is what is read back, in runs of any length."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.coco.source import Source
from pipeline.dataset.ledger import write as ledger
from pipeline.dataset.ledger.read import read_categories, read_kept
from pipeline.dataset.ledger.summary import Summary
from pipeline.dataset.ledger.write import write_ledger
from pipeline.planning.plan import plan_span
from schemas.codes import Reason
from schemas.errors import DataError
from schemas.settings import ChipSettings
from tests.pipeline.sources import make_source

REFUSED = 12  # position of the image that could not be decoded


@pytest.fixture(scope="module")
def source() -> Source:
    return make_source(7, 30)


@pytest.fixture(params=[3, 64, 1 << 16])
def written(source: Source, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger, in row groups of several lengths."""
    monkeypatch.setattr(ledger, "ROWS", request.param)
    summary = Summary(source, ChipSettings())
    hashes: list[str | None] = [f"{i:032x}" for i in range(source.num_images)]
    refused = {int(source.image_id[REFUSED]): Reason.UNDECODABLE}
    summary.add(plan_span(source, 0, source.num_images, ChipSettings()), 0, source.num_images, refused, hashes)
    write_ledger(tmp_path, summary, [], {})
    return tmp_path


def test_read_kept_gives_the_source_without_what_was_refused(source: Source, written: Path) -> None:
    found = read_kept(written)
    images = np.delete(np.arange(source.num_images), REFUSED)
    boxes = np.flatnonzero(~np.isin(np.repeat(np.arange(source.num_images), np.diff(source.offsets)), REFUSED))
    for name in ("image_id", "width", "height"):
        assert np.array_equal(getattr(found.source, name), getattr(source, name)[images])
    for name in ("row", "annotation_id", "label", "box", "crowd"):
        assert np.array_equal(getattr(found.source, name), getattr(source, name)[boxes])
    assert np.array_equal(np.diff(found.source.offsets), np.diff(source.offsets)[images])
    assert found.source.file_name.equals(source.file_name.take(images))
    assert found.source.categories == source.categories
    assert found.hashes.to_pylist() == [f"{i:032x}" for i in images]
    assert found.refused.tolist() == [source.image_id[REFUSED]]


def test_read_categories__are_those_of_the_source_by_label(source: Source, written: Path) -> None:
    assert read_categories(written) == source.categories


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_read_kept_names_a_missing_and_a_damaged_file(written: Path, name: str) -> None:
    path = written / f"{name}.parquet"
    data = bytearray(path.read_bytes())
    for at in range(4, len(data) // 2):
        data[at] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{name}.parquet: is damaged"):
        read_kept(written)
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}.parquet: is missing"):
        read_kept(written)


def test_read_kept_refuses_boxes_in_another_order(written: Path) -> None:
    path = written / "annotations.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.take(pa.array(np.arange(len(rows))[::-1])), path)
    with pytest.raises(DataError, match="not ordered by image"):
        read_kept(written)
