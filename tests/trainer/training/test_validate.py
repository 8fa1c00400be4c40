"""Validation in training: the best is kept, and what cannot be scored on is refused before the first step."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.engines.progress import Progress
from schemas.errors import DataError, StoppedError, UsageError
from tests.conftest import RunSniper
from tests.trainer.runs import tiny_settings
from trainer.evaluation.evaluate import Evaluation, evaluate
from trainer.runtime.checkpoint import chosen_file, find_checkpoints, origin, read_checkpoint
from trainer.runtime.memory import OutOfMemoryError
from trainer.training.train import train


def test_train__validates_and_keeps_the_best(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second of five epochs and the last; the scores are replaced, so that the best is not the last."""
    given = iter([0.1, 0.7, 0.2])
    monkeypatch.setattr(
        "trainer.training.validate.score_model",
        lambda *arguments: Evaluation({"AP": next(given), "AP50": None}, [], [], []),
    )
    options = ["train.norm=train", "train.norm_momentum=0.3", "train.evaluate_every=2", "train.keep=9"]
    validation = (demo / "val.json", demo / "val")
    train(demo / "chips", tmp_path, tiny_settings("train.epochs=5", *options), validation=validation)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    scored = [(line["epoch"], line["AP"]) for line in lines if "AP" in line]
    assert scored == [(1, 0.1), (3, 0.7), (4, 0.2)]  # the last epoch always
    best = read_checkpoint(tmp_path / "best.pt")
    assert (best.loader[1], best.best_ap) == (4, 0.7)
    last = find_checkpoints(tmp_path)[-1]
    said = origin(chosen_file(tmp_path), best)
    assert "4 of 5 epochs done; its AP of 0.700 is the highest of 3 validations; the last checkpoint" in said
    assert said.endswith("has 0.200")
    assert "5 of 5 epochs done" in origin(last, read_checkpoint(last))
    scores = (tmp_path / "scores.json").read_bytes()
    (tmp_path / "scores.json").unlink()
    assert "was never validated and may be better" in origin(tmp_path / "best.pt", best)
    (tmp_path / "scores.json").write_bytes(scores)
    assert read_checkpoint(tmp_path).step == best.step < read_checkpoint(find_checkpoints(tmp_path)[-1]).step
    # the checkpoint of that step was saved before it was scored; resumed from there, a worse one is not the best
    for path in find_checkpoints(tmp_path):
        if read_checkpoint(path).step > best.step:
            path.unlink()
    assert read_checkpoint(find_checkpoints(tmp_path)[-1]).best_ap == 0.1
    given = iter([0.3])
    options[2] = "train.evaluate_every=1"
    train(demo / "chips", tmp_path, tiny_settings("train.epochs=5", *options), resume=True, validation=validation)
    assert read_checkpoint(tmp_path / "best.pt").step == best.step


def test_train__scores_a_network_on_whole_images(demo: Path, tmp_path: Path) -> None:
    options = tiny_settings("train.norm=train", "train.norm_momentum=0.3", "model.focus=true")
    train(demo / "chips", tmp_path, options, validation=(demo / "val.json", demo / "val"))
    assert read_checkpoint(tmp_path / "best.pt").best_ap >= 0
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(line["focus"] > 0 for line in lines if "loss" in line), "the focus head learns beside the others"
    assert 0 < lines[-1]["searched"] <= 1.2
    report = evaluate(tmp_path / "best.pt", demo / "val.json", demo / "val", tiny_settings())
    assert report is not None
    assert report.summary["AP"] == read_checkpoint(tmp_path / "best.pt").best_ap


