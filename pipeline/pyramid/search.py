"""Any detector on whole images: views at every scale, tiles, ranges and merging. It needs no torch."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.coco import Reject, SourceImage
from pipeline.engines.tasks import available_cores
from pipeline.pyramid.agenda import Agenda, Searched
from pipeline.pyramid.focus import THRESHOLD, Focus, FocusMap, focus_limits, painted_map
from pipeline.pyramid.merging import Detections, merge
from pipeline.pyramid.reading import ImageLike, Opener, Pixels, ViewBatch, open_any, read_batches
from pipeline.pyramid.views import Output, View, Viewed
from pipeline.storage import Location
from schemas.arrays import Float32Array
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, DetectSettings, Settings, settings_or_defaults

SPAN = 64
"""Images whose views share batches. A rank gets whole spans, so the number of ranks changes no batch, no rounding."""
SMALL_SPAN = 8  # the same where results are wanted soon

AnyDetector = Callable[[list[Pixels]], Sequence[Sequence[Any]]]
"""Takes views, uint8 [height, width, 3] each, RGB; returns for each of them boxes [n, 4] (x1 y1 x2 y2, view pixels),
scores [n] and labels [n], as arrays, lists or tensors. It may add a focus map, an array [rows, columns] whose equal
cells cover the view and hold in 0 to 1 how probable it is that something small is there; None where it has none."""


@dataclass
class SearchLog:
    """What a search over images leaves behind beside its results.

    Attributes:
        waited: seconds that the network waited for pixels.
        worked: seconds spent in the network.
        rejects: a row for each image that could not be used.
        searched: how much of the pyramid was planned to be searched until now.
        maps: where it is no None but a dictionary, it takes by the position of each image its views with their focus
            maps, before the next image is yielded; None in place of a map where there is none.
    """

    waited: float = 0.0
    worked: float = 0.0
    rejects: list[Reject] = field(default_factory=list)
    searched: Searched = Searched()
    maps: dict[int, list[tuple[View, FocusMap | None]]] | None = None

    @property
    def data_wait(self) -> float:
        """Share of the time that the network waited for pixels, 0 to 1."""
        return self.waited / max(self.waited + self.worked, 1e-9)


def split_spans(num_images: int, length: int | None = None) -> list[range]:
    """Part the positions 0 to `num_images` into spans of `length` images, by default SPAN; the last may be shorter."""
    length = length or SPAN
    return [range(start, min(start + length, num_images)) for start in range(0, num_images, length)]


def search(
    images: Sequence[ImageLike] | Iterator[ImageLike],
    detector: AnyDetector,
    settings: Settings | None = None,
    *,
    refused: dict[int, str] | None = None,
) -> Iterator[Detections]:
    """Run any detector over whole images, at every scale, and merge what it finds.

    The detector sees plain images of at most `detect.max_side` pixels a side. All else is done here: every image is
    resized to each of `chips.scales`, large ones are split into tiles, what a scale finds outside its range is
    dropped, what a tile cuts is left to its neighbour, and soft-NMS merges the rest (docs/method.md, 10).

    Args:
        images: arrays uint8 [height, width, 3], RGB, images of Pillow, paths or URLs of image files. A file has the
            frame that a viewer shows, turned as its EXIF says; an image of Pillow is taken as it stands.
        detector: takes a list of views, uint8 [height, width, 3], RGB, and returns for each view its boxes [n, 4]
            (x1 y1 x2 y2 in pixels of the view), scores [n] in 0 to 1, and labels [n], whole numbers. It may add a
            focus map [rows, columns] of values in 0 to 1, whose equal cells cover the view: finer scales are then
            searched only where a coarser one has a value above `detect.focus`.
        settings: of the section `chips` the scales, ranges, size and max_pixels, and the section `detect`. With a
            number as `detect.focus` what a coarser scale finds and is small serves where there is no map.
        refused: takes the reason for each image that cannot be read, by its position in `images`, before its
            detections are yielded, of which there are none. None: such an image ends the search with a DataError.

    Yields:
        The detections of each image in order: boxes float32 [n, 4], x1 y1 x2 y2 in pixels of the image, scores float32
        [n] and labels int64 [n], best first.

    Raises:
        UsageError: an array is no image, or the detector returned something else than said above.
        DataError: an image cannot be read, and there is no `refused`; or a store does not answer.
    """
    settings = settings_or_defaults(settings)

    def network(batch: ViewBatch) -> list[Output]:
        views = batch.contents()
        return checked(detector(views), len(views))

    return search_any(network, images, settings.chips, settings.detect, focus=_given_focus(settings), refused=refused)


def _given_focus(settings: Settings) -> Focus | None:
    """Return how a search goes from coarse to fine with a detector that may give maps of its own."""
    chips, setting = settings.chips, settings.detect.focus
    limits = focus_limits(chips.bounds(), settings.model.focus_limits)

    def of(view: View, output: Output) -> FocusMap | None:
        if len(output) > 3:
            rows, columns = output[3].shape
            return FocusMap(output[3], (view.height / rows, view.width / columns))
        if setting == "auto":
            return None
        return painted_map(view, output[0], output[1], limits[view.scale_index], chips.size)

    return None if setting == "off" else Focus(focus_threshold(settings.detect), of)


def focus_threshold(options: DetectSettings) -> float:
    """Return the threshold that is set, or the default one."""
    return THRESHOLD if isinstance(options.focus, str) else options.focus


def search_any(
    network: Callable[[ViewBatch], Sequence[Output]],
    images: Sequence[ImageLike] | Iterator[ImageLike],
    chips: ChipSettings,
    options: DetectSettings,
    allocate: Callable[[tuple[int, ...]], Pixels] | None = None,
    focus: Focus | None = None,
    refused: dict[int, str] | None = None,
) -> Iterator[Detections]:
    """Search images of any kind as `search_images` does, and yield the detections of each in order.

    Raises:
        UsageError: an array is no image.
        DataError: an image cannot be read, and there is no `refused`, which is described at `search`.
    """
    images = [*images] if isinstance(images, Iterator) else images  # a list may load each image when it is asked for
    sources, open_image = open_any(images, chips.max_pixels, take_unreadable=refused is not None)
    spans = split_spans(len(sources), SMALL_SPAN)
    log = SearchLog()
    ready: dict[int, Detections] = {}
    following = 0
    for position, found in search_images(network, sources, open_image, spans, chips, options, log, allocate, focus):
        ready[position] = found
        ready |= _without_detections(log.rejects, images, refused)
        while following in ready:
            yield ready.pop(following)
            following += 1
    ready |= _without_detections(log.rejects, images, refused)
    yield from (ready[position] for position in sorted(ready))


def _without_detections(
    rejects: list[Reject], images: Sequence[ImageLike], refused: dict[int, str] | None
) -> dict[int, Detections]:
    """Move what was refused to `refused`, and return empty detections for it; raise DataError where that is None."""
    nothing = {}
    while rejects:
        reject = rejects.pop(0)
        position = reject.id
        assert position is not None
        image = images[position]
        # the whole path, since files of several folders may have the same name
        name = image if isinstance(image, str | Location) else reject.file
        reason = f"{name}: {reject.reason}: {reject.message.removeprefix(f'{reject.file}: ')}"
        if refused is None:
            raise DataError(reason)
        refused[position] = reason
        nothing[position] = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    return nothing


def checked(found: Any, num_views: int) -> list[Output]:
    """Return what a detector gave for each view as boxes float32 [n, 4], scores float32 [n] and labels int64 [n].

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(found, list | tuple):
        raise UsageError(
            f"the detector gave a {type(found).__name__} for {num_views} views; expected a list with the boxes, "
            "scores and labels of each"
        )
    if len(found) != num_views:
        raise UsageError(f"the detector got {num_views} views and gave {len(found)} results; expected one for each")
    return [_checked_view(one) for one in found]


