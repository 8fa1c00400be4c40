"""Detect on whole images of any size at all scales, `sniper detect`: one list of boxes per image."""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.coco import SourceImage
from pipeline.engines.progress import Progress, log
from pipeline.images.decode import ImageRefusedError
from pipeline.images.sources import SUFFIXES, find_images, frame_notes, measure_image
from pipeline.pyramid.search import SMALL_SPAN, SearchLog, split_spans
from pipeline.storage import Location, location, read_bytes
from schemas.errors import UsageError
from schemas.settings import Settings
from trainer.inference.opening import fingerprint
from trainer.inference.output import FINAL, FOCUS, DetectReport, Result, drawn, open_output
from trainer.inference.predictor import Predictor, focus_of
from trainer.inference.results_file import check_results, read_ids, write_results

if TYPE_CHECKING:
    from trainer.runtime.ranks import Rank


def detect(
    checkpoint: Location | str,
    images: Location | str | Sequence[Location | str],
    settings: Settings | None = None,
    *,
    out: Location | str | None = None,
    min_drawn: float = 0.3,
    classes: Sequence[str] = (),
    results: Location | str | None = None,
    annotations: Location | str | None = None,
) -> list[Result]:
    """Detect on image files of this machine, and folders of them, and return all results.

    Args:
        checkpoint: a checkpoint file, or the folder of a run: its best checkpoint, else its last.
        images: an image file or a folder of them, or several. Folders are searched with all folders below them.
        settings: the section `detect` is used, and chips.max_pixels where it was given.
        out: folder for what `detect_into` writes; None: nothing is written.
        min_drawn: score from which a detection is drawn on the picture, 0 to 1.
        classes: names of the classes that are wanted; none: all.
        results: file for all detections in one list, whose suffix decides its form: .json (COCO results), .jsonl or
            .csv. It is written in the end.
        annotations: with `results`, COCO JSON file whose ids they get; None: they name the files.

    Returns:
        For each image {"file", "width", "height", "detections": [{"bbox": [x, y, width, height], "score",
        "category_id", "category"}]}, boxes in source pixels, best first; {"file", "error"} where a file cannot be
        used. With `out` there is "picture", the name of the picture, or an "error" beside the detections where none
        could be made.

    Raises:
        UsageError: there is no such file, or no image in a folder, settings were given that contradict the checkpoint,
            it knows no class of a name, or `results` or `annotations` do not fit (see `check_results`, `read_ids`).
        DataError: the checkpoint cannot be read, or is of the RPN alone.
        OutOfMemoryError: the network needs more memory than there is.
    """
    if out is None:
        place = _place(results, annotations, None)
        predictor = Predictor(checkpoint, settings, classes=classes)
        files = _listed(images, None)
        ids = read_ids(location(annotations), files, predictor.categories) if annotations else None
        found = list(_search(predictor, files))
        if place is not None:
            write_results(place, found, ids)
        return found
    detect_into(
        out,
        checkpoint,
        images,
        settings,
        min_drawn=min_drawn,
        classes=classes,
        results=results,
        annotations=annotations,
    )
    written: list[Result] = json.loads(read_bytes(location(out) / FINAL))
    return written


def _place(
    results: Location | str | None, annotations: Location | str | None, out: Location | None
) -> Location | None:
    """Check where results are to go, before any work."""
    if results is None:
        if annotations is not None:
            raise UsageError("detect: --annotations gives the ids for --results; give --results, too, or leave it out")
        return None
    place = location(results)
    check_results(place, out)
    return place


