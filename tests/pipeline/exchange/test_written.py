"""What a command writes is told from the user's files, on a disk and in a bucket."""

from pathlib import Path

import pytest

from pipeline.exchange.written import Written, refuse_others, remove_written
from pipeline.storage import lies_in, location, names_in
from schemas.errors import UsageError
from tests.s3 import S3


def test_lies_in__follows_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert lies_in(tmp_path / "link/b", tmp_path / "a")
    assert lies_in(tmp_path / "link", tmp_path / "a")
    assert not lies_in(tmp_path / "ab", tmp_path / "a")
    assert not lies_in(tmp_path, tmp_path / "a")


def test_written__in_a_bucket(s3: S3, tmp_path: Path) -> None:
    folder = location(f"{s3.url}/out")
    assert lies_in(folder, location(s3.url))
    assert lies_in(folder, location(f"{s3.url}/out/"))
    assert not lies_in(location(f"{s3.url}/outer"), folder)
    assert not lies_in(folder, tmp_path)
    for name in ("1.jpg", ".plan", "below/2.jpg"):
        s3.put(f"out/{name}", b"x")
    assert names_in(folder) == [".plan", "1.jpg", "below"]
    ours = [Written(folder, r"\d\.jpg")]
    with pytest.raises(UsageError, match=r"holds 1\.jpg"):
        refuse_others(ours, "sniper views", recorded=False)
    with pytest.raises(UsageError, match="holds below"):
        refuse_others(ours, "sniper views", recorded=True)
    refuse_others([Written(folder, r"\d\.jpg", alone=False)], "sniper views", recorded=True)
    remove_written(ours)
    assert names_in(folder) == [".plan", "below"]


def test_remove_written__takes_what_was_left_unfinished(tmp_path: Path) -> None:
    for name in ("1.jpg", ".tmp-77-2.jpg", "11.jpg", "1.jpg.txt", ".tmp-77-mine"):
        (tmp_path / name).touch()
    remove_written([Written(tmp_path, r"\d\.jpg")])
    assert names_in(tmp_path) == [".tmp-77-mine", "1.jpg.txt", "11.jpg"]
