"""Source images of a data set: where they lie, and their pixels, one after the other."""

import posixpath
from collections.abc import Iterator
from pathlib import Path

import xxhash
from PIL import Image

from pipeline.coco import Reject, SourceImage
from pipeline.images.decode import ImageRefusedError, read_image
from pipeline.storage import Location, is_folder, read_each
from schemas.codes import Reason
from schemas.errors import AGAIN, DataError, UsageError


def image_folder(folder: Location | None) -> Location:
    """The folder, if it is one.

    Raises:
        UsageError: it is not, or none was given.
    """
    if folder is None:
        raise UsageError("--images is missing; give the folder that file_name is relative to")
    if not is_folder(folder):
        raise UsageError(f"{folder}: no such image folder; give the folder that file_name is relative to as --images")
    return folder


def image_place(folder: Location, file_name: str) -> Location:
    """Where an image lies that is named so; `./a.jpg` is `a.jpg` on a disk, but another key in a bucket."""
    return folder / (file_name if isinstance(folder, Path) else posixpath.normpath(file_name))


def open_sources(
    image_root: Location, sources: list[SourceImage], max_pixels: int, rejects: list[Reject]
) -> Iterator[tuple[SourceImage, str | None, Image.Image | None]]:
    """Of each image: the hash of its file's bytes (None when they cannot be read) and the decoded image.

    An image that cannot be used is None, and a row is added to `rejects`.

    Raises:
        DataError: a store does not answer; that is no fault of the image.
    """
    contents = read_each([image_place(image_root, source.file_name) for source in sources])
    for source, content in zip(sources, contents, strict=True):
        image_hash, image = None, None
        try:
            data = _checked(content, image_root)
            image_hash = xxhash.xxh3_128_hexdigest(data)
            image = read_image(data, source.width, source.height, max_pixels)
        except ImageRefusedError as refused:
            message = f"{source.file_name}: {refused.message}"
            rejects.append(Reject("image", source.image_id, source.file_name, refused.reason, message))
        yield source, image_hash, image


def _checked(content: bytes | OSError, image_root: Location) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, FileNotFoundError):
        raise ImageRefusedError(Reason.MISSING_FILE, "no such file in the image folder") from content
    if not isinstance(image_root, Path):
        raise DataError(f"{content}; {AGAIN}") from content
    raise ImageRefusedError(Reason.UNREADABLE_FILE, content.strerror or str(content)) from content
