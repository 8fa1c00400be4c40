"""Reads the source images of a data set, one after the other."""

import io
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, NamedTuple

import xxhash

from pipeline.coco import Reject, SourceImage
from pipeline.coco.records import is_text, is_tiff
from pipeline.engines.tasks import report
from pipeline.images.chip import Picture
from pipeline.images.decode import ImageRefusedError, decode_image, decoders, format_of, open_image
from pipeline.storage import Location, is_folder, open_binary, read_each, read_range
from schemas.codes import Reason
from schemas.errors import AGAIN, DataError, UsageError

# fmt: off
SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".gif", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm",
))
# fmt: on
"""Lower-case suffixes of the files in a folder that are taken for images."""
LARGE_PIXELS = 64_000_000
"""A TIFF that is annotated with more pixels is read by windows, where its tiles or strips are small."""
HASH_BLOCK = 8 << 20  # bytes of a large file that are hashed at a time

LITTER = frozenset(("@eadir", "__macosx", "$recycle.bin", "#recycle", "lost+found"))
"""Lower-case names of folders that systems leave beside images, with thumbnails and deleted files in them. So are all
names that begin with a dot."""


class Listing(NamedTuple):
    """What a folder holds.

    Attributes:
        images: the image files, sorted by path.
        num_litter: how many files with an image's suffix were skipped as litter.
        others: how many files have another suffix, by that suffix; litter apart.
    """

    images: list[Path]
    num_litter: int
    others: Counter[str]

    def notes(self) -> list[str]:
        """Return lines that say what was left out."""
        lines = []
        if self.num_litter:
            lines.append(f"{self.num_litter} files of systems and editors (such as ._a.jpg or in @eaDir) were skipped")
        if self.others:
            suffixes = ", ".join(f"{suffix or 'none'} {count}" for suffix, count in self.others.most_common(8))
            lines.append(f"{self.others.total()} files without the suffix of an image were left out: {suffixes}")
        return lines


def find_images(folder: Path, *, without: Path | None = None) -> Listing:
    """Find the images in a folder of this machine and the folders below it, linked ones included.

    Args:
        folder: the folder to search.
        without: a folder whose own files are left out, such as one that pictures are written to.
    """
    found: list[Path] = []
    num_litter = 0
    others: Counter[str] = Counter()
    seen: set[str] = set()  # real paths, since links may lead in a circle
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        here = Path(place)
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        is_below_litter = any(is_litter(part) for part in here.relative_to(folder).parts)
        images = [here / name for name in files if Path(name).suffix.lower() in SUFFIXES]
        kept = [] if is_below_litter else [file for file in images if not is_litter(file.name)]
        num_litter += len(images) - len(kept)
        if here != without:
            found += kept
            names = [] if is_below_litter else [name for name in files if not is_litter(name)]
            others.update(suffix for name in names if (suffix := Path(name).suffix.lower()) not in SUFFIXES)
    return Listing(sorted(found), num_litter, others)


def is_litter(name: str) -> bool:
    """Tell whether a file or folder of this name was made by a system or a program, so that it is no image to read."""
    return name.startswith(".") or name.lower() in LITTER


def image_folder(folder: Location) -> Location:
    """Return the image folder after a check that it exists.

    Raises:
        UsageError: there is no such folder.
    """
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


def measure_image(place: Location) -> tuple[tuple[int, int], bool]:
    """Measure an image file in the frame that a viewer shows, without decoding its pixels.

    Returns:
        Width and height, pixels, and whether the file holds several pages or frames.

    Raises:
        ImageRefusedError: it is no image, damaged, or cannot be read, or no record could name it; its `reason` says
            which.
    """
    if not is_text(str(place)):
        raise ImageRefusedError(Reason.BAD_RECORD, "its name is no text in UTF-8; rename the file")
    try:
        with open_binary(place) as file:
            opened = open_image(file)
            return opened.frames.turned, opened.has_several
    except FileNotFoundError as error:
        raise ImageRefusedError(Reason.MISSING_FILE, _why_missing(error, "no such file")) from error
    except OSError as error:
        raise ImageRefusedError(Reason.UNREADABLE_FILE, error.strerror or str(error)) from error


def _why_missing(error: FileNotFoundError, otherwise: str) -> str:
    """Tell a link that leads nowhere from a file that is not there."""
    path = Path(error.filename or "")
    if path.is_symlink():
        return f"is a link to {path.readlink()}, which is not there"
    return otherwise


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


def is_large(source: SourceImage) -> bool:
    """Tell whether an image is read by windows, if its file allows it."""
    return is_tiff(source.file_name) and source.width * source.height > LARGE_PIXELS


def pixels_held(source: SourceImage) -> int:
    """Return how many pixels of an image memory holds at a time, mostly all."""
    return LARGE_PIXELS if is_large(source) else source.width * source.height


