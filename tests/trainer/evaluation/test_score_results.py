"""`sniper evaluate --results`: any detector's results are scored as a checkpoint's are."""

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, Settings
from tests.conftest import RunSniper
from trainer.evaluation.coco_scores import check_table
from trainer.evaluation.score_results import score_results


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    path = tmp_path / "truth.json"
    boxes = [(1, 3, [10, 10, 40, 40]), (1, 8, [60, 10, 30, 30]), (2, 3, [5, 5, 80, 80])]
    records = [
        {"id": n, "image_id": image, "category_id": id_, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for n, (image, id_, box) in enumerate(boxes, 1)
    ]
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 100, "height": 100} for n in (1, 2)]
    categories = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
    path.write_text(json.dumps({"images": images, "annotations": records, "categories": categories}))
    return path


def found(folder: Path, *rows: tuple[int, int, Sequence[float], float]) -> Path:
    path = folder / "found.json"
    names = ("image_id", "category_id", "bbox", "score")
    path.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
    return path


def test_evaluate__scores_ready_results(sniper: RunSniper, truth: Path, tmp_path: Path) -> None:
    results = found(tmp_path, (1, 3, [10, 10, 40, 40], 0.9), (2, 3, [5, 5, 80, 80], 0.4), (2, 8, [0, 0, 9, 9], 0.2))
    for name in ("classes.csv", "classes.parquet"):
        table = tmp_path / name
        told = sniper("evaluate", "--results", results, "--annotations", truth, "--table", table)
        assert told.status == 0
        assert "AP50                        0.500" in told.out
        rows = (pl.read_csv if table.suffix == ".csv" else pl.read_parquet)(table).to_dicts()
        assert rows[0] == pytest.approx(
            {"class": "cat", "AP": 1, "AP50": 1, "F1": 1, "score": 0.4, "precision": 1, "recall": 1}
        )
        assert (rows[1]["class"], rows[1]["AP50"], rows[1]["recall"]) == ("dog", 0, 0)
    assert score_results(results, truth).summary["AP50[cat]"] == 1


