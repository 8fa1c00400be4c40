"""A detector that stays loaded: any kind of image, many threads, and the same boxes as the command."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.errors import DataError, UsageError
from schemas.settings import DetectSettings, Settings
from tests.trainer.gpus import needs_gpu
from trainer.inference.detect import detect
from trainer.inference.predictor import Predictor


@pytest.fixture(scope="module")
def photos(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A few photos without loss, so that each kind of image has the same pixels."""
    folder = tmp_path_factory.mktemp("photos")
    for index, file in enumerate(sorted((demo / "val").iterdir())[:4]):
        Image.open(file).convert("RGB").save(folder / f"{index}.png")
    return sorted(folder.iterdir())


SETTINGS = Settings(detect=DetectSettings(min_score=0.01))


def test_predictor__takes_arrays_images_and_paths_and_finds_what_the_command_finds(
    checkpoint: Path, photos: list[Path]
) -> None:
    predictor = Predictor(checkpoint, SETTINGS, device="cpu")
    wanted = detect(checkpoint, photos, SETTINGS)
    for file, result in zip(photos, wanted, strict=True):
        picture = Image.open(file)
        for image in (file, str(file), picture, np.asarray(picture)):
            found = predictor(image)
            assert found.boxes.dtype == found.scores.dtype == np.float32
            assert found.scores.tolist() == pytest.approx([d["score"] for d in result["detections"]], abs=1e-4)
    several = predictor([photos[0], np.asarray(Image.open(photos[1]))])
    assert [len(one.scores) for one in several] == [len(result["detections"]) for result in wanted[:2]]
    assert sum(len(one.scores) for one in several) > 0
    names = {predictor.categories[label - 1] for one in several for label in one.labels}
    assert names <= {(d["category_id"], d["category"]) for result in wanted for d in result["detections"]}
    assert predictor([]) == []


def test_predictor__a_text_is_no_list_of_classes(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=r"classes: expected a list, found the text 'disc'; give \['disc'\]"):
        Predictor(checkpoint, classes="disc")


def test_predictor__serves_many_threads_at_a_time(checkpoint: Path, photos: list[Path]) -> None:
    predictor = Predictor(checkpoint, SETTINGS)
    alone = [predictor(photo) for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(predictor, photos * 2))
    for one, other in zip(alone * 2, together, strict=True):
        for column, same in zip(one, other, strict=True):
            assert np.array_equal(column, same)


def test_predictor__works_in_a_process_that_was_forked_later(checkpoint: Path, photos: list[Path]) -> None:
    program = """
import os, signal, sys
from trainer.inference.predictor import Predictor
predictor = Predictor(sys.argv[1], device="cpu")
predictor(sys.argv[2])
child = os.fork()
if not child:
    signal.alarm(60)
    predictor(sys.argv[2])
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-c", program, str(checkpoint), str(photos[0])]
    assert subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "2"}).returncode == 0


def test_predictor__finds_wanted_classes_alone(checkpoint: Path, photos: list[Path]) -> None:
    every = Predictor(checkpoint, SETTINGS)
    for label, (_, name) in enumerate(every.categories, 1):
        chosen = Predictor(checkpoint, SETTINGS, classes=[name])
        for photo in photos[:2]:
            whole, part = every(photo), chosen(photo)
            assert set(part.labels.tolist()) <= {label}
            assert np.array_equal(part.scores, whole.scores[whole.labels == label])
    with pytest.raises(UsageError, match="the network knows no class 'cat'; it knows disc"):
        Predictor(checkpoint, classes=["disc", "cat"])


def test_predictor__says_what_is_wrong(checkpoint: Path, tmp_path: Path) -> None:
    predictor = Predictor(checkpoint)
    with pytest.raises(DataError, match="none.jpg: missing_file"):
        predictor(tmp_path / "none.jpg")
    with pytest.raises(UsageError, match="expected uint8"):
        predictor(np.zeros((3, 40, 40), np.float32))


@needs_gpu
def test_predictor__finds_the_same_on_a_gpu(checkpoint: Path, photos: list[Path]) -> None:
    found = [Predictor(checkpoint, SETTINGS, device=device)(photos) for device in ("cpu", "cuda")]
    for one, other in zip(*found, strict=True):
        assert other.scores[:5] == pytest.approx(one.scores[:5], abs=0.05)
