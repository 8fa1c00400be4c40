"""DOTA's text files: corners of turned boxes, with heads and marks."""

from pathlib import Path

from pipeline.exchange.formats.dota import read_dota
from pipeline.exchange.formats.labels import Box, Notes
from schemas.codes import Reason
from tests.pipeline.exchange.formats.folders import image_folder, label_folder


def test_read_dota__takes_the_box_around_the_corners(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path / "images", "P1.png"), Notes()
    lines = [
        "imagesource:GoogleEarth",
        "gsd:0.146",
        "10 12.5 50 10 52 30 12 33 ship 0",
        "1 1 9 1 9 9 1 9 plane 1",
        "1 1 9 1 9 9 1 9 plane 2",
        "1 1 9 1 9 9 1 9 plane",
    ]
    (found,) = read_dota(label_folder(tmp_path / "labelTxt", P1_txt="\n".join(lines)), images, notes)
    plane = Box("plane", 1, 1, 8, 8)
    hard = plane._replace(crowd=True)
    assert found.boxes == [Box("ship", 10, 10, 42, 23), hard, hard, plane]
    assert notes.rejects == []


def test_read_dota__a_bad_line_loses_nothing_else(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path / "images", "P1.png"), Notes()
    lines = ["1 1 9 1 9 9 1 9", "1 1 9 1 9 9 1 inf ship 0", "1 1 9 1 9 9 1 9 ship 0"]
    (found,) = read_dota(label_folder(tmp_path / "labelTxt", P1_txt="\n".join(lines)), images, notes)
    assert len(found.boxes) == 1
    assert [reject.reason for reject in notes.rejects] == [Reason.BAD_RECORD, Reason.BAD_NUMBERS]