def detect_into(
    out: Location | str,
    checkpoint: Location | str,
    images: Location | str | Sequence[Location | str],
    settings: Settings | None = None,
    *,
    min_drawn: float = 0.3,
    classes: Sequence[str] = (),
    focus_map: bool = False,
    results: Location | str | None = None,
    annotations: Location | str | None = None,
) -> DetectReport | None:
    """Detect on image files of this machine, and folders of them, and write each result as soon as it is there.

    The results go line by line into out/detections.jsonl, with a picture of each image beside it, and in the end as
    one list into out/detections.json. Called again after an interruption, with the same network, settings and images,
    it goes on where it was. Memory does not grow with the number of detections. Under torchrun the ranks share the
    images; the first one writes the results of all, some images later.

    Args:
        out: folder for the results. What lies in it is not searched.
        checkpoint: a checkpoint file, or the folder of a run: its best checkpoint, else its last.
        images: an image file or a folder of them, or several. Folders are searched with all folders below them.
        settings: the section `detect` is used, and chips.max_pixels where it was given.
        min_drawn: score from which a detection is drawn on the picture, 0 to 1.
        classes: names of the classes that are wanted; none: all.
        focus_map: draw for each image where the finer scales were searched, and why, as NAME.focus.jpg.
        results: file for all detections in one list, whose suffix decides its form: .json (COCO results), .jsonl or
            .csv. It is written in the end.
        annotations: with `results`, COCO JSON file whose ids they get; None: they name the files.

    Returns:
        What was done; None on every rank but the first.

    Raises:
        UsageError: there is no such file, no image in a folder, settings were given that contradict the checkpoint, it
            knows no class of a name, another process writes to `out`, `focus_map` is wanted and every scale is
            searched whole, or `results` or `annotations` do not fit (see `check_results`, `read_ids`).
        DataError: the checkpoint cannot be read, or is of the RPN alone.
        OutOfMemoryError: the network needs more memory than there is.
    """
    from trainer.runtime.ranks import breakable, from_first, joined  # detection from Python does without

    out = location(out)
    place = _place(results, annotations, out)
    with joined() as rank:
        predictor = Predictor(checkpoint, settings, device=rank.device, classes=classes)
        if focus_map and focus_of(predictor.inference) is None:
            is_off = predictor.inference.options.focus == "off"
            why = "detect.focus is off" if is_off else "the network was not trained with model.focus=true"
            raise UsageError(
                f"detect: there is no focus map, since {why}, so every scale is searched whole; leave out "
                "--focus-map, or give a threshold such as --set detect.focus=0.05"
            )
        files = _listed(images, out)
        ids = None
        if annotations:  # in the first process alone, which writes them and says what is odd about them
            ids = from_first(lambda: read_ids(location(annotations), files, predictor.categories))
        options = predictor.inference.options.model_dump(mode="json", exclude={"threads"})
        made_with = {
            "weights": fingerprint(predictor.inference.model),
            "max_pixels": predictor.inference.chips.max_pixels,
            "detect": options,
            "classes": list(classes),
            **({"focus_map": True} if focus_map else {}),
        }
        writer = open_output(out, files, made_with, min_drawn) if rank.is_first else nullcontext()
        # one process alone may stop within a batch; several end together, each after an image
        with breakable() if rank.count == 1 else nullcontext(), writer as output:
            done = from_first(lambda: output.done if output else 0)
            spans = split_spans(len(files) - done, SMALL_SPAN)
            own = [done + i for span in spans[rank.index :: rank.count] for i in span]
            found = _search(predictor, [files[i] for i in own], focus_map=focus_map)
            with_pictures = (drawn(result, out, i, min_drawn) for i, result in zip(own, found, strict=True))
            for result in with_pictures if rank.count == 1 else _in_rounds(with_pictures, spans, rank):
                assert output is not None  # only the first rank gets any
                output.add(result)
            if place is not None and output is not None:
                write_results(place, output.results(), ids)
        return None if output is None else output.report


def _in_rounds(results: Iterator[Result], spans: Sequence[range], rank: "Rank") -> Iterator[Result]:
    """Yield the results of all ranks on the first one, in the order of the images; all ranks take part.

    Args:
        results: those of this rank: of spans rank.index, rank.index + rank.count and so on.
        spans: the positions of all images, part by part.
        rank: which of the processes this is.

    Raises:
        StoppedError: one of the ranks was asked to stop.
    """
    from trainer.runtime.ranks import gather_to_first, stop_together

    for start in range(0, len(spans), rank.count):
        shares = [len(span) for span in spans[start : start + rank.count]]
        own = list(islice(results, shares[rank.index])) if rank.index < len(shares) else []
        for part in gather_to_first(own, rank):
            yield from part
        stop_together("the results that are done are kept")


