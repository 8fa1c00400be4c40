"""Scores: what is put in through the pyramid or the chips comes out as 1, whatever the number of boxes."""

import dataclasses
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.coco import SourceImage
from pipeline.coco.source import Source
from pipeline.planning.plan import plan_span
from pipeline.planning.scales import box_sizes
from pipeline.pyramid.focus import Focus, FocusMap, focus_limits, painted_map
from pipeline.pyramid.merging import merge, tile_overlaps
from pipeline.pyramid.reading import ViewBatch
from pipeline.pyramid.search import SearchLog, search_images, split_spans
from pipeline.pyramid.views import Viewed, plan_views
from schemas.settings import ChipSettings, DetectSettings
from tests.pipeline.sources import make_source
from tests.trainer.columns import objects_of, results_of
from tests.trainer.evaluation.test_matching import CLASSES, scenes
from trainer.evaluation.coco_scores import COCO_AREAS, run_coco, score
from trainer.evaluation.ground_truth import Objects
from trainer.evaluation.results import CocoResults, join_results, of_image


def perfect(
    image: SourceImage, boxes: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], options: DetectSettings
) -> Any:
    """The boxes of an image as a perfect network would find them in every view, whole or cut by a tile."""
    settings = ChipSettings()
    views = plan_views([image], settings, options.max_side, tile_overlaps(settings.bounds()))
    seen = []
    for view in views:
        x1, y1, x2, y2 = view.window
        origin, limit = np.array([x1, y1, x1, y1]), np.array([x2, y2, x2, y2])
        clipped = np.clip(boxes, origin, limit)
        here = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
        in_view = ((clipped[here] - origin) * view.scale).astype(np.float32)
        seen.append((view, (in_view, np.full(len(in_view), 0.9, np.float32), labels[here])))
    return merge(Viewed(0, seen), image, settings.bounds(), options, settings.size)


@pytest.mark.parametrize(("max_side", "seed"), [(4096, 1), (700, 2), (1000, 3)])
def test_merge__truth_through_the_pyramid_scores_one(max_side: int, seed: int) -> None:
    """All sizes, crowds, tiles: what is put in comes out once, with the source ids."""
    source = make_source(seed, num_images=25)
    options = DetectSettings(max_side=max_side, merge="hard", max_detections=10_000, iou=0.999)
    images = source.images(0, source.num_images)
    results, annotations = [], []
    for m, image in enumerate(images):
        rows = slice(int(source.offsets[m]), int(source.offsets[m + 1]))
        boxes, crowd = source.box[rows], source.crowd[rows]
        # an object longer than what tiles share at its scale is cut by all of them; elongated ones stay out here
        sides = boxes[:, 2:] - boxes[:, :2]
        plain = sides.max(axis=1, initial=0) <= 1.5 * np.sqrt(sides.prod(axis=1))
        boxes, crowd = boxes[plain], crowd[plain]
        found = perfect(image, boxes[~crowd], np.ones(int((~crowd).sum()), np.int64), options)
        results.append(of_image(image.image_id, found, [7]))
        for (x1, y1, x2, y2), is_crowd in zip(boxes.tolist(), crowd.tolist(), strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(is_crowd)}
            annotations.append({"id": len(annotations) + 1, "image_id": image.image_id, "category_id": 7, **box})
    things = [(7, "thing")]
    summary = score(objects_of(annotations), things, join_results(results), ChipSettings().bounds(), 10_000)
    assert summary["AP"] == pytest.approx(1.0)
    assert summary["AR"] == pytest.approx(1.0)
    assert all(
        value is None or value == pytest.approx(1.0)
        for name, value in summary.items()
        if not name.startswith("score[")
    ), summary


def network_of(source: Source, chips: ChipSettings) -> Any:
    """A perfect network: it finds every box in every view, whole or cut, and its focus map is right."""
    limits = focus_limits(chips.bounds())

    def network(batch: ViewBatch) -> list[Any]:
        outputs = []
        for view in batch.views:
            rows = slice(int(source.offsets[view.image]), int(source.offsets[view.image + 1]))
            boxes = source.box[rows][~source.crowd[rows]]
            x1, y1, x2, y2 = view.window
            origin, limit = np.array([x1, y1, x1, y1]), np.array([x2, y2, x2, y2])
            clipped = np.clip(boxes, origin, limit)
            here = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
            found = ((clipped[here] - origin) * view.scale).astype(np.float32)
            small = box_sizes(boxes[here]) < limits[view.scale_index]
            scores = np.full(len(found), 0.9, np.float32)
            painted = painted_map(view, found[small], scores[small], np.inf, chips.size)
            outputs.append([found, scores, np.ones(len(found), np.int64), painted.values])
        return outputs

    return network


