"""What a command is given to read: annotation files and image folders, several of which become one data set."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.coco import Reject
from pipeline.coco.read import read_coco
from pipeline.coco.source import Source
from pipeline.engines.progress import showing
from pipeline.images.names import near_misses, resolve_names
from pipeline.images.sources import image_folder
from pipeline.storage import Location, location
from schemas.codes import Reason
from schemas.errors import UsageError

Places = str | Location | list[Location] | tuple[Location, ...]


def read_inputs(
    annotations: Places, images: Places | None, max_pixels: int, ignore_categories: Collection[str]
) -> tuple[Source, Location | None]:
    """Read annotation files as one data set, whose file names are relative to one image folder.

    Args:
        annotations: COCO JSON files.
        images: a folder for all of them, or one for each in the same order; None: no image will be read.
        max_pixels: an image with more pixels is refused.
        ignore_categories: names of categories whose boxes count as crowd.

    Returns:
        The data set; and the image folder, or the nearest one above all of them, from which the file names then go.

    Raises:
        DataError: an annotation file cannot be trusted, or two of them name the same image.
        UsageError: a folder is missing, there are neither one nor as many folders as annotation files, two folders
            lie in different stores, or no category has one of the names in ignore_categories.
    """
    files = _several(annotations)
    folders = [image_folder(folder) for folder in _several(images)] if images else []
    if images is not None and len(folders) not in (1, len(files)):
        raise UsageError(
            f"{len(folders)} image folders for {len(files)} annotation files; give --images once, or once for each "
            "--annotations in the same order"
        )
    root, below = _common_folder(folders) if folders else (None, [""])
    with showing(f"reading {', '.join(map(str, files))}"):
        source = read_coco(files, max_pixels, ignore_categories, folders=below if len(below) == len(files) else ())
    if isinstance(root, Path):
        file_name, count = resolve_names(root, source.file_name)
        note = f"{count:,} file names have backslashes or another Unicode form than their files, which were found"
        if count:
            source = replace(source, file_name=file_name, notes=[*source.notes, note])
    return source, root


def hints_on_missing(root: Location, rejects: Iterable[Reject]) -> list[str]:
    """Say of image files that are missing under which other names they lie there, on a disk of this machine."""
    missing = (reject.file for reject in rejects if reject.reason == Reason.MISSING_FILE and reject.file is not None)
    return near_misses(root, missing) if isinstance(root, Path) else []


def _several(places: Places) -> list[Location]:
    return [location(place) for place in (places if isinstance(places, list | tuple) else [places])]


def _common_folder(folders: Sequence[Location]) -> tuple[Location, list[str]]:
    """Return the nearest folder that holds all, and where each lies below it; "" for that folder itself.

    Raises:
        UsageError: there is none, since they lie in different stores.
    """
    first = folders[0]
    for root in [first, *first.parents]:
        start = str(root).rstrip("/")
        if all(type(folder) is type(root) and f"{folder}/".startswith(f"{start}/") for folder in folders):
            return root, [str(folder)[len(start) :].strip("/") for folder in folders]
    raise UsageError(f"{first} and {folders[-1]} are in different stores; copy the images into one")
