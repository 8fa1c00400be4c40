"""Rows kept as Arrow columns give back what was put in."""

import pickle
import tracemalloc

import pyarrow as pa
import pytest

from pipeline.coco import Reject, rows
from pipeline.coco.rows import Rows
from pipeline.coco.source import RefusedBox, no_refused_boxes, no_rejects
from schemas.codes import Fate, Reason
from schemas.tables import REJECTS


def some(count: int) -> list[Reject]:
    return [Reject("annotation", i if i % 3 else None, None, Reason.NO_AREA, f"row {i}") for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 11])
def test_rows__are_a_list(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BATCH", 5)
    kept = no_rejects().plus(some(count))
    assert list(kept) == some(count)
    assert all(isinstance(row.reason, Reason) for row in kept)
    assert len(kept) == count
    assert list(kept.first(3)) == some(3)[:count]
    longer = kept.plus(some(7))
    assert list(longer) == some(count) + some(7)
    assert list(kept) == some(count)
    assert kept.table() == pa.Table.from_pylist([row._asdict() for row in some(count)], REJECTS)
    assert list(pickle.loads(pickle.dumps(kept))) == some(count)


def test_rows__of_boxes_give_enumerations_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BATCH", 1)
    box = RefusedBox(7, None, 5, 2**62, Fate.IMAGE_REFUSED, Reason.MISSING_FILE)
    (again,) = no_refused_boxes().plus([box])
    assert again == box
    assert isinstance(again.fate, Fate)


def test_rows__cost_little_memory() -> None:
    """A refused box costs a row here and one for the ledger: 150 bytes for both."""
    rejects: Rows[Reject] = no_rejects()
    tracemalloc.start()
    before = rows.pa.total_allocated_bytes()
    for i in range(50_000):
        rejects.append(
            Reject("annotation", i, "a.jpg", Reason.NO_AREA, f"annotations[{i}]: bbox [1, 2, 0, 3] has no area")
        )
    grown = rows.pa.total_allocated_bytes() - before + tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 50_000 * 150 + 4096 * 800
