"""The programs in examples/ run as they stand, on tiny data."""

import re
import runpy
from pathlib import Path

import pytest

from pipeline.commands.chips import chips
from schemas.settings import load_settings
from scripts.make_demo_data import make_demo_data
from tests.paths import ROOT
from tests.trainer.runs import TINY_CHIPS, tiny_settings
from trainer.training.train import train


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, their chips and a network of few steps."""
    folder = tmp_path_factory.mktemp("examples")
    make_demo_data(folder, num_train=2, num_val=1)
    (image,) = (folder / "val").iterdir()
    image.rename(image.with_suffix(".JPG"))
    chips(folder / "train.json", folder / "train", folder / "chips", load_settings(None, TINY_CHIPS))
    train(folder / "chips", folder / "run", tiny_settings())
    return folder


def run(name: str, *arguments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "examples" / name
    monkeypatch.setattr("sys.argv", [str(path), *map(str, arguments)])
    runpy.run_path(str(path), run_name="__main__")


def test_plan_and_chips(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("plan_and_chips.py", scenes / "train.json", scenes / "train", tmp_path, monkeypatch=monkeypatch)
    assert "scale_index" in capsys.readouterr().out
    assert (tmp_path / "chips/run.json").is_file()


def test_torch_loop(scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("torch_loop.py", scenes / "chips", monkeypatch=monkeypatch)
    assert "epoch 2: loss" in capsys.readouterr().out


def test_detect_array(scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("detect_array.py", scenes / "run", monkeypatch=monkeypatch)
    assert "detections" in capsys.readouterr().out


def test_camera_loop(scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("camera_loop.py", scenes / "run", monkeypatch=monkeypatch)
    run("camera_loop.py", scenes / "run", scenes / "val", monkeypatch=monkeypatch)
    assert re.findall(r"frame (\d): \d+ detections in", capsys.readouterr().out) == ["0", "1", "2", "0"]


def test_search_torchvision(scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("search_torchvision.py", scenes / "val", monkeypatch=monkeypatch)
    assert re.search(r"detections, best score 0\.\d\d", capsys.readouterr().out)


def test_examples__each_has_a_test() -> None:
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    elsewhere = ("tests/peers/test_examples.py", "tests/trainer/inference/test_export_model.py")
    others = {name for file in elsewhere for name in re.findall(r"def test_(\w+)", (ROOT / file).read_text())}
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} <= tests | others
