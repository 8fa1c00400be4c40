"""Sources made in memory for planning tests."""

from typing import Any

import msgspec
import numpy as np

from pipeline.coco.read import read_coco
from pipeline.coco.source import Source


def make_source(
    seed: int, num_images: int, size: tuple[int, int] | None = None, boxes: list[list[float]] | None = None
) -> Source:
    """Random images of 60 to 2000 px with up to 25 boxes of all sizes and shapes, some crowds, some cut by the edge.

    Args:
        size: width and height, instead of random ones.
        boxes: x1 y1 x2 y2 of the first image, instead of random ones.
    """
    import tempfile
    from pathlib import Path

    rng = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for m in range(num_images):
        width, height = size or (int(v) for v in rng.integers(60, 2000, 2))
        images.append({"id": 10 * m + 3, "file_name": f"{m}.jpg", "width": width, "height": height})
        found = boxes or _random_boxes(rng, width, height)
        for x1, y1, x2, y2 in found:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 * m + 3,
                    "category_id": 7,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": int(boxes is None and rng.random() < 0.05),
                }
            )
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "thing"}]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "source.json"
        path.write_bytes(msgspec.json.encode(coco))
        return read_coco(path)


def _random_boxes(rng: np.random.Generator, width: int, height: int) -> list[list[float]]:
    found = []
    for _ in range(int(rng.integers(0, 25))):
        size = np.exp(rng.uniform(0, np.log(2000), 2))
        low = rng.uniform(-0.1, 1, 2) * [width, height]
        x1, y1 = np.maximum(low, 0)
        x2, y2 = np.minimum(low + size, [width, height])
        if x2 > x1 and y2 > y1:
            found.append([float(v) for v in (x1, y1, x2, y2)])
    return found
