"""What is scored against: the boxes of an annotation file, and which of the network's classes each of them is."""

from typing import NamedTuple

import numpy as np

from pipeline.coco.read import read_coco
from pipeline.coco.source import AsWritten, Source
from pipeline.images.sources import image_folder, image_place
from pipeline.pyramid.merging import most_detections
from pipeline.storage import Location, ahead, is_file
from schemas.arrays import BoolArray, FloatArray, IntArray
from schemas.errors import DataError
from schemas.settings import ChipSettings, DetectSettings
from trainer.inference.categories import Categories, match_categories

MAX_BAD = 0.001  # share of missing images that a validation set may have, as in `sniper chips`
LEAST_SHARE, MOST_SHARE = 0.001, 1.01  # of a box that an object's area can be


class Objects(NamedTuple):
    """The annotated boxes that count, as columns.

    Attributes:
        image_id: int64 [N].
        category_id: int64 [N].
        boxes: float64 [N, 4], x y width height as annotated, source pixels.
        area: float64 [N], source pixels squared; of the object's outline where the file gives it.
        crowd: bool [N].
    """

    image_id: IntArray
    category_id: IntArray
    boxes: FloatArray
    area: FloatArray
    crowd: BoolArray

    def take(self, rows: BoolArray | IntArray) -> "Objects":
        """Return some of the boxes."""
        return Objects._make(column[rows] for column in self)

    def as_large_as_boxes(self) -> "Objects":
        """Return the same with width * height of the box as the area of each object."""
        return self._replace(area=self.boxes[:, 2] * self.boxes[:, 3])


class GroundTruth(NamedTuple):
    """What is scored against.

    Attributes:
        images: folder that the file names are relative to.
        source: the annotation file as it was read.
        objects: its boxes that are in order.
        ids: category id in this file by label of the network, from 1; None for a class that the file cannot have.
        notes: what a reader of the scores should know.
    """

    images: Location
    source: Source
    objects: Objects
    ids: list[int | None]
    notes: list[str]


def open_ground_truth(
    annotations: Location,
    images: Location,
    chips: ChipSettings,
    categories: Categories | None,
    max_dets: int,
    options: DetectSettings | None = None,
) -> GroundTruth:
    """Read what is to be scored against.

    Args:
        annotations: COCO JSON file.
        images: folder that its file names are relative to.
        chips: an image with more than `max_pixels` is refused, and boxes of `ignore_categories` count as crowd.
        categories: (source id, name) of what the network knows, by label from 1; None where classes do not matter.
        max_dets: results that count, of each image and class; of each image where classes do not matter. A note says
            how many images have more boxes.
        options: how detections are merged; a note says how many images have more boxes than they keep of them.

    Raises:
        DataError: the file cannot be trusted, or has no category that the network knows.
        UsageError: there is no such image folder.
    """
    image_folder(images)
    source = read_coco(annotations, chips.max_pixels, chips.ignore_categories, as_written=True, of_training=True)
    objects, remarks = read_objects(source)
    notes = [*source.warnings, *source.notes, *remarks]
    ids: list[int | None] = []
    if categories is not None:
        ids, remarks = match_categories(categories, source.categories, annotations)
        notes += remarks
    notes += crowded_notes(source, max_dets, by_class=categories is not None)
    if categories is not None and options is not None:
        notes += _kept_notes(source, chips, options)
    return GroundTruth(images, source, objects, ids, notes)


def crowded_notes(source: Source, max_dets: int, *, by_class: bool) -> list[str]:
    """Say how many images have more boxes than results count, of each class where they count by class."""
    counts = np.diff(source.offsets)
    if not by_class:
        crowded = int((counts > max_dets).sum())
        text = f"{crowded:,} images hold more boxes than the {max_dets} results that count; see --max-dets"
        return [text] if crowded else []
    image = np.repeat(np.arange(source.num_images), counts)
    (of_image, _), of_class = np.unique(np.stack([image, source.label]), axis=1, return_counts=True)
    crowded = len(np.unique(of_image[of_class > max_dets]))
    text = (
        f"{crowded:,} images hold more boxes of one class than the {max_dets} detections of it that count; see "
        "--max-dets"
    )
    return [text] if crowded else []


def _kept_notes(source: Source, chips: ChipSettings, options: DetectSettings) -> list[str]:
    """Say how many images have more boxes than detections are kept of them."""
    sizes = zip(source.width.tolist(), source.height.tolist(), strict=True)
    kept = [most_detections(width, height, options, chips.size) for width, height in sizes]
    crowded = int((np.diff(source.offsets) > np.array(kept, np.int64)).sum())
    text = f"{crowded:,} images hold more boxes than the detections that are kept of them; see detect.max_detections"
    return [text] if crowded else []


def read_objects(source: Source) -> tuple[Objects, list[str]]:
    """Return the boxes of an annotation file that are in order, as they were written.

    Scores go class by class. So a box of an ignored category, in which no detection of any class counts, stands there
    once for each of the other categories, too, behind all other boxes.

    Args:
        source: read with `as_written`.

    Returns:
        The boxes; and a note for the user where the field `area` of some is not believed.
    """
    assert source.as_written is not None
    areas, num_wrong = trusted_areas(source.as_written)
    note = (
        f"the field area of {num_wrong:,} of {len(source.row):,} boxes cannot be true (not positive and finite, "
        "or not between 0.001 and 1.01 of width * height); width * height stands in for it"
    )
    image_id = np.repeat(source.image_id, np.diff(source.offsets))
    boxes = np.ascontiguousarray(source.as_written.xywh)
    objects = Objects(image_id, source.category_of_label[source.label], boxes, areas, source.crowd)
    regions = objects.take(np.isin(objects.category_id, source.ignored))
    others = [id_ for id_, _ in source.categories if id_ not in source.ignored] if len(regions.crowd) else []
    parts = [objects, *(regions._replace(category_id=np.full_like(regions.category_id, id_)) for id_ in others)]
    every = Objects(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    return every, [note] if num_wrong else []


def trusted_areas(written: AsWritten) -> tuple[FloatArray, int]:
    """Return the area of each object, float64 [N], and how many of the file's are not believed.

    COCO's small, medium and large go by the field `area`, the area of the object's outline. Where there is none,
    width times height of the box stands in; also where the field cannot be true: it is not positive and finite, or
    not between 0.001 and 1.01 of width times height.
    """
    box_area = written.xywh[:, 2] * written.xywh[:, 3]
    share = written.area / box_area
    believed = np.isfinite(written.area) & (share >= LEAST_SHARE) & (share <= MOST_SHARE)
    wrong = ~(believed | np.isnan(written.area))
    return np.where(believed, written.area, box_area), int(np.count_nonzero(wrong))


def check_images(truth: GroundTruth) -> None:
    """Look whether the images are there, before hours of work go by without them.

    Raises:
        DataError: more than one in a thousand is missing.
    """
    names = truth.source.file_name.to_pylist()
    places = [image_place(truth.images, name) for name in names]
    missing = [name for name, found in zip(names, ahead(is_file, places), strict=True) if not found]
    if len(missing) > MAX_BAD * len(names):
        raise DataError(
            f"{truth.images}: {len(missing):,} of {len(names):,} images are missing, such as {missing[0]}; give the "
            "folder that file_name is relative to"
        )