def test_search_images__from_coarse_to_fine_truth_scores_one_whatever_the_spans() -> None:
    """With perfect maps what is found is what the whole pyramid finds, for one image at a time and for many."""
    source, chips = make_source(4, num_images=14), ChipSettings(scales=[1.5, 0.8, {"long_side": 512}], size=512)
    options = DetectSettings(merge="hard", max_detections=10_000, iou=0.999)
    images = source.images(0, source.num_images)
    sides = source.box[:, 2:] - source.box[:, :2]
    plain = sides.max(axis=1, initial=0) <= 1.5 * np.sqrt(sides.prod(axis=1))  # others may be cut by all tiles
    source = dataclasses.replace(source, crowd=source.crowd | ~plain)
    network = network_of(source, chips)
    focus = Focus(0.5, lambda view, output: FocusMap(output[3], (16, 16)))

    def opened(position: int) -> Image.Image:
        return Image.new("RGB", (images[position].width, images[position].height))

    runs = []
    for length, used in ((1, focus), (3, focus), (64, focus), (64, None)):
        log = SearchLog()
        spans = split_spans(len(images), length)
        runs.append(dict(search_images(network, images, opened, spans, chips, options, log, focus=used)))
        assert (log.searched.pixels < log.searched.pyramid) == (used is not None)
    for found in runs[1:3]:
        for position, one in found.items():
            for column, other in zip(one, runs[0][position], strict=True):
                np.testing.assert_array_equal(column, other)
    annotations: list[dict[str, Any]] = []
    for m, image in enumerate(images):
        for row in range(int(source.offsets[m]), int(source.offsets[m + 1])):
            x1, y1, x2, y2 = source.box[row].tolist()
            box = {
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": int(source.crowd[row]),
            }
            annotations.append({"id": len(annotations) + 1, "image_id": image.image_id, "category_id": 7, **box})
    for found in (runs[0], runs[3]):
        results = join_results([of_image(images[m].image_id, one, [7]) for m, one in found.items()])
        summary = score(objects_of(annotations), [(7, "thing")], results, chips.bounds(), 10_000)
        assert summary["AP"] == pytest.approx(1.0)
        assert summary["AR"] == pytest.approx(1.0)


def test_truth_through_chips_and_back_scores_one() -> None:
    """What the chips say of the boxes they hold whole, put back into the image, is what was cut."""
    source = make_source(5, num_images=25)
    rows = plan_span(source, 0, source.num_images, ChipSettings()).chips.to_pylist()
    found = {}
    for row in rows:
        for box in row["boxes"]:
            if box["status"] in ("valid", "rescued"):
                corners = [box[name] / row["scale"] for name in ("x1", "y1", "x2", "y2")]
                x1, y1, x2, y2 = (c + row["xy"[i % 2] + "1"] for i, c in enumerate(corners))
                found[box["annotation_id"]] = (row["image_id"], box["category_id"], [x1, y1, x2 - x1, y2 - y1])
    results = [{"image_id": i, "category_id": c, "bbox": box, "score": 0.9} for i, c, box in found.values()]
    annotations = []
    for at in np.flatnonzero(source.crowd | np.isin(source.annotation_id, list(found))):
        x1, y1, x2, y2 = source.box[at].tolist()
        image = int(source.image_id[np.searchsorted(source.offsets, at, "right") - 1])
        box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(source.crowd[at])}
        annotations.append({"id": int(at) + 1, "image_id": image, "category_id": 7, **box})
    assert len(found) > 0.75 * (~source.crowd).sum()  # the others are thinner than 4 px in every chip
    things = [(7, "thing")]
    summary = score(objects_of(annotations), things, results_of(results), ChipSettings().bounds(), 10_000)
    assert all(
        value is None or value == pytest.approx(1.0)
        for name, value in summary.items()
        if not name.startswith("score[")
    ), summary


@pytest.mark.parametrize("merge", ["gaussian", "linear", "hard"])
def test_merge__thousands_of_boxes_of_one_image_come_through(merge: Literal["gaussian", "linear", "hard"]) -> None:
    """2,500 boxes side by side, which every scale sees; of what a scale finds again soft-NMS leaves low scores."""
    boxes = np.array([[20.0 * x, 20.0 * y, 20.0 * x + 17, 20.0 * y + 17] for x in range(50) for y in range(50)])
    image = SourceImage(1, "a", 1000, 1000)
    ids = list(range(1, 26))  # pycocotools compares each box with each of its class
    labels = 1 + np.arange(len(boxes)) % len(ids)
    found = perfect(image, boxes, labels, DetectSettings(merge=merge, max_detections=10_000))
    fields = [{"image_id": 1, "category_id": int(k), "iscrowd": 0, "area": 289.0} for k in labels]
    annotations = [
        {**f, "bbox": [x1, y1, x2 - x1, y2 - y1]} for f, (x1, y1, x2, y2) in zip(fields, boxes.tolist(), strict=True)
    ]
    results = of_image(1, found, ids)
    scores = run_coco(objects_of(annotations), ids, results, {"all": (0.0, 1e10)}, 10_000)
    assert scores.precision() == pytest.approx(1.0)
    assert (found.scores > 0.5).sum() == len(boxes)


