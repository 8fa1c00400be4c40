"""docs/reproduce.md: every command of the page, in its order, on a small data set that lies as COCO does."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from scripts.make_demo_data import make_demo_data
from tests.conftest import RunSniper
from tests.paths import ROOT
from trainer.runtime.checkpoint import read_checkpoint

SIDE = 160  # of the images, in pixels: COCO's are four times as large
SMALLER = (
    "chips.size=128",
    "chips.images_per_shard=2",
    "negatives.rpn_epochs=1",
    "negatives.min_finest=1",
    "negatives.min_others=1",
    "model.backbone=resnet18",
    "model.head_width=64",
    "model.proposals=50",
    "model.pre_nms=200",
    "loader.threads=1",
    "train.weights=weights.pth",
    "train.epochs=1",
    "train.decay_epochs=[0.8]",
    "train.batch_size=8",
)
"""Sizes. What the configuration says of the method stays as it is."""


def commands() -> list[list[str]]:
    """The page's command lines, continued lines joined; what is for several GPUs begins with `sniper`, too."""
    blocks = re.findall(
        r"^    (\S.*)$", re.sub(r"\\\n\s*", "", (ROOT / "docs/reproduce.md").read_text()), re.MULTILINE
    )
    lines = [line.partition("--no-python ")[2].strip() or line for line in blocks]
    return [shlex.split(line) for line in lines if line.startswith(("sniper ", "python "))]


def make_coco(folder: Path) -> None:
    """Write generated images and annotation files under COCO's names: folder/train2017, val2017, test2017."""
    make_demo_data(folder / "large", num_train=2, num_val=2)
    (folder / "annotations").mkdir()
    splits = (("train", 0, 2, "train2017"), ("val", 0, 1, "val2017"), ("val", 1, 2, "test2017"))
    for number, (ours, first, end, theirs) in enumerate(splits):
        (folder / theirs).mkdir()
        content = json.loads((folder / f"large/{ours}.json").read_text())
        del content["lookalikes"]
        content["images"] = content["images"][first:end]
        factors = {}
        for image in content["images"]:
            with Image.open(folder / "large" / ours / image["file_name"]) as picture:
                factors[image["id"]] = SIDE / max(picture.size)
                image["width"], image["height"] = (round(factors[image["id"]] * side) for side in picture.size)
                picture.resize((image["width"], image["height"])).save(folder / theirs / image["file_name"])
            image["id"] += 1000 * number
        content["annotations"] = [box for box in content["annotations"] if box["image_id"] in factors]
        for box in content["annotations"]:
            factor = factors[box["image_id"]]
            box["bbox"], box["area"] = [factor * value for value in box["bbox"]], factor**2 * box["area"]
            box["id"], box["image_id"] = box["id"] + 10**6 * number, box["image_id"] + 1000 * number
        name = f"instances_{theirs}.json"
        if theirs == "test2017":
            name = "image_info_test-dev2017.json"
            del content["annotations"]
        (folder / "annotations" / name).write_text(json.dumps(content))


def test_commands__of_the_page_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sniper: RunSniper
) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    make_coco(tmp_path / "coco")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), "weights.pth")
    run = commands()
    assert len(run) >= 16
    for words in run:
        if words[0] == "python":
            line = " ".join(word if word in "<>" else shlex.quote(word) for word in [sys.executable, *words[1:]])
            subprocess.run(line, shell=True, check=True)
            continue
        smaller = [word for setting in SMALLER for word in ("--set", setting)] if "--config" in words else []
        alone = ["--workers", "1"] if words[1] in ("chips", "negatives") else []
        done = sniper(*words[1:], *smaller, *alone)
        assert done.status == 0, f"{shlex.join(words)}\n{done.out}{done.err}"
    assert read_checkpoint(Path("run")).rpn_only is False
    assert json.loads(Path("detections_test-dev2017_sniper_results.json").read_text())
    assert read_checkpoint(Path("run-train/best.pt")).best_ap >= 0
    for made in ("chips.html", "negatives.png", "run-train.html", "chips-two/run.json", "chips/negatives/run.json"):
        assert Path(made).stat().st_size > 0
