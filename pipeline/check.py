"""`sniper check`: everything that is wrong with the data, listed at once, before any work. Changes nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.coco import Reject, Source, SourceImage, read_coco
from pipeline.cut import open_source
from pipeline.engines import run_local
from pipeline.progress import Progress
from pipeline.storage import image_folder

BATCH = 64  # images per work item


class CheckReport(NamedTuple):
    source: Source
    rejects: list[Reject]
    num_read: int  # image files decoded, in full


class _Job(NamedTuple):
    image_root: Path
    images: list[SourceImage]
    max_pixels: int


def check(annotations: Path, images: Path | None, *, max_pixels: int, workers: int = 1) -> CheckReport:
    """Check an annotation file and, where `images` is given, decode every image it names as a build would.

    Raises:
        DataError: the annotation file as a whole cannot be trusted.
        UsageError: there is no such image folder.
    """
    if images is not None:
        image_folder(images)
    source = read_coco(annotations, max_pixels)
    if images is None:
        return CheckReport(source, source.rejects, 0)
    with Progress("check", source.num_images, "images") as progress:
        found: dict[int, list[Reject]] = {}
        for first_id, count, rejects in run_local(_check_images, _jobs(source, images, max_pixels), workers):
            found[first_id] = rejects
            progress.add(count)
    in_order = [reject for first_id in sorted(found) for reject in found[first_id]]
    return CheckReport(source, [*source.rejects, *in_order], source.num_images)


def _jobs(source: Source, images: Path, max_pixels: int) -> Iterator[_Job]:
    for start in range(0, source.num_images, BATCH):
        yield _Job(images, source.images(start, min(start + BATCH, source.num_images)), max_pixels)


def _check_images(job: _Job) -> tuple[int, int, list[Reject]]:
    rejects: list[Reject] = []
    for image in job.images:
        open_source(job.image_root, image, job.max_pixels, rejects)
    return job.images[0].image_id, len(job.images), rejects
