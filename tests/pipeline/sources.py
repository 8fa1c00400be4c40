"""Sources made in memory for planning tests."""

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.coco.read import read_coco
from pipeline.coco.source import Source
from schemas.arrays import FloatArray


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


def sized_source(sizes: FloatArray, width: int, height: int, per_image: int = 20, seed: int = 0) -> Source:
    """Images of one size, with boxes of the given sizes anywhere in them; sides differ by up to 1:2.

    Args:
        sizes: float64 [N], source pixels.
        per_image: boxes of each image.
    """
    rng = np.random.default_rng(seed)
    stretch = np.exp(rng.uniform(-0.35, 0.35, len(sizes)))
    sides = np.minimum(np.stack([sizes * stretch, sizes / stretch], axis=1), [width, height])
    low = rng.uniform(0, 1, sides.shape) * ([width, height] - sides)
    n = -(-len(sizes) // per_image)
    count = len(sizes)
    return Source(
        image_id=np.arange(n),
        file_name=pa.array([f"{i}.jpg" for i in range(n)], pa.large_string()),
        width=np.full(n, width),
        height=np.full(n, height),
        offsets=np.minimum(np.arange(n + 1) * per_image, count),
        row=np.arange(count),
        annotation_id=np.arange(count),
        label=np.ones(count, np.int32),
        box=np.concatenate([low, low + sides], axis=1),
        crowd=np.zeros(count, bool),
        categories=[(1, "thing")],
    )


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
