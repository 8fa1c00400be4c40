"""The groups of the optimiser and the average of weights."""

import torch
from torch import nn

from schemas.settings import TrainSettings
from trainer.learning.optim import Ema, make_optimizer


def test_make_optimizer__only_matrices_decay_and_frozen_parameters_stay_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2, bias=False), nn.Linear(4, 2))
    model[3].requires_grad_(False)
    decayed, free = make_optimizer(model, TrainSettings(weight_decay=0.5)).param_groups
    assert [parameter.dim() for parameter in decayed["params"]] == [4, 2]
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
