"""What a run is made of, before its first step and after it goes on."""

from pathlib import Path

import pytest
import torch

from schemas.settings import TrainSettings
from tests.trainer.runs import tiny_settings
from trainer.loading.dataset import ChipDataset
from trainer.loading.order import State, rank_slice
from trainer.runtime.ranks import Rank, unbroken
from trainer.training.run import Run, make_run, norm_by_chips, passes_of_step

WEIGHTS = "ResNet18_Weights.IMAGENET1K_V1"


@pytest.mark.parametrize(("batch_size", "chips_per_rank", "ranks"), [(9, 8, 1), (128, 16, 3), (5, 16, 8), (8, 8, 1)])
def test_passes_of_step__are_as_the_loader_deals_chips_out(batch_size: int, chips_per_rank: int, ranks: int) -> None:
    options = TrainSettings(batch_size=batch_size, chips_per_rank=chips_per_rank)
    count, fewest, most = passes_of_step(options, ranks)
    slices = [rank_slice(1000, 0, batch_size, index, ranks * count) for index in range(ranks * count)]
    dealt = [len(range(1000)[one]) for one in slices]
    assert (sum(dealt), min(dealt), max(dealt)) == (batch_size, fewest, most)
    assert most <= chips_per_rank
    assert count == 1 or batch_size > ranks * (count - 1) * chips_per_rank, "no more passes than are needed"


@pytest.mark.parametrize(
    ("batch_size", "chips_per_rank", "norm"), [(8, 16, "train"), (9, 8, "frozen"), (16, 8, "train"), (7, 16, "frozen")]
)
def test_norm_by_chips__goes_by_the_smallest_pass(batch_size: int, chips_per_rank: int, norm: str) -> None:
    given = {"batch_size": batch_size, "chips_per_rank": chips_per_rank}
    assert norm_by_chips(TrainSettings.model_validate(given | {"weights": WEIGHTS}), 1) == norm
    assert norm_by_chips(TrainSettings.model_validate(given), 1) == "train"


def run_of(dataset: ChipDataset, *assignments: str) -> Run:
    rank = Rank(0, 1, torch.device("cpu"))
    return make_run(dataset, Path("run"), tiny_settings(*assignments), rank, last=None, rpn_only=False)


def test_restore__an_average_that_is_not_kept_begins_with_the_weights(dataset: ChipDataset) -> None:
    """A finished run of the RPN keeps its average as its weights, and may go on with more epochs."""
    last = run_of(dataset).checkpoint()
    run = run_of(dataset, "train.ema=0.9")
    run.restore(last)
    assert run.ema is not None
    assert last.model.keys() == run.ema.state.keys()
    assert all(value.equal(last.model[name]) for name, value in run.ema.state.items())


def test_restore__progress_counts_the_chips_of_the_epoch_at_hand(dataset: ChipDataset) -> None:
    """With repeats an epoch is as long as its draws make it."""
    run = run_of(dataset, "loader.repeat_threshold=0.9")
    chips = [len(run.loader.epoch(State(0, epoch)).order) for epoch in range(9)]
    epoch = next(epoch for epoch, num in enumerate(chips) if num != chips[0])
    run.restore(run.checkpoint()._replace(loader=(0, epoch, 8)))
    assert run.epoch_chips == chips[epoch] != chips[0]
    assert run.progress == epoch + 8 / chips[epoch]


def test_write_later__is_not_to_be_broken_off_when_another_rank_fails(dataset: ChipDataset) -> None:
    run, seen = run_of(dataset), []
    run.write_later(lambda _: seen.append(unbroken.locked()))
    run.settle()
    assert seen == [True]
    assert not unbroken.locked()
