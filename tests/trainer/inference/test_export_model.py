"""`sniper export-model`: a file that finds what the network finds, and a checkpoint that can only be run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import DataError, UsageError
from schemas.settings import DetectSettings, Settings
from tests.conftest import RunSniper
from tests.paths import ROOT
from tests.trainer.runs import tiny_settings
from trainer.inference.detect import detect
from trainer.inference.export_model import KEY, export_model, largest_difference, slim_checkpoint
from trainer.inference.predictor import Predictor
from trainer.model import predict
from trainer.runtime.checkpoint import read_checkpoint
from trainer.runtime.memory import OutOfMemoryError
from trainer.training.train import train

SIDE = 96  # of views of chips of 64: twice their area, so that counts grow


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for views of 96 x 96. Not to be changed."""
    path = tmp_path_factory.mktemp("exported") / "network.onnx"
    assert export_model(checkpoint, path, size=(SIDE, SIDE)) <= 1e-3
    return path


def test_export_model__finds_what_the_network_finds_on_batches_of_any_length(exported: Path, checkpoint: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
    assert about["size"] == [SIDE, SIDE]
    assert [name for _, name in about["classes"]] == [name for _, name in read_checkpoint(checkpoint).categories]
    model = Predictor(checkpoint, device="cpu").inference.model
    random = torch.Generator().manual_seed(1)
    for count in (1, 3):
        coarse = torch.rand(count, 3, 6, 6, generator=random) * 255
        pixels = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear").byte()
        sizes = torch.randint(SIDE // 2, SIDE + 1, (count, 2), generator=random)
        found = session.run(None, {"images": pixels.permute(0, 2, 3, 1).numpy(), "sizes": sizes.numpy()})
        num = 45 * 3  # boxes times classes
        assert [values.shape for values in found] == [(count, num, 4), (count, num), (count, num)]
        with torch.no_grad():
            eager = predict(model, pixels, sizes, 0.0, by_area=True)
        for one, boxes, scores, labels in zip(eager, *found, strict=True):
            assert (scores > 0).sum() == len(one.scores) > 20
            expected = [values[None].numpy() for values in (one.boxes, one.scores, one.labels)]
            assert largest_difference(expected, [boxes[None], scores[None], labels[None]], SIDE) < 1e-3


def test_run_onnx(exported: Path, checkpoint: Path, demo: Path, tmp_path: Path) -> None:
    """The example finds without torch what `sniper detect` finds with views of the same size."""
    for image in sorted((demo / "val").iterdir())[:2]:
        shutil.copy(image, tmp_path)
    no_torch = "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'torchvision'))); del sys.argv[0]\n"
    command = [sys.executable, "-c", no_torch + "runpy.run_path(sys.argv[0], run_name='__main__')"]
    command += [str(ROOT / "examples/run_onnx.py"), str(exported), str(tmp_path)]
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (tmp_path / "broken.jpg").unlink()
    assert re.search(r"WARNING: .*broken\.jpg: not_an_image: ", result.stderr)
    lines = result.stdout.splitlines()
    # views are padded to the size of the network here and to multiples of 32 there, so the counts are near
    settings = Settings(detect=DetectSettings(max_side=SIDE))
    expected = detect(checkpoint, tmp_path, settings)
    assert [line.split(":")[0] for line in lines] == [Path(one["file"]).name for one in expected]
    for line, one in zip(lines, expected, strict=True):
        best = one["detections"][0]
        assert f"best {best['category']} " in line
        assert float(line.rsplit(" ", 1)[1]) == pytest.approx(best["score"], abs=0.02)


def test_export_model__refuses_wrong_sizes_names_and_files_of_another_origin(
    exported: Path, checkpoint: Path, tmp_path: Path, sniper: RunSniper
) -> None:
    (tmp_path / "mine.onnx").write_bytes(b"of the user")
    whole = tmp_path / "whole.pt"
    whole.write_bytes(checkpoint.read_bytes())
    for place, size, said in (
        ("a.onnx", (64, 70), "give multiples of 32"),
        ("a.pb", None, "expected a name that ends in .onnx"),
        ("mine.onnx", None, "was not written by this command"),
    ):
        with pytest.raises(UsageError, match=said):
            export_model(checkpoint, tmp_path / place, size=size)
    with pytest.raises(OutOfMemoryError, match="give a size below 200000 x 200000"):
        export_model(checkpoint, tmp_path / "a.onnx", size=(200_000, 200_000))
    with pytest.raises(UsageError, match="was not written by this command"):
        slim_checkpoint(checkpoint, whole)
    assert whole.read_bytes() == checkpoint.read_bytes()
    assert not (tmp_path / "a.onnx").exists()
    for name, *values in (("--size", 64, 64), ("--format", "onnx")):
        command = ("export-model", "--checkpoint", checkpoint, "--out", tmp_path / "a.pt", "--slim", name, *values)
        result = sniper(*command)
        assert result.status == 2
        assert f"which have no {name}" in result.err


def test_export_model__names_the_extra_that_is_missing(
    checkpoint: Path, tmp_path: Path, sniper: RunSniper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = sniper("export-model", "--checkpoint", checkpoint, "--out", tmp_path / "a.onnx")
    assert result.status == 2
    assert "PATH_OF_THE_CLONE[onnx]" in result.err


def test_largest_difference__is_of_the_nearest_detection_of_the_class() -> None:
    boxes, labels = np.array([[[0, 0, 10, 10], [0, 0, 20, 20]]], np.float32), np.array([[1, 2]])
    scores = np.array([[0.9, 0.8]], np.float32)
    same = [boxes, scores, labels]
    assert largest_difference(same, [boxes[:, ::-1], scores[:, ::-1], labels[:, ::-1]], 100) == 0
    assert largest_difference(same, [boxes + 5, scores, labels], 100) == pytest.approx(0.05)
    assert largest_difference(same, [boxes, scores - 0.1, labels], 100) == pytest.approx(0.1)
    assert largest_difference(same, [boxes, scores, labels + 1], 100) == np.inf


def test_slim_checkpoint__detects_as_the_whole_and_is_not_gone_on_with(
    checkpoint: Path, demo: Path, tmp_path: Path, sniper: RunSniper
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    slim = run / checkpoint.name
    assert sniper("export-model", "--checkpoint", checkpoint, "--out", slim, "--slim").status == 0
    assert sniper("export-model", "--checkpoint", checkpoint, "--out", slim, "--slim").status == 0  # its own file
    assert slim.stat().st_size < 0.75 * checkpoint.stat().st_size
    [image, *_] = sorted((demo / "val").iterdir())
    assert detect(slim, image) == detect(checkpoint, image)
    with pytest.raises(UsageError, match="holds weights alone"):
        train(demo / "chips", run, tiny_settings("train.epochs=2"), resume=True)
    slim_checkpoint(checkpoint, tmp_path / "capital.PT")
    assert (tmp_path / "capital.PT").read_bytes() == slim.read_bytes()
    (tmp_path / "damaged.pt").write_bytes(b"nothing")
    with pytest.raises(DataError):
        slim_checkpoint(tmp_path / "damaged.pt", tmp_path / "b.pt")