def test_score__thousands_of_boxes_count_when_max_dets_is_above_them() -> None:
    """2,400 boxes of 20 classes in one image; pycocotools counts detections per image and class."""
    boxes = [[10.0 * (i % 50), 10.0 * (i // 50), 8, 8] for i in range(2400)]
    fields = [{"image_id": 1, "category_id": 1 + i % 20, "bbox": box} for i, box in enumerate(boxes)]
    objects = objects_of([{**f, "area": 64} for f in fields])
    categories = [(i, f"dot{i}") for i in range(1, 21)] + [(99, "none")]
    results = results_of([{**field, "score": 0.5} for field in fields])
    enough = score(objects, categories, results, [(0, 80)], 200)
    assert enough["AP"] == pytest.approx(1.0)
    assert enough["AP[none]"] is None
    few = score(objects, categories, results, [(0, 80)], 10)
    assert few["AP"] is not None
    assert few["AP"] < 0.15


def test_score__no_detections_and_no_truth() -> None:
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81}
    assert score(objects_of([]), [(1, "a")], results_of([]), [(0, 80)], 100)["AP"] is None
    assert score(objects_of([box]), [(1, "a")], results_of([]), [(0, 80)], 100)["AP"] == 0
    assert score(objects_of([box]), [(1, "a")], join_results([]), [(0, 80)], 100)["AP50[a]"] == 0


def reference(
    objects: Objects, ids: list[int], results: CocoResults, areas: dict[str, tuple[float, float]], max_dets: int
) -> tuple[Any, Any]:
    """Precision [T, R, K, A] and recall [T, K, A] by pycocotools, all classes at once."""
    images = [{"id": id_} for id_ in np.union1d(objects.image_id, results.image_id).tolist()]
    truths = [
        {"id": n, "image_id": image, "category_id": id_, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for n, (image, id_, box, area, crowd) in enumerate(zip(*(c.tolist() for c in objects), strict=True), 1)
    ]
    found = [
        {**record, "id": n, "area": record["bbox"][2] * record["bbox"][3], "iscrowd": 0}
        for n, record in enumerate(results.records(), 1)
    ]
    indices = []
    for annotations in (truths, found):
        coco = COCO()
        coco.dataset = {"images": images, "annotations": annotations, "categories": [{"id": id_} for id_ in ids]}
        coco.createIndex()
        indices.append(coco)
    evaluation = COCOeval(*indices, "bbox")
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [list(b) for b in areas.values()], list(areas)
    evaluation.params.maxDets, evaluation.params.catIds = [max_dets], ids
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., 0], evaluation.eval["recall"][..., 0]


@given(scenes, st.sampled_from((1, 3, 100)))
def test_run_coco__equals_pycocotools(scene: tuple[Objects, CocoResults], max_dets: int) -> None:
    truth, found = scene
    scores = run_coco(truth, list(CLASSES), found, COCO_AREAS, max_dets)
    if len(found.scores) and len(truth.crowd):
        precisions, recalls = reference(truth, list(CLASSES), found, COCO_AREAS, max_dets)
        np.testing.assert_allclose(scores.precisions, precisions, atol=1e-6)
        np.testing.assert_allclose(scores.recalls, recalls, atol=1e-6)


def test_run_coco__equals_pycocotools_on_many_boxes() -> None:
    """Objects of all of COCO's sizes, some of them crowds, and detections beside them, many with equal scores."""
    source = make_source(4, num_images=60)
    rng = np.random.default_rng(0)
    image_id = np.repeat(source.image_id, np.diff(source.offsets))
    xywh = np.concatenate([source.box[:, :2], source.box[:, 2:] - source.box[:, :2]], axis=1)
    objects = Objects(image_id, rng.choice([3, 8], len(image_id)), xywh, xywh[:, 2] * xywh[:, 3], source.crowd)
    rows = rng.integers(0, len(image_id), 6 * len(image_id))
    boxes = source.box[rows] + rng.normal(0, 0.15, (len(rows), 4)) * np.tile(xywh[rows, 2:], 2)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    scores = (rng.integers(1, 40, len(rows)) / 40).astype(np.float32)
    found = CocoResults(image_id[rows], rng.choice([3, 8], len(rows)), boxes.astype(np.float32), scores)
    found = found.take(np.argsort(found.image_id, kind="stable"))
    ours = run_coco(objects, [3, 8], found, COCO_AREAS, 100)
    precisions, recalls = reference(objects, [3, 8], found, COCO_AREAS, 100)
    assert precisions.max() > 0.3
    np.testing.assert_allclose(ours.precisions, precisions, atol=1e-6)
    np.testing.assert_allclose(ours.recalls, recalls, atol=1e-6)
