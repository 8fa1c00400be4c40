"""CSV tables, with and without names of columns."""

from pathlib import Path

import pytest

from pipeline.exchange.formats.labels import Box, Labelled, Notes
from pipeline.exchange.formats.table import read_table
from schemas.codes import Reason
from schemas.errors import DataError
from tests.pipeline.exchange.formats.folders import image_folder


def read(tmp_path: Path, text: str) -> tuple[list[Labelled], Notes]:
    images, notes = image_folder(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg"), Notes()
    (tmp_path / "labels.csv").write_text(text)
    return [*read_table(tmp_path / "labels.csv", images, notes)], notes


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg,10,20,40,60,cat\nb.jpg,,,,,\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,200,100,cat,10,20,40,60\nb.jpg,200,100,,,,,\n",
        "label,x,y,w,h,image_path\ncat,10,20,30,40,/data/old/a.jpg\n,,,,,old\\b.jpg\n",
        "image_id,category_id,x,y,width,height,score,file,category\n7,3,10,20,30,40,0.9,a.jpg,cat\n8,,,,,,,b.jpg,\n",
        'file_name, x1, y1, x2, y2, category\n"a.jpg", 10, 20, 40, 60, cat\nb.jpg\n',
        "file_name;x1;y1;x2;y2;class\r\na.jpg;10,0;20;40,000;60;cat\r\nb.jpg;;;;;\r\n",
        "a.jpg;10,0;20,0;40,0;60,0;cat\nb.jpg;;;;;\n",
        "file_name\tx1\ty1\tx2\ty2\tclass\na.jpg\t10\t20\t40\t60\tcat\nb.jpg\n",
    ],
    ids=[
        *("no-names", "corners", "sides", "results-of-detect", "blanks"),
        *("semicolons", "semicolons-no-names", "tabs"),
    ],
)
def test_read_table__finds_its_columns(tmp_path: Path, text: str) -> None:
    found, notes = read(tmp_path, text)
    assert found == [Labelled("a.jpg", 200, 100, [Box("cat", 10, 20, 30, 40)]), Labelled("b.jpg", 200, 100, [])]
    assert (notes.rejects, notes.without_labels) == ([], 1)


def test_read_table__may_be_in_utf_16_as_excel_writes_it(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path / "images", "a.jpg"), Notes()
    text = "file_name\tx1\ty1\tx2\ty2\tclass\r\na.jpg\t1,5\t2\t3,5\t4\tLöwe\r\n"
    (tmp_path / "labels.csv").write_bytes(text.encode("utf-16"))
    found = [*read_table(tmp_path / "labels.csv", images, notes)]
    assert found == [Labelled("a.jpg", 200, 100, [Box("Löwe", 1.5, 2, 2, 2)])]
    assert notes.rejects == []


def test_read_table__names_of_another_unicode_form_are_the_same(tmp_path: Path) -> None:
    images, notes = image_folder(tmp_path / "images", "u\u0308.jpg"), Notes()
    (tmp_path / "labels.csv").write_text("\u00fc.jpg,1,2,3,4,cat\nold/\u00fc.jpg,1,2,3,4,dog\n")
    [found] = read_table(tmp_path / "labels.csv", images, notes)
    assert (found.file_name, [box.category for box in found.boxes]) == ("u\u0308.jpg", ["cat"])


def test_read_table__folders_that_are_there_count(tmp_path: Path) -> None:
    image_folder(tmp_path / "images/sub", "a.jpg")
    found, notes = read(tmp_path, "sub/a.jpg,1,2,3,4,cat\n./a.jpg,1,2,3,4,dog\nnone/b.jpg,1,2,3,4,cow\n")
    assert [(image.file_name, image.boxes[0].category) for image in found] == [
        ("sub/a.jpg", "cat"),
        ("a.jpg", "dog"),
        ("b.jpg", "cow"),
    ]
    assert notes.rejects == []


def test_read_table__a_name_that_no_file_can_have_loses_nothing_else(tmp_path: Path) -> None:
    found, notes = read(tmp_path, f"\0/a.jpg,1,2,3,4,cat\n{'x' * 300}/b.jpg,1,2,3,4,cat\n\0.jpg,1,2,3,4,cat\n")
    assert [image.file_name for image in found] == ["a.jpg", "b.jpg"]
    assert [reject.reason for reject in notes.rejects] == [Reason.MISSING_FILE]


def test_read_table__a_first_row_with_a_bad_number_is_no_line_of_names(tmp_path: Path) -> None:
    found, notes = read(tmp_path, "a.jpg,1,2,x,4,cat\na.jpg,1,2,3,4,cat\n")
    assert (len(found[0].boxes), [reject.reason for reject in notes.rejects]) == (1, [Reason.BAD_NUMBERS])


@pytest.mark.parametrize("rest", ["", "b.jpg,1,2,3,4,cat\n" * 10000], ids=["short", "long"])
def test_read_table__a_quote_that_is_not_closed(tmp_path: Path, rest: str) -> None:
    with pytest.raises(DataError, match="line .*: is no row of CSV: .*is a quote there, or before, not closed"):
        read(tmp_path, f'a.jpg,1,2,3,4,cat\na.jpg,1,2,3,4,"cat\n{rest}')


def test_read_table__a_bad_row_loses_nothing_else(tmp_path: Path) -> None:
    rows = ["a.jpg,1,2,3,4,cat", "a.jpg,1,2,3,x,cat", "a.jpg,1,2,3,4,", ",1,2,3,4,cat", "gone.jpg,1,2,3,4,cat"]
    found, notes = read(tmp_path, "\n".join(rows))
    assert found == [Labelled("a.jpg", 200, 100, [Box("cat", 1, 2, 2, 2)])]
    assert [(reject.kind, reject.reason) for reject in notes.rejects] == [
        ("annotation", Reason.BAD_NUMBERS),
        ("annotation", Reason.UNKNOWN_CATEGORY),
        ("annotation", Reason.BAD_RECORD),
        ("image", Reason.MISSING_FILE),
    ]


@pytest.mark.parametrize(
    "text", ["", "file_name,x1,y1,x2,class\n", "img,x,y,w,h,class\na.jpg,1,2,3,4,cat\n", "a;b;c\n"]
)
def test_read_table__says_which_columns_it_expects(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="empty|expected columns such as"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "kept", "refused"),
    [
        ("train/a.jpg,1,2,3,4,cat\nval/a.jpg,1,2,3,4,dog\n", {}, 2),
        ("images/a.jpg,1,2,3,4,cat\nval/a.jpg,1,2,3,4,dog\nimages/a.jpg,5,6,7,8,cow\n", {"a.jpg": ["cat", "cow"]}, 1),
        ("a.jpg,1,2,3,4,cat\nval/a.jpg,1,2,3,4,dog\nval/b.jpg,1,2,3,4,dog\n", {"a.jpg": ["cat"], "b.jpg": ["dog"]}, 1),
        ("/x/images/a.jpg,1,2,3,4,cat\n/y/images/a.jpg,1,2,3,4,dog\n", {}, 2),
    ],
    ids=["neither", "the folder's", "the name itself", "two folders of the same name"],
)
def test_read_table__images_of_two_folders_are_not_joined(
    tmp_path: Path, text: str, kept: dict[str, list[str]], refused: int
) -> None:
    found, notes = read(tmp_path, text)
    assert {image.file_name: [box.category for box in image.boxes] for image in found} == kept
    assert [reject.reason for reject in notes.rejects] == [Reason.REPEATED_FILE] * refused
