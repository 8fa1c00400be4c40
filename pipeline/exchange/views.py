"""`sniper views`: the pyramid of whole images as files, for programs that read nothing else.

OUT/images/ holds the views, OUT/views.json lists them as a COCO file does, and OUT/views.parquet says which window of
which image each of them is. `sniper merge-views` turns what was found on them into detections on the images.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.coco import Reject, SourceImage
from pipeline.coco.read import read_coco
from pipeline.dataset.standing import find_stamps
from pipeline.engines.progress import Progress
from pipeline.engines.run import run_tasks
from pipeline.engines.tasks import Engine, Task
from pipeline.exchange.written import Written, refuse_chips, refuse_others, remove_written
from pipeline.images.chip import cut_chip, encode_jpeg
from pipeline.images.decode import ImageRefusedError
from pipeline.images.sources import SUFFIXES, find_images, image_folder, measure_image
from pipeline.pyramid.merging import tile_overlaps
from pipeline.pyramid.reading import open_files
from pipeline.pyramid.views import View, plan_views
from pipeline.storage import (
    Location,
    atomic_file,
    files_in,
    is_file,
    lies_in,
    location,
    locked,
    make_folder,
    read_bytes,
    write_atomic,
    write_together,
)
from pipeline.storage.parquet import parse_table
from schemas.errors import DataError, MissingError, UsageError
from schemas.settings import ChipSettings, Settings, settings_or_defaults
from schemas.tables import VIEWS

INDEX, LISTING, PLAN = "views.parquet", "views.json", ".plan"
ABOUT = b"sniper-views"
SPAN = 8  # images of a task


class ViewsReport(NamedTuple):
    """What `sniper views` has written.

    Attributes:
        num_views: views, those included that were there already.
        num_images: images that they are of.
        rejects: a row for each image that could not be used.
    """

    num_views: int
    num_images: int
    rejects: list[Reject]


class _Job(NamedTuple):
    """The views of some images that are to be written."""

    out: Location
    root: Location
    images: list[SourceImage]
    todo: list[tuple[str, View]]  # name of the file, and the view; its image is a position among `images`
    chips: ChipSettings


def views(
    images: Location | str,
    out: Location | str,
    settings: Settings | None = None,
    *,
    annotations: Location | str | None = None,
    workers: int | None = 1,
    overwrite: bool = False,
) -> ViewsReport:
    """Write the views of whole images at every scale, large ones in tiles, as JPEG files with an index.

    Called again after an interruption it goes on where it was. Image files are known again by their size and time.

    Args:
        images: folder of the images.
        out: folder for the views.
        settings: of the section `chips` the scales, ranges, max_pixels and the quality of the JPEGs; of the section
            `detect` max_side.
        annotations: COCO file that names the images, and whose image ids the index then has; None: all images of a
            folder of this machine, numbered from 1 in the order of their names.
        workers: number of processes; None: all cores.
        overwrite: replace the views of other images or settings in `out`.

    Raises:
        UsageError: there is no such image folder, or no image in it; `out` holds other views, or anything that no
            `sniper views` wrote; it is, holds or lies in the image folder.
        DataError: the annotation file cannot be read, or the store with the images gives no answer.
    """
    root, out = image_folder(location(images)), location(out)
    _refuse_others(out, root)
    settings = settings_or_defaults(settings)
    sources, categories, rejects = _sources(root, None if annotations is None else location(annotations), settings)
    chips, max_side = settings.chips, settings.detect.max_side
    planned = plan_views(sources, chips, max_side, tile_overlaps(chips.bounds()))
    planned.sort(key=lambda view: view.image)  # stable: in the order of images, scales and tiles
    names = _names(planned)
    about = {"size": chips.size, "ranges": chips.model_dump(mode="json")["ranges"], "categories": categories}
    with locked(out, "sniper views"):
        stamps = [stamp and stamp[:2] for stamp in find_stamps(root, [source.file_name for source in sources])]
        made_with = json.dumps([about, chips.quality, chips.subsampling, planned, sources, stamps]).encode()
        _claim(out, hashlib.sha256(made_with).hexdigest().encode(), overwrite)
        make_folder(out / "images")
        there = {path.name for path in files_in(out / "images", "*.jpg")}
        tasks = _tasks(out, root, sources, planned, names, there, chips)
        with Progress("views", len(sources), "images") as progress:
            for refused in run_tasks(_write, tasks, Engine(workers=workers), progress):
                rejects += refused
        lost = {reject.id for reject in rejects}
        rows = [
            _row(number, name, view, sources[view.image])
            for number, (name, view) in enumerate(zip(names, planned, strict=True), 1)
            if sources[view.image].image_id not in lost
        ]
        _write_listing(out / LISTING, rows, categories)
        table = pa.Table.from_pylist(rows, VIEWS.with_metadata({ABOUT: json.dumps(about).encode()}))
        with atomic_file(out / INDEX) as file:
            pq.write_table(table, file, compression="zstd")
    return ViewsReport(len(rows), len({row["image_id"] for row in rows}), rejects)


def _refuse_others(out: Location, root: Location) -> None:
    """Refuse to write among the images, into a chip data set, or where anything lies that is not ours."""
    if lies_in(out, root) or lies_in(root, out):
        raise UsageError(f"{out}: is, holds or lies in the image folder {root}; choose another --out")
    refuse_chips(out)
    refuse_others(_written(out), "sniper views", recorded=is_file(out / PLAN))


def _written(out: Location) -> list[Written]:
    """Return what is written, the index first."""
    return [
        Written(out, rf"{re.escape(INDEX)}|{re.escape(LISTING)}|images"),
        Written(out / "images", r"\d{8,}-\d+-\d{4,}\.jpg"),
    ]


def _sources(
    root: Location, annotations: Location | None, settings: Settings
) -> tuple[list[SourceImage], list[tuple[int, str]], list[Reject]]:
    """Return the images, the categories of the annotation file, and the images that cannot be used."""
    if annotations is not None:
        source = read_coco(annotations, settings.chips.max_pixels)
        return source.images(0, source.num_images), source.categories, [r for r in source.rejects if r.kind == "image"]
    if not isinstance(root, Path):
        raise UsageError(f"{root}: give the annotation file that names its images as --annotations")
    files = find_images(root).images
    if not files:
        raise UsageError(f"{root}: holds no image; expected names that end in {', '.join(sorted(SUFFIXES))}")
    sources, rejects = [], []
    for image_id, file in enumerate(files, 1):
        name = str(file.relative_to(root))
        try:
            sources.append(SourceImage(image_id, name, *measure_image(file)[0]))
        except ImageRefusedError as refused:
            rejects.append(refused.as_reject(image_id, name))
    return sources, [], rejects


def _names(planned: Sequence[View]) -> list[str]:
    """Name the file of each view by its image's position, its scale and its tile."""
    names: list[str] = []
    tile, last = 0, (-1, -1)
    for view in planned:
        here = view.image, view.scale_index
        tile, last = (tile + 1 if here == last else 0), here
        names.append(f"{view.image:08d}-{view.scale_index}-{tile:04d}.jpg")
    return names


