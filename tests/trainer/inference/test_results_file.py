"""`sniper detect --results`: one flat file, in three forms that say the same, with ids that can be scored."""

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import DataError, UsageError
from tests.conftest import RunSniper
from trainer.evaluation.results import read_results
from trainer.inference.detect import detect, detect_into
from trainer.inference.results_file import COLUMNS, Ids, check_results, read_ids, write_results

NUMBERS = st.floats(0, 1e4, width=32)
FOUND = st.fixed_dictionaries(
    {
        "bbox": st.lists(NUMBERS, min_size=4, max_size=4),
        "score": st.floats(0, 1, width=32),
        "category_id": st.integers(0, 90),
        "category": st.text('aü,"; ', max_size=5),
    }
)
NAMES = st.lists(st.sampled_from(['a,"b".jpg', "ü/1.jpg", "1.jpg", "a b.png"]), unique=True)


@settings(max_examples=20)
@given(names=NAMES, data=st.data())
def test_write_results__three_forms_say_the_same(names: list[str], data: st.DataObject) -> None:
    results: list[dict[str, Any]] = [
        {"file": name, "width": 9, "height": 9, "detections": data.draw(st.lists(FOUND, max_size=3))} for name in names
    ]
    results.append({"file": "bad.jpg", "error": "not_an_image"})
    expected = [
        {"image_id": number, "category_id": found["category_id"] + 100, "bbox": found["bbox"], "score": found["score"]}
        | {"file": result["file"], "category": found["category"]}
        for number, result in enumerate(results)
        for found in result.get("detections", ())
        if found["category_id"] < 90
    ]
    ids = Ids({name: number for number, name in enumerate(names)}, {number: number + 100 for number in range(90)})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for suffix in (".json", ".jsonl", ".csv"):
            path, capital = folder / f"found{suffix}", folder / f"capital{suffix.upper()}"
            for one in (path, capital):
                check_results(one, folder)
                write_results(one, results, ids)
                check_results(one, folder)  # its own file may be written again
            assert capital.read_bytes() == path.read_bytes()
        as_lines = [json.loads(line) for line in (folder / "found.jsonl").read_bytes().splitlines()]
        assert as_lines == expected
        coco = json.loads((folder / "found.json").read_bytes())
        assert coco == [{key: record[key] for key in list(record)[:4]} for record in expected]
        found = read_results(folder / "found.json")
        assert found.image_id.tolist() == [record["image_id"] for record in expected]
        rows = list(csv.reader((folder / "found.csv").read_text("utf-8").splitlines(keepends=True)))
        assert tuple(rows[0]) == COLUMNS
        flat = [(r["image_id"], r["category_id"], *r["bbox"], r["score"], r["file"], r["category"]) for r in expected]
        assert [[*map(float, row[:7]), *row[7:]] for row in rows[1:]] == [[*map(float, r[:7]), *r[7:]] for r in flat]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'{"images": []}'),
        ("a.json", b'[{"image_id": 1, "category_id": 1}]'),  # of another program, or of `sniper evaluate --out`
        ("a.json", b""),
        ("a.jsonl", b'{"file": "a.jpg"}\n'),
        ("a.csv", b"image_id,category_id\n"),
    ],
)
def test_check_results__refuses_files_of_another_origin(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match="was not written by `sniper detect --results`"):
        check_results(tmp_path / name, None)
    assert (tmp_path / name).read_bytes() == content


def test_check_results__refuses_other_suffixes_folders_and_files_of_out(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name, said in (
        ("a.txt", "give a name that ends so"),
        ("folder.csv", "was not written by"),
        ("detections.json", "is a file of --out itself"),
        ("detections.jsonl", "is a file of --out itself"),
    ):
        with pytest.raises(UsageError, match=said):
            check_results(tmp_path / name, tmp_path)


def write_annotations(path: Path, *names: str) -> Path:
    images = [{"id": 10 + i, "file_name": name, "width": 9, "height": 9} for i, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "disc"}]}))
    return path


