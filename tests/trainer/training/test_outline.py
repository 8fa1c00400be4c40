"""What a run says before its first step: a table of what will be trained, and what does not fit."""

import re
from pathlib import Path

import pytest
import torch

from schemas.settings import load_settings
from tests.trainer.runs import TINY
from trainer.loading.dataset import ChipDataset
from trainer.runtime.ranks import Rank
from trainer.training.outline import expected_memory, mismatches, outline
from trainer.training.run import Run, make_run


def run_of(dataset: ChipDataset, *assignments: str, tiny: bool = True, rpn_only: bool = False) -> Run:
    settings = load_settings(None, (*(TINY if tiny else ()), *assignments))
    return make_run(dataset, Path("run"), settings, Rank(0, 1, torch.device("cpu")), last=None, rpn_only=rpn_only)


def test_outline__tells_what_will_be_trained(dataset: ChipDataset) -> None:
    run = run_of(dataset, "train.epochs=3", "train.warmup_steps=2", "train.chips_per_rank=4", "train.norm=train")
    lines = {line[2:18].strip(): line[18:] for line in outline(run).splitlines()[1:]}
    steps = -(-run.epoch_chips // 8)
    assert lines["network"].startswith("resnet18, fpn, levels 3 to 5, ")
    assert lines["weights"] == "none: it starts from scratch"
    pool = len(dataset) - dataset.manifest.num_positives
    drawn = run.epoch_chips - dataset.manifest.num_positives
    assert 0 < drawn < pool
    assert lines["chips"] == (
        f"{run.epoch_chips} of 96 px in an epoch, {drawn} of them negative, drawn from a pool of {pool}; 3 classes"
    )
    assert lines["steps"] == f"{3 * steps}: 3 epochs of {steps}, 8 chips each"
    assert lines["chips per rank"] == "4 in a forward pass, 2 passes per step, 1 rank"
    expected = f"0.0075 after a warm-up of 2 steps, divided by ten after epoch 2.5 (step {round(2.5 * steps)})"
    assert lines["rate"] == f"{expected}; final rate 0.00075"
    assert lines["batch norm"] == "train, momentum 0.005"
    assert lines["precision"] == "fp32 on the CPU"


def test_outline__says_what_stands_by_default(dataset: ChipDataset) -> None:
    run = run_of(dataset, "model.backbone=resnet18", tiny=False)
    text = outline(run)
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
        (["train.norm=train", "train.batch_size=500", "train.chips_per_rank=1"], r"momentum 0\.005: after 2 steps"),
        (["train.ema=0.999"], r"train\.ema 0\.999: .* set train\.ema=0\.\d+"),
        (["train.batch_size=500"], r"train\.batch_size 500 .* set train\.batch_size=\d+ or less"),
        (["model.backbone=resnet101"], r"from scratch.*train\.weights=ResNet101_Weights\.IMAGENET1K_V2"),
        (["loader.negatives_per_image=0"], r"negatives_per_image 0: .* \d+ negative chips: .*negatives_per_image=2$"),
        (["model.neck=c5"], r"model\.levels \[3, 5\] has no effect with model\.neck=c5"),
        (["model.backbone=resnet50", "train.batch_size=64", "train.chips_per_rank=64"], "takes a CPU minutes"),
    ],
)
def test_mismatches__each_is_named(dataset: ChipDataset, assignments: list[str], said: str) -> None:
    run = run_of(dataset, "train.epochs=2", "train.warmup_steps=0", *assignments)
    assert any(re.search(said, line) for line in mismatches(run)), list(mismatches(run))


def test_mismatches__nms_that_a_gpu_would_wait_for(dataset: ChipDataset) -> None:
    run = run_of(dataset, "model.pre_nms=5000")
    said = "set model.pre_nms=4096 or less"
    assert said not in " ".join(mismatches(run))
    run.rank = Rank(0, 1, torch.device("cuda"))
    assert said in " ".join(mismatches(run))


def test_run__of_the_rpn_has_the_same_outline(dataset: ChipDataset) -> None:
    run = run_of(dataset, "train.decay_epochs=[]", "train.epochs=4", rpn_only=True)
    assert "the RPN of resnet18" in outline(run)
    assert "divided by ten" not in outline(run)


def test_outline__without_a_pool(chip_folder: Path) -> None:
    dataset = ChipDataset(chip_folder)
    run = run_of(dataset, "loader.negatives_per_image=0")
    assert f"{len(dataset)} of 96 px in an epoch, none of them negative (`sniper negatives`" in outline(run)
    assert "negatives_per_image" not in " ".join(mismatches(run))


def test_expected_memory__counts_gradients_of_what_learns_alone(dataset: ChipDataset) -> None:
    for assignments, copies in (((), 1), (("train.ema=0.9",), 2)):
        run = run_of(dataset, *assignments)
        numbers = sum(parameter.numel() for parameter in run.model.parameters())
        run.model.requires_grad_(False)
        assert expected_memory(run, 0) == pytest.approx(4e-9 * numbers * copies)
        run.model.requires_grad_(True)
        assert expected_memory(run, 0) == pytest.approx(4e-9 * numbers * (copies + 2))
