"""The folder of `sniper detect --out`: what is done is on the disk at once, and belongs to one run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from schemas.errors import DataError, UsageError
from trainer.inference.output import FINAL, LINES, Output, drawn, open_output


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three images, older than anything that is found on them."""
    paths = [tmp_path / f"in/{name}.png" for name in ("a", "b", "c")]
    (tmp_path / "in").mkdir()
    for path in paths:
        Image.new("RGB", (40, 30), "gray").save(path)
        os.utime(path, (1e9, 1e9))
    return paths


def result(path: Path) -> dict[str, Any]:
    found = {"bbox": [5.0, 5.0, 20.0, 10.0], "score": 0.9, "category_id": 1, "category": "disc"}
    return {"file": str(path), "width": 40, "height": 30, "detections": [found]}


class KilledError(Exception):
    pass


def search(out: Path, files: list[Path], stop: int = 99, made_with: str = "this") -> Output:
    """Find the same on each image; end without notice before the image at position `stop`."""
    with open_output(out, files, made_with, 0.3) as output:
        for position in range(output.done, len(files)):
            if position == stop:
                raise KilledError
            output.add(drawn(result(files[position]), out, position, 0.3))
    return output


@pytest.mark.parametrize("stem", ["漢" * 83, "a" * 250, "x" + "é" * 120])
def test_drawn__a_picture_of_an_image_with_a_long_name_can_be_written(tmp_path: Path, stem: str) -> None:
    image = tmp_path / f"{stem}.png"
    Image.new("RGB", (40, 30), "gray").save(image)
    picture = drawn(result(image), tmp_path, 7, 0.3)["picture"]
    assert (tmp_path / picture).exists()
    assert picture.startswith(f"0007-{stem[:30]}")


def test_open_output__an_interrupted_run_keeps_what_it_has_and_goes_on(tmp_path: Path, files: list[Path]) -> None:
    out = tmp_path / "out"
    with pytest.raises(KilledError):
        search(out, files, stop=2)
    lines = [json.loads(line) for line in (out / LINES).read_text().splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["a.png", "b.png"]
    assert [line["picture"] for line in lines] == ["0000-a.jpg", "0001-b.jpg"]
    assert (out / "0001-b.jpg").exists()
    assert not (out / FINAL).exists()
    output = search(out, files)
    assert output.done == 2
    assert (output.report.num_images, output.report.num_detections) == (3, 3)
    assert [Path(each["file"]).name for each in json.loads((out / FINAL).read_bytes())] == ["a.png", "b.png", "c.png"]
    assert search(out, files).done == 0  # the run is done; another one is asked for


def test_output__a_full_disk_is_told_with_the_file_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / LINES).symlink_to("/dev/full")
    with pytest.raises(DataError, match="detections.jsonl: cannot be written: No space left on device. Make room"):
        Output(tmp_path / LINES, 0).add({"file": "a.jpg"})


def test_open_output__a_broken_last_line_is_done_again(tmp_path: Path, files: list[Path]) -> None:
    out = tmp_path / "out"
    with pytest.raises(KilledError):
        search(out, files, stop=2)
    content = (out / LINES).read_bytes()
    (out / LINES).write_bytes(content[:-9])
    assert search(out, files).done == 1
    assert (out / LINES).read_bytes().startswith(content)


@pytest.mark.parametrize("damage", [b"\0" * 40 + b"\n", b"\n", b"7\n", b'{"width": 40}\n', b"\xff\n"])
@pytest.mark.parametrize("made_with", ["this", "another"])
def test_open_output__lines_behind_a_damaged_one_are_done_again(
    tmp_path: Path, files: list[Path], damage: bytes, made_with: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KilledError):
        search(out, files, stop=2)
    first, second = (out / LINES).read_bytes().splitlines(keepends=True)
    (out / LINES).write_bytes(first + damage + second)
    output = search(out, files, made_with=made_with)
    assert (output.done, output.report.num_images) == (made_with == "this", 3)
    assert [Path(found["file"]) for found in json.loads((out / FINAL).read_bytes())] == files


def test_open_output__what_has_changed_is_done_again(tmp_path: Path, files: list[Path]) -> None:
    out = tmp_path / "out"
    with pytest.raises(KilledError):
        search(out, files, stop=2)
    os.utime(files[1])
    os.utime(out / LINES, (1.5e9, 1.5e9))
    with pytest.raises(KilledError):
        search(out, files, stop=2)
    assert search(out, files[1:]).done == 0  # another list of images


def test_open_output__the_results_of_another_run_go_and_the_user_is_told(
    tmp_path: Path, files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    search(out, files)
    (out / "0007-old.jpg").write_bytes(b"of a run of before")
    (out / "mine.jpg").write_bytes(b"of the user")
    with pytest.raises(KilledError):
        search(out, files[2:], stop=0, made_with="another network")
    assert sorted(path.name for path in out.glob("*.jp*g")) == ["0007-old.jpg", "mine.jpg"]
    assert not (out / FINAL).exists()
    assert "results of an earlier run were removed, with 3 pictures" in caplog.text
    assert "1 pictures that are not of this run, such as 0007-old.jpg" in caplog.text


def test_open_output__two_at_once_are_refused(tmp_path: Path, files: list[Path]) -> None:
    out = tmp_path / "out"
    with open_output(out, files, "one", 0.3), pytest.raises(UsageError, match="`sniper detect` .* is writing here"):
        search(out, files)


def test_output__a_picture_that_cannot_be_made_costs_the_picture_alone(tmp_path: Path, files: list[Path]) -> None:
    with open_output(tmp_path / "out", files[:2], "this", 0.3) as output:
        output.add(drawn(result(files[0]) | {"width": 41}, tmp_path / "out", 0, 0.3))
        output.add({"file": str(files[1]), "error": "not_an_image"})
    first, second = json.loads((tmp_path / "out" / FINAL).read_bytes())
    assert "no picture could be made" in first["error"]
    assert len(first["detections"]) == 1
    assert [file for file, _ in output.report.errors] == [str(files[0]), str(files[1])]
    assert (output.report.num_images, second["error"]) == (1, "not_an_image")
