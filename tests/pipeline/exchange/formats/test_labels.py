"""Images of a folder are found by stem; sizes come from headers, turned as viewers show them."""

from pathlib import Path

import pytest
from PIL import Image

from pipeline.exchange.formats.labels import (
    BadBoxError,
    Images,
    Notes,
    around,
    label_files,
    numbers,
    per_image,
    read_lines,
)
from schemas.codes import Reason
from schemas.errors import DataError
from tests.builders import exif
from tests.pipeline.exchange.formats.folders import image_folder


def test_images__are_found_by_stem_and_refused_where_that_is_not_one(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path, "a.jpg", "b.jpg", "b.png"), Notes()
    assert images.of_stem("a", notes, "a.txt") == "a.jpg"
    assert images.of_stem("b", notes, "b.txt") is None
    assert images.of_stem("c", notes, "c.txt") is None
    assert [reject.message.split(" in ")[0] for reject in notes.rejects] == [
        "b.txt: 2 images are called b",
        "c.txt: no image is called c",
    ]


def test_per_image__names_of_another_unicode_form_are_the_same(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path, "\u00fc.jpg", "a.jpg"), Notes()
    (tmp_path / "u\u0308.txt").touch()
    found = [(file.name, name) for file, name in per_image(tmp_path, ".txt", images, notes)]
    assert found == [("u\u0308.txt", "\u00fc.jpg")]
    assert (notes.rejects, notes.without_labels) == ([], 1)


def test_images__sizes_are_those_that_viewers_show(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "turned.jpg", exif=exif(6))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    images, notes = Images(tmp_path), Notes()
    assert images.size("turned.jpg", notes) == (100, 200)
    assert images.size("broken.jpg", notes) is None
    assert images.size("missing.jpg", notes) is None
    assert [reject.reason for reject in notes.rejects] == [Reason.UNDECODABLE, Reason.MISSING_FILE]


def test_images__are_those_of_all_commands_without_litter(tmp_path: Path) -> None:
    for name in (
        "a.JPE",
        "b.mpo",
        "c.apng",
        "d.pbm",
        "e.pnm",
        "._a.jpg",
        ".hidden.png",
        "notes.txt",
        "._a.txt",
        "a.txt",
    ):
        (tmp_path / name).touch()
    assert Images(tmp_path).names == ["a.JPE", "b.mpo", "c.apng", "d.pbm", "e.pnm"]
    assert [file.name for file in label_files(tmp_path, ".txt")] == ["a.txt", "notes.txt"]


def test_label_files__may_have_their_suffix_in_capitals(tmp_path: Path) -> None:
    for name in ("a.TXT", "b.txt", "c.Txt", "d.xml"):
        (tmp_path / name).touch()
    assert [file.name for file in label_files(tmp_path, ".txt")] == ["a.TXT", "b.txt", "c.Txt"]
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"a\.TXT and a\.txt belong to one image; join them, or remove one"):
        label_files(tmp_path, ".txt")


def test_images__a_folder_without_any_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image file"):
        Images(tmp_path)


def test_numbers__must_be_finite() -> None:
    assert numbers(["1", "2.5"]) == [1, 2.5]
    for wrong in ("", "x", "nan", "inf"):
        with pytest.raises(BadBoxError, match="numbers"):
            numbers(["1", wrong])


def test_read_lines__of_a_file_that_is_no_text_are_refused(tmp_path: Path) -> None:
    notes = Notes()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf1\n\n2\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    assert read_lines(tmp_path / "a.txt", notes) == [("line 1", "1"), ("line 3", "2")]
    assert read_lines(tmp_path / "b.txt", notes) is None
    assert notes.rejects[0].reason == Reason.BAD_RECORD


def test_around__is_the_box_of_the_points() -> None:
    assert around([5, 9, 1, 3, 7, 4]) == (1, 3, 6, 6)
