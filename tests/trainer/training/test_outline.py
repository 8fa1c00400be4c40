"""What a run says before its first step: a table of what will be trained, and what does not fit."""

import re
from pathlib import Path

import pytest
import torch

from schemas.settings import load_settings
from tests.trainer.runs import TINY
from trainer.loading.dataset import ChipDataset
from trainer.runtime.ranks import Rank
from trainer.training.outline import mismatches, outline
from trainer.training.run import Run, make_run


def run_of(dataset: ChipDataset, *assignments: str, tiny: bool = True, rpn_only: bool = False) -> Run:
    settings = load_settings(None, (*(TINY if tiny else ()), *assignments))
    return make_run(dataset, Path("run"), settings, Rank(0, 1, torch.device("cpu")), last=None, rpn_only=rpn_only)


def test_outline__tells_what_will_be_trained(dataset: ChipDataset) -> None:
    run = run_of(dataset, "train.epochs=3", "train.warmup_steps=2", "train.chips_per_rank=4", "train.norm=train")
    lines = {line[2:18].strip(): line[18:] for line in outline(run, dataset).splitlines()[1:]}
    steps = -(-run.epoch_chips // 8)
    assert lines["network"].startswith("resnet18, fpn, levels 3 to 5, ")
    assert lines["weights"] == "none: it starts from scratch"
    assert "of 96 px" in lines["chips"]
    assert lines["chips"].endswith("3 classes")
    assert lines["steps"] == f"{3 * steps}: 3 epochs of {steps}, 8 chips each"
    assert lines["chips per rank"] == "4 in a forward pass, 2 passes per step, 1 rank"
    expected = f"0.0075 after a warm-up of 2 steps, divided by ten after epoch 2.5 (step {round(2.5 * steps)})"
    assert lines["rate"] == f"{expected}; final rate 0.00075"
    assert lines["batch norm"] == "train, momentum 0.005"
    assert lines["precision"] == "fp32 on the CPU"


def test_outline__says_what_stands_by_default(dataset: ChipDataset) -> None:
    run = run_of(dataset, "model.backbone=resnet18", tiny=False)
    text = outline(run, dataset)
    assert text.count("(all by default)") == 1  # the schedule; of the network something was given
    assert "128 chips each (all by default)" in text


def test_mismatches__none_where_the_settings_fit(dataset: ChipDataset) -> None:
    run = run_of(dataset, "train.epochs=40", "train.norm=train", "train.norm_momentum=0.1", "train.ema=0.9")
    assert list(mismatches(run)) == []


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["train.warmup_steps=1000"], r"train\.warmup_steps 1000 .* is cut to \d+"),
        (["train.decay_epochs=[10]"], r"train\.decay_epochs \[10.0\] lies behind the last of 2 epochs"),
        (["train.evaluate_every=5"], r"train\.evaluate_every 5 .* only the last one"),
        (["train.norm=train"], r"train\.norm_momentum 0\.005: after \d+ steps .* only \d+% .*=0\.\d+$"),
        (["train.ema=0.999"], r"train\.ema 0\.999: .* set train\.ema=0\.\d+"),
        (["train.batch_size=500"], r"train\.batch_size 500 .* set train\.batch_size=\d+ or less"),
        (["model.backbone=resnet101"], r"from scratch.*train\.weights=ResNet101_Weights\.IMAGENET1K_V2"),
        (["model.backbone=resnet50", "train.batch_size=64", "train.chips_per_rank=64"], "takes a CPU minutes"),
    ],
)
def test_mismatches__each_is_named(dataset: ChipDataset, assignments: list[str], said: str) -> None:
    run = run_of(dataset, "train.epochs=2", "train.warmup_steps=0", *assignments)
    assert any(re.search(said, line) for line in mismatches(run)), list(mismatches(run))


def test_run__of_the_rpn_has_the_same_outline(dataset: ChipDataset) -> None:
    run = run_of(dataset, "train.decay_epochs=[]", "train.epochs=4", rpn_only=True)
    assert "the RPN of resnet18" in outline(run, dataset)
    assert "divided by ten" not in outline(run, dataset)
