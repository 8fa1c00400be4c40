"""Compare a new annotation file, and the image folder of now, with the ledger of a finished build."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.coco.source import Source, find_ids
from pipeline.dataset.standing import find_stamps
from pipeline.storage import Location
from pipeline.storage.parquet import read_table

LOOKED_AT = 2000
"""Image files of a build that are looked for; more would cost a large data set in a bucket minutes."""


class Vanished(NamedTuple):
    """What a finished build kept and a new annotation file does not have.

    Attributes:
        images: number of images that are gone.
        total_images: number of images that the build kept.
        boxes: number of boxes that are gone.
        total_boxes: number of boxes of the images that the build kept.
    """

    images: int
    total_images: int
    boxes: int
    total_boxes: int

    @property
    def share(self) -> float:
        """The larger of both shares, 0 to 1."""
        return max(self.images / max(self.total_images, 1), self.boxes / max(self.total_boxes, 1))


def find_vanished(data: Location, source: Source) -> Vanished:
    """Count the images and boxes that are in the ledger of a finished build and not in a source.

    An image is the same where id and file name are; of the boxes of an image only the number is compared.

    Args:
        data: the data set of the finished build.
        source: what is to be built now.

    Raises:
        DataError: images.parquet is missing or damaged. OSError: it cannot be read.
    """
    there = read_table(data / "images.parquet", ["image_id", "file_name", "state", "num_boxes"])
    there = there.filter(pc.equal(there["state"], "kept"))
    num_boxes = there["num_boxes"].to_numpy().astype(np.int64)
    position, is_known = find_ids(source.image_id, there["image_id"].to_numpy())
    left = np.zeros(len(there), np.int64)
    if source.num_images:
        names = source.file_name.take(pa.array(position))
        is_known &= pc.equal(names, there["file_name"].combine_chunks().cast(names.type)).to_numpy(
            zero_copy_only=False
        )
        left[is_known] = np.diff(source.offsets)[position[is_known]]
    lost = np.maximum(num_boxes - left, 0)
    return Vanished(int((~is_known).sum()), len(there), int(lost.sum()), int(num_boxes.sum()))


def find_missing(data: Location, image_root: Location) -> tuple[int, int]:
    """Count the images that a finished build kept and whose files are not in an image folder.

    Args:
        data: the data set of the finished build.
        image_root: the image folder of now.

    Returns:
        The number of files that are missing, and how many were looked for: all, or LOOKED_AT of them in even steps.

    Raises:
        DataError: images.parquet is missing or damaged, or the store with the images gives no answer.
        OSError: images.parquet cannot be read.
    """
    there = read_table(data / "images.parquet", ["file_name", "state"])
    names = there.filter(pc.equal(there["state"], "kept"))["file_name"]
    places = np.unique(np.linspace(0, len(names) - 1, min(len(names), LOOKED_AT)).astype(np.int64))
    stamps = find_stamps(image_root, names.take(pa.array(places)).to_pylist())
    return sum(stamp is None for stamp in stamps), len(stamps)