def test_evaluate__results_of_other_images_or_classes_are_refused(truth: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 1 detections are of images that .* does not list, such as image_id 7"):
        score_results(found(tmp_path, (7, 3, [1, 1, 9, 9], 0.5)), truth)
    with pytest.raises(DataError, match="such as category_id 5"):
        score_results(found(tmp_path, (1, 5, [1, 1, 9, 9], 0.5)), truth)
    scored = score_results(found(tmp_path, (1, 5, [1, 1, 9, 9], 0.5), (1, 3, [10, 10, 40, 40], 0.9)), truth)
    assert any("enter no score" in note for note in scored.notes)


def test_score_results__corners_and_shares_in_place_of_x_y_width_height_are_named(truth: Path, tmp_path: Path) -> None:
    boxes = [(1, [10, 20, 40, 40]), (1, [60, 10, 30, 30]), (2, [5, 15, 80, 80])]
    sound = found(tmp_path, *((image, 3, box, 0.9) for image, box in boxes))
    assert score_results(sound, truth).notes == []
    corners = ((image, 3, [x, y, x + w, y + h], 0.9) for image, (x, y, w, h) in boxes)
    assert "found.json: 67% of the boxes reach beyond" in score_results(found(tmp_path, *corners), truth).notes[0]
    shares = ((image, 3, [value / 100 for value in box], 0.9) for image, box in boxes)
    assert "found.json: 3 of 3 boxes lie between 0 and 1" in score_results(found(tmp_path, *shares), truth).notes[0]


def test_score_results__what_is_found_on_a_refused_image_counts_neither_way(truth: Path, tmp_path: Path) -> None:
    content = json.loads(truth.read_bytes())
    content["images"][1] |= {"width": 20_000, "height": 15_000}
    truth.write_text(json.dumps(content))
    rows = ((1, 3, [10, 10, 40, 40], 0.9), (1, 8, [60, 10, 30, 30], 0.9), (2, 3, [5, 5, 80, 80], 0.95))
    scored = score_results(found(tmp_path, *rows), truth)
    assert scored.summary["AP"] == 1
    assert [reject.kind for reject in scored.rejects][0] == "image"


def test_score_results__an_ignored_category_is_of_no_class(truth: Path, tmp_path: Path) -> None:
    """What is found in its boxes counts neither way, of whatever class; as if it were a crowd of each class."""
    content = json.loads(truth.read_bytes())
    content["categories"].append({"id": 9, "name": "ignored regions"})
    region = {"image_id": 1, "bbox": [0, 50, 100, 50], "area": 5000, "iscrowd": 0}
    content["annotations"].append({"id": 9, "category_id": 9, **region})
    truth.write_text(json.dumps(content))
    rows = ((1, 3, [10, 10, 40, 40], 0.8), (1, 8, [60, 10, 30, 30], 0.8), (2, 3, [5, 5, 80, 80], 0.8))
    results = found(tmp_path, *rows, (1, 3, [10, 60, 30, 30], 0.9), (1, 8, [60, 60, 30, 30], 0.9))
    assert (score_results(results, truth).summary["AP"] or 0) < 1
    ignoring = Settings(chips=ChipSettings(ignore_categories=["ignored regions"]))
    assert score_results(results, truth, ignoring).summary["AP"] == 1


def test_score_results__says_which_areas_and_boxes_do_not_count(truth: Path, tmp_path: Path) -> None:
    content = json.loads(truth.read_bytes())
    content["annotations"] = [{**box, "image_id": 1, "category_id": 3, "area": 1e9} for box in content["annotations"]]
    truth.write_text(json.dumps(content))
    notes = score_results(found(tmp_path, (1, 3, [1, 1, 9, 9], 0.5)), truth, max_dets=2).notes
    assert any("area of 3 of 3 boxes cannot be true" in note for note in notes)
    assert any("1 images hold more boxes of one class than the 2 detections" in note for note in notes)


def test_evaluate__says_what_does_not_go_together(sniper: RunSniper, truth: Path, tmp_path: Path) -> None:
    results = found(tmp_path, (1, 3, [10, 10, 40, 40], 0.9))
    both = sniper("evaluate", "--results", results, "--annotations", truth, "--images", tmp_path)
    neither = sniper("evaluate", "--annotations", truth)
    assert both.status == neither.status == 2
    assert "leave out --checkpoint" in both.err
    assert "give --checkpoint and --images, or --results" in neither.err
    with pytest.raises(UsageError, match=r"\.csv or \.parquet"):
        check_table(tmp_path / "classes.xlsx")


def test_check_table__lets_nothing_be_written_over_but_a_table(sniper: RunSniper, truth: Path, tmp_path: Path) -> None:
    results = found(tmp_path, (1, 3, [10, 10, 40, 40], 0.9))
    mine = tmp_path / "labels.csv"
    mine.write_text("file,label\n1.jpg,cat\n")
    renamed = results.rename(tmp_path / "found.csv")
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    for table in (mine, renamed, folder):
        told = sniper("evaluate", "--results", renamed, "--annotations", truth, "--table", table)
        assert told.status == 2
        assert "was not written by `sniper evaluate --table`" in told.err
    assert mine.read_text().startswith("file,label")
    for name in ("a.csv", "a.parquet", "b.CSV"):
        for _ in range(2):
            told = sniper("evaluate", "--results", renamed, "--annotations", truth, "--table", tmp_path / "new" / name)
            assert told.status == 0
    assert (tmp_path / "new/b.CSV").read_bytes() == (tmp_path / "new/a.csv").read_bytes()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ('{"image_id": 1000000000000000000000000, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}', "image_id"),
        ('{"image_id": 1, "category_id": 3, "bbox": [1, 2, 1e200, 4], "score": 0.5}', "record 1 has a box or a score"),
        ('{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": NaN}', "NaN and Infinity are no JSON"),
        ('{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": "nan"}', "record 1 has a box or a score"),
        ('{"image_id": 1, "category_id": 3, "bbox": ["inf", 2, 3, 4], "score": 1}', "record 1 has a box or a score"),
        ('{"image_id": "1.jpg", "category_id": 3, "bbox": [1, 2, 3, 4], "score": 1}', "if it has --annotations"),
    ],
)
def test_read_results__odd_numbers_are_named(record: str, said: str, truth: Path, tmp_path: Path) -> None:
    results = tmp_path / "found.json"
    results.write_text(f"[{record}]")
    with pytest.raises(DataError, match=said):
        score_results(results, truth)


@pytest.mark.parametrize("of_image", ["1", '"1"', "1.0"])
def test_read_results__ids_may_be_written_as_in_annotation_files(of_image: str, truth: Path, tmp_path: Path) -> None:
    results = tmp_path / "found.json"
    record = f'{{"image_id": {of_image}, "category_id": "3", "bbox": [10, 10, 40, 40], "score": "0.9"}}'
    results.write_text(f"[{record}]")
    (tmp_path / "plain").mkdir()
    plain = found(tmp_path / "plain", (1, 3, [10, 10, 40, 40], 0.9))
    assert score_results(results, truth).summary == score_results(plain, truth).summary
