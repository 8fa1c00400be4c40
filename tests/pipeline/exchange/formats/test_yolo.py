"""YOLO's label files: shares of the image, outlines, names from data.yaml or a text."""

from pathlib import Path

import pytest

from pipeline.exchange.formats.labels import Box, Notes
from pipeline.exchange.formats.yolo import Classes, read_classes, read_yolo
from schemas.codes import Reason
from schemas.errors import DataError
from tests.pipeline.exchange.formats.folders import image_folder, label_folder


def test_read_yolo__takes_boxes_outlines_and_images_without_objects(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path / "images", "a.jpg", "b.png", "c.jpg"), Notes()
    labels = label_folder(
        tmp_path / "labels",
        a_txt="0 0.5 0.5 0.2 0.4\n1 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6\n",
        b_txt="",
        classes_TXT="cat\ndog\n",
    )
    a, b, c = read_yolo(labels, images, Classes(["cat", "dog"]), notes)
    assert (a.file_name, a.width, a.height) == ("a.jpg", 200, 100)
    assert a.boxes[0] == Box("cat", pytest.approx(80), pytest.approx(30), pytest.approx(40), pytest.approx(40))
    assert a.boxes[1] == Box("dog", pytest.approx(20), pytest.approx(20), pytest.approx(40), pytest.approx(40))
    assert (b.boxes, c.boxes) == ([], [])
    assert (notes.rejects, notes.taken_as_empty) == ([], 1)


def test_read_yolo__a_bad_line_loses_nothing_else(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path / "images", "a.jpg"), Notes()
    lines = ["0 0.5 0.5 0.2 0.4", "0 0.5 0.5", "7 0.5 0.5 0.1 0.1", "0 nan 0.5 0.1 0.1", "0 90 20 40 40", "-1 0 0 0 0"]
    labels = label_folder(tmp_path / "labels", a_txt="\n".join(lines), orphan_txt="0 0.5 0.5 0.1 0.1")
    (a,) = read_yolo(labels, images, Classes(["cat"]), notes)
    assert len(a.boxes) == 1
    assert [(reject.kind, reject.reason) for reject in notes.rejects] == [
        ("annotation", Reason.BAD_RECORD),
        ("annotation", Reason.UNKNOWN_CATEGORY),
        ("annotation", Reason.BAD_NUMBERS),
        ("annotation", Reason.BAD_NUMBERS),
        ("annotation", Reason.UNKNOWN_CATEGORY),
        ("image", Reason.MISSING_FILE),
    ]
    assert notes.rejects[3].message == "a.txt, line 5: expected shares of the image from 0 to 1, found 90"


def test_read_yolo__a_label_file_of_two_images_is_of_neither(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path / "images", "a.jpg", "a.png", "b.jpg", "b.png"), Notes()
    labels = label_folder(tmp_path / "labels", a_txt="0 0.5 0.5 0.2 0.4")
    assert [(found.file_name, found.boxes) for found in read_yolo(labels, images, Classes(["cat"]), notes)] == [
        ("b.jpg", []),
        ("b.png", []),
    ]
    assert [(reject.file, reject.message.split(": ")[1]) for reject in notes.rejects] == [
        ("a.jpg", "a.txt may be that of any of a.jpg, a.png"),
        ("a.png", "a.txt may be that of any of a.jpg, a.png"),
    ]


def test_read_yolo__a_class_of_thousands_of_digits_loses_nothing_else(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path / "images", "a.jpg"), Notes()
    labels = label_folder(tmp_path / "labels", a_txt=f"{'9' * 5000} 0.5 0.5 0.2 0.4\n0 0.5 0.5 0.2 0.4")
    (a,) = read_yolo(labels, images, Classes(["cat"]), notes)
    assert (len(a.boxes), [reject.reason for reject in notes.rejects]) == (1, [Reason.UNKNOWN_CATEGORY])


def test_read_yolo__a_class_may_be_a_whole_number_written_as_a_float(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path / "images", "a.jpg"), Notes()
    lines = ["1.000000000000000000e+00 0.5 0.5 0.2 0.4", "0.0 0.5 0.5 0.2 0.4", "0.5 0.5 0.5 0.2 0.4"]
    labels = label_folder(tmp_path / "labels", a_txt="\n".join(lines))
    (a,) = read_yolo(labels, images, Classes(["cat", "dog"]), notes)
    assert [box.category for box in a.boxes] == ["dog", "cat"]
    assert [reject.reason for reject in notes.rejects] == [Reason.UNKNOWN_CATEGORY]


def test_read_yolo__of_keypoints_the_box_is_taken(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("kpt_shape: [2, 3]\nnames: [cat]\n")
    classes = read_classes(tmp_path / "data.yaml")
    images, notes = image_folder(tmp_path / "images", "a.jpg"), Notes()
    labels = label_folder(tmp_path / "labels", a_txt="0 0.5 0.5 0.2 0.4 0.45 0.4 1 0.55 0.6 2\n")
    (a,) = read_yolo(labels, images, classes, notes)
    assert a.boxes == [Box("cat", pytest.approx(80), pytest.approx(30), pytest.approx(40), pytest.approx(40))]
    assert notes.rejects == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.yaml", "train: images\nnc: 2\nnames: [cat, dog]\n"),
        ("data.yaml", "names:\n  0: cat\n  1: dog\n"),
        ("obj.names", "cat\ndog\n\n"),
    ],
)
def test_read_classes__by_number(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_classes(tmp_path / name) == Classes(["cat", "dog"])


@pytest.mark.parametrize(
    "text",
    [
        "names: [0, 7, no, null, 1.0, 007, 12:30, 1_000, 2024-01-01, '8']",
        "{names: {0: 0, 1: 7, 2: no, 3: null, 4: 1.0, 5: 007, 6: 12:30, 7: 1_000, 8: 2024-01-01, 9: '8'}}",
    ],
)
def test_read_classes__are_as_they_are_written(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    expected = ["0", "7", "no", "null", "1.0", "007", "12:30", "1_000", "2024-01-01", "8"]
    assert read_classes(tmp_path / "data.yaml").names == expected


@pytest.mark.parametrize(
    "text", ["nc: 2", "names: {1: cat}", "[1, 2]", "names: []", "names: {0: a, '1': b}", "a: b: c"]
)
def test_read_classes__says_what_it_expects(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match="names|YAML"):
        read_classes(tmp_path / "data.yaml")
