"""What the first rank of a run writes down while it goes: a log, a progress line and pictures."""

import io
import json
import math
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from pipeline.engines.progress import log
from pipeline.images.drawing import DETECTION_COLOR, STATUS_COLORS, draw_label
from pipeline.storage import Location, is_file, make_folder, read_bytes, write_atomic
from schemas.codes import TARGETS
from schemas.errors import DataError, UsageError
from schemas.wording import duration
from trainer.loading.batch import Batch
from trainer.model import RawDetections

PICTURED = 8  # chips of a training picture
SHOWN_SCORE = 0.3


class Journal:
    """Writes the records of a run to RUN/log.jsonl and, where asked for, to RUN/tensorboard/."""

    def __init__(self, out: Location, first_step: int, *, tensorboard: bool, warned: set[str]) -> None:
        """Open the log of a run and drop the records of steps that will be made again.

        Args:
            out: folder of the run.
            first_step: optimiser steps done so far; records of later ones, from before a crash, are dropped.
            tensorboard: write the same values for TensorBoard, too.
            warned: what could not be written so far, so that each is said once.

        Raises:
            UsageError: TensorBoard is not installed, or the folder is no local one.
        """
        self._path = out / "log.jsonl"
        self._warned, self._is_torn = warned, False
        lines = read_bytes(self._path).decode().splitlines() if is_file(self._path) else []
        self._text = "".join(f"{line}\n" for line in lines if _step_of(line) <= first_step)
        with auxiliary("the log", warned):
            write_atomic(self._path, self._text.encode())
        self._board: Any = None
        if tensorboard:
            if not isinstance(out, Path):
                raise UsageError(f"{out}: train.tensorboard writes to local folders alone; choose another --out")
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UsageError("train.tensorboard needs: pip install tensorboard") from error
            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=first_step + 1)

    def record(self, step: int, values: dict[str, Any]) -> None:
        """Append one record, the values after `step` optimiser steps."""
        line = json.dumps({"step": step, **values}) + "\n"
        if isinstance(self._path, Path):
            with auxiliary("the log", self._warned):
                torn, self._is_torn = self._is_torn, True
                with self._path.open("a") as file:
                    file.write("\n" * torn + line)
                self._is_torn = False
        else:
            self._text += line
        if self._board is not None:
            with auxiliary("TensorBoard's files", self._warned):
                for name, value in values.items():
                    if isinstance(value, int | float):
                        self._board.add_scalar(name, value, step)

    def put(self) -> None:
        """Bring the log to an object store, which cannot append, and to TensorBoard. Once a checkpoint is enough."""
        if self._board is not None:
            with auxiliary("TensorBoard's files", self._warned):
                self._board.flush()
        if not isinstance(self._path, Path):
            with auxiliary("the log", self._warned):
                write_atomic(self._path, self._text.encode())


@contextmanager
def auxiliary(what: str, warned: set[str]) -> Iterator[None]:
    """Write something that the training can do without: where that fails, warn once and go on.

    Args:
        what: is written, for the warning.
        warned: what has failed so far.
    """
    try:
        yield
    except (OSError, DataError) as error:
        if what not in warned:
            warned.add(what)
            log.warning("WARNING: %s cannot be written, and the training goes on without: %s", what, error)


def _step_of(line: str) -> float:
    """Return the step of a record, or infinity for a line that a crash or a full disk has cut."""
    try:
        return float(json.loads(line).get("step", 0))
    except (ValueError, AttributeError):
        return math.inf