def _checked_view(one: Any) -> Output:
    expected = "expected boxes [n, 4], scores [n], labels [n] and, if there is one, a focus map, in a list or tuple"
    if not isinstance(one, list | tuple) or len(one) not in (3, 4):
        length = f" of {len(one)}" if isinstance(one, list | tuple) else ""
        raise UsageError(f"the detector gave a {type(one).__name__}{length} for a view; {expected}")
    boxes, scores, labels = (_numbers(one[i], name) for i, name in enumerate(("boxes", "scores", "labels")))
    if not boxes.size and not scores.size and not labels.size:
        return np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64), *_maps(one)
    count = scores.size
    if (boxes.shape, scores.shape, labels.shape) != ((count, 4), (count,), (count,)):
        shapes = ", ".join(str(list(column.shape)) for column in (boxes, scores, labels))
        raise UsageError(f"the detector gave arrays of the shapes {shapes} for a view; {expected}")
    if np.isnan(scores).any():
        raise UsageError("the detector gave a score that is not a number (NaN); expected scores in 0 to 1")
    if np.isnan(boxes).any():
        raise UsageError("the detector gave a box with a side that is not a number (NaN); expected x1, y1, x2, y2")
    if len(odd := labels[labels != np.floor(labels)]):
        raise UsageError(f"the detector gave the label {odd[0]}; expected whole numbers")
    return boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int64), *_maps(one)


