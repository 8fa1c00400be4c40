"""Reads the source images of a data set, one after the other."""

import io
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash
from PIL import Image

from pipeline.coco import Reject, SourceImage
from pipeline.images.decode import ImageRefusedError, decode_image, decoders, format_of, open_image
from pipeline.storage import Location, is_folder, read_each
from schemas.codes import Reason
from schemas.errors import AGAIN, DataError, UsageError

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".webp",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    ]
)
"""Lower-case suffixes of the files in a folder that are taken for images."""
LITTER = frozenset(("@eadir", "__macosx", "$recycle.bin", "#recycle", "lost+found"))
"""Lower-case names of folders that systems leave beside images, with thumbnails and deleted files in them. So are all
names that begin with a dot."""


def find_images(folder: Path, *, without: Path | None = None) -> tuple[list[Path], int]:
    """Find the images in a folder of this machine and the folders below it, linked ones included.

    Args:
        folder: the folder to search.
        without: a folder whose own files are left out, such as one that pictures are written to.

    Returns:
        The image files, sorted by path, and the number of files with an image's suffix that were skipped as litter.
    """
    found: list[Path] = []
    num_litter = 0
    seen: set[str] = set()  # real paths, since links may lead in a circle
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        here = Path(place)
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        is_litter = any(_is_litter(part) for part in here.relative_to(folder).parts)
        images = [here / name for name in files if Path(name).suffix.lower() in SUFFIXES]
        kept = [] if is_litter else [file for file in images if not _is_litter(file.name)]
        num_litter += len(images) - len(kept)
        found += kept if here != without else []
    return sorted(found), num_litter


def _is_litter(name: str) -> bool:
    """Tell whether a file or folder of this name is none of the user's."""
    return name.startswith(".") or name.lower() in LITTER


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


@dataclass
class Findings:
    """What reading images has shown beside their pixels.

    Attributes:
        rejects: a row for each image that cannot be used.
        decoders: for each format met whose decoder a build of Pillow may lack: the decoder here, or "none".
        num_ambiguous: images whose size as stored and as turned are both the annotated one; the turned one was taken.
        num_several: image files with several pages or frames, of which the first was taken.
    """

    rejects: list[Reject] = field(default_factory=list)
    decoders: dict[str, str] = field(default_factory=dict)
    num_ambiguous: int = 0
    num_several: int = 0


def frame_notes(num_ambiguous: int, num_several: int) -> list[str]:
    """Return a line for a person for each kind of image that was read in one of several ways.

    Args:
        num_ambiguous: as Findings counts them.
        num_several: as Findings counts them.
    """
    notes = []
    if num_ambiguous:
        notes.append(
            f"{num_ambiguous:,} images have the annotated size both as stored and as their orientation turns them; "
            "they are read turned, as viewers show them"
        )
    if num_several:
        notes.append(f"{num_several:,} image files hold several pages or frames; the first one is read")
    return notes


def open_sources(
    image_root: Location, sources: list[SourceImage], max_pixels: int, findings: Findings
) -> Iterator[tuple[SourceImage, str | None, Image.Image | None]]:
    """Read and decode images, one after the other.

    Args:
        image_root: the image folder.
        sources: records of the images, with their annotated sizes.
        max_pixels: a file with more pixels is refused.
        findings: takes what is refused, and what is worth saying about images that are read.

    Yields:
        For each record, in order: the record; the XXH3-128 of the file's bytes in hex, None where the file cannot be
        read; and the decoded image, None where it cannot be used.

    Raises:
        DataError: a store does not answer, which is no fault of the image.
    """
    contents = read_each([image_place(image_root, source.file_name) for source in sources])
    here = decoders()
    for source, content in zip(sources, contents, strict=True):
        image_hash, image = None, None
        try:
            data = _checked(content, image_root)
            image_hash = xxhash.xxh3_128_hexdigest(data)
            if (name := format_of(data[:16])) in here:
                findings.decoders[name] = here[name]
            opened = open_image(io.BytesIO(data))
            image = decode_image(opened, source.width, source.height, max_pixels)
            findings.num_ambiguous += opened.frames.is_ambiguous((source.width, source.height))
            findings.num_several += opened.has_several
        except ImageRefusedError as refused:
            message = f"{source.file_name}: {refused.message}"
            findings.rejects.append(Reject("image", source.image_id, source.file_name, refused.reason, message))
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
