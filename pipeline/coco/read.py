"""Reads a COCO annotation file of any size: a run of records at a time, into columns, each list checked to its end."""

from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.coco.source import Source
from pipeline.storage import Location, local_copy
from schemas.errors import DataError

if TYPE_CHECKING:
    from pipeline.coco.file import CocoFile


def read_coco(place: Location, max_pixels: int | None = None) -> Source:
    """Read and check a COCO annotation file, a run of records at a time.

    Single records that are wrong are refused with a reason and lose nothing else.

    Memory: 53 bytes per box and some 60 per image with its name, for the columns alone; several hundred for every
    refused record; and several times the file's size where it is no plain JSON in UTF-8, which is parsed whole.

    Args:
        max_pixels: refuse images annotated with more; their files would be refused, and planning them costs memory.

    Raises:
        DataError: when the file as a whole cannot be trusted: unreadable, not JSON, a list missing, no images,
            boxes but no categories, string ids, or an image or category id that occurs twice; all that is wrong
            in the lists is named at once.
    """
    # Imported here: workers that cut chips use this module's types alone, and start faster without numba.
    from pipeline.coco.file import NotPlainError, parse_whole, streamed

    try:
        with local_copy(place) as path:
            with suppress(NotPlainError), streamed(path) as file:
                return _check(file, place, max_pixels)
            return _check(parse_whole(path, place), place, max_pixels)
    except FileNotFoundError as error:
        raise DataError(f"{place}: no such annotation file") from error
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error.strerror or error}") from error


def _check(file: "CocoFile", place: Location, max_pixels: int | None) -> Source:
    """Check all lists, each to its end: whether the file is JSON at all is known only then."""
    from pipeline.coco.checks.boxes import check_boxes
    from pipeline.coco.checks.categories import check_categories
    from pipeline.coco.checks.images import check_images

    categories = check_categories(file.runs("categories"))
    images = check_images(file.runs("images"), max_pixels)
    faults = [*images.repeated_ids, *categories.repeated_ids, *categories.bad_records]
    strings = [*images.string_ids.lines(), *categories.string_ids]
    usable = not faults and not strings and images.num_records > 0 and categories.num_records > 0
    boxes = check_boxes(file.runs("annotations"), file.num_annotations, images, categories, usable)
    strings += boxes.string_ids
    missing = [f"`{name}`" for name in ("images", "annotations", "categories") if name not in file.present]
    if missing:
        raise DataError(
            f"{place}: has no {' and no '.join(missing)}; a COCO file needs images, annotations and categories"
        )
    if not images.num_records:
        raise DataError(f"{place}: `images` is empty; expected one record per image file")
    if boxes.num_records and not categories.num_records:
        raise DataError(f"{place}: `categories` is empty but there are annotations; expected their categories")
    if faults or strings:
        # to drop single records would pair boxes with wrong images or classes
        raise DataError(
            f"{place}: cannot be used as a whole:\n" + "\n".join(f"  {fault}" for fault in [*strings, *faults])
        )
    return Source(
        image_id=images.image_id,
        file_name=images.file_name,
        width=images.width,
        height=images.height,
        offsets=boxes.offsets,
        row=boxes.row,
        annotation_id=boxes.annotation_id,
        label=boxes.label,
        box=boxes.box,
        crowd=boxes.crowd,
        categories=categories.known,
        rejects=[*images.rejects, *boxes.rejects],
        refused_images=images.refused,
        refused_boxes=boxes.refused,
        num_clipped=boxes.num_clipped,
        notes=boxes.notes,
    )
