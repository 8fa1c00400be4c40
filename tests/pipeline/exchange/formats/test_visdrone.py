"""VisDrone's text files: ten classes, and regions that count nowhere."""

from pathlib import Path

from pipeline.exchange.formats.labels import Box, Notes
from pipeline.exchange.formats.visdrone import read_visdrone
from schemas.codes import Reason
from tests.pipeline.exchange.formats.folders import image_folder, label_folder


def test_read_visdrone__classes_and_regions(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path / "images", "a.jpg", "b.jpg"), Notes()
    lines = ["10,20,30,40,1,4,0,1", "1,2,3,4,1,10,0,0,", "5,5,50,20,0,0,0,0", "7,7,9,9,0,11,0,0", "8,8,9,9,1,11,0,0"]
    labels = label_folder(tmp_path / "labels", a_txt="\n".join([*lines, "1,1,2,2,0,1,0,0"]))
    (a,) = read_visdrone(labels, images, notes)
    assert a.boxes[:2] == [Box("car", 10, 20, 30, 40), Box("motor", 1, 2, 3, 4)]
    assert [(box.category, box.crowd) for box in a.boxes[2:]] == [(None, True)] * 4
    assert (notes.rejects, notes.without_labels) == ([], 1)


def test_read_visdrone__a_bad_line_loses_nothing_else(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path / "images", "a.jpg"), Notes()
    lines = ["1,2,3,4,1,1", "1,2,3,x,1,1,0,0", "1,2,3,4,1,12,0,0", "1,2,3,4,1,1.5,0,0", "1,2,3,4,1,1,0,0"]
    (a,) = read_visdrone(label_folder(tmp_path / "labels", a_txt="\n".join(lines)), images, notes)
    assert a.boxes == [Box("pedestrian", 1, 2, 3, 4)]
    assert [reject.reason for reject in notes.rejects] == [
        Reason.BAD_RECORD,
        Reason.BAD_NUMBERS,
        Reason.UNKNOWN_CATEGORY,
        Reason.UNKNOWN_CATEGORY,
    ]
