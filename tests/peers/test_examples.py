"""The programs in examples/ that run detectors of others over whole images."""

import re
import runpy
from pathlib import Path

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.peers


def run(name: str, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a program on a folder; it tells of every image in it."""
    path = ROOT / "examples" / name
    monkeypatch.setattr("sys.argv", [str(path), str(images)])
    runpy.run_path(str(path), run_name="__main__")
    told = re.findall(r"^(.+): \d+ detections, best score \d\.\d\d$", capsys.readouterr().out, re.MULTILINE)
    assert told == sorted(path.name for path in images.iterdir())


def test_search_transformers(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("search_transformers.py", scenes / "val", monkeypatch, capsys)


def test_search_ultralytics(scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("search_ultralytics.py", scenes / "val", monkeypatch, capsys)
