"""`sniper detect`: boxes on whole images of any size, from all scales, as one list per image."""

import io
import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from upath import UPath

from pipeline.coco import SourceImage
from pipeline.engines.progress import Progress
from pipeline.images.chip import Large, cut_chip
from pipeline.images.decode import ImageRefusedError, open_image
from pipeline.images.sources import SUFFIXES, Findings, find_images, frame_notes, open_sources
from pipeline.pyramid.merging import Detections, merge
from pipeline.storage import Location, location, make_folder, write_atomic
from schemas.codes import Reason
from schemas.errors import UsageError
from schemas.settings import Settings
from trainer.inference.batches import SearchLog, run_views, split_spans
from trainer.inference.opening import Inference, open_detector
from trainer.model import predict

LOG = logging.getLogger("sniper")
SPAN = 8  # images whose views share batches; few, so that results come soon
LARGEST_DRAWN = 4096  # pixels of the longer side of the picture of a large image
STEM = 100  # characters of an image's name that its picture has


def detect_images(
    inference: Inference, spans: Sequence[range], images: Sequence[SourceImage], root: Location, log: SearchLog
) -> Iterator[tuple[int, Detections]]:
    """Detect on some images at all scales.

    Args:
        inference: the network, and how it is run.
        spans: positions among `images`; views of images of one span share batches.
        images: what can be searched.
        root: folder that their file names are relative to.
        log: takes the times and, once the iterator is exhausted, a row for each refused image.

    Yields:
        For each image of the spans that can be read its position among `images` and its merged detections.
    """
    options, bounds = inference.options, inference.chips.bounds()
    forward = partial(predict, min_score=options.min_score)
    for viewed in run_views(forward, inference, spans, images, root, log):
        if viewed.views:
            yield viewed.image, merge(viewed, images[viewed.image], bounds, options)


def detect(
    checkpoint: Location | str,
    images: Location | str | Sequence[Location | str],
    settings: Settings | None = None,
    *,
    out: Location | str | None = None,
    min_drawn: float = 0.3,
) -> list[dict[str, Any]]:
    """Detect on image files of this machine, and folders of them.

    Args:
        checkpoint: a checkpoint file, or the folder of a run: its best checkpoint, else its last.
        images: an image file or a folder of them, or several. Folders are searched with all folders below them.
        settings: the section `detect` is used, and chips.max_pixels where it was given.
        out: folder for detections.json and a picture of each image. What lies in it is not searched.
        min_drawn: score from which a detection is drawn on the picture, 0 to 1.

    Returns:
        For each image {"file", "width", "height", "detections": [{"bbox": [x, y, width, height], "score",
        "category_id", "category"}]}, boxes in source pixels, best first; {"file", "error"} where a file cannot be
        used. An image of which no picture could be made has an "error" beside its detections.

    Raises:
        UsageError: there is no such file, or no image in a folder, or settings were given that contradict the
            checkpoint.
        DataError: the checkpoint cannot be read, or is of the RPN alone.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state, inference = open_detector(location(checkpoint), settings or Settings(), device)
    out = None if out is None else location(out)
    wanted = [images] if isinstance(images, str | Path | UPath) else images
    searched = [_files(location(path), out) for path in wanted]
    files = [file for found, _ in searched for file in found]
    if out is not None:
        make_folder(out)
    sources, errors, num_several = _measure(files)
    notes = frame_notes(0, num_several)
    if num_litter := sum(count for _, count in searched):
        notes.append(f"{num_litter:,} files of systems and editors (such as ._a.jpg or in @eaDir) were skipped")
    for note in notes:
        LOG.warning(note)
    log = SearchLog()
    results: dict[str, dict[str, Any]] = {file: {"file": file, "error": error} for file, error in errors.items()}
    with Progress("detect", len(sources), "images") as progress:
        for position, found in detect_images(inference, split_spans(len(sources), SPAN), sources, Path(), log):
            source = sources[position]
            rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
            named = [_as_dict(box, score, *state.categories[label - 1]) for box, score, label in rows]
            size = {"width": source.width, "height": source.height}
            results[source.file_name] = {"file": source.file_name, **size, "detections": named}
            progress.add(1)
    for reject in log.rejects:
        results[reject.file or ""] = {"file": reject.file, "error": f"{reject.reason}: {reject.message}"}
    in_order = [results[str(file)] for file in files]
    if out is not None:
        for index, result in enumerate(in_order):
            if "detections" in result:
                try:
                    _draw(result, out / f"{index:04d}-{Path(result['file']).stem[:STEM]}.jpg", min_drawn)
                except (OSError, ValueError) as error:
                    result["error"] = f"no picture could be made: {error}"
        write_atomic(out / "detections.json", json.dumps(in_order, indent=1).encode())
    return in_order


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


def _draw(result: dict[str, Any], path: Location, min_score: float) -> None:
    from pipeline.images.drawing import CLASS_COLORS, draw_label  # for pictures alone

    source = SourceImage(0, result["file"], result["width"], result["height"])
    findings = Findings()
    _, _, found = next(open_sources(Path(), [source], source.width * source.height, findings, thorough=False))
    if found is None:
        raise ValueError(findings.rejects[0].message)
    zoom = 1.0
    if isinstance(found, Large):
        zoom = LARGEST_DRAWN / max(source.width, source.height)
        size = max(1, int(source.width * zoom)), max(1, int(source.height * zoom))
        picture = Image.fromarray(cut_chip(found, (0, 0, source.width, source.height), zoom, *size))
    else:
        picture = found.convert("RGB")
    draw = ImageDraw.Draw(picture)
    line = max(2, max(picture.size) // 400)
    height = max(12, max(picture.size) // 80)
    for detection in reversed(result["detections"]):
        if detection["score"] >= min_score:
            x, y, w, h = (zoom * side for side in detection["bbox"])
            color = CLASS_COLORS[detection["category_id"] % len(CLASS_COLORS)]
            draw.rectangle((x, y, x + w, y + h), outline=color, width=line)
            label = f"{detection['category']} {detection['score']:.2f}"
            # above the box, since many are smaller than their label
            draw_label(draw, (x, y - line), label, color, height, above=True)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=90)
    write_atomic(path, encoded.getvalue())
