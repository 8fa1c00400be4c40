"""What a run is made of, before its first step and after it goes on."""

import pytest

from schemas.settings import TrainSettings
from trainer.loading.order import rank_slice
from trainer.training.run import norm_by_chips, passes_of_step

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
