"""Detect on whole images of any size at all scales, `sniper detect`: one list of boxes per image."""

import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from upath import UPath

from pipeline.coco import SourceImage
from pipeline.engines.progress import Progress
from pipeline.images.decode import ImageRefusedError, open_image
from pipeline.images.sources import SUFFIXES, find_images, frame_notes
from pipeline.pyramid.merging import Detections, merge
from pipeline.storage import Location, location, read_bytes
from schemas.codes import Reason
from schemas.errors import UsageError
from schemas.settings import Settings
from trainer.inference.batches import SearchLog, run_views, split_spans
from trainer.inference.opening import Inference, fingerprint, open_detector
from trainer.inference.output import FINAL, DetectReport, Result, open_output
from trainer.model import predict
from trainer.runtime.checkpoint import Checkpoint

LOG = logging.getLogger("sniper")
SPAN = 8  # images whose views share batches; few, so that results come soon


def detect_images(
    inference: Inference, spans: Sequence[range], images: Sequence[SourceImage], root: Location, log: SearchLog
) -> Iterator[tuple[int, Detections]]:
    """Detect on some images at all scales.

    Args:
        inference: the network, and how it is run.
        spans: positions among `images`; views of images of one span share batches.
        images: what can be searched.
        root: folder that their file names are relative to.
        log: takes the times and a row for each refused image, before the next image is yielded.

    Yields:
        For each image of the spans that can be read its position among `images` and its merged detections.
    """
    options, bounds = inference.options, inference.chips.bounds()
    forward = partial(predict, min_score=options.min_score, by_area=options.by_area)
    for viewed in run_views(forward, inference, spans, images, root, log):
        if viewed.views:
            yield viewed.image, merge(viewed, images[viewed.image], bounds, options, inference.chips.size)


def detect(
    checkpoint: Location | str,
    images: Location | str | Sequence[Location | str],
    settings: Settings | None = None,
    *,
    out: Location | str | None = None,
    min_drawn: float = 0.3,
) -> list[Result]:
    """Detect on image files of this machine, and folders of them, and return all results.

    Args:
        checkpoint: a checkpoint file, or the folder of a run: its best checkpoint, else its last.
        images: an image file or a folder of them, or several. Folders are searched with all folders below them.
        settings: the section `detect` is used, and chips.max_pixels where it was given.
        out: folder for what `detect_into` writes; None: nothing is written.
        min_drawn: score from which a detection is drawn on the picture, 0 to 1.

    Returns:
        For each image {"file", "width", "height", "detections": [{"bbox": [x, y, width, height], "score",
        "category_id", "category"}]}, boxes in source pixels, best first; {"file", "error"} where a file cannot be
        used. With `out` there is "picture", the name of the picture, or an "error" beside the detections where none
        could be made.

    Raises:
        UsageError: there is no such file, or no image in a folder, or settings were given that contradict the
            checkpoint.
        DataError: the checkpoint cannot be read, or is of the RPN alone.
        OutOfMemoryError: the network needs more memory than there is.
    """
    if out is None:
        state, inference, files = _open(checkpoint, images, settings, None)
        return list(_search(inference, state.categories, files))
    detect_into(out, checkpoint, images, settings, min_drawn=min_drawn)
    results: list[Result] = json.loads(read_bytes(location(out) / FINAL))
    return results


def detect_into(
    out: Location | str,
    checkpoint: Location | str,
    images: Location | str | Sequence[Location | str],
    settings: Settings | None = None,
    *,
    min_drawn: float = 0.3,
) -> DetectReport:
    """Detect on image files of this machine, and folders of them, and write each result as soon as it is there.

    The results go line by line into out/detections.jsonl, with a picture of each image beside it, and in the end as
    one list into out/detections.json. Called again after an interruption, with the same network, settings and images,
    it goes on where it was. Memory does not grow with the number of detections.

    Args:
        out: folder for the results. What lies in it is not searched.
        checkpoint: a checkpoint file, or the folder of a run: its best checkpoint, else its last.
        images: an image file or a folder of them, or several. Folders are searched with all folders below them.
        settings: the section `detect` is used, and chips.max_pixels where it was given.
        min_drawn: score from which a detection is drawn on the picture, 0 to 1.

    Raises:
        UsageError: there is no such file, no image in a folder, settings were given that contradict the checkpoint, or
            another process writes to `out`.
        DataError: the checkpoint cannot be read, or is of the RPN alone.
        OutOfMemoryError: the network needs more memory than there is.
    """
    out = location(out)
    state, inference, files = _open(checkpoint, images, settings, out)
    options = inference.options.model_dump(mode="json", exclude={"threads"})
    made_with = {"weights": fingerprint(inference.model), "max_pixels": inference.chips.max_pixels, "detect": options}
    with open_output(out, files, made_with, min_drawn) as output:
        for result in _search(inference, state.categories, files[output.done :]):
            output.add(result)
    return output.report