def _maps(one: Sequence[Any]) -> list[Float32Array]:
    return [_checked_map(values) for values in one[3:] if values is not None]


def _numbers(values: Any, name: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(_plain(values))
        array = array if array.size else array.astype(np.float32)
        if array.dtype.kind in "biuf":
            return array
        found = str(array.dtype)
    except (TypeError, ValueError) as error:
        found = str(error)
    raise UsageError(f"the detector gave {name} that are no array of numbers ({found}) for a view")


def _checked_map(values: Any) -> Float32Array:
    expected = "expected [rows, columns] of numbers in 0 to 1, or None"
    try:
        array = np.asarray(_plain(values), np.float32)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the detector gave a focus map that is no array of numbers ({error}); {expected}") from error
    if array.ndim != 2 or not array.size:
        raise UsageError(f"the detector gave a focus map of shape {list(array.shape)} for a view; {expected}")
    if not (array >= 0).all() or not (array <= 1).all():
        raise UsageError(f"the detector gave a focus map with values from {array.min()} to {array.max()}; {expected}")
    return array


def _plain(values: Any) -> Any:
    """Take a tensor of torch from its graph and its half precision, neither of which NumPy knows."""
    if not hasattr(values, "detach"):
        return values
    return (values.detach().float() if values.is_floating_point() else values.detach()).cpu()


def search_images(
    network: Callable[[ViewBatch], Sequence[Output]],
    images: Sequence[SourceImage],
    open_image: Opener,
    spans: Sequence[range],
    chips: ChipSettings,
    options: DetectSettings,
    log: SearchLog,
    allocate: Callable[[tuple[int, ...]], Pixels] | None = None,
    focus: Focus | None = None,
) -> Iterator[tuple[int, Detections]]:
    """Run a network over all views of some images, and merge what it finds on each of them.

    Args:
        network: takes a batch of views and returns for each of them boxes float32 [n, 4] in view pixels, scores
            float32 [n] and labels int64 [n].
        images: what can be searched.
        open_image: opens an image by its position.
        spans: positions among `images`; views of images of one span share batches.
        chips: says at which scales, and which range of sizes each of them has.
        options: how images are read and detections merged.
        log: takes the times and a row for each refused image, before the next image is yielded.
        allocate: see `read_batches`.
        focus: how the search goes from coarse to fine; None: every scale is searched whole.

    Yields:
        For each image of the spans that can be read its position and its merged detections.
    """
    bounds = chips.bounds()
    for viewed in search_views(network, images, open_image, spans, chips, options, log, allocate, focus):
        if log.maps is not None:
            log.maps[viewed.image] = [
                (view, focus.of(view, output) if focus and view.scale_index else None) for view, output in viewed.views
            ]
        if viewed.views:
            yield viewed.image, merge(viewed, images[viewed.image], bounds, options, chips.size)


def search_views(
    network: Callable[[ViewBatch], Sequence[Output]],
    images: Sequence[SourceImage],
    open_image: Opener,
    spans: Sequence[range],
    chips: ChipSettings,
    options: DetectSettings,
    log: SearchLog,
    allocate: Callable[[tuple[int, ...]], Pixels] | None = None,
    focus: Focus | None = None,
) -> Iterator[Viewed]:
    """Run a network over all views of some images; the arguments are those of `search_images`.

    Yields:
        Each image of the spans once, as soon as all of its views are done, with what the network gave for them in the
        order of scales and windows; a refused one has no views.
    """
    agenda = Agenda(images, spans, chips, options, focus)
    refused: dict[int, Reject] = {}
    threads = options.threads or available_cores()
    reader = read_batches(agenda.following, images, open_image, refused, threads=threads, allocate=allocate)
    with closing(reader):
        while True:
            started = time.perf_counter()
            batch = next(reader, None)
            read = time.perf_counter()
            if batch is None:
                return
            log.waited += read - started
            outputs: Sequence[Output] = []
            if batch.views:
                outputs = network(batch)
                log.worked += time.perf_counter() - read
            for viewed in agenda.add(batch, outputs):
                log.searched = agenda.searched
                if viewed.image in refused:
                    log.rejects.append(refused.pop(viewed.image))
                    viewed = Viewed(viewed.image, [])
                yield viewed
