"""One matching of detections to objects: its rules hold for any boxes, and its AP50 is that of pycocotools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluation.coco_scores import COCO_AREAS, run_coco
from trainer.evaluation.ground_truth import Objects
from trainer.evaluation.matching import NONE, Matching, box_ious, class_curve, curve, match
from trainer.evaluation.results import CocoResults

CLASSES = (3, 8)


def make_objects(rows: list[tuple[int, int, list[float], bool]]) -> Objects:
    """Rows of image, class, x y width height and crowd."""
    boxes = np.array([row[2] for row in rows], np.float64).reshape(-1, 4)
    ids = [np.array([row[i] for row in rows], np.int64) for i in range(2)]
    return Objects(*ids, boxes, boxes[:, 2] * boxes[:, 3], np.array([row[3] for row in rows], bool))


def make_results(rows: list[tuple[int, int, list[float], float]]) -> CocoResults:
    """Rows of image, class, x y width height and score."""
    boxes = np.array([row[2] for row in rows], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    ids = [np.array([row[i] for row in rows], np.int64) for i in range(2)]
    return CocoResults(*ids, boxes, np.array([row[3] for row in rows], np.float32))


side = st.integers(1, 12).map(float)
box = st.tuples(st.integers(0, 12).map(float), st.integers(0, 12).map(float), side, side).map(list)
image, category = st.integers(1, 3), st.sampled_from(CLASSES)
objects = st.lists(st.tuples(image, category, box, st.integers(0, 5).map(lambda n: n == 0)), max_size=12)
results = st.lists(st.tuples(image, category, box, st.integers(0, 8).map(lambda n: n / 8)), max_size=25)
scenes = st.tuples(objects.map(make_objects), results.map(make_results))
limits = st.sampled_from((1, 3, 100))


@given(scenes, limits)
def test_match__pairs_fit_and_each_side_has_one(scene: tuple[Objects, CocoResults], max_dets: int) -> None:
    truth, found = scene
    matching = match(truth, found, max_dets=max_dets)
    assert found.category_id is not None
    rows = np.flatnonzero(matching.object != NONE)
    mates = matching.object[rows]
    assert len(set(mates.tolist())) == len(mates)
    assert (matching.detection[mates] == rows).all()
    assert (matching.detection != NONE).sum() == len(rows)
    assert matching.counts[rows].all()
    assert not truth.crowd[mates].any()
    assert (truth.image_id[mates] == found.image_id[rows]).all()
    assert (truth.category_id[mates] == found.category_id[rows]).all()
    for row, mate in zip(rows, mates, strict=True):
        assert box_ious(found.xywh()[[row]], truth.boxes[[mate]], np.array([False]))[0, 0] >= 0.5
    for image_id in (1, 2, 3):
        for id_ in CLASSES:
            group = (found.image_id == image_id) & (found.category_id == id_)
            assert (matching.counts & group).sum() <= max_dets


@given(scenes)
def test_match__no_false_detection_fits_an_object_that_is_free(scene: tuple[Objects, CocoResults]) -> None:
    truth, found = scene
    matching = match(truth, found)
    assert found.category_id is not None
    for row in np.flatnonzero(matching.is_false):
        mine = (truth.image_id == found.image_id[row]) & (truth.category_id == found.category_id[row])
        overlaps = box_ious(found.xywh()[[row]], truth.boxes[mine], truth.crowd[mine])[0]
        takers = matching.detection[mine]
        for overlap, taker, crowd in zip(overlaps, takers, truth.crowd[mine], strict=True):
            if overlap >= 0.5:
                assert not crowd
                assert taker != NONE
                assert found.scores[taker] >= found.scores[row]


@given(scenes, limits)
def test_match__has_the_ap50_of_pycocotools(scene: tuple[Objects, CocoResults], max_dets: int) -> None:
    truth, found = scene
    scores = run_coco(truth, CLASSES, found, COCO_AREAS, max_dets)
    matching = match(truth, found, max_dets=max_dets)
    for k, id_ in enumerate(CLASSES):
        ours = class_curve(matching, truth, found, id_).average_precision()
        theirs = scores.precision(iou=0.5, category=k)
        if theirs is None:
            assert not ((truth.category_id == id_) & ~truth.crowd).any()
        else:
            assert ours == pytest.approx(theirs, abs=1e-9)


def test_match__a_crowd_takes_any_number_and_counts_neither_way() -> None:
    truth = make_objects([(1, 3, [0, 0, 100, 100], True), (1, 3, [10, 10, 10, 10], False)])
    inside = [(1, 3, [20.0 * i, 60.0, 10.0, 10.0], 0.5) for i in range(4)]
    found = make_results([*inside, (1, 3, [10, 10, 10, 10], 0.9), (1, 3, [95, 0, 10, 10], 0.9)])
    matching = match(truth, found)
    assert matching.counts.tolist() == [False] * 4 + [True, False]
    assert matching.object.tolist() == [NONE] * 4 + [1, NONE]
    assert matching.detection.tolist() == [NONE, 4]


def test_match__without_anything_is_empty() -> None:
    empty = CocoResults(np.empty(0, np.int64), None, np.empty((0, 4), np.float32), np.empty(0, np.float32))
    truth = make_objects([(1, 3, [0, 0, 10, 10], False)])
    assert match(truth, empty).detection.tolist() == [NONE]
    matching: Matching = match(make_objects([]), make_results([(1, 3, [0, 0, 10, 10], 0.5)]))
    assert matching.is_false.tolist() == [True]


def test_curve__of_no_objects_has_no_ap_and_of_no_detections_zero() -> None:
    none = np.empty(0, bool), np.empty(0, np.float32)
    assert np.isnan(curve(np.array([False]), np.array([0.5], np.float32), 0).average_precision())
    assert curve(*none, 3).average_precision() == 0
    assert curve(np.array([True]), np.array([0.5], np.float32), 1).average_precision() == 1
