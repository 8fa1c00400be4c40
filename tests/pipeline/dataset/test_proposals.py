"""Ready proposals in every accepted form, and each way of being wrong named with its row."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.proposals import PARTS_KEY, Extents, find_parts, read_proposals, slice_pool
from schemas.errors import DataError, UsageError
from schemas.tables import PROPOSALS

EXTENTS = Extents(np.array([3, 7, 20]), np.array([[640.0, 480.0], [100.0, 50.0], [30.0, 30.0]]), np.array([5]))
ROWS = [
    (7, 0, 10.0, 5.0, 30.0, 25.5, 0.5),
    (3, 1, 600.0, 400.0, 640.0, 480.0, 0.25),
    (7, 2, 0.0, 0.0, 100.4, 50.0, 0.125),  # reaches beyond its image by rounding: clipped
    (5, 2, 0.0, 0.0, 9000.0, 50.0, 0.125),  # of a refused image: left out
]


def table(rows: list[tuple[Any, ...]], schema: pa.Schema = PROPOSALS) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)


def write_json(path: Path, rows: list[tuple[Any, ...]]) -> None:
    results = [
        {"image_id": i, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for i, _, x1, y1, x2, y2, score in rows
    ]
    path.write_text(json.dumps(results))


@pytest.mark.parametrize("form", ["parquet", "folder", "json", "float64"])
def test_read__every_form_gives_the_same(tmp_path: Path, form: str) -> None:
    path = tmp_path / "proposals"
    if form == "folder":
        path.mkdir()
        pq.write_table(table(ROWS[:2]), path / "part-0.parquet")
        pq.write_table(table(ROWS[2:]), path / "part-1.parquet")
        (path / ".tmp-part-2.parquet").write_bytes(b"unfinished")
    elif form == "json":
        path = path.with_suffix(".json")
        write_json(path, ROWS)
    else:
        doubles = pa.schema([(f.name, pa.float64() if pa.types.is_floating(f.type) else f.type) for f in PROPOSALS])
        rows = table(ROWS, doubles if form == "float64" else PROPOSALS)
        pq.write_table(rows.drop_columns("scale_index") if form == "float64" else rows, path)
    pool = read_proposals(path, EXTENTS)
    assert pool.offsets.tolist() == [0, 1, 3, 3]
    assert pool.boxes.tolist() == [[600, 400, 640, 480], [10, 5, 30, 25.5], [0, 0, 100, 50]]
    assert pool.score.tolist() == [0.25, 0.5, 0.125]
    part = slice_pool(pool, 1, 3)
    assert part.offsets.tolist() == [0, 2, 2]
    assert part.score.tolist() == [0.5, 0.125]


def test_read__an_image_may_have_more_than_16_bits_count(tmp_path: Path) -> None:
    pq.write_table(table(ROWS[:1] * 40_000), tmp_path / "many.parquet")
    assert np.diff(read_proposals(tmp_path / "many.parquet", EXTENTS).offsets).max() == 40_000


def test_read__no_proposals_at_all(tmp_path: Path) -> None:
    pq.write_table(PROPOSALS.empty_table(), tmp_path / "none.parquet")
    assert read_proposals(tmp_path / "none.parquet", EXTENTS).offsets.tolist() == [0, 0, 0, 0]
    (tmp_path / "none.json").write_text("[]")
    assert read_proposals(tmp_path / "none.json", EXTENTS).offsets.tolist() == [0, 0, 0, 0]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ((8, 0, 1.0, 1.0, 9.0, 9.0, 0.5), "image_id 8 is not in images.parquet"),
        ((3, 0, 1.0, NAN, 9.0, 9.0, 0.5), "finite numbers"),
        ((3, 0, 1.0, 1.0, INF, 9.0, 0.5), "finite numbers"),
        ((3, 0, 1.0, 1.0, 9.0, 9.0, NAN), "finite numbers"),
        ((3, 0, 1.0, 1.0, 9.0, 489.0, 0.5), "reaches outside its 640x480 image"),
        ((20, 0, -8.0, 1.0, 9.0, 9.0, 0.5), "reaches outside its 30x30 image"),
        ((3, 0, 9.0, 1.0, 9.0, 9.0, 0.5), "has no area"),
        ((3, 0, 9.0, 9.0, 1.0, 1.0, 0.5), "has no area"),
        ((3, 0, 640.0, 9.0, 640.5, 19.0, 0.5), "has no area"),
    ],
)
@pytest.mark.parametrize("form", ["parquet", "json"])
def test_read__malformed_rows_are_named(tmp_path: Path, form: str, bad: tuple[Any, ...], said: str) -> None:
    path = tmp_path / f"proposals.{form}"
    rows = [*ROWS, bad]
    if form == "json":
        write_json(path, rows)
    else:
        pq.write_table(table(rows), path)
    with pytest.raises(DataError, match=rf"1 malformed proposals:\n.*: row 4: .*{said}"):
        read_proposals(path, EXTENTS)


def test_read__many_faults_are_counted_and_some_listed(tmp_path: Path) -> None:
    path = tmp_path / "proposals.parquet"
    pq.write_table(table([(8, 0, 1.0, 1.0, 9.0, 9.0, 0.5)] * 30), path)
    with pytest.raises(DataError, match="30 malformed") as caught:
        read_proposals(path, EXTENTS)
    assert str(caught.value).count(": row ") == 20
    assert "... and 10 more\nNothing was read. Give proposals of the images of this data set" in str(caught.value)


def test_read__null_is_named(tmp_path: Path) -> None:
    path = tmp_path / "proposals.parquet"
    pq.write_table(table([*ROWS, (None, 0, 1.0, 1.0, 9.0, 9.0, 0.5), (3, 0, None, 1.0, 9.0, 9.0, 0.5)]), path)
    with pytest.raises(DataError, match=r"row 4: image_id is null(.|\n)*row 5: .*finite"):
        read_proposals(path, EXTENTS)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("text", "is 'text'; expected an object"),
        ({"image_id": "3", "bbox": [1, 1, 2, 2], "score": 1}, "image_id is '3'"),
        ({"image_id": True, "bbox": [1, 1, 2, 2], "score": 1}, "image_id is True"),
        ({"image_id": 3.5, "bbox": [1, 1, 2, 2], "score": 1}, "image_id is 3.5"),
        ({"image_id": 1e300, "bbox": [1, 1, 2, 2], "score": 1}, "image_id is 1e.300"),
        ({"image_id": 3, "bbox": [1, 1, 2], "score": 1}, "expected four numbers"),
        ({"image_id": 3, "bbox": [1, 1, 2, "2"], "score": 1}, "expected four numbers"),
        ({"image_id": 3, "score": 1}, "bbox is None"),
        ({"image_id": 3, "bbox": [1, 1, 2, 2]}, "score is None"),
    ],
)
def test_read__json_records_that_are_none(tmp_path: Path, record: Any, said: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"image_id": 3, "bbox": [1, 1, 2, 2], "score": 1}, record]))
    with pytest.raises(DataError, match=f"row 1: {said}" if record == "text" else f"row 1: .*{said}"):
        read_proposals(path, EXTENTS)


def test_read__whole_floats_are_ids(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"image_id": 3.0, "bbox": [1, 1, 2, 2], "score": 1}]))
    assert len(read_proposals(path, EXTENTS).boxes) == 1
    path = tmp_path / "proposals.parquet"
    columns = {"image_id": [3.0, 3.0], "x1": [1.0, 2.0], "y1": [1.0, 1.0], "x2": [3.0, 3.0], "y2": [3.0, 3.0]}
    pq.write_table(pa.table({**columns, "score": [0.5, 0.6]}), path)
    assert len(read_proposals(path, EXTENTS).boxes) == 2
    pq.write_table(pa.table({**columns, "image_id": [3.0, 3.5], "score": [0.5, 0.6]}), path)
    with pytest.raises(DataError, match=r"row 1: image_id is 3\.5; expected an integer"):
        read_proposals(path, EXTENTS)


def test_read__wrong_columns_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "proposals.parquet"
    pq.write_table(pa.table({"image_id": ["3"], "x1": [1.0], "y1": [1.0], "x2": [2.0], "score": ["high"]}), path)
    with pytest.raises(DataError, match="image_id is string.*y2 is missing.*score is string"):
        read_proposals(path, EXTENTS)


@pytest.mark.parametrize("content", [b"{}", b"[1", b"\xff\xfe"])
def test_read__json_that_is_no_list(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(DataError, match="expected COCO results"):
        read_proposals(tmp_path / "results.json", EXTENTS)


def test_read__what_is_no_file_of_proposals(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_proposals(tmp_path / "absent.parquet", EXTENTS)
    with pytest.raises(UsageError, match="holds no"):
        read_proposals(tmp_path, EXTENTS)
    (tmp_path / "other.pkl").write_bytes(b"pickle")
    with pytest.raises(DataError, match="is not Parquet"):
        read_proposals(tmp_path / "other.pkl", EXTENTS)


def write_parts(folder: Path, numbers: Iterable[int], positives: str = "these") -> None:
    about = {PARTS_KEY: json.dumps({"positives": positives, "length": 2}).encode()}
    for number in numbers:
        pq.write_table(table([]).replace_schema_metadata(about), folder / f"part-{number:05d}.parquet")


def test_find_parts__in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_parts(tmp_path, [0])
    for number in [*range(1, 12), 99_999, 100_000, 100_001]:  # 100000 sorts behind 10000 by name
        (tmp_path / f"part-{number:05d}.parquet").touch()
    (tmp_path / "part-x.parquet").touch()
    found = find_parts(tmp_path, "these", 24)
    assert found is not None
    assert [file.name for file in found.of(3, 8)] == [f"part-0000{i}.parquet" for i in (1, 2, 3)]
    assert found.of(22, 24) == [tmp_path / "part-00011.parquet"]
    with pytest.raises(DataError, match="part-00012.parquet"):
        find_parts(tmp_path, "these", 200_002)


def test_find_parts__a_gap_is_an_error_and_others_files_are_none(tmp_path: Path) -> None:
    write_parts(tmp_path, [0, 2])
    with pytest.raises(DataError, match="1 of 3 parts are missing, first part-00001"):
        find_parts(tmp_path, "these", 6)
    assert find_parts(tmp_path, "others", 6) is None
    pq.write_table(table([]), tmp_path / "part-00000.parquet")
    assert find_parts(tmp_path, "these", 6) is None
    assert find_parts(tmp_path / "nowhere", "these", 6) is None