class Meter:
    """Adds up losses, chips and waiting time since the last record."""

    def __init__(self, num_steps: int, device: torch.device) -> None:
        """Start the clock; `num_steps` is the number of steps from here to the end of the run."""
        self._num_steps, self._device = num_steps, device
        self._steps_done = 0
        self._started = time.perf_counter()
        self._reset()

    def _reset(self) -> None:
        self._since = time.perf_counter()
        self._steps, self._chips, self._waited = 0, 0, 0.0
        self._losses: dict[str, float] = {}

    def add(self, losses: dict[str, float], num_chips: int, waited: float) -> None:
        """Count one step: its loss terms, its chips of all ranks, and the seconds it waited for data."""
        self._steps += 1
        self._steps_done += 1
        self._chips += num_chips
        self._waited += waited
        for name, value in losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + value

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time that a block takes, such as a validation, out of all that is counted."""
        began = time.perf_counter()
        yield
        taken = time.perf_counter() - began
        self._since += taken
        self._started += taken

    def take(self) -> dict[str, float]:
        """Return the means since the last call, and begin anew.

        Returns:
            loss and each of its terms, chips_per_s of all ranks, data_wait as a share of the time, seconds_left to
            the end of the run without validations, and memory_gb, the peak of this process.
        """
        now = time.perf_counter()
        seconds = now - self._since
        losses = {name: value / self._steps for name, value in self._losses.items()}
        left = (now - self._started) / self._steps_done * (self._num_steps - self._steps_done)
        values = {"loss": sum(losses.values()), **losses, "chips_per_s": self._chips / seconds}
        values |= {"data_wait": self._waited / seconds, "seconds_left": left, "memory_gb": _memory(self._device)}
        self._reset()
        return values


def _memory(device: torch.device) -> float:
    """Return this process's peak use of the GPU's memory, or of the machine's where it has no GPU, in 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def progress_line(epoch: int, step: int, values: dict[str, float]) -> str:
    """Write a record, as `Meter.take` gives it with the rate as lr, in one line for a person."""
    terms = " ".join(f"{name} {values[name]:.3f}" for name in values if name.startswith(("rpn_", "roi_", "focus")))
    return (
        f"epoch {epoch} step {step}: loss {values['loss']:.3f} ({terms}) lr {values['lr']:.2e} "
        f"{values['chips_per_s']:.1f} chips/s, waiting {values['data_wait']:.0%}, "
        f"{values['memory_gb']:.1f} GB, {duration(values['seconds_left'])} of training left"
    )


def pass_line(index: int, passes: int, seconds: float, steps: int) -> str:
    """Say how long a forward and backward pass of the first step took, and so about the whole run.

    Args:
        index: number of the pass in its step, from 0.
        passes: in a step.
        seconds: that this one took.
        steps: of the whole run, from here on.
    """
    whole = duration(seconds * passes * steps)
    return f"first step, pass {index + 1} of {passes}: {seconds:.1f} s, so the run takes about {whole}"


def draw_batch(path: Location, batch: Batch, found: list[RawDetections], names: Sequence[str]) -> None:
    """Draw the first chips of a batch side by side.

    Boxes that are targets are green, other boxes grey, and detections orange with class and score.

    Args:
        path: PNG file to write.
        batch: chips with their boxes, in chip pixels.
        found: what the network finds in each of the first PICTURED chips, in chip pixels.
        names: the names of the classes, that of label 1 first.
    """
    count = min(PICTURED, len(batch))
    side = batch.images.shape[2]
    images, offsets = batch.images[:count].permute(0, 2, 3, 1).cpu(), batch.offsets.tolist()
    boxes, statuses = batch.boxes.tolist(), batch.status.tolist()
    sheet = Image.new("RGB", (side * min(4, max(count, 1)), side * max(1, -(-count // 4))))
    for i in range(count):
        tile = Image.fromarray(images[i].contiguous().numpy())
        draw = ImageDraw.Draw(tile)
        for box, status in list(zip(boxes, statuses, strict=True))[offsets[i] : offsets[i + 1]]:
            is_target = status in TARGETS
            draw.rectangle(box, outline=STATUS_COLORS["valid" if is_target else "ignore"], width=2 if is_target else 1)
        for box, score, label in zip(*(values.tolist() for values in found[i]), strict=True):
            if score >= SHOWN_SCORE:
                draw.rectangle(box, outline=DETECTION_COLOR)
                draw_label(draw, (box[0] + 2, box[1]), f"{names[label - 1]} {score:.2f}", DETECTION_COLOR, 12)
        sheet.paste(tile, (i % 4 * side, i // 4 * side))
    make_folder(path.parent)
    picture = io.BytesIO()
    sheet.save(picture, "PNG")
    write_atomic(path, picture.getvalue())
