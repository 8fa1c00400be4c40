"""The training step: what a chip weighs in it."""

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from schemas.errors import DataError
from tests.trainer.gpus import CUDA, needs_gpu
from tests.trainer.runs import tiny_settings
from trainer.loading.dataset import ChipDataset
from trainer.runtime.ranks import Rank
from trainer.training.loop import train_step
from trainer.training.run import make_run

CPU = Rank(0, 1, torch.device("cpu"))


def gradients_of_epoch(dataset: ChipDataset, out: Path, batch_size: int) -> tuple[list[dict[str, Tensor]], list[int]]:
    """The gradient of every step of an epoch, of weights that stay as they are, and the steps' numbers of chips."""
    settings = tiny_settings(
        f"train.batch_size={batch_size}", f"train.chips_per_rank={batch_size}", "train.learning_rate=1e-30"
    )
    torch.manual_seed(0)
    run = make_run(dataset, out, settings, CPU, last=None, rpn_only=False)
    gradients: list[dict[str, Tensor]] = []

    def keep(*_: object) -> None:
        learnt = {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}
        gradients.append({name: gradient.clone() for name, gradient in learnt.items()})

    run.optimizer.register_step_pre_hook(keep)
    steps = list(run.loader.epoch(run.state))
    for step in steps:
        losses = train_step(run, step)
        assert 0.1 < sum(losses.values()) < 20  # the mean per chip, in a short step too
    return gradients, [step.num_chips for step in steps]


def test_train_step__a_chip_weighs_the_same_in_a_short_step(chip_folder: Path, tmp_path: Path) -> None:
    dataset = ChipDataset(chip_folder)
    batch_size = next(size for size in (8, 7, 9) if len(dataset) % size == 1 or len(dataset) % size == 2)
    steps, chips = gradients_of_epoch(dataset, tmp_path, batch_size)
    assert chips[-1] < batch_size // 2
    (whole,), _ = gradients_of_epoch(dataset, tmp_path, len(dataset))
    for name, gradient in whole.items():
        summed = torch.stack([step[name] for step in steps]).sum(0) * batch_size / len(dataset)
        torch.testing.assert_close(summed, gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item(), msg=name)


def test_train_step__holds_the_pixels_of_one_pass_at_a_time(chip_folder: Path, tmp_path: Path) -> None:
    settings = tiny_settings("train.chips_per_rank=2")
    run = make_run(ChipDataset(chip_folder), tmp_path, settings, CPU, last=None, rpn_only=False)
    pixels: list[weakref.ref[Tensor]] = []
    held: list[int] = []
    run.objective.register_forward_pre_hook(lambda _, given: pixels.append(weakref.ref(given[0].images)))
    run.optimizer.register_step_pre_hook(lambda *_: held.append(sum(one() is not None for one in pixels)))
    train_step(run, next(iter(run.loader.epoch(run.state))))
    assert len(pixels) == 4
    assert held == [1]


def test_train_step__leaves_out_the_passes_that_no_rank_has_a_chip_for(chip_folder: Path, tmp_path: Path) -> None:
    """Synchronised norms would take the statistics of nothing there."""
    settings = tiny_settings("train.batch_size=8", "train.chips_per_rank=1")
    run = make_run(ChipDataset(chip_folder), tmp_path, settings, CPU, last=None, rpn_only=False)
    *_, short = run.loader.epoch(run.state)
    assert (len(short.micros), short.num_chips) == (8, run.epoch_chips % 8)
    passes: list[int] = []
    run.objective.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    train_step(run, short)
    assert passes == [1] * short.num_chips


def test_train_step__fp16_that_overflows_at_any_scale_ends_the_run(chip_folder: Path, tmp_path: Path) -> None:
    # it is the scaler that counts, and a CPU is slow in half precision
    settings = tiny_settings("train.precision=fp32", "train.batch_size=1")
    run = make_run(ChipDataset(chip_folder), tmp_path, settings, CPU, last=None, rpn_only=False)
    step = next(iter(run.loader.epoch(run.state)))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-9)
    bias = run.model.rpn.conv.bias
    assert bias is not None
    bias.register_hook(lambda gradient: gradient * torch.inf)
    before = bias.detach().clone()
    assert train_step(run, step) is not None, "such a step is passed over"
    assert run.scaler.get_scale() == 2.0**-10
    with pytest.raises(DataError, match="the gradient is not finite"):
        train_step(run, step)
    assert bias.equal(before)


@needs_gpu
def test_train_step__fp16_passes_over_an_overflow(chip_folder: Path, tmp_path: Path) -> None:
    """A loss scale that is far too large costs one step and halves the scale; the next step learns."""
    settings = tiny_settings("train.precision=fp16", "train.norm=train")
    torch.manual_seed(0)
    run = make_run(ChipDataset(chip_folder), tmp_path, settings, Rank(0, 1, CUDA), last=None, rpn_only=False)
    step = next(iter(run.loader.epoch(run.state)))
    before = run.model.head.scores.weight.detach().clone()
    run.scaler = torch.amp.GradScaler(CUDA.type, init_scale=2.0**60)
    assert train_step(run, step) is not None
    assert run.model.head.scores.weight.equal(before)
    assert run.scaler.get_scale() == 2.0**59
    run.scaler = torch.amp.GradScaler(CUDA.type, init_scale=2.0**10)
    assert train_step(run, step) is not None
    assert run.model.head.scores.weight.isfinite().all()
    assert not run.model.head.scores.weight.equal(before)
    assert run.scaler.get_scale() == 2.0**10


@needs_gpu
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_train_step__without_a_scaler_a_bad_loss_changes_nothing(
    precision: str, chip_folder: Path, tmp_path: Path
) -> None:
    settings = tiny_settings(f"train.precision={precision}", "train.norm=train")
    torch.manual_seed(0)
    run = make_run(ChipDataset(chip_folder), tmp_path, settings, Rank(0, 1, CUDA), last=None, rpn_only=False)
    with torch.no_grad():
        run.model.head.scores.bias[0] = torch.nan
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(DataError, match="not finite"):
        train_step(run, next(iter(run.loader.epoch(run.state))))
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True, msg=name)