def open_sources(
    image_root: Location,
    sources: list[SourceImage],
    max_pixels: int,
    findings: Findings,
    *,
    thorough: bool = True,
    killers: Mapping[int, str] = MappingProxyType({}),
) -> Iterator[tuple[SourceImage, str | None, Picture | None]]:
    """Read and decode images, one after the other. Large TIFFs are only opened, to be read by windows.

    Args:
        image_root: the image folder.
        sources: records of the images, with their annotated sizes.
        max_pixels: a file that has to be decoded whole is refused if it has more pixels.
        findings: takes what is refused, and what is worth saying about images that are read.
        thorough: hash large TIFFs, and decode each of their tiles once, so that a damaged one is refused as a whole.
        killers: why an image cannot be decoded without killing this process, by its position; it is refused.

    Yields:
        For each record, in order: the record; the XXH3-128 of the file's bytes in hex, None where the file cannot be
        read or was not; and the image, None where it cannot be used.

    Raises:
        DataError: a store does not answer, which is no fault of the image.
    """
    places = [image_place(image_root, source.file_name) for source in sources]
    contents = read_each([place for source, place in zip(sources, places, strict=True) if not is_large(source)])
    for position, (source, place) in enumerate(zip(sources, places, strict=True)):
        image_hash, image = None, None
        content = None if is_large(source) else next(contents)
        report(position, len(content) if isinstance(content, bytes) else 0)
        try:
            if position in killers:
                raise ImageRefusedError(Reason.KILLS_WORKER, killers[position])
            if is_large(source):
                windows = _Windows(place, image_root, thorough)
                with windows.open() as file:
                    image_hash = hash_content(file) if thorough else None
                    image = _open(file, source, max_pixels, findings, windows)
            else:
                assert content is not None
                data = _checked(content, image_root)
                image_hash = xxhash.xxh3_128_hexdigest(data)
                image = _open(io.BytesIO(data), source, max_pixels, findings, None)
        except ImageRefusedError as refused:
            findings.rejects.append(refused.as_reject(source.image_id, source.file_name))
        yield source, image_hash, image


def open_source(image_root: Location, source: SourceImage, max_pixels: int) -> Picture | Reject:
    """Read and decode one image as open_sources does, where nothing is asked of the file but its pixels.

    Args:
        image_root: the image folder.
        source: record of the image, with its annotated size.
        max_pixels: a file that has to be decoded whole is refused if it has more pixels.

    Returns:
        The image, or why it cannot be used. A large TIFF may still turn out to be damaged where a window is read.

    Raises:
        DataError: a store does not answer, which is no fault of the image.
    """
    findings = Findings()
    ((_, _, picture),) = open_sources(image_root, [source], max_pixels, findings, thorough=False)
    return findings.rejects[0] if picture is None else picture


class _Windows(NamedTuple):
    """The file of a large image, whose windows are read when they are asked for."""

    place: Location
    image_root: Location
    thorough: bool

    def open(self) -> IO[bytes]:
        """Open the file; raises what _checked raises."""
        try:
            return open_binary(self.place)
        except OSError as error:
            _checked(error, self.image_root)
            raise

    def read(self, offset: int, size: int) -> bytes:
        """Read some bytes of the file; raises what _checked raises."""
        try:
            return read_range(self.place, offset, size)
        except OSError as error:
            return _checked(error, self.image_root)


def hash_content(file: IO[bytes]) -> str:
    """Return the XXH3-128 of a file in hex, read from its start and brought back there."""
    digest = xxhash.xxh3_128()
    while block := file.read(HASH_BLOCK):
        digest.update(block)
    file.seek(0)
    return digest.hexdigest()


def _open(
    file: IO[bytes], source: SourceImage, max_pixels: int, findings: Findings, windows: _Windows | None
) -> Picture:
    """Decode an image in the annotated frame, or prepare it to be read by windows.

    Raises:
        ImageRefusedError: it cannot be used.
        DataError: a store does not answer.
    """
    name, here = format_of(file.read(16)), decoders()
    file.seek(0)
    if name in here:
        findings.decoders[name] = here[name]
    opened = open_image(file)
    size = source.width, source.height
    image: Picture | None = None
    if windows is not None:
        from pipeline.images.large import open_large  # loaded with the first large TIFF

        image = open_large(opened, windows.read, *size, thorough=windows.thorough)
    if image is None:
        image = decode_image(opened, *size, max_pixels)
    findings.num_ambiguous += opened.frames.is_ambiguous(size)
    findings.num_several += opened.has_several
    return image


def _checked(content: bytes | OSError, image_root: Location) -> bytes:
    """Return the bytes of a file, or raise what reading it has met.

    Raises:
        ImageRefusedError: the file is missing, or this machine's disk does not give its bytes.
        DataError: an object store does not answer.
    """
    if isinstance(content, bytes):
        return content
    if isinstance(content, FileNotFoundError):
        raise ImageRefusedError(
            Reason.MISSING_FILE, _why_missing(content, "no such file in the image folder")
        ) from content
    if not isinstance(image_root, Path):
        raise DataError(f"{content}; {AGAIN}") from content
    raise ImageRefusedError(Reason.UNREADABLE_FILE, content.strerror or str(content)) from content
