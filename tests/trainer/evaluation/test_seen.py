"""A network is not scored on images that it was trained on, unless that is asked for."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.commands.chips import chips
from pipeline.storage.parquet import read_frame
from schemas.errors import DataError
from schemas.settings import load_settings
from tests.conftest import RunSniper
from tests.trainer.runs import TINY_CHIPS, tiny_settings
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.recall import evaluate_proposals
from trainer.evaluation.seen import SEEN, note_seen
from trainer.training.train import train


@pytest.fixture
def leaky(demo: Path, tmp_path: Path) -> Path:
    """Validation data of which one image is a training image under another name."""
    folder = tmp_path / "leaky"
    shutil.copytree(demo / "val", folder / "images")
    content = json.loads((demo / "val.json").read_text())
    seen = json.loads((demo / "train.json").read_text())["images"][0]
    content["images"].append({**seen, "id": 10**6, "file_name": "other.jpg"})
    shutil.copy(demo / "train" / seen["file_name"], folder / "images/other.jpg")
    (folder / "val.json").write_text(json.dumps(content))
    return folder


def test_refuse_seen__an_image_of_training_under_another_name(
    demo: Path, checkpoint: Path, leaky: Path, sniper: RunSniper
) -> None:
    given = (leaky / "val.json", leaky / "images")
    for score in (evaluate, evaluate_proposals):
        for place in (checkpoint, checkpoint.parent):
            with pytest.raises(DataError, match=r"1 of 9 images .* such as other.jpg that of .*--allow-seen"):
                score(place, *given)
    words = ("--checkpoint", checkpoint, "--annotations", given[0], "--images", given[1])
    assert sniper("evaluate", *words).status == 1
    assert sniper("evaluate", *words, "--allow-seen").status == 0


def test_refuse_seen__before_the_first_step_of_a_training(demo: Path, leaky: Path, tmp_path: Path) -> None:
    validation = (leaky / "val.json", leaky / "images")
    with pytest.raises(DataError, match="1 of 9 images"):
        train(demo / "chips", tmp_path / "run", tiny_settings(), validation=validation)
    assert not [*(tmp_path / "run").glob("step-*.pt")]
    train(demo / "chips", tmp_path / "run", tiny_settings(), validation=validation, allow_seen=True)


def test_refuse_seen__goes_by_the_chips_of_the_run_and_not_of_an_attempt_before(
    demo: Path, leaky: Path, tmp_path: Path
) -> None:
    """The advice is to part the data anew, and then the same folder is used again."""
    validation = (leaky / "val.json", leaky / "images")
    with pytest.raises(DataError, match="1 of 9 images"):
        train(demo / "chips", tmp_path / "run", tiny_settings(), validation=validation)
    content = json.loads((demo / "train.json").read_text())
    del content["images"][0]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [box for box in content["annotations"] if box["image_id"] in kept]
    (tmp_path / "fewer.json").write_text(json.dumps(content))
    chips(tmp_path / "fewer.json", demo / "train", tmp_path / "chips", load_settings(None, TINY_CHIPS))
    train(tmp_path / "chips", tmp_path / "run", tiny_settings(), validation=validation)


def test_refuse_seen__says_where_it_cannot_know(
    demo: Path, checkpoint: Path, leaky: Path, tmp_path: Path, sniper: RunSniper
) -> None:
    shutil.copy(checkpoint, tmp_path / "moved.pt")
    words = ("--annotations", leaky / "val.json", "--images", leaky / "images")
    told = sniper("evaluate", "--checkpoint", tmp_path / "moved.pt", *words)
    assert told.status == 0
    assert "it is not known whether the images to score on were trained on" in told.err


def test_note_seen__holds_the_kept_images_of_the_ledger(demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    ledger = read_frame(demo / "chips/images.parquet")
    seen = read_frame(checkpoint.parent / SEEN)
    assert seen.rows() == ledger.select("file_name", "hash").rows()
    note_seen(tmp_path, demo, anew=False)  # no ledger there
    assert not (tmp_path / SEEN).exists()