def _open(
    checkpoint: Location | str,
    images: Location | str | Sequence[Location | str],
    settings: Settings | None,
    out: Location | None,
) -> tuple[Checkpoint, Inference, list[Path]]:
    """Open the checkpoint, and list the images that are to be searched."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state, inference = open_detector(location(checkpoint), settings or Settings(), device)
    wanted = [images] if isinstance(images, str | Path | UPath) else images
    searched = [_files(location(path), out) for path in wanted]
    if num_litter := sum(count for _, count in searched):
        LOG.warning("%d files of systems and editors (such as ._a.jpg or in @eaDir) were skipped", num_litter)
    return state, inference, [file for found, _ in searched for file in found]


def _search(inference: Inference, categories: list[tuple[int, str]], files: Sequence[Path]) -> Iterator[Result]:
    """Yield the result of each file, in order."""
    sources, errors, num_several = _measure(files)
    for note in frame_notes(0, num_several):
        LOG.warning(note)
    ready: dict[int, Result] = {}  # by position among the files; those that wait for an earlier one of their span
    for position, file in enumerate(files):
        if str(file) in errors:
            ready[position] = {"file": str(file), "error": errors[str(file)]}
    log, following = SearchLog(), 0

    def pass_on() -> Iterator[Result]:
        nonlocal following
        for reject in log.rejects:
            assert reject.id is not None
            ready[reject.id] = {"file": reject.file, "error": f"{reject.reason}: {reject.message}"}
        log.rejects.clear()
        while following in ready:
            yield ready.pop(following)
            following += 1

    with Progress("detect", len(sources), "images") as progress:
        for index, found in detect_images(inference, split_spans(len(sources), SPAN), sources, Path(), log):
            source = sources[index]
            ready[source.image_id] = {
                "file": source.file_name,
                "width": source.width,
                "height": source.height,
                "detections": [
                    _as_dict(box, score, *categories[label - 1])
                    for box, score, label in zip(*(column.tolist() for column in found), strict=True)
                ],
            }
            yield from pass_on()
            progress.add(1)
    yield from pass_on()


def _as_dict(box: list[float], score: float, category_id: int, category: str) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": score, "category_id": category_id, "category": category}


def _files(path: Location, out: Location | None) -> tuple[list[Path], int]:
    """Return the image files that a path names, and how many files beside them were skipped as litter."""
    if not isinstance(path, Path):
        raise UsageError(f"{path}: detect reads images of this machine; `sniper evaluate` reads them from a store")
    if path.is_dir():
        found, num_litter = find_images(path, without=out if isinstance(out, Path) else None)
        if not found:
            raise UsageError(f"{path}: holds no image ({', '.join(sorted(SUFFIXES))})")
        return found, num_litter
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    return [path], 0


def _measure(files: Sequence[Path]) -> tuple[list[SourceImage], dict[str, str], int]:
    """Measure each file in the frame that a viewer shows.

    Returns:
        The files that can be opened, what is wrong with the others by name, and how many hold several pages or frames.
    """
    sources, errors, num_several = [], {}, 0
    for index, path in enumerate(files):
        try:
            with path.open("rb") as file:
                opened = open_image(file)
        except ImageRefusedError as refused:
            errors[str(path)] = f"{refused.reason}: {refused.message}"
        except OSError as error:
            errors[str(path)] = f"{Reason.UNREADABLE_FILE}: {error.strerror or error}"
        else:
            sources.append(SourceImage(index, str(path), *opened.frames.turned))
            num_several += opened.has_several
    return sources, errors, num_several
