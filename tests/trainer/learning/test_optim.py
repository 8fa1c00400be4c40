"""The schedule, the groups and the average are what they say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from schemas.settings import TrainSettings
from trainer.learning.optim import Ema, learning_rate, make_optimizer


def test_learning_rate__warms_up_to_the_rate_and_drops_by_ten() -> None:
    options = TrainSettings()
    assert learning_rate(0, 0, options) == pytest.approx(0.12 / 30)
    assert learning_rate(500, 0, options) == pytest.approx(0.12 * (1 / 30 + 29 / 30 / 2))
    assert learning_rate(1000, 0, options) == pytest.approx(0.12)
    assert learning_rate(50_000, 9, options) == pytest.approx(0.12)
    assert learning_rate(50_000, 10, options) == pytest.approx(0.012)


@given(st.integers(0, 5000), st.integers(0, 20), st.integers(1, 512))
def test_learning_rate__is_proportional_to_the_batch(step: int, epoch: int, batch_size: int) -> None:
    one = learning_rate(step, epoch, TrainSettings(batch_size=batch_size))
    assert one * 128 / batch_size == pytest.approx(learning_rate(step, epoch, TrainSettings()))


def test_make_optimizer__only_matrices_decay_and_frozen_parameters_stay_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    decayed, free = make_optimizer(model, TrainSettings(weight_decay=0.5)).param_groups
    assert [parameter.dim() for parameter in decayed["params"]] == [4]
    assert decayed["weight_decay"] == 0.5
    assert [parameter.dim() for parameter in free["params"]] == [1, 1, 1]
    assert free["weight_decay"] == 0


def test_ema__follows_slowly() -> None:
    model = nn.BatchNorm1d(2)
    ema = Ema(model, 0.75)
    with torch.no_grad():
        model.weight += 4
        model.num_batches_tracked += 3
    ema.update(model)
    assert ema.state["weight"].tolist() == [2, 2]
    assert int(ema.state["num_batches_tracked"]) == 3
