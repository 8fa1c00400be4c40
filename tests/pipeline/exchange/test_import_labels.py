"""`sniper import`: what it writes is read, checked and cut as any COCO file."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.coco.read import read_coco
from pipeline.exchange.import_labels import Format, import_labels
from schemas.codes import Reason
from schemas.errors import DataError, UsageError
from tests.conftest import RunSniper
from tests.pipeline.exchange.formats.folders import image_folder, label_folder
from tests.s3 import S3


def test_import_labels__crowds_are_what_chips_understands(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", "a.jpg", "b.jpg")
    labels = label_folder(tmp_path / "labels", a_txt="10,20,30,40,1,4,0,1\n5,5,50,20,0,0,0,0", b_txt="")
    report = import_labels("visdrone", labels, tmp_path / "images", tmp_path / "coco.json")
    assert (report.num_images, report.num_boxes, report.num_crowds) == (2, 11, 10)  # a region is one of each class
    source = read_coco(tmp_path / "coco.json")
    assert source.categories[3] == (4, "car")
    assert len(source.categories) == 10
    assert source.crowd.sum() == 10
    assert set(source.label[source.crowd]) == set(range(1, 11))
    np.testing.assert_array_equal(source.box[~source.crowd], [[10, 20, 40, 60]])
    assert source.warnings == []


def test_import_labels__a_class_whose_name_is_empty_is_a_class(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", "a.jpg")
    label_folder(tmp_path / "labels", a_txt="0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("names: ['', cat, dog]")
    given = tmp_path / "labels", tmp_path / "images", tmp_path / "coco.json"
    import_labels("yolo", *given, names=tmp_path / "data.yaml")
    assert [record["category_id"] for record in json.loads(given[2].read_bytes())["annotations"]] == [1]


def test_import_labels__images_are_read_from_buckets_too(s3: S3, tmp_path: Path) -> None:
    image_folder(tmp_path, "a.jpg")
    s3.put("images/a.jpg", (tmp_path / "a.jpg").read_bytes())
    s3.put("labels/a.txt", b"0 0.5 0.5 0.5 0.5")
    s3.put("data.yaml", b"names: [cat]")
    urls = [f"{s3.url}/{name}" for name in ("labels", "images", "coco.json", "data.yaml")]
    report = import_labels("yolo", urls[0], urls[1], urls[2], names=urls[3])
    assert (report.num_images, report.num_boxes, report.categories) == (1, 1, ["cat"])
    assert json.loads(s3.get("coco.json"))["annotations"][0]["bbox"] == [50, 25, 100, 50]


def test_import__tells_what_it_refused_and_goes_on(sniper: RunSniper, tmp_path: Path) -> None:
    image_folder(tmp_path / "images", "a.jpg")
    (tmp_path / "labels.csv").write_text("a.jpg,1,2,30,40,cat\na.jpg,1,2,x,40,cat\n")
    given = ("import", "csv", "--annotations", tmp_path / "labels.csv", "--images", tmp_path / "images")
    told = sniper(*given, "--out", tmp_path / "coco.json")
    assert told.status == 1
    assert "1 annotation: bad_numbers" in told.out
    assert "labels.csv, row 2: expected numbers" in told.out
    assert "more than --max-bad 0.01 allows" in told.err
    assert len(json.loads((tmp_path / "coco.json").read_text())["annotations"]) == 1
    told = sniper(*given, "--out", tmp_path / "coco.json", "--max-bad", 0.5)
    assert told.status == 0
    assert "1 image, 1 box of which 0 are crowd, 1 category" in told.out
    checked = sniper("check", "--annotations", tmp_path / "coco.json", "--images", tmp_path / "images")
    assert checked.status == 0


@pytest.mark.parametrize("format", ["yolo", "voc", "dota", "visdrone"])
def test_import_labels__a_name_that_is_no_text_loses_nothing_else(tmp_path: Path, format: Format) -> None:
    image_folder(tmp_path / "images", "a.jpg", os.fsdecode(b"caf\xe9.jpg"))
    (tmp_path / "names.txt").write_text("cat")
    suffix = "xml" if format == "voc" else "txt"
    text = "<annotation><size><width>200</width><height>100</height></size></annotation>" if format == "voc" else ""
    label_folder(tmp_path / "labels", **{f"a_{suffix}": text, os.fsdecode(b"caf\xe9_") + suffix: text})
    names = tmp_path / "names.txt" if format == "yolo" else None
    report = import_labels(format, tmp_path / "labels", tmp_path / "images", tmp_path / "coco.json", names=names)
    assert report.num_images == 1
    assert [(reject.reason, reject.message.split(": ")[1]) for reject in report.rejects] == [
        (Reason.BAD_RECORD, "its name is no text in UTF-8; rename the file")
    ]


def test_import_labels__makes_the_folder_before_it_reads(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", "a.jpg")
    (tmp_path / "labels.csv").write_text("a.jpg,1,2,30,40,cat\n")
    import_labels("csv", tmp_path / "labels.csv", tmp_path / "images", tmp_path / "new/folder/coco.json")
    assert (tmp_path / "new/folder/coco.json").exists()


def test_import_labels__names_go_with_yolo(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", "a.jpg")
    for format, names in (("yolo", None), ("voc", tmp_path / "data.yaml")):
        with pytest.raises(UsageError, match="--names"):
            import_labels(format, tmp_path, tmp_path / "images", tmp_path / "coco.json", names=names)  # type: ignore[arg-type]


def test_import_labels__another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="format: expected one of yolo, voc, .*, found 'coco'"):
        import_labels("coco", tmp_path, tmp_path, tmp_path / "coco.json")  # type: ignore[arg-type]


def test_import_labels__nothing_to_take_is_an_error(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", "a.jpg")
    with pytest.raises(DataError, match=r"holds no \.xml file"):
        import_labels("voc", tmp_path, tmp_path / "images", tmp_path / "coco.json")
    label_folder(tmp_path / "labels", other_xml="<annotation/>")
    with pytest.raises(DataError, match="the first refused: other.xml: no image is called other"):
        import_labels("voc", tmp_path / "labels", tmp_path / "images", tmp_path / "coco.json")
    (tmp_path / "empty.csv").write_text("file_name,x1,y1,x2,y2,class\n")
    with pytest.raises(DataError, match="no image of .* could be taken; it names none"):
        import_labels("csv", tmp_path / "empty.csv", tmp_path / "images", tmp_path / "coco.json")
    assert not (tmp_path / "coco.json").exists()


def test_import_labels__writes_over_nothing_but_its_own(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", "a.jpg")
    table = tmp_path / "labels.csv"
    table.write_text("a.jpg,1,2,30,40,cat\n")
    mine = tmp_path / "mine.json"
    mine.write_text('{"images": []}')
    with pytest.raises(UsageError, match="was not written by"):
        import_labels("csv", table, tmp_path / "images", tmp_path)
    for out in (table, mine):
        before = out.read_bytes()
        with pytest.raises(UsageError, match="was not written by `sniper import`"):
            import_labels("csv", table, tmp_path / "images", out)
        assert out.read_bytes() == before
    written = tmp_path / "coco.json"
    for _ in range(2):
        import_labels("csv", table, tmp_path / "images", written)
    written.write_text(json.dumps(json.loads(written.read_text()), indent=1))  # the same content
    import_labels("csv", table, tmp_path / "images", written)
    written.write_text(written.read_text().replace('"cat"', '"kitten"'))
    with pytest.raises(UsageError, match="or was changed since"):
        import_labels("csv", table, tmp_path / "images", written)
