"""Hashes of image files, by which equal images are known whatever they are called."""

from collections.abc import Sequence

from pipeline.engines.progress import Progress
from pipeline.images.sources import hash_content, image_place
from pipeline.storage import Location, ahead, open_binary


def hash_images(folder: Location, file_names: Sequence[str]) -> list[str | None]:
    """Return the XXH3-128 of each image file in hex; None for one that cannot be read.

    Args:
        folder: the image folder.
        file_names: of the images, relative to it.
    """
    places = [image_place(folder, name) for name in file_names]
    found = []
    with Progress("hash", len(places), "images") as progress:
        for digest in ahead(_hash_of, places):
            found.append(digest)
            progress.add(1)
    return found


def _hash_of(place: Location) -> str | None:
    try:
        with open_binary(place) as file:
            return hash_content(file)
    except OSError:
        return None