def _claim(out: Location, plan: bytes, overwrite: bool) -> None:
    """Note what is planned, and refuse or remove what another plan has left."""
    path = out / PLAN
    if is_file(path) and (overwrite or read_bytes(path) != plan):
        if not overwrite:
            raise UsageError(
                f"{out}: holds views of other images or settings; choose another --out, or replace them by --overwrite"
            )
        remove_written(_written(out))
    write_atomic(path, plan)


def _tasks(
    out: Location,
    root: Location,
    sources: Sequence[SourceImage],
    planned: Sequence[View],
    names: Sequence[str],
    there: set[str],
    chips: ChipSettings,
) -> Iterator[Task[_Job]]:
    """Yield the views of a few images at a time, without those that are there already."""
    at = 0
    for start in range(0, len(sources), SPAN):
        todo = []
        while at < len(planned) and planned[at].image < start + SPAN:
            if names[at] not in there:
                todo.append((names[at], planned[at]._replace(image=planned[at].image - start)))
            at += 1
        images = list(sources[start : start + SPAN])
        yield Task(f"images {start} and on", _Job(out, root, images, todo, chips), units=len(images))


def _write(job: _Job) -> list[Reject]:
    """Write views; return a row for each image that cannot be used."""
    rejects: dict[int, Reject] = {}  # by the position of the image
    write_together(_encoded(job, rejects))
    return list(rejects.values())


