"""The rule of exit statuses: 0 done, 1 the data fell short, 2 wrong use. A missing file is always wrong use."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import RunSniper

COMMANDS = (
    "check --annotations none.json",
    "check --annotations none.json --images none",
    "chips --annotations none.json --images . --out out",
    "negatives --data none",
    "negatives --data none --random 1",
    "import csv --annotations none.csv --images . --out out.json",
    "import voc --annotations none --images . --out out.json",
    "import yolo --annotations none --images . --out out.json --names classes.txt",
    "import yolo --annotations . --images . --out out.json --names none.yaml",
    "import yolo --annotations . --images none --out out.json --names classes.txt",
    "split --annotations none.json --out out",
    "suggest --annotations none.json",
    "report none",
    "show none --out sheet.png",
    "verify none",
    "train --data none --out run",
    "export none --format coco --out out",
    "merge-views none --results none.json --out out.json",
    "views --images none --out out",
    "evaluate --checkpoint none.pt --annotations none.json --images .",
    "evaluate --proposals --checkpoint none --annotations none.json --images .",
    "detect --checkpoint none.pt .",
    "settings --config none.yaml",
    "export none --out out",
    "export-model --checkpoint none --out a.onnx",
    "views --images none --out out",
    "merge-views none --results found.json --out out.json",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_file__is_wrong_use(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sniper: RunSniper
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    (tmp_path / "classes.txt").write_text("thing")
    (tmp_path / "found.json").write_text("[]")
    result = sniper(*command.split())
    assert result.status == 2, result.err
    assert "none" in result.err


@pytest.mark.parametrize(
    "command",
    [
        "chips --annotations a --images . --out out --max-bad",
        "chips --annotations a --images . --out out --max-bad-boxes",
        "import csv --annotations a --images . --out o.json --max-bad",
        "split --annotations a --out out --val",
        "suggest --annotations a --max-nowhere",
        "detect --checkpoint a . --min-score",
        "detect --checkpoint a . --min-drawn",
    ],
)
def test_share__nan_is_none(command: str, sniper: RunSniper) -> None:
    result = sniper(*command.split(), "nan")
    assert result.status == 2
    assert "nan is not a number from 0 to 1" in result.err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("show none --out sheet.png --images .", "--images is for --image"),
        ("train --data none --out run --epochs 1 --set train.epochs=2", "--epochs and --set train.epochs"),
        ("train --data none --out run --batch-size 1 --set train.batch_size=2", "--batch-size and --set train.batch"),
        ("train --data none --out run --allow-seen", "--allow-seen is for scoring"),
        ("detect --checkpoint none . --min-score 0.1 --set detect.min_score=0.2", "--min-score and --set detect.min"),
        ("merge-views none --results none.json --out out.json --max-dets 5", "--max-dets is for scoring"),
        ("negatives --data none --random 1 --set negatives.nms=0.5", "no --set negatives acts"),
        ("evaluate --results none.json --annotations none.json --allow-seen", "leave out .* --allow-seen"),
    ],
)
def test_option_without_effect__is_wrong_use(command: str, said: str, sniper: RunSniper) -> None:
    result = sniper(*command.split())
    assert result.status == 2
    assert re.search(said, result.err)


def test_detect__names_of_classes_may_hold_commas(sniper: RunSniper, monkeypatch: pytest.MonkeyPatch) -> None:
    import trainer.inference.detect as module

    given: list[object] = []
    monkeypatch.setattr(module, "detect_into", lambda *_, classes, **__: given.append(classes))
    for words in (["car, person"], ["car", "person"], ['"car, parked",person', "bus"], []):
        options = [word for one in words for word in ("--classes", one)]
        assert sniper("detect", "--checkpoint", "none", ".", *options).status == 0
    assert given == [["car", "person"], ["car", "person"], ["car, parked", "person", "bus"], []]
