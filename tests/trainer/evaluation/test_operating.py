"""Precision, recall and F1 at a score, and the confusion matrix."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.evaluation.test_matching import CLASSES, make_objects, make_results, scenes
from trainer.evaluation.ground_truth import Objects
from trainer.evaluation.matching import curve, match
from trainer.evaluation.operating import best_point, class_points, confusion
from trainer.evaluation.results import CocoResults, join_results

CATEGORIES = [(id_, f"class {id_}") for id_ in CLASSES]
scores = st.integers(0, 9).map(lambda n: n / 8)


def above(found: CocoResults, score: float) -> CocoResults:
    return found.take(found.scores >= np.float32(score))


def counts_at(truth: Objects, found: CocoResults, score: float, id_: int) -> tuple[int, int, int]:
    """True and false detections of a class, and its objects, by a matching of the detections from a score on alone."""
    taken = above(found, score)
    matching = match(truth, taken)
    assert taken.category_id is not None
    true = int((matching.is_true & (taken.category_id == id_)).sum())
    false = int((matching.is_false & (taken.category_id == id_)).sum())
    return true, false, int((~truth.crowd & (truth.category_id == id_)).sum())


@given(scenes)
def test_class_points__are_those_of_a_matching_of_these_detections_alone(scene: tuple[Objects, CocoResults]) -> None:
    truth, found = scene
    points = class_points(truth, found, match(truth, found), CATEGORIES)
    for (id_, _), point in zip(CATEGORIES, points, strict=True):
        true, false, num = counts_at(truth, found, point.score, id_)
        np.testing.assert_allclose(point.precision, true / (true + false) if true + false else np.nan)
        np.testing.assert_allclose(point.recall, true / num if num else np.nan)
        np.testing.assert_allclose(point.f1, 2 * true / (num + true + false) if num else np.nan, atol=1e-12)


@given(scenes, scores)
def test_class_points__no_score_has_a_better_f1_than_the_best(
    scene: tuple[Objects, CocoResults], score: float
) -> None:
    truth, found = scene
    best = class_points(truth, found, match(truth, found), CATEGORIES)
    for (id_, _), point in zip(CATEGORIES, best, strict=True):
        true, false, num = counts_at(truth, found, score, id_)
        assert np.isnan(point.f1) if not num else point.f1 >= 2 * true / (num + true + false) - 1e-12


def test_best_point__is_the_first_of_equal_ones() -> None:
    is_true = np.isin(np.arange(21), [2, 19, 20])  # 1 of 6 after 3 detections and 3 of 6 after 21: F1 is 2 / 9 twice
    point = best_point(curve(is_true, np.linspace(0.9, 0.1, 21, dtype=np.float32), 6), 6)
    assert (point.score, point.precision) == (np.float32(0.82), 1 / 3)


@given(scenes, scores)
def test_confusion__counts_every_object_and_every_detection_once(
    scene: tuple[Objects, CocoResults], score: float
) -> None:
    truth, found = scene
    matching = match(truth, found)
    counts = confusion(truth, found, matching, CATEGORIES, score)
    taken = matching.counts & (found.scores >= np.float32(score))
    assert found.category_id is not None
    for place, id_ in enumerate(CLASSES):
        assert counts[place].sum() == (~truth.crowd & (truth.category_id == id_)).sum()
        assert counts[:, place].sum() == (taken & (found.category_id == id_)).sum()
        assert counts[place, place] >= (taken & matching.is_true & (found.category_id == id_)).sum()
    assert counts[-1, -1] == 0


def test_confusion__says_which_class_is_taken_for_which() -> None:
    cat, dog = CLASSES
    there = [0, 0, 10, 10], [20, 0, 10, 10], [40, 0, 10, 10]
    truth = make_objects([(1, cat, there[0], False), (1, cat, there[1], False), (2, dog, there[2], False)])
    found = make_results(
        [
            (1, cat, there[0], 0.9),  # right
            (1, dog, there[1], 0.8),  # a cat taken for a dog
            (1, dog, there[0], 0.7),  # the cat is found already
            (2, dog, there[0], 0.6),  # nothing there
            (2, dog, there[2], 0.1),  # below the score
        ]
    )
    counts = confusion(truth, found, match(truth, found), CATEGORIES, 0.5)
    np.testing.assert_array_equal(counts, [[1, 1, 0], [0, 0, 1], [0, 2, 0]])


def test_class_points_and_confusion__of_nothing_found() -> None:
    truth, nothing = make_objects([(1, CLASSES[0], [0, 0, 9, 9], False)]), join_results([])
    first, second = class_points(truth, nothing, match(truth, nothing), CATEGORIES)
    assert (first.recall, first.f1) == (0, 0)
    assert np.isnan([first.score, second.recall, second.f1]).all()
    counts = confusion(truth, nothing, match(truth, nothing), CATEGORIES, 0.5)
    assert counts.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
