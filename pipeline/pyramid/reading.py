"""Views of images, decoded and resized in threads ahead of the network that searches them."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.coco import Reject, SourceImage
from pipeline.images.chip import Picture, cut_chip
from pipeline.images.decode import ImageRefusedError, decode_given
from pipeline.images.sources import measure_image, open_source
from pipeline.pyramid.views import View
from pipeline.storage import Location, location
from schemas.errors import DataError, UsageError

Pixels = npt.NDArray[np.uint8]
ImageLike = Pixels | Image.Image | Location | str
"""An image as a program may have it: uint8 [height, width, 3], RGB; an image of Pillow; or the place of a file."""

_AN_IMAGE = (
    "an image is a path, an array uint8 [height, width, 3], RGB, or an image of Pillow, which "
    "ImageOps.exif_transpose(Image.open(io.BytesIO(data))) makes of the bytes of a file, turned as its EXIF says"
)

AHEAD = 2  # batches that are made while one is in use

Opener = Callable[[int], Picture | Reject]
"""Opens the image at a position, or says why it cannot be used. It is called from many threads."""


class ViewBatch(NamedTuple):
    """Views of one padded shape, decoded and resized, for one call of a network.

    Attributes:
        planned: the views of the batch, those of refused images included.
        views: what each row of the pixels shows, B of them.
        pixels: uint8 [B, H, W, 3], RGB; the content lies top left, the rest is 0.
    """

    planned: list[View]
    views: list[View]
    pixels: Pixels

    def contents(self) -> list[Pixels]:
        """Return each view without its padding, uint8 [height, width, 3], RGB."""
        cut = zip(self.pixels, self.views, strict=True)
        return [np.ascontiguousarray(pixels[: view.height, : view.width]) for pixels, view in cut]


def open_files(images: Sequence[SourceImage], root: Location, max_pixels: int) -> Opener:
    """Open image files, whose names are relative to a folder; one with more than `max_pixels` is refused."""
    return lambda position: open_source(root, images[position], max_pixels)


def open_any(
    images: Sequence[ImageLike], max_pixels: int, *, take_unreadable: bool = False
) -> tuple[list[SourceImage], Opener]:
    """Measure images of any kind, and open them when they are asked for.

    Args:
        images: arrays, images of Pillow, or places of files. A file has the frame that a viewer shows, as its EXIF
            says; an image of Pillow has the frame that it has there, which is the stored one unless
            ImageOps.exif_transpose has turned it.
        max_pixels: a file with more pixels is refused.
        take_unreadable: a file whose size cannot be read counts as one pixel, and is refused when it is opened.

    Returns:
        The size of each image, under its position as its id; and what opens them.

    Raises:
        UsageError: an array is not uint8 [height, width, 3], one image is given in place of a list, or something is
            no image.
        DataError: a file cannot be read, or is no image, and is not to be taken nevertheless.
    """
    is_one = isinstance(images, str | bytes | Image.Image) or getattr(images, "ndim", 4) < 4  # an array of one image
    if is_one or not hasattr(images, "__getitem__"):
        raise UsageError(f"expected a list of images, found one {type(images).__name__}; give [image]; {_AN_IMAGE}")
    sources = [SourceImage(i, *_described(image, i, take_unreadable)) for i, image in enumerate(images)]
    decoding = threading.Lock()  # of images of Pillow, which one thread at a time may decode

    def open_one(position: int) -> Picture | Reject:
        image = images[position]
        if isinstance(image, np.ndarray):
            return Image.fromarray(image)
        if isinstance(image, Image.Image):
            try:
                with decoding:
                    return decode_given(image)
            except ImageRefusedError as refused:
                return refused.as_reject(position, sources[position].file_name)
        return open_source(location(image).parent, sources[position], max_pixels)

    return sources, open_one


def _described(image: ImageLike, position: int, take_unreadable: bool) -> tuple[str, int, int]:
    """Return the name of an image, its width and its height."""
    if isinstance(image, Image.Image):
        return f"image {position}", image.width, image.height
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UsageError(
                f"image {position}: expected uint8 [height, width, 3], RGB, found {image.dtype} {list(image.shape)}; "
                "convert it first"
            )
        return f"image {position}", image.shape[1], image.shape[0]
    if not isinstance(image, str | Location):
        raise UsageError(f"image {position}: expected an image, found {type(image).__name__}; {_AN_IMAGE}")
    place = location(image)
    try:
        return place.name, *measure_image(place)[0]
    except ImageRefusedError as refused:
        if take_unreadable:
            return place.name, 1, 1
        raise DataError(f"{place}: {refused.reason}: {refused.message}") from refused


def read_batches(
    following: Callable[[], list[View] | None],
    images: Sequence[SourceImage],
    open_image: Opener,
    refused: dict[int, Reject],
    *,
    threads: int,
    allocate: Callable[[tuple[int, ...]], Pixels] | None = None,
) -> Generator[ViewBatch, None, None]:
    """Decode and resize the views of batches in threads, AHEAD batches before they are asked for.

    Args:
        following: gives the next batch, views of one padded shape; None: there is none yet, or none any more. It is
            asked again before each batch that is yielded, so that what comes next may depend on what was found.
        images: what `View.image` is a position in.
        open_image: opens an image by that position.
        refused: takes a row for each refused image, by its position among `images`.
        threads: how many views are made at a time.
        allocate: gives a zeroed uint8 array of a shape, such as in memory from which a GPU copies faster.

    Yields:
        One ViewBatch for each batch, in order, without the views of refused images; it may be empty.
    """
    locks = [threading.Lock() for _ in range(64)]

    @lru_cache(maxsize=2)  # the tiles of one image follow each other; more would cost memory where images are huge
    def opened(image: int) -> Picture | None:
        picture = open_image(image)
        if isinstance(picture, Reject):
            refused[image] = picture
            return None
        return picture

    def fill(view: View, target: Pixels) -> bool:
        with locks[view.image % len(locks)]:  # threads that want the same image open it once
            picture = opened(view.image)
        if picture is None:
            return False
        try:
            pixels = cut_chip(picture, view.window, view.scale, view.width, view.height)
        except ImageRefusedError as error:  # a large image that is damaged here
            source = images[view.image]
            refused[view.image] = error.as_reject(source.image_id, source.file_name)
            return False
        target[: view.height, : view.width] = pixels[:, :, :3]
        return True

    pool = ThreadPoolExecutor(threads)

    def begin(views: list[View]) -> tuple[list[View], Pixels, list[Future[bool]]]:
        shape = (len(views), *views[0].shape, 3)
        buffer = np.zeros(shape, np.uint8) if allocate is None else allocate(shape)
        return views, buffer, [pool.submit(fill, view, buffer[i]) for i, view in enumerate(views)]

    waiting: deque[tuple[list[View], Pixels, list[Future[bool]]]] = deque()
    try:
        while True:
            while len(waiting) <= AHEAD and (views := following()) is not None:
                waiting.append(begin(views))
            if not waiting:
                return
            views, buffer, tasks = waiting.popleft()
            good = [task.result() for task in tasks]
            kept = [view for view, is_good in zip(views, good, strict=True) if is_good]
            yield ViewBatch(views, kept, buffer if all(good) else buffer[np.array(good)])
    finally:
        pool.shutdown(cancel_futures=True)  # what is waiting is not wanted where the search was stopped
