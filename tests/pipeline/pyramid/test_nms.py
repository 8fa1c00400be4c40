"""Soft-NMS against a slow reference, and against OpenCV's on integer boxes."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pyramid.nms import METHODS, nms, soft_nms


def slow_soft_nms(
    boxes: list[list[float]], scores: list[float], method: str, sigma: float, iou: float, min_score: float
) -> dict[int, float]:
    """One class, read aloud: take the best, lower the others, drop what is too low, again."""

    def overlap(a: list[float], b: list[float]) -> float:
        w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
        return w * h / union if union else 0.0

    left = dict(enumerate(scores))
    kept: dict[int, float] = {}
    while left:
        best = min(left, key=lambda i: (-left[i], i))
        value = left.pop(best)
        if value < min_score:
            break
        kept[best] = value
        for i in list(left):
            o = overlap(boxes[best], boxes[i])
            if method == "gaussian":
                left[i] *= math.exp(-o * o / sigma)
            elif o > iou:
                left[i] *= 1 - o if method == "linear" else 0
    return kept


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(METHODS)), st.integers(0, 60), st.integers(1, 4))
@settings(max_examples=150)
def test_soft_nms__is_the_slow_one_class_by_class(seed: int, method: str, count: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 50, (count, 2))], axis=1).astype(np.float32)
    scores = rng.uniform(0, 1, count).astype(np.float32)
    labels = rng.integers(1, num_classes + 1, count)
    rows, new = soft_nms(boxes, scores, labels, method=method, iou=0.3, min_score=0.01, limit=1000)  # type: ignore[arg-type]
    expected: dict[int, float] = {}
    for label in range(1, num_classes + 1):
        of_class = np.flatnonzero(labels == label)
        kept = slow_soft_nms(
            boxes[of_class].astype(float).tolist(), scores[of_class].astype(float).tolist(), method, 0.55, 0.3, 0.01
        )
        expected |= {int(of_class[i]): value for i, value in kept.items()}
    borderline = {i for i, value in expected.items() if value < 0.0101}
    assert set(rows.tolist()) - borderline == set(expected) - borderline
    assert (np.diff(new) <= 0).all()
    for row, value in zip(rows.tolist(), new.tolist(), strict=True):
        if row not in borderline:
            assert value == pytest.approx(expected[row], rel=1e-4)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("method", ["gaussian", "linear"])
def test_soft_nms__agrees_with_opencv_on_integer_boxes(seed: int, method: str) -> None:
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2.dnn, "softNMSBoxes"):
        pytest.skip("this OpenCV has no softNMSBoxes")
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 80, (40, 2))
    size = rng.integers(5, 60, (40, 2))
    scores = rng.uniform(0.05, 1, 40).astype(np.float32)
    code = cv2.dnn.SoftNMSMethod_SOFTNMS_GAUSSIAN if method == "gaussian" else cv2.dnn.SoftNMSMethod_SOFTNMS_LINEAR
    rects = [tuple(map(int, rect)) for rect in np.concatenate([low, size], axis=1)]
    theirs, kept = cv2.dnn.softNMSBoxes(rects, scores.tolist(), 0.02, 0.3, 0, 0.55, code)
    boxes = np.concatenate([low, low + size], axis=1).astype(np.float32)
    rows, new = soft_nms(
        boxes,
        scores,
        np.ones(40, np.int64),
        method=method,
        sigma=0.55,
        iou=0.3,
        min_score=0.02,
        limit=100,  # type: ignore[arg-type]
    )
    expected = dict(zip(np.ravel(kept).tolist(), np.ravel(theirs).tolist(), strict=True))
    ours = dict(zip(rows.tolist(), new.tolist(), strict=True))
    assert {i for i, v in ours.items() if v > 0.021} <= expected.keys()
    for row, value in expected.items():
        if value > 0.021:
            assert ours[row] == pytest.approx(value, rel=1e-3)


def test_soft_nms__scores_that_are_no_numbers_fall_away() -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 8], [50, 50, 60, 60]], np.float32)
    scores = np.array([np.nan, 0.9, 0.8], np.float32)
    rows, kept = soft_nms(boxes, scores, np.zeros(3, np.int64))
    assert (rows.tolist(), kept.tolist()) == ([1, 2], [pytest.approx(0.9), pytest.approx(0.8)])


def test_soft_nms__limit_and_nothing() -> None:
    boxes = np.array([[i * 10.0, 0, i * 10 + 5, 5] for i in range(50)], np.float32)
    scores = np.linspace(0.1, 0.9, 50, dtype=np.float32)
    rows, new = soft_nms(boxes, scores, np.ones(50, np.int64), limit=7)
    assert rows.tolist() == [49, 48, 47, 46, 45, 44, 43]
    assert new.tolist() == scores[rows].tolist()
    rows, _ = soft_nms(boxes[:0], scores[:0], np.ones(0, np.int64))
    assert len(rows) == 0


def crowd_of_boxes(rng: np.random.Generator, count: int, side: float) -> npt.NDArray[np.float32]:
    """Boxes of all sizes, some beyond the edges, many of which nearly equal another one."""
    size = np.exp(rng.uniform(np.log(2), np.log(side / 2), (count, 1)) + rng.uniform(-0.5, 0.5, (count, 2)))
    low = rng.uniform(-5, side, (count, 2))
    source = rng.integers(0, max(count // 6, 1), count)
    low, size = low[source] + rng.normal(0, 1, (count, 2)), size[source] * np.exp(rng.normal(0, 0.08, (count, 2)))
    return np.concatenate([low, low + size], axis=1).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 40, 700]), st.sampled_from([0.3, 0.7]))
@settings(max_examples=60)
def test_nms__keeps_what_looking_at_all_pairs_keeps(seed: int, count: int, threshold: float) -> None:
    boxes = crowd_of_boxes(np.random.default_rng(seed), count, 300)
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    inter = np.maximum(high - low, 0).prod(axis=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    beats = inter / (area[:, None] + area[None] - inter) > threshold
    stay = np.ones(count, bool)
    for i in range(count):
        if stay[i]:
            stay[i + 1 :] &= ~beats[i, i + 1 :]
    assert nms(boxes, threshold).tolist() == stay.tolist()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_soft_nms__of_many_boxes_is_that_of_few(seed: int) -> None:
    """Crowds far apart do not act on each other: together, in bins, they come out as each by itself."""
    rng = np.random.default_rng(seed)
    crowds = [crowd_of_boxes(rng, 100, 60) + np.float32(1000 * i) for i in range(5)]
    scores = rng.permutation(500).astype(np.float32) / 500
    rows, new = soft_nms(np.concatenate(crowds), scores, np.ones(500, np.int64), limit=1000)
    together = dict(zip(rows.tolist(), new.tolist(), strict=True))
    apart = {}
    for i, boxes in enumerate(crowds):
        rows, new = soft_nms(boxes, scores[100 * i : 100 * i + 100], np.ones(100, np.int64), limit=1000)
        apart |= dict(zip((rows + 100 * i).tolist(), new.tolist(), strict=True))
    assert together.keys() == apart.keys()
    assert all(value == pytest.approx(apart[row], rel=1e-4) for row, value in together.items())