def test_read_ids__go_by_the_longest_end_of_the_path(tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path / "a.json", "1.jpg", "b/1.jpg", "c/d/2.jpg")
    files = [Path("/x/b/1.jpg"), Path("/x/1.jpg"), Path("c/d/2.jpg")]
    assert read_ids(annotations, files, [(1, "disc")]).images == {"/x/b/1.jpg": 11, "/x/1.jpg": 10, "c/d/2.jpg": 12}
    with pytest.raises(UsageError, match="has no usable record of 1 of 2 images, such as d/2.jpg"):
        read_ids(annotations, [Path("d/2.jpg"), Path("1.jpg")], [(1, "disc")])
    with pytest.raises(UsageError, match="the record of image 10 is of x/1.jpg and of y/1.jpg"):
        read_ids(annotations, [Path("x/1.jpg"), Path("y/1.jpg")], [(1, "disc")])


def test_read_ids__classes_go_by_their_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def categories(**there: int) -> dict[int, int]:
        content = json.loads(write_annotations(tmp_path / "a.json", "1.jpg").read_bytes())
        content["categories"] = [{"id": id_, "name": name} for name, id_ in there.items()]
        (tmp_path / "a.json").write_text(json.dumps(content))
        caplog.clear()
        return read_ids(tmp_path / "a.json", [], [(1, "disc"), (3, "square"), (7, "triangle")]).categories

    assert categories(disc=1, square=3, triangle=7) == {1: 1, 3: 3, 7: 7}
    assert caplog.text == ""
    assert categories(disc=3, square=1) == {1: 3, 3: 1}
    assert "go by their names: disc is 3 here, 1 in training" in caplog.text
    assert "has no category 7 (triangle): what is found of it is left out of --results" in caplog.text
    assert categories() == {1: 1, 3: 3, 7: 7}  # a list of images alone
    with pytest.raises(DataError, match="none in common"):
        categories(star=9)


def test_detect__results_that_can_be_scored_and_name_files_without_annotations(
    demo: Path, checkpoint: Path, tmp_path: Path, sniper: RunSniper
) -> None:
    val, scored, named = demo / "val.json", tmp_path / "found.json", tmp_path / "found.jsonl"
    arguments = ("detect", "--checkpoint", checkpoint, demo / "val", "--out", tmp_path / "out")
    assert sniper(*arguments, "--results", scored, "--annotations", val).status == 0
    folder = json.loads((tmp_path / "out/detections.json").read_bytes())
    known = {image["file_name"]: image["id"] for image in json.loads(val.read_bytes())["images"]}
    expected = [(known[Path(one["file"]).name], d["score"]) for one in folder for d in one["detections"]]
    assert [(r["image_id"], r["score"]) for r in json.loads(scored.read_bytes())] == expected
    assert len(expected) > 10
    assert sniper("evaluate", "--results", scored, "--annotations", val).status == 0
    found = detect(checkpoint, demo / "val", results=named)
    lines = [json.loads(line) for line in named.read_text().splitlines()]
    assert [line["image_id"] for line in lines] == [one["file"] for one in found for _ in one["detections"]]
    refused = sniper(*arguments, "--annotations", val)
    assert refused.status == 2
    assert "give --results" in refused.err


def test_detect__results_hold_what_an_interrupted_run_has_found(
    demo: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.inference import detect as module

    class KilledError(Exception):
        pass

    def killed(*_: Any) -> None:
        raise KilledError

    places = tmp_path / "out", checkpoint, demo / "val"
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_results", killed)
        with pytest.raises(KilledError):
            detect_into(*places, results=tmp_path / "found.csv")
    assert not (tmp_path / "found.csv").exists()
    assert not (tmp_path / "out/detections.json").exists()
    report = detect_into(*places, results=tmp_path / "found.csv")
    assert report is not None
    assert len(pl.read_csv(tmp_path / "found.csv")) == report.num_detections > 10
