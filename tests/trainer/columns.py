"""Records of COCO files as the columns that scoring takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.evaluation.ground_truth import Objects
from trainer.evaluation.results import CocoResults


def objects_of(annotations: Sequence[dict[str, Any]]) -> Objects:
    """The ground truth that the records of an annotation file are."""
    columns = ([record.get(name, 0) for record in annotations] for name in ("image_id", "category_id"))
    boxes = np.array([record["bbox"] for record in annotations], np.float64).reshape(-1, 4)
    area = np.array([record["area"] for record in annotations], np.float64)
    crowd = np.array([record.get("iscrowd", 0) for record in annotations], np.bool_)
    return Objects(*(np.array(column, np.int64) for column in columns), boxes, area, crowd)


def results_of(records: Sequence[dict[str, Any]]) -> CocoResults:
    """The results that the records of a file of COCO results are."""
    columns = ([record.get(name, 0) for record in records] for name in ("image_id", "category_id"))
    xywh = np.array([record["bbox"] for record in records], np.float32).reshape(-1, 4)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    scores = np.array([record["score"] for record in records], np.float32)
    return CocoResults(*(np.array(column, np.int64) for column in columns), boxes, scores)
