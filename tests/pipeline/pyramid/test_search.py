"""Any detector on whole images: one that sees everything right scores 1, and what is wrong is said."""

import io
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.pyramid.search import search
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, DetectSettings, Settings
from tests.builders import encoded, exif
from tests.trainer.columns import objects_of
from trainer.evaluation.coco_scores import score
from trainer.evaluation.results import join_results, of_image

Pixels = npt.NDArray[np.uint8]
SIZES = ((10, 28), (34, 60), (70, 110), (130, 300))  # pixels of the longer side, below and across the ranges' ends


def scene(seed: int) -> tuple[Pixels, npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Plain rectangles of three classes on black, clear of each other, and what they are."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(200, 800, 2).tolist()
    pixels = np.zeros((height, width, 3), np.uint8)
    taken = np.zeros((height, width), np.bool_)
    boxes, labels = [], []
    for _ in range(40):
        longer = rng.uniform(*SIZES[rng.integers(len(SIZES))])
        w, h = (max(8, round(longer * ratio)) for ratio in rng.permutation([1.0, rng.uniform(0.6, 1)]))
        if w >= width or h >= height:
            continue
        x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        if taken[max(0, y - 24) : y + h + 24, max(0, x - 24) : x + w + 24].any():
            continue
        taken[y : y + h, x : x + w] = True
        label = int(rng.integers(3))
        pixels[y : y + h, x : x + w, label] = 255
        boxes.append([x, y, x + w, y + h])
        labels.append(label)
    return pixels, np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64)


