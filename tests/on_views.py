"""What a perfect detector finds on the views that `sniper views` wrote."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.exchange.views import INDEX


def perfect(pyramid: Path, annotations: Path) -> list[dict[str, Any]]:
    """What a perfect detector finds on the views, as COCO results with all that SAHI writes into them."""
    content = json.loads(annotations.read_bytes())
    found = []
    for view in pq.read_table(pyramid / INDEX).to_pylist():
        origin, limit = np.array([view["x1"], view["y1"]]), np.array([view["x2"], view["y2"]])
        for record in content["annotations"]:
            if record["image_id"] != view["image_id"] or record["iscrowd"]:
                continue
            low = np.array(record["bbox"][:2])
            low, high = np.clip((low, low + record["bbox"][2:]), origin, limit)
            if (high > low).all():
                bbox = [*((low - origin) * view["scale"]).tolist(), *((high - low) * view["scale"]).tolist()]
                more = {"category_name": "x", "segmentation": [], "iscrowd": 0, "area": bbox[2] * bbox[3]}
                where = {"image_id": view["view_id"], "category_id": record["category_id"]}
                found.append(where | {"bbox": bbox, "score": 0.9} | more)
    return found
