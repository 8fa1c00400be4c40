"""File names that an annotation file writes otherwise than the disk has them."""

import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.images.names import near_misses, resolve_names
from tests.builders import sound_set
from tests.conftest import RunSniper

NFC = unicodedata.normalize("NFC", "é/ü.jpg")
NFD = unicodedata.normalize("NFD", NFC)


def resolved(root: Path, *names: str) -> list[str]:
    file_name, count = resolve_names(root, pa.array(names, pa.large_string()))
    assert count == sum(new != old for new, old in zip(file_name.to_pylist(), names, strict=True))
    found: list[str] = file_name.to_pylist()
    return found


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(("there", "written"), [(NFC, NFD), (NFD, NFC), ("a/b.jpg", "a\\b.jpg")])
def test_resolve_names__finds_the_one_file_that_is_meant(there: str, written: str, tmp_path: Path) -> None:
    put(tmp_path, there, "plain.jpg")
    assert resolved(tmp_path, "plain.jpg", written, "gone\\x.jpg") == ["plain.jpg", there, "gone\\x.jpg"]
    assert resolved(tmp_path, there) == [there]


def test_resolve_names__leaves_what_has_two_meanings(tmp_path: Path) -> None:
    put(tmp_path, NFC, NFD, "a/b.jpg", "a\\b.jpg")
    assert resolved(tmp_path, NFC, NFD, "a\\b.jpg") == [NFC, NFD, "a\\b.jpg"]
    put(tmp_path, "c/d.jpg")
    assert resolved(tmp_path, "c/d.jpg", "c\\d.jpg") == ["c/d.jpg", "c\\d.jpg"]


def test_resolve_names__of_two_names_of_one_file_lose_no_other(tmp_path: Path) -> None:
    put(tmp_path, "a/b/c.jpg", "a/b/d.jpg")
    names = resolved(tmp_path, "a\\b/c.jpg", "a/b\\c.jpg", "a\\b\\d.jpg")
    assert names == ["a\\b/c.jpg", "a/b\\c.jpg", "a/b/d.jpg"]


def test_near_misses__of_many_files_are_counted_by_kind(tmp_path: Path) -> None:
    put(tmp_path, *(f"{n}.JPG" for n in range(40)), *(f"deep/{n}.png" for n in range(40, 60)))
    lines = near_misses(tmp_path, [*(f"{n}.jpg" for n in range(40)), *(f"deep/{n}.jpg" for n in range(40, 60))])
    assert [line[:2] for line in lines] == ["40", "20"]
    assert "'0.jpg' is missing, '0.JPG' is there" in lines[0]
    assert "'deep/40.jpg' is missing, 'deep/40.png' is there" in lines[1]


@pytest.mark.parametrize(
    ("there", "written", "kind"),
    [
        ("a.JPG", "a.jpg", "in another case"),
        ("a.png", "a.jpg", "with another suffix"),
        ("a b.jpg", "a%20b.jpg", "with %-escapes read"),
        ("a.jpg", "a.jpg\r", "with blanks or line ends taken off"),
        ("a.jpg", "images/v1/patch8/a.jpg", "without the folders in the name"),
        ("train/a.jpg", "a.jpg", "one folder deeper"),
        ("../a.jpg", "a.jpg", "one folder higher"),
    ],
)
def test_near_misses__name_what_is_there(there: str, written: str, kind: str, tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    put(root, there)
    (line,) = near_misses(root, [written, "nothing like it.bmp"])
    assert line.startswith(f"1 missing files may be there {kind}")
    assert f"{written!r} is missing" in line
    assert near_misses(root, ["zzz.bmp"]) == []


def test_commands_resolve_names_and_tell_near_misses(tmp_path: Path, sniper: RunSniper) -> None:
    made = sound_set(tmp_path)
    first, second = made.images[:2]
    (made.image_root / "sub").mkdir()
    (made.image_root / first["file_name"]).rename(made.image_root / "sub" / first["file_name"])
    first["file_name"] = "sub\\" + first["file_name"]
    command = ["--annotations", made.write(), "--images", made.image_root]
    result = sniper("check", *command)
    assert result.status == 0
    assert "1 file names have backslashes" in result.out
    assert sniper("chips", *command, "--out", tmp_path / "out").status == 0
    second["file_name"] = second["file_name"].replace(".jpg", ".JPG")
    made.write()
    result = sniper("check", *command, "--report", tmp_path / "all.csv")
    assert result.status == 1
    assert "1 missing files may be there in another case" in result.out
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert len(lines) == 2
    assert "missing_file" in lines[1]
    assert sniper("check", *command, "--report", tmp_path / "all.txt").status == 2
