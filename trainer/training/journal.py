"""What a run tells while it goes: a progress line, JSON lines, TensorBoard, pictures. Rank 0 only."""

import io
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from pipeline.storage import Location, is_file, make_folder, read_bytes, write_atomic
from schemas.codes import Status
from schemas.errors import UsageError
from trainer.loading.batch import Batch
from trainer.model import RawDetections

PICTURED = 8  # chips of a training picture
SHOWN_SCORE = 0.3


class Journal:
    """Writes RUN/log.jsonl and prints a line for each record; with `tensorboard` also RUN/tensorboard/."""

    def __init__(self, out: Location, first_step: int, *, tensorboard: bool) -> None:
        """Go on behind `first_step`: records of later steps, from before a crash, are dropped."""
        self._path = out / "log.jsonl"
        lines = read_bytes(self._path).decode().splitlines() if is_file(self._path) else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line).get("step", 0) <= first_step]
        self._text = "".join(f"{line}\n" for line in kept)
        write_atomic(self._path, self._text.encode())
        self._board: Any = None
        if tensorboard:
            if not isinstance(out, Path):
                raise UsageError(f"{out}: train.tensorboard writes to local folders alone; choose another --out")
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UsageError("train.tensorboard needs: pip install tensorboard") from error
            self._board = SummaryWriter(str(out / "tensorboard"))

    def record(self, step: int, values: dict[str, float]) -> None:
        line = json.dumps({"step": step, **values}) + "\n"
        if isinstance(self._path, Path):
            with self._path.open("a") as file:
                file.write(line)
        else:
            self._text += line
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def put(self) -> None:
        """Bring the log to an object store, which does not append; with each checkpoint is often enough."""
        if not isinstance(self._path, Path):
            write_atomic(self._path, self._text.encode())


class Meter:
    """Losses, rate and waiting time since the last record."""

    def __init__(self, num_steps: int, device: torch.device) -> None:
        """num_steps: of the whole run, from here on."""
        self._num_steps, self._device = num_steps, device
        self._steps_done = 0
        self._started = time.perf_counter()
        self._reset()

    def _reset(self) -> None:
        self._since = time.perf_counter()
        self._steps, self._chips, self._waited = 0, 0, 0.0
        self._losses: dict[str, float] = {}

    def add(self, losses: dict[str, float], num_chips: int, waited: float) -> None:
        self._steps += 1
        self._steps_done += 1
        self._chips += num_chips
        self._waited += waited
        for name, value in losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """Means since the last call: loss parts, chips/s, share of time waiting for data, seconds left, memory."""
        now = time.perf_counter()
        seconds = now - self._since
        losses = {name: value / self._steps for name, value in self._losses.items()}
        left = (now - self._started) / self._steps_done * (self._num_steps - self._steps_done)
        values = {"loss": sum(losses.values()), **losses, "chips_per_s": self._chips / seconds}
        values |= {"data_wait": self._waited / seconds, "seconds_left": left, "memory_gb": _memory(self._device)}
        self._reset()
        return values


def _memory(device: torch.device) -> float:
    """Peak of this process, GB: of the GPU's memory where it trains on one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def progress_line(epoch: int, step: int, values: dict[str, float]) -> str:
    parts = " ".join(f"{name} {values[name]:.3f}" for name in values if name.startswith(("rpn_", "roi_")))
    minutes = values["seconds_left"] / 60
    return (
        f"epoch {epoch} step {step}: loss {values['loss']:.3f} ({parts}) lr {values['lr']:.2e} "
        f"{values['chips_per_s']:.1f} chips/s, waiting {values['data_wait']:.0%}, "
        f"{values['memory_gb']:.1f} GB, {minutes:.0f} min left"
    )


def draw_batch(path: Location, batch: Batch, found: list[RawDetections]) -> None:
    """Chips side by side: boxes that are targets in green, other boxes in grey, detections in orange with scores."""
    count = min(PICTURED, len(batch))
    side = batch.images.shape[2]
    images, offsets = batch.images[:count].permute(0, 2, 3, 1).cpu(), batch.offsets.tolist()
    boxes, statuses = batch.boxes.tolist(), batch.status.tolist()
    sheet = Image.new("RGB", (side * min(4, max(count, 1)), side * max(1, -(-count // 4))))
    for i in range(count):
        tile = Image.fromarray(images[i].contiguous().numpy())
        draw = ImageDraw.Draw(tile)
        for box, status in list(zip(boxes, statuses, strict=True))[offsets[i] : offsets[i + 1]]:
            is_target = status in (Status.VALID, Status.RESCUED)
            draw.rectangle(box, outline="#35d04f" if is_target else "#b0b0b0", width=2 if is_target else 1)
        for box, score, label in zip(*(values.tolist() for values in found[i]), strict=True):
            if score >= SHOWN_SCORE:
                draw.rectangle(box, outline="#ff8c1a")
                draw.text((box[0] + 2, box[1]), f"{label} {score:.2f}", fill="#ff8c1a")
        sheet.paste(tile, (i % 4 * side, i // 4 * side))
    make_folder(path.parent)
    picture = io.BytesIO()
    sheet.save(picture, "PNG")
    write_atomic(path, picture.getvalue())