def _listed(images: Location | str | Sequence[Location | str], out: Location | None) -> list[Path]:
    """List the images that are to be searched, each once."""
    wanted = [images] if isinstance(images, str | Location) else images
    listed = {file.resolve(): file for path in wanted for file in _files(location(path), out)}
    return list(listed.values())


def _search(predictor: Predictor, files: Sequence[Path], *, focus_map: bool = False) -> Iterator[Result]:
    """Yield the result of each file, in order; with `focus_map` and the views and focus maps under FOCUS."""
    sources, errors, num_several = _measure(files)
    for note in frame_notes(0, num_several):
        log.warning(note)
    ready: dict[int, Result] = {}  # by position among the files; those that wait for an earlier one of their span
    for position, file in enumerate(files):
        if str(file) in errors:
            ready[position] = {"file": str(file), "error": errors[str(file)]}
    searched, following = SearchLog(maps={} if focus_map else None), 0

    def pass_on() -> Iterator[Result]:
        nonlocal following
        for reject in searched.rejects:
            assert reject.id is not None
            message = reject.message.removeprefix(f"{reject.file}: ")
            ready[reject.id] = {"file": reject.file, "error": f"{reject.reason}: {message}"}
        searched.rejects.clear()
        while following in ready:
            yield ready.pop(following)
            following += 1

    with Progress("detect", len(sources), "images") as progress:
        for index, found in predictor.detect_files(sources, Path(), _spans(sources), searched):
            source = sources[index]
            ready[source.image_id] = {
                "file": source.file_name,
                "width": source.width,
                "height": source.height,
                "detections": [
                    _as_dict(box, score, *predictor.categories[label - 1])
                    for box, score, label in zip(*(column.tolist() for column in found), strict=True)
                ],
            }
            if searched.maps is not None:
                ready[source.image_id][FOCUS] = searched.maps.pop(index)
            yield from pass_on()
            progress.add(1)
    yield from pass_on()


def _spans(sources: Sequence[SourceImage]) -> list[range]:
    """Part images into spans by their positions among the files, so that bad files between them change no batch."""
    groups = groupby(range(len(sources)), lambda i: sources[i].image_id // SMALL_SPAN)
    members = [list(group) for _, group in groups]
    return [range(group[0], group[-1] + 1) for group in members]


def _as_dict(box: list[float], score: float, category_id: int, category: str) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": score, "category_id": category_id, "category": category}


def _files(path: Location, out: Location | None) -> list[Path]:
    """Return the image files that a path names, and say what was left out of a folder."""
    if not isinstance(path, Path):
        raise UsageError(f"{path}: detect reads images of this machine; `sniper evaluate` reads them from a store")
    if path.is_dir():
        listing = find_images(path, without=out if isinstance(out, Path) else None)
        for note in listing.notes():
            log.warning("%s: %s", path, note)
        if not listing.images:
            raise UsageError(f"{path}: holds no image; expected names that end in {', '.join(sorted(SUFFIXES))}")
        return listing.images
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    return [path]


def _measure(files: Sequence[Path]) -> tuple[list[SourceImage], dict[str, str], int]:
    """Measure each file in the frame that a viewer shows.

    Returns:
        The files that can be opened, what is wrong with the others by name, and how many hold several pages or frames.
    """
    sources, errors, num_several = [], {}, 0
    for index, path in enumerate(files):
        try:
            size, has_several = measure_image(path)
        except ImageRefusedError as refused:
            errors[str(path)] = f"{refused.reason}: {refused.message}"
        else:
            sources.append(SourceImage(index, str(path), *size))
            num_several += has_several
    return sources, errors, num_several
