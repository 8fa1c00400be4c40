"""`sniper check`: everything that is wrong with the data, listed at once, before any work. Changes nothing."""

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.coco import Reject, Source, SourceImage
from pipeline.coco.read import read_coco
from pipeline.engines.progress import Progress
from pipeline.engines.run import run
from pipeline.engines.tasks import Engine, Task
from pipeline.images.sources import Findings, frame_notes, image_folder, open_sources
from pipeline.storage import Location

BATCH = 64  # images per work item


class CheckReport(NamedTuple):
    source: Source
    rejects: list[Reject]
    num_read: int  # image files decoded, in full
    notes: list[str]  # what is worth saying about the images that were read


class _Job(NamedTuple):
    image_root: Location
    images: list[SourceImage]
    max_pixels: int


def check(annotations: Location, images: Location | None, *, max_pixels: int, workers: int = 1) -> CheckReport:
    """Check an annotation file and, where `images` is given, decode every image it names as a build would.

    Raises:
        DataError: the annotation file as a whole cannot be trusted.
        UsageError: there is no such image folder.
    """
    if images is not None:
        image_folder(images)
    source = read_coco(annotations, max_pixels)
    if images is None:
        return CheckReport(source, source.rejects, 0, [])
    jobs = _jobs(source, images, max_pixels)
    with Progress("check", source.num_images, "images") as progress:
        found: dict[int, Findings] = {}
        for first_id, count, findings in run(_check_images, jobs, Engine(workers=workers)):
            found[first_id] = findings
            progress.add(count)
    in_order = [reject for first_id in sorted(found) for reject in found[first_id].rejects]  # one per image refused
    notes = frame_notes(sum(f.num_ambiguous for f in found.values()), sum(f.num_several for f in found.values()))
    return CheckReport(source, [*source.rejects, *in_order], source.num_images - len(in_order), notes)


def _jobs(source: Source, images: Location, max_pixels: int) -> Iterator[Task[_Job]]:
    for start in range(0, source.num_images, BATCH):
        batch = source.images(start, min(start + BATCH, source.num_images))
        yield Task(f"images from {batch[0].file_name}", _Job(images, batch, max_pixels))


def _check_images(job: _Job) -> tuple[int, int, Findings]:
    findings = Findings()
    for _ in open_sources(job.image_root, job.images, job.max_pixels, findings):
        pass
    return job.images[0].image_id, len(job.images), findings
