"""The folder of `sniper detect --out`: a line and a picture for each image as soon as it is done, at the end one JSON.

`detections.jsonl` has one result a line, in the order of the images, and `0000-NAME.jpg` is the picture that a line
names; `detections.json` holds all results in one list, once all images are done. Until then `.unfinished.json` says
what the run is made with, so that it can be gone on with.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.engines.progress import log
from pipeline.images.decode import ImageRefusedError
from pipeline.storage import Location, atomic_file, explained, files_in, is_file, locked, remove, write_atomic
from schemas.errors import UsageError

LINES, FINAL, RECORD = "detections.jsonl", "detections.json", ".unfinished.json"
FOCUS = "focus"
"""Key of a result under which it takes its views and focus maps along until they are drawn."""
STEM = 100  # bytes of an image's name that its picture has; a file name may have 255 in all
PICTURE = re.compile(r"\d{4,}-.*\.jpg")

Result = dict[str, Any]
"""What was found on an image: see `trainer.inference.detect.detect`."""


class DetectReport(NamedTuple):
    """What was done on the images of a folder of results.

    Attributes:
        num_images: images that were searched, those of an interrupted run included.
        num_detections: what was found on them.
        errors: file and fault of each image that could not be used, or of which no picture could be made.
    """

    num_images: int = 0
    num_detections: int = 0
    errors: tuple[tuple[str, str], ...] = ()


class Output:
    """Takes the results of images in order."""

    def __init__(self, path: Path, done: int) -> None:
        self.done = done
        """Images that an interrupted run has done already, the first ones."""
        self.report = DetectReport()
        """What was done on all images; complete when the folder is closed."""
        self._path = path

    def add(self, result: Result) -> None:
        """Keep the result of the next image.

        Raises:
            DataError: the system refuses to write, as where the disk is full.
        """
        with explained(self._path), self._path.open("ab") as lines:
            lines.write(json.dumps(result).encode() + b"\n")

    def results(self) -> Iterator[Result]:
        """Yield the results of all images so far, those of an interrupted run included."""
        return (result for result, _ in results_in(self._path))


def drawn(result: Result, folder: Location, number: int, min_drawn: float) -> Result:
    """Draw the pictures of a result, where there are detections, and return the result with their names or its fault.

    Args:
        result: of one image.
        folder: takes the picture.
        number: position of the image among all.
        min_drawn: score from which a detection is drawn.
    """
    if "detections" not in result:
        return result
    from trainer.inference.pictures import draw_detections, draw_focus  # where something is drawn

    name = picture_name(number, Path(result["file"]))
    made = {"picture": name}
    seen = result.pop(FOCUS, None)
    try:
        draw_detections(result, folder / name, min_drawn)
        if seen is not None:
            made["focus_picture"] = name.removesuffix(".jpg") + ".focus.jpg"
            draw_focus(result, seen, folder / made["focus_picture"])
    except (OSError, ValueError, UsageError, ImageRefusedError) as error:
        return result | {"error": f"no picture could be made: {error}"}
    return result | made


@contextmanager
def open_output(out: Location, files: Sequence[Path], made_with: Any, min_drawn: float) -> Iterator[Output]:
    """Hold a folder for the results of some images, and write detections.json when the block ends without an error.

    What an interrupted run with the same `made_with` has done stays; what any other run has left is removed, and the
    user is told so.

    Args:
        out: the folder.
        files: the images, in order.
        made_with: what the results depend on beside the images, as JSON knows it.
        min_drawn: score from which a detection is drawn.

    Raises:
        UsageError: another process holds the folder, or it cannot be written.
    """
    with locked(out, "sniper detect"), tempfile.TemporaryDirectory(prefix="sniper-") as temporary:
        here = out if isinstance(out, Path) else Path(temporary)  # a store takes no lines at the end of a file
        record = json.dumps({"made_with": made_with, "min_drawn": min_drawn}).encode()
        done = 0
        if is_file(here / RECORD) and (here / RECORD).read_bytes() == record:
            done = _keep_done(here, files)
        else:
            _remove_earlier(out)
            write_atomic(here / RECORD, record)
        if done:
            log.info("%s: %d of %d images are done already", out, done, len(files))
        (here / LINES).open("ab").close()  # there may be no image
        output = Output(here / LINES, done)
        yield output
        output.report = _write_final(here / LINES, out / FINAL)
        remove(here / RECORD)


def picture_name(index: int, image: Path) -> str:
    """Name the picture of the image at a position."""
    stem = image.stem.encode()[:STEM].decode(errors="ignore")  # without a letter that the cut goes through
    return f"{index:04d}-{stem}.jpg"


def results_in(lines: Path) -> Iterator[tuple[Result, int]]:
    """Yield the results of a file of lines, and where each of them ends, in bytes.

    A line that is broken off, or damaged as by a power cut, ends them.
    """
    end = 0
    with lines.open("rb") as file:
        for line in file:
            end += len(line)
            try:
                result = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n") or not isinstance(result, dict) or "file" not in result:
                return
            yield result, end


def _keep_done(folder: Path, files: Sequence[Path]) -> int:
    """Keep the lines of the first images that are still as they were; return their number."""
    lines = folder / LINES
    if not is_file(lines):
        return 0
    written, kept, end = lines.stat().st_mtime_ns, 0, 0
    for (result, line_end), file in zip(results_in(lines), files, strict=False):
        is_same = result["file"] == str(file) and file.exists() and file.stat().st_mtime_ns <= written
        if not is_same or ("picture" in result and result["picture"] != picture_name(kept, file)):
            break
        kept, end = kept + 1, line_end
    with lines.open("r+b") as opened:
        opened.truncate(end)
    return kept


def _remove_earlier(out: Location) -> None:
    """Remove the results of an earlier run, and tell of it and of pictures that may be of one."""
    removed = 0
    if isinstance(out, Path) and is_file(out / LINES):
        for result, _ in results_in(out / LINES):
            for name in (result[kind] for kind in ("picture", "focus_picture") if kind in result):
                remove(out / name)
                removed += 1
        log.warning("%s: the results of an earlier run were removed, with %d pictures", out, removed)
    for name in (LINES, FINAL):
        remove(out / name)
    if others := [path.name for path in files_in(out, "*.jpg") if PICTURE.fullmatch(path.name)]:
        log.warning(
            "%s: holds %d pictures that are not of this run, such as %s; remove them or choose another --out",
            out,
            len(others),
            others[0],
        )


def _write_final(lines: Path, path: Location) -> DetectReport:
    """Write all results as one JSON list, whole or not at all, and count them."""
    num_images, num_detections, errors = 0, 0, []
    with lines.open("rb") as source, atomic_file(path) as file:
        file.write(b"[\n")
        for number, line in enumerate(source):
            file.write((b",\n" if number else b"") + line.rstrip(b"\n"))
            result = json.loads(line)
            num_images += "detections" in result
            num_detections += len(result.get("detections", ()))
            if "error" in result:
                errors.append((result["file"], result["error"]))
        file.write(b"\n]\n")
    return DetectReport(num_images, num_detections, tuple(errors))
