"""Pascal VOC's XML files: corners from 1, difficult objects."""

from pathlib import Path

import pytest

from pipeline.exchange.formats.labels import Box, Notes
from pipeline.exchange.formats.voc import read_voc
from schemas.codes import Reason
from tests.paths import shared_data
from tests.pipeline.exchange.formats.folders import image_folder, label_folder


def voc(*objects: tuple[str, str], size: str = "<width>200</width><height>100</height>") -> str:
    """An XML file with objects, each a name and further elements."""
    written = "".join(f"<object><name>{name}</name>{rest}</object>" for name, rest in objects)
    return f"<annotation><filename>other.jpg</filename><size>{size}</size>{written}</annotation>"


def corners(*values: object) -> str:
    named = zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True)
    return "<bndbox>" + "".join(f"<{name}>{value}</{name}>" for name, value in named) + "</bndbox>"


def test_read_voc__corners_count_from_one_and_belong_to_the_box(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path / "images", "a.jpg", "b.jpg"), Notes()
    difficult = f"<difficult>1</difficult>{corners(1, 1, 200, 100)}"
    labels = label_folder(tmp_path / "labels", a_xml=voc(("cat", corners(11, 21, 30, 60)), ("dog", difficult)))
    (a,) = read_voc(labels, images, notes)
    assert (a.file_name, a.width, a.height) == ("a.jpg", 200, 100)
    assert a.boxes == [Box("cat", 10, 20, 20, 40), Box("dog", 0, 0, 200, 100, crowd=True)]
    assert (notes.rejects, notes.without_labels) == ([], 1)


def test_read_voc__a_bad_object_or_file_loses_nothing_else(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path / "images", "a.jpg", "b.jpg"), Notes()
    bad = [("cat", corners("x", 1, 2, 3)), ("cat", ""), ("", corners(1, 2, 3, 4)), ("dog", corners(1, 2, 3, 4))]
    sides = f"<width>{'9' * 5000}</width><height>100</height>"
    labels = label_folder(tmp_path / "labels", a_xml=voc(*bad, size=sides), b_xml="<annotation><object>")
    (a,) = read_voc(labels, images, notes)
    assert (a.width, a.height) == (200, 100)  # from the image, since what the file says is none
    assert a.boxes == [Box("dog", 0, 1, 3, 3)]
    assert [reject.reason for reject in notes.rejects] == [
        Reason.BAD_NUMBERS,
        Reason.BAD_RECORD,
        Reason.UNKNOWN_CATEGORY,
        Reason.BAD_RECORD,
    ]


@pytest.mark.parametrize("encoding", ["ISO-8859-1", "windows-1252", "UTF-16", "gb2312", "utf-8"])
def test_read_voc__is_read_in_the_encoding_that_it_declares(tmp_path: Path, encoding: str) -> None:
    images, notes = image_folder(tmp_path / "images", "a.jpg"), Notes()
    name = "狮子" if encoding == "gb2312" else "Löwe"
    labels = label_folder(tmp_path / "labels")
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n' + voc((name, corners(11, 21, 30, 60)))
    (labels / "a.xml").write_bytes(text.encode(encoding))
    (a,) = read_voc(labels, images, notes)
    assert (a.boxes, notes.rejects) == ([Box(name, 10, 20, 20, 40)], [])


@pytest.mark.parametrize("declared", ["", '<?xml version="1.0" encoding="klingon"?>'])
def test_read_voc__an_encoding_that_is_not_declared_is_refused(tmp_path: Path, declared: str) -> None:
    images, notes = image_folder(tmp_path / "images", "a.jpg"), Notes()
    labels = label_folder(tmp_path / "labels")
    (labels / "a.xml").write_bytes(declared.encode() + voc(("Löwe", corners(1, 2, 3, 4))).encode("latin-1"))
    assert [*read_voc(labels, images, notes)] == []
    assert [reject.reason for reject in notes.rejects] == [Reason.BAD_RECORD]
    assert "is no text in UTF-8" in notes.rejects[0].message


def test_read_voc__a_real_file(tmp_path: Path) -> None:
    file = shared_data("odd/BloodImage_00338.xml")
    images, notes = image_folder(tmp_path / "images", "BloodImage_00338.jpg", size=(640, 480)), Notes()
    (found,) = read_voc(label_folder(tmp_path / "labels", BloodImage_00338_xml=file.read_text()), images, notes)
    assert (found.width, found.height) == (640, 480)
    assert len(found.boxes) == file.read_text().count("<object>")
    assert found.boxes[0] == Box("RBC", 452, 80, 103, 102)
    assert notes.rejects == []