def test_train__validation_data_without_an_object_have_no_score_and_that_is_said(
    demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((demo / "val.json").read_bytes())
    content["annotations"] = [{**box, "iscrowd": 1} for box in content["annotations"]]
    (tmp_path / "crowd.json").write_text(json.dumps(content))
    with caplog.at_level("INFO"):
        train(demo / "chips", tmp_path / "run", tiny_settings(), validation=(tmp_path / "crowd.json", demo / "val"))
    assert "validation: no score, for the images that were read hold no object" in caplog.text
    assert not (tmp_path / "run/best.pt").exists()


def test_train__what_cannot_be_scored_on_is_refused_before_the_first_step(demo: Path, tmp_path: Path) -> None:
    for validation in ((demo / "none.json", demo / "val"), (demo / "val.json", demo / "none")):
        with pytest.raises((DataError, UsageError)):
            train(demo / "chips", tmp_path / "out", tiny_settings(), validation=validation)
        assert not (tmp_path / "out/log.jsonl").exists()


def test_train__says_before_the_first_step_what_is_odd_in_the_validation_data(
    demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Classes that are numbered otherwise go by their names, so that the scores are those of the other numbering."""
    content = json.loads((demo / "val.json").read_bytes())
    number = {1: 3, 3: 7, 7: 1}
    content["categories"] = [{**each, "id": number[each["id"]]} for each in content["categories"]]
    content["annotations"] = [{**each, "category_id": number[each["category_id"]]} for each in content["annotations"]]
    content["annotations"].append({**content["annotations"][0], "id": 10**6, "bbox": [0, 0, -1, 5]})
    (tmp_path / "shifted.json").write_text(json.dumps(content))
    options = tiny_settings("train.norm=train", "train.norm_momentum=0.3")
    with caplog.at_level("INFO", "sniper"):
        train(demo / "chips", tmp_path / "run", options, validation=(tmp_path / "shifted.json", demo / "val"))
    said = caplog.text + capsys.readouterr().err
    before, _, _ = said.partition("step 1 ")
    assert "go by their names" in before
    assert "disc is " in before
    assert "1 annotation: no_area" in before
    texts = (str(demo / "val.json"), str(demo / "val"))
    train(str(demo / "chips"), str(tmp_path / "plain"), options, validation=texts)
    scores = [
        [
            line["AP"]
            for line in map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
            if "AP" in line
        ]
        for name in ("run", "plain")
    ]
    assert scores[0] == scores[1] != []


@pytest.fixture
def stopped_at_the_second_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal comes after the first image of a search."""
    done = Progress.add

    def add(progress: Progress, count: int, size: int = 0) -> None:
        if progress._what == "evaluate":
            monkeypatch.setattr(Progress, "add", done)
            signal.raise_signal(signal.SIGTERM)
        done(progress, count, size)

    monkeypatch.setattr(Progress, "add", add)


@pytest.mark.usefixtures("stopped_at_the_second_image")
def test_train__stopped_amid_a_validation_makes_it_anew_when_resumed(demo: Path, tmp_path: Path) -> None:
    options, validation = tiny_settings("train.norm=train"), (demo / "val.json", demo / "val")
    with pytest.raises(StoppedError, match="its validation is not done") as stopped:
        train(demo / "chips", tmp_path, options, validation=validation)
    assert stopped.value.exit_status == 143
    assert not (tmp_path / "scores.json").exists()
    kept = read_checkpoint(find_checkpoints(tmp_path)[-1])
    train(demo / "chips", tmp_path, resume=True, validation=validation)
    assert [score["step"] for score in json.loads((tmp_path / "scores.json").read_bytes())] == [kept.step]
    assert read_checkpoint(tmp_path / "best.pt").step == kept.step


@pytest.mark.usefixtures("stopped_at_the_second_image")
def test_evaluate__stopped_by_a_signal_scores_nothing(
    demo: Path, checkpoint: Path, tmp_path: Path, sniper: RunSniper
) -> None:
    found = tmp_path / "found.json"
    words = ["evaluate", "--checkpoint", checkpoint, "--annotations", demo / "val.json", "--images", demo / "val"]
    stopped = sniper(*words, "--out", found)
    assert stopped.status == 143
    assert "To score, run the same command again" in stopped.err
    assert not found.exists()
    assert sniper(*words, "--out", found).status == 0


def test_train__missing_validation_images_are_refused_before_the_first_step(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="8 of 8 images are missing"):
        train(demo / "chips", tmp_path / "run", tiny_settings(), validation=(demo / "val.json", tmp_path / "images"))
    assert not (tmp_path / "run/log.jsonl").exists()


@pytest.mark.parametrize("spared", ["meta", "nothing"])  # the outline counts memory on `meta`, without taking any
def test_train__memory_that_runs_out_names_what_to_lower(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spared: str
) -> None:
    convolve = torch.nn.functional.conv2d

    def scarce(images: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        if images.device.type == spared:
            return convolve(images, *rest, **named)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.17 GiB.")

    monkeypatch.setattr("torch.nn.functional.conv2d", scarce)
    with pytest.raises(OutOfMemoryError, match=r"up to 8 chips .*: try --set train\.chips_per_rank=4\. Steps"):
        train(demo / "chips", tmp_path, tiny_settings())
