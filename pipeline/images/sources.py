"""Reads the source images of a data set, one after the other."""

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
    """Return the image folder after a check that it exists.

    Raises:
        UsageError: no folder was given, or there is no such folder.
    """
    if folder is None:
        raise UsageError("--images is missing; give the folder that file_name is relative to")
    if not is_folder(folder):
        raise UsageError(f"{folder}: no such image folder; give the folder that file_name is relative to as --images")
    return folder


def image_place(folder: Location, file_name: str) -> Location:
    """Return the place of an image file.

    Args:
        folder: the image folder.
        file_name: the name in the annotation file, relative to the folder. `./a.jpg` names `a.jpg`: on a disk the
            system sees to it, in a bucket it would be another key.
    """
    return folder / (file_name if isinstance(folder, Path) else posixpath.normpath(file_name))


def open_sources(
    image_root: Location, sources: list[SourceImage], max_pixels: int, rejects: list[Reject]
) -> Iterator[tuple[SourceImage, str | None, Image.Image | None]]:
    """Read and decode images, one after the other.

    Args:
        image_root: the image folder.
        sources: records of the images, with their annotated sizes.
        max_pixels: a file with more pixels is refused.
        rejects: takes a row for each image that cannot be used.

    Yields:
        For each record, in order: the record; the XXH3-128 of the file's bytes in hex, None where the file cannot be
        read; and the decoded image, None where it cannot be used.

    Raises:
        DataError: a store does not answer, which is no fault of the image.
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
    """Return the bytes of a file, or raise what reading it has met.

    Raises:
        ImageRefusedError: the file is missing, or this machine's disk does not give its bytes.
        DataError: an object store does not answer.
    """
    if isinstance(content, bytes):
        return content
    if isinstance(content, FileNotFoundError):
        raise ImageRefusedError(Reason.MISSING_FILE, "no such file in the image folder") from content
    if not isinstance(image_root, Path):
        raise DataError(f"{content}; {AGAIN}") from content
    raise ImageRefusedError(Reason.UNREADABLE_FILE, content.strerror or str(content)) from content
