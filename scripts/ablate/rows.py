"""The rows of docs/evidence.md: what is trained, on what, and with how many seeds."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from schemas.settings import Settings
from scripts.ablate import one_stage, two_stage
from scripts.ablate.cuts import (
    cut_anew,
    mined,
    positives,
    pyramid_tiles,
    random_negatives,
    same_windows,
    tiles_of_all,
)
from scripts.ablate.data import Data

STEPS = 600
NUM_TRAIN = 400

MAIN = {"scenes": 5, "bccd": 3, "coco-real": 1}  # data set -> seeds
BESIDE = {"scenes": 3}


class Row(NamedTuple):
    """One way to train.

    Attributes:
        name: as in docs/evidence.md.
        cut: makes the chips.
        sets: settings that differ from settings.yaml.
        seeds: what it is run on -> with how many seeds, unless --seeds says otherwise.
        network: fits and scores: two_stage or one_stage.
        share: of the optimiser steps that a run has.
    """

    name: str
    cut: Callable[[Data, Settings], list[Path]]
    sets: tuple[str, ...] = ()
    seeds: dict[str, int] = BESIDE
    network: ModuleType = two_stage
    share: float = 1.0


TWO_SCALES = ("chips.scales=[0.41675, {long_side: 128}]", "chips.ranges=[[0, 150], [120, null]]")
NO_NEGATIVES = ("loader.negatives_per_image=0",)
PASSES = 2105 / 2833
"""Chips of an epoch without negatives over those with them: so many of the steps pass over the positives as often."""
NO_RANGES = ("chips.ranges=[[0, null], [0, null], [0, null]]",)
TILES = ("chips.scales=[0.75, {long_side: 128}]", "chips.ranges=[[0, null], [0, null]]")
# Five images of 267 x 200 px have the pixels of 16 chips; a step keeps its rate, an area its proposals.
WHOLE = (
    *("chips.size=288", "chips.scales=[{long_side: 267}]", "chips.ranges=[[0, null]]"),
    *("train.batch_size=5", "train.learning_rate=1.024", "model.proposals=325", "model.pre_nms=1630"),
)

ROWS = (
    Row("full", mined, seeds=MAIN),
    Row("two scales", mined, TWO_SCALES, seeds=MAIN),
    Row("without negatives", positives, NO_NEGATIVES, seeds=MAIN),
    Row("without negatives (equal passes)", positives, NO_NEGATIVES, seeds={"scenes": 5}, share=PASSES),
    Row("random negatives", random_negatives),
    Row("cut anew", cut_anew),
    Row("whole images", positives, WHOLE),
    Row("whole pyramid", pyramid_tiles),
    Row("tiles", tiles_of_all, TILES),
    Row("ranges off", same_windows, NO_RANGES),
    Row("proposals per view", mined, ("detect.by_area=false",)),
    Row("one stage: full", mined, network=one_stage),
    Row("one stage: whole images", positives, WHOLE, network=one_stage),
    Row("one stage: tiles", tiles_of_all, TILES, network=one_stage),
)
