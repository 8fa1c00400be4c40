"""Every false detection has one kind of error, as TIDE defines them, and mending a kind costs no AP."""

import numpy as np
import pytest
from hypothesis import given

from tests.trainer.evaluation.test_matching import make_objects, make_results, scenes
from trainer.evaluation.errors import Kind, gains, mean_ap, split_errors
from trainer.evaluation.ground_truth import Objects
from trainer.evaluation.matching import NONE, match
from trainer.evaluation.results import CocoResults

OBJECT = [10.0, 10.0, 20.0, 20.0]
NEAR = [18.0, 10.0, 20.0, 20.0]  # IoU 0.43
FAR = [60.0, 60.0, 20.0, 20.0]


@pytest.mark.parametrize(
    ("detections", "kind", "missed"),
    [
        ([(1, 3, NEAR, 0.9)], Kind.PLACE, False),
        ([(1, 8, OBJECT, 0.9)], Kind.CLASS, False),
        ([(1, 3, OBJECT, 0.9), (1, 3, OBJECT, 0.8)], Kind.DUPLICATE, False),
        ([(1, 3, FAR, 0.9)], Kind.BACKGROUND, True),
        ([(2, 3, OBJECT, 0.9)], Kind.BACKGROUND, True),
        ([(1, 8, NEAR, 0.9)], Kind.BOTH, True),
    ],
)
def test_split_errors__names_each_kind(
    detections: list[tuple[int, int, list[float], float]], kind: Kind, missed: bool
) -> None:
    truth, found = make_objects([(1, 3, OBJECT, False)]), make_results(detections)
    errors = split_errors(truth, found, match(truth, found))
    assert errors.kind.tolist() == [NONE] * (len(detections) - 1) + [kind]
    assert errors.missed.tolist() == [missed]
    assert errors.count(kind) == 1
    assert errors.count(Kind.MISSED) == missed


@given(scenes)
def test_split_errors__every_false_detection_has_one_kind(scene: tuple[Objects, CocoResults]) -> None:
    truth, found = scene
    matching = match(truth, found)
    errors = split_errors(truth, found, matching)
    assert ((errors.kind != NONE) == matching.is_false).all()
    assert sum(errors.count(kind) for kind in Kind if kind != Kind.MISSED) == matching.is_false.sum()
    assert not (errors.missed & (matching.detection != NONE)).any()
    assert not (errors.missed & truth.crowd).any()
    meant = errors.object[errors.object != NONE]
    assert set(np.unique(errors.kind[errors.object != NONE])) <= {Kind.PLACE, Kind.CLASS}
    left = ~truth.crowd & (matching.detection == NONE) & ~errors.missed
    assert set(np.flatnonzero(left).tolist()) <= set(meant.tolist())


@given(scenes)
def test_gains__no_mended_kind_of_error_costs_ap(scene: tuple[Objects, CocoResults]) -> None:
    truth, found = scene
    matching = match(truth, found)
    errors = split_errors(truth, found, matching)
    gained = gains(truth, found, matching, errors)
    if np.isnan(mean_ap(truth, found, matching)):
        return
    for kind in (Kind.DUPLICATE, Kind.BACKGROUND, Kind.BOTH):
        assert gained[kind] >= -1e-12
        assert errors.count(kind) or gained[kind] == 0


def test_gains__are_what_ap_lacks_where_one_kind_is_all_that_is_wrong() -> None:
    truth = make_objects([(1, 3, OBJECT, False), (1, 3, FAR, False)])
    found = make_results([(1, 3, OBJECT, 0.5), (1, 3, [62.0, 70.0, 20.0, 20.0], 0.9)])
    matching = match(truth, found)
    gained = gains(truth, found, matching, split_errors(truth, found, matching))
    assert mean_ap(truth, found, matching) == pytest.approx(0.5 * 51 / 101)
    assert gained[Kind.PLACE] == pytest.approx(1 - 0.5 * 51 / 101)