def seeing(views: list[Pixels]) -> list[tuple[list[list[float]], list[float], list[int]]]:
    """A perfect detector: it finds each rectangle to a fraction of a pixel, whole or cut."""
    found = []
    for view in views:
        assert view.dtype == np.uint8
        boxes, labels = [], []
        colours = cv2.split(view)
        brightest = cv2.max(cv2.max(colours[0], colours[1]), colours[2])
        count, components, stats, _ = cv2.connectedComponentsWithStats(brightest, connectivity=8)
        for i in range(1, count):
            x, y, w, h, _ = stats[i].tolist()
            label = int(view[y + h // 2, x + w // 2].argmax())
            part = np.where(components[y : y + h, x : x + w] == i, colours[label][y : y + h, x : x + w], 0)
            columns, rows = part.max(axis=0) / 255, part.max(axis=1) / 255
            boxes.append([x + end for end in _ends(columns)][:1] + [y + end for end in _ends(rows)][:1])
            boxes[-1] += [x + _ends(columns)[1], y + _ends(rows)[1]]
            labels.append(label)
        found.append((boxes, [0.9] * len(boxes), labels))
    return found


def _ends(coverage: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Where a blurred bar begins and ends: resizing keeps its mass and its middle, unless the view cuts it."""
    full = coverage / coverage.max()
    middle = int(np.argmax(full >= 0.999))
    last = len(full) - int(np.argmax(full[::-1] >= 0.999))
    return middle - float(full[:middle].sum()), last + float(full[last:].sum())


def average_precision(scenes: list[Any], found: list[Any]) -> float | None:
    truth, results = [], []
    for image_id, ((_, boxes, labels), detections) in enumerate(zip(scenes, found, strict=True)):
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            truth.append({"id": len(truth) + 1, "image_id": image_id, "category_id": label, **box})
        results.append(of_image(image_id, detections._replace(labels=detections.labels + 1), [0, 1, 2]))
    classes = [(0, "red"), (1, "green"), (2, "blue")]
    summary = score(objects_of(truth), classes, join_results(results), ChipSettings().bounds(), 1000)
    return summary["AP"]


@settings(max_examples=10)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([500, 900, 4096]),
    st.sampled_from(["gaussian", "linear", "hard"]),
    st.booleans(),
)
def test_search__a_perfect_detector_scores_one(
    seed: int, max_side: int, merge: Literal["gaussian", "linear", "hard"], class_agnostic: bool
) -> None:
    """Of all scales, with and without tiles: each object comes once, as first of its kind, where it is."""
    scenes = [scene(seed), scene(seed + 1)]
    options = DetectSettings(max_side=max_side, merge=merge, class_agnostic=class_agnostic, max_detections=1000)
    found = list(search([pixels for pixels, _, _ in scenes], seeing, Settings(detect=options)))
    if sum(len(boxes) for _, boxes, _ in scenes):
        assert average_precision(scenes, found) == pytest.approx(1.0)


def sensing(views: list[Pixels]) -> list[tuple[Any, Any, Any, Any]]:
    """A perfect detector that also says in which of 10 by 7 parts of a view something is."""
    found = []
    for view, one in zip(views, seeing(views), strict=True):
        rows, columns = (np.linspace(0, side, count + 1) for side, count in zip(view.shape[:2], (7, 10), strict=True))
        parts = [
            [view[int(y1) : math.ceil(y2), int(x1) : math.ceil(x2)].max() / 255 for x1, x2 in pairwise(columns)]
            for y1, y2 in pairwise(rows)
        ]
        found.append((*one, parts))
    return found


@settings(max_examples=8)
@given(st.integers(0, 2**32 - 1), st.sampled_from([500, 4096]), st.booleans())
@example(286, 500, True)  # a part of a large object in a small tile
@example(23, 500, False)  # a window whose start and side add up to a little less than the image's width
def test_search__from_coarse_to_fine_a_perfect_detector_scores_one(seed: int, max_side: int, maps: bool) -> None:
    """By maps of its own, and by what it finds at the coarser scale; the finer scales are not searched whole."""
    scenes = [scene(seed), scene(seed + 1)]
    options = DetectSettings(max_side=max_side, merge="hard", max_detections=1000, focus=0.02)
    pixels = [0.0, 0.0]

    def counting(views: list[Pixels]) -> Any:
        pixels[0] += sum(view.size / 3 for view in views)
        return sensing(views) if maps else seeing(views)

    def all_of_it(views: list[Pixels]) -> Any:
        pixels[1] += sum(view.size / 3 for view in views)
        return seeing(views)

    images = [image for image, _, _ in scenes]
    found = list(search(images, counting, Settings(detect=options)))
    if sum(len(boxes) for _, boxes, _ in scenes):
        assert average_precision(scenes, found) == pytest.approx(1.0)
    list(search(images, all_of_it, Settings(detect=options.model_copy(update={"focus": "off"}))))
    assert pixels[0] <= pixels[1] * 1.01


def test_search__an_image_with_nothing_small_costs_its_coarsest_view() -> None:
    shapes = []

    def counting(views: list[Pixels]) -> Any:
        shapes.extend(view.shape for view in views)
        return [(*one, [[0.0]]) for one in seeing(views)]

    list(search([np.zeros((480, 640, 3), np.uint8)], counting))
    assert shapes == [(384, 512, 3)]


def test_search__takes_arrays_images_and_files_alike_and_yields_them_in_order(tmp_path: Path) -> None:
    scenes = [scene(seed) for seed in range(9)]  # more than a span, of many shapes
    turned = Image.fromarray(np.rot90(scenes[1][0]).copy())
    (tmp_path / "turned.png").write_bytes(encoded(turned, "PNG", exif=exif(6)))
    Image.fromarray(scenes[2][0]).save(tmp_path / "plain.png")
    images = [scenes[0][0], tmp_path / "turned.png", str(tmp_path / "plain.png"), Image.fromarray(scenes[3][0])]
    images += [pixels for pixels, _, _ in scenes[4:]]
    found = list(search(images, seeing))
    assert [len(one.boxes) > 0 for one in found] == [len(boxes) > 0 for _, boxes, _ in scenes]
    assert average_precision(scenes, found) == pytest.approx(1.0)


def test_search__objects_of_two_classes_in_one_place_become_one_where_that_is_asked_for() -> None:
    def doubting(views: list[Pixels]) -> list[tuple[Any, Any, Any]]:
        seen = zip(views, seeing(views), strict=True)
        return [
            (boxes * 2, [0.9] * len(boxes) + [0.4] * len(boxes), labels + [7] * len(boxes))
            for _, (boxes, _, labels) in seen
        ]

    pixels, boxes, labels = scene(4)
    apart, joined = (
        next(search([pixels], doubting, Settings(detect=DetectSettings(merge="hard", class_agnostic=agnostic))))
        for agnostic in (False, True)
    )
    assert len(apart.boxes) == 2 * len(boxes)
    assert len(joined.boxes) == len(boxes)
    assert sorted(joined.labels.tolist()) == sorted(labels.tolist())


@pytest.mark.parametrize(
    ("detector", "said"),
    [
        (lambda views: [], "gave 0 results; expected one for each"),
        (lambda views: None, "gave a NoneType for 1 views; expected a list"),
        (lambda views: (([], [], []) for _ in views), "gave a generator for 1 views; expected a list"),
        (
            lambda views: [([[0, 0, float("nan"), 9]], [0.5], [1]) for _ in views],
            "a box with a side that is not a number",
        ),
        (lambda views: [([[0, 0, 9, 9]], [0.5]) for _ in views], "a tuple of 2 for a view; expected boxes"),
        (lambda views: [{"boxes": [], "scores": [], "labels": []} for _ in views], "a dict for a view"),
        (lambda views: [None for _ in views], "a NoneType for a view"),
        (lambda views: [([[0, 0, 9, 9]], [0.5], ["cat"]) for _ in views], "labels that are no array of numbers"),
        (lambda views: [([[0, 0, 9, 9]], [float("nan")], [1]) for _ in views], "not a number"),
        (lambda views: [([[0, 0, 9, 9]], [0.5], [1.7]) for _ in views], "label 1.7; expected whole"),
        (lambda views: [(5, 0.5, 1) for _ in views], "of the shapes"),
        (lambda views: [([], [], [], [[1.5]]) for _ in views], "values from 1.5 to 1.5"),
        (lambda views: [([], [], [], [0.5]) for _ in views], r"focus map of shape \[1\]"),
        (lambda views: [([[0, 0, 9, 9]], [0.5, 0.4], [1]) for _ in views], r"\[1, 4\], \[2\], \[1\]"),
        (lambda views: [([0, 0, 9, 9], [0.5], [1]) for _ in views], "expected boxes"),
    ],
)
def test_search__says_what_a_detector_should_have_given(detector: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        list(search([scene(0)[0]], detector))


@pytest.mark.parametrize(
    "kind", [np.array, list, torch.tensor, lambda labels: torch.tensor(labels, dtype=torch.int32)]
)
def test_search__labels_may_be_any_whole_numbers(kind: Callable[[list[int]], Any]) -> None:
    """Also below 0, and beyond what a float32 holds."""
    labels = [-5, -1, -1, 0, 123_456_789]
    boxes = [[60.0 * i, 0, 60 * i + 50, 50] for i in range(len(labels))]

    def detector(views: list[Pixels]) -> list[Any]:
        return [(boxes, [0.5] * len(boxes), kind(labels)) for _ in views]

    options = Settings(chips=ChipSettings(scales=[1.0], ranges=[(0, None)]))
    [found] = search([np.zeros((60, 320, 3), np.uint8)], detector, options)
    assert sorted(found.labels.tolist()) == labels


def test_search__an_image_that_pillow_has_opened_and_not_read_yet_is_read_once(tmp_path: Path) -> None:
    """Its views are made by several threads, and Pillow reads the file when pixels are first asked for."""
    pixels, boxes, _ = scene(3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for _ in range(4):
        with Image.open(tmp_path / "a.png") as opened:
            options = Settings(detect=DetectSettings(threads=4, focus="off", max_side=256))
            [found] = search([opened], seeing, options)
        assert len(found.boxes) >= len(boxes)


def test_search__an_image_of_pillow_with_deep_or_damaged_pixels_is_refused(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((20, 20), 40_000, np.uint16))
    with pytest.raises(DataError, match="more than 8 bits"):
        list(search([deep], seeing))
    broken = encoded(Image.fromarray(scene(1)[0]))
    (tmp_path / "broken.jpg").write_bytes(broken[: len(broken) // 2])
    with Image.open(tmp_path / "broken.jpg") as opened, pytest.raises(DataError, match="undecodable"):
        list(search([opened], seeing))


@pytest.mark.parametrize("length", [400, 500, 600, 900])
def test_search__what_is_longer_than_tiles_share_is_found(length: int) -> None:
    """At a scale without an upper end tiles share half a side. Of what is longer, and cut by all, parts are kept."""
    options = Settings(
        chips=ChipSettings(scales=[1.0], ranges=[(0, None)]), detect=DetectSettings(max_side=1024, merge="hard")
    )
    for x in range(0, 2000 - length, 150):
        pixels = np.zeros((200, 2000, 3), np.uint8)
        pixels[20:180, x : x + length, 1] = 255
        [found] = search([pixels], seeing, options)
        assert len(found.boxes)


@pytest.mark.parametrize(
    "one",
    [
        *("photo.jpg", Path("photo.jpg"), Image.new("RGB", (9, 9)), np.zeros((9, 9, 3), np.uint8)),
        *(b"\xff\xd8", None),
    ],
)
def test_search__one_image_in_place_of_a_list_is_refused(one: Any) -> None:
    with pytest.raises(UsageError, match="expected a list of images, found one"):
        list(search(one, lambda views: [([], [], [])] * len(views)))


def test_search__takes_images_from_an_iterator(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"nothing")
    refused: dict[int, str] = {}
    images = iter(sorted(tmp_path.iterdir()))
    assert len(list(search(images, lambda views: [([], [], [])] * len(views), refused=refused))) == 3
    assert [*refused] == [2]
    assert "c.png" in refused[2]


def test_search__says_what_is_wrong_with_an_image(tmp_path: Path) -> None:
    def blind(views: list[Pixels]) -> list[tuple[Any, Any, Any]]:
        return [([], [], []) for _ in views]

    assert [len(one.boxes) for one in search([np.zeros((9, 9, 3), np.uint8)], blind)] == [0]
    for wrong in (np.zeros((9, 9, 3)), np.zeros((9, 9), np.uint8), np.zeros((0, 9, 3), np.uint8)):
        with pytest.raises(UsageError, match="image 0: expected uint8"):
            list(search([wrong], blind))
    with pytest.raises(UsageError, match=r"image 0: expected an image, found bytes; .*exif_transpose\(Image.open\("):
        list(search([b"\xff\xd8"], blind))  # type: ignore[list-item]
    with pytest.raises(UsageError, match="image 0: expected an image, found bytes; "):
        list(search(io.BytesIO(b"\xff\xd8"), blind))  # type: ignore[arg-type]
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    broken = encoded(Image.fromarray(scene(1)[0]))
    (tmp_path / "broken.jpg").write_bytes(broken[: len(broken) // 2])
    for name, reason in (("bad.jpg", "not_an_image"), ("none.jpg", "missing_file"), ("broken.jpg", "undecodable")):
        with pytest.raises(DataError, match=reason):
            list(search([tmp_path / name], blind))


def test_search__an_image_that_cannot_be_read_loses_nothing_else(tmp_path: Path) -> None:
    """The first and the last images are bad ones, too, and there are more of them than share a batch."""
    pixels, boxes, _ = scene(1)
    broken = encoded(Image.fromarray(pixels))
    (tmp_path / "broken.jpg").write_bytes(broken[: len(broken) // 2])
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    deep = Image.fromarray(np.full((20, 20), 40_000, np.uint16))
    bad = [tmp_path / "bad.jpg", tmp_path / "broken.jpg", tmp_path / "none.jpg", deep]
    images = [bad[0], bad[2], pixels, *bad, *[pixels] * 9, *bad]
    refused: dict[int, str] = {}
    counts = []
    for position, found in enumerate(search(images, seeing, refused=refused)):
        counts.append(len(found.boxes))
        assert (position in refused) == (images[position] is not pixels)
    [whole] = search([pixels], seeing)
    assert len(whole.boxes) >= len(boxes)
    assert counts == [len(whole.boxes) * (image is pixels) for image in images]
    assert [refused[position].split(": ")[:2] for position in range(3, 7)] == [
        [str(bad[0]), "not_an_image"],
        [str(bad[1]), "undecodable"],
        [str(bad[2]), "missing_file"],
        ["image 6", "unsupported_depth"],
    ]