def _encoded(job: _Job, rejects: dict[int, Reject]) -> Iterator[tuple[Location, bytes]]:
    """Yield the place and the JPEG of each view, and put images that cannot be used among the rejects."""
    opener = lru_cache(maxsize=1)(open_files(job.images, job.root, job.chips.max_pixels))
    for name, view in job.todo:
        if view.image in rejects:
            continue
        picture = opener(view.image)
        if isinstance(picture, Reject):
            rejects[view.image] = picture
            continue
        try:
            pixels = cut_chip(picture, view.window, view.scale, view.width, view.height)
        except ImageRefusedError as error:  # a large image that is damaged here
            image = job.images[view.image]
            rejects[view.image] = error.as_reject(image.image_id, image.file_name)
            continue
        yield job.out / "images" / name, encode_jpeg(pixels, job.chips.quality, job.chips.subsampling)


def _row(number: int, name: str, view: View, image: SourceImage) -> dict[str, Any]:
    about = {"image_id": image.image_id, "image_file": image.file_name}
    sizes = {"image_width": image.width, "image_height": image.height}
    window = dict(zip(("x1", "y1", "x2", "y2"), view.window, strict=True))
    record = {"view_id": number, "file_name": name, "width": view.width, "height": view.height}
    return record | about | sizes | {"scale_index": view.scale_index, "scale": view.scale} | window


def _write_listing(path: Location, rows: Sequence[dict[str, Any]], categories: Sequence[tuple[int, str]]) -> None:
    """List the views as a COCO file lists images."""
    fields = ("file_name", "width", "height")
    listing = {
        "images": [{"id": row["view_id"], **{name: row[name] for name in fields}} for row in rows],
        "annotations": [],
        "categories": [{"id": id_, "name": name} for id_, name in categories],
    }
    write_atomic(path, json.dumps(listing).encode())


class ViewIndex(NamedTuple):
    """What `sniper views` wrote.

    Attributes:
        table: schema VIEWS.
        bounds: the ranges of sizes, per scale [lo, hi) of sqrt(width * height), source pixels.
        size: of a chip, chip pixels.
        categories: (id, name) of the annotation file; none where there was no such file.
    """

    table: pa.Table
    bounds: list[tuple[float, float]]
    size: int
    categories: list[tuple[int, str]]


def read_index(folder: Location) -> ViewIndex:
    """Read the index of a folder of views.

    Raises:
        MissingError: it is not there.
        DataError: it is damaged.
    """
    path = folder / INDEX
    try:
        table = parse_table(read_bytes(path))
        about = json.loads(table.schema.metadata[ABOUT])
        table = table.cast(VIEWS)
    except FileNotFoundError as error:
        raise MissingError(f"{path}: is missing: no finished views here; run `sniper views`") from error
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{path}: is no index of views: {error}; run `sniper views --overwrite`") from error
    bounds = [(lo, float("inf") if hi is None else hi) for lo, hi in about["ranges"]]
    return ViewIndex(table, bounds, about["size"], [(id_, name) for id_, name in about["categories"]])
