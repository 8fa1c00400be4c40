"""Anchors, network and schedule that are proposed for chips."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.insight.suggestion.cost import Cost
from pipeline.insight.suggestion.training import Device, choose_training
from schemas.arrays import FloatArray
from schemas.settings import Settings


def cost_of(sides: FloatArray, chips: int = 500) -> Cost:
    """What is known of chips with targets of these sides, [n, 2], at one scale."""
    return Cost(100, len(sides), len(sides), 0, chips, chips * 512**2, 1, sides, np.zeros(len(sides), np.int64))


def chosen(cost: Cost, num_images: int = 100, device: Device = "gpu") -> Settings:
    tree: dict[str, dict[str, object]] = {}
    for choice in choose_training(cost, num_images, device):
        assert choice.why
        tree.setdefault(choice.section, {})[choice.name] = choice.value
    return Settings.model_validate(tree)


@pytest.mark.parametrize(
    ("sides", "device", "largest", "ratios"),
    [
        ((40, 40), "gpu", 40, 3),
        ((10, 10), "gpu", 13, 3),
        ((6, 6), "gpu", 9, 3),
        ((20, 100), "gpu", 40, 5),
        ((6, 6), "cpu", 9, 3),
    ],
)
def test_choose_training__anchors_fit_the_targets(
    sides: tuple[int, int], device: Device, largest: float, ratios: int
) -> None:
    model = chosen(cost_of(np.tile(np.array(sides, float), (50, 1))), device=device).model
    assert model.anchor_scales is not None
    assert min(model.anchor_scales) * 2 ** model.levels[0] <= largest
    assert len(model.anchor_ratios) == ratios


@given(st.integers(1, 2_000_000))
def test_choose_training__the_schedule_fits_the_number_of_chips(chips: int) -> None:
    train = (settings := chosen(cost_of(np.full((1, 2), 50.0), chips))).train
    steps = train.epochs * math.ceil(chips / train.batch_size)
    assert steps >= 3000 or train.epochs == 100
    assert train.batch_size == 16 or chips / train.batch_size >= 100
    assert train.warmup_steps <= max(1, steps // 10)
    assert 1 - (1 - train.norm_momentum) ** steps > 0.9 or steps < 25  # statistics of batch norm are this run's
    assert settings.negatives.rpn_epochs <= train.epochs
    if chips >= 400_000:  # as many as COCO's
        assert (train.batch_size, train.epochs, train.warmup_steps, train.norm_momentum) == (128, 12, 1000, 0.005)
        assert settings.negatives.rpn_epochs == 4


@given(st.integers(1, 100_000))
def test_choose_training__a_cpu_gets_minutes_of_work(chips: int) -> None:
    train = chosen(cost_of(np.full((1, 2), 50.0), chips), device="cpu").train
    assert train.epochs in (3, 100) or 0.75 * 3000 < train.epochs * chips < 1.25 * 3000
    assert train.batch_size >= 8  # fewer are too few for batch norm


def test_choose_training__chips_are_those_of_all_images_and_not_of_the_sample() -> None:
    sides = np.full((1, 2), 50.0)
    assert chosen(cost_of(sides, 500), num_images=20_000).train == chosen(cost_of(sides, 100_000)).train
