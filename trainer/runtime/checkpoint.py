"""Checkpoints: everything a run needs to go on as if it had never stopped. Whole, or not there."""

import copy
import hashlib
import io
import re
from collections.abc import Mapping
from typing import IO, Any, NamedTuple, cast

import msgspec
import torch

from pipeline.engines.progress import log
from pipeline.storage import (
    HashingFile,
    Location,
    atomic_file,
    files_in,
    is_file,
    is_folder,
    read_bytes,
    remove,
    write_atomic,
)
from schemas.errors import DataError, MissingError
from schemas.settings import ModelSettings, Norm, Precision
from trainer.model import Detector

FORMAT = 2
BEST = "best.pt"
"""The checkpoint with the highest AP of a run that validates."""
SCORES = "scores.json"
"""What the validations of a run found. It tells how the best checkpoint came to be the best."""


SEAL = b"\nsniper-sha256 "
"""Stands behind the bytes that torch wrote, before their SHA-256 in hex. torch and zip readers do not mind it."""


class DamagedError(DataError):
    """A file is not as it was written."""


class Checkpoint(NamedTuple):
    """The contents of a checkpoint file, all of it tensors, numbers, strings, lists and dicts.

    Attributes:
        model: state of the Detector.
        ema: the same of the average of weights; None where the run keeps none.
        optimizer, scaler: their state dicts.
        step: optimiser steps done.
        loader: seed, epoch and position of the next chip.
        settings: section -> key -> value, as given.
        norm, precision: what was chosen where the settings leave it open.
        rpn_only: whether the run trained nothing behind the RPN.
        categories: (source id, name) of the classes by label from 1.
        chips: settings that the data set was made with.
        data: fingerprints of the builds that were trained on, by "positives" and "negatives".
        best_ap: highest AP of the validations so far; -1 where there was none.
        schedule: what Schedule.kept gives; None in checkpoints of before there were schedules.
    """

    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor] | None
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    step: int
    loader: tuple[int, int, int]
    settings: dict[str, dict[str, Any]]
    norm: Norm
    precision: Precision
    rpn_only: bool
    categories: list[tuple[int, str]]
    chips: dict[str, Any]
    data: dict[str, str]
    best_ap: float
    schedule: dict[str, Any] | None = None


def on_host(checkpoint: Checkpoint) -> Checkpoint:
    """Copy the tensors of a checkpoint to the host's memory, so that they stay as they are when the run goes on.

    A file made from the copy has the same content, on a CPU byte for byte.
    """
    return Checkpoint(*map(_on_host, checkpoint))


def _on_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # of the same type: the state of a module has its versions as an attribute
        copied.update({key: _on_host(inner) for key, inner in value.items()})
        return copied
    return [_on_host(inner) for inner in value] if isinstance(value, list) else value


def save_checkpoint(folder: Location, checkpoint: Checkpoint, keep: int) -> Location:
    """Write folder/step-N.pt, whole or not at all, then delete what `kept_steps` does not keep.

    Those of later steps go, too: the run was resumed from before them, since they are damaged.
    """
    path = checkpoint_path(folder, checkpoint.step)
    write_checkpoint(path, checkpoint)
    there = {int(other.stem.removeprefix("step-")): other for other in find_checkpoints(folder)}
    for step in there.keys() - kept_steps([step for step in there if step <= checkpoint.step], keep):
        remove(there[step])
    return path


def kept_steps(steps: list[int], keep: int) -> set[int]:
    """Choose the checkpoints of a run that stay: the last ones, and one or two from well before.

    Where losses begin to rise long before anyone looks, the last ones are all spoilt. So beside them stay the newest
    from the first half of the run so far, and the oldest after it, which follows when the run is longer.

    Args:
        steps: of the checkpoints that are there, ascending.
        keep: how many of the last ones stay; with 1 no other stays.
    """
    last, before = steps[-keep:], steps[:-keep]
    if keep == 1:
        return set(last)
    half = steps[-1] / 2
    return {*last, *[step for step in before if step <= half][-1:], *[step for step in before if step > half][:1]}


def checkpoint_path(folder: Location, step: int) -> Location:
    """Return where a run's checkpoint of a step lies."""
    return folder / f"step-{step:08d}.pt"


def write_checkpoint(path: Location, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole or not at all, with the SHA-256 of its bytes behind them.

    Raises:
        DataError: the system refuses to write, as on a full disk.
    """
    with atomic_file(path) as file:
        hashing = _TellingFile(file)
        try:
            torch.save({"format": FORMAT, **checkpoint._asdict()}, cast(IO[bytes], hashing))
        except RuntimeError as error:
            raise hashing.refused or error from None
        file.write(SEAL + hashing.hexdigest().encode())


class _TellingFile(HashingFile):
    """Remembers why it could not be written: torch goes on and ends with an error of its own, which does not say."""

    refused: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.refused = error
            raise


def find_checkpoints(folder: Location) -> list[Location]:
    """List a run's checkpoints, oldest first."""
    return [path for path in files_in(folder, "step-*.pt") if re.fullmatch(r"step-\d{8,}\.pt", path.name)]


def chosen_file(path: Location) -> Location:
    """Return the file that a path stands for: itself, or of a run's folder the best checkpoint, else the last."""
    if not is_folder(path):
        return path
    return next((p for p in [path / BEST, *reversed(find_checkpoints(path))] if is_file(p)), path / "step-*.pt")


def read_checkpoint(path: Location) -> Checkpoint:
    """Read a checkpoint, of a run's folder the best or else the last one; nothing in it is executed.

    Raises:
        DataError: there is none, or it is no checkpoint of ours.
    """
    path = chosen_file(path)
    return as_checkpoint(path, read_content(path))


def read_content(path: Location) -> Any:
    """Read a file that torch has saved, ours or another one; nothing in it is executed.

    Raises:
        DamagedError: the file is not as it was written, or torch cannot read it.
        DataError: there is no such file.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such checkpoint; `sniper train --out DIR` writes DIR/step-*.pt") from error
    size = len(data) - len(SEAL) - 64
    is_sealed = data[:-64].endswith(SEAL)
    if is_sealed and hashlib.sha256(memoryview(data)[:size]).hexdigest().encode() != data[-64:]:
        raise DamagedError(
            f"{path}: is damaged: its bytes have another SHA-256 than when it was written; take another checkpoint of "
            "the run, or a copy of this one"
        )
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever its unpickler meets
        raise DamagedError(
            f"{path}: is not a checkpoint of `sniper train`, nor a file of weights that torch can read safely, or it "
            f"is damaged ({type(error).__name__}); give a step-N.pt or best.pt of a run, or the folder of the run"
        ) from error
    if not is_sealed and isinstance(content, dict) and "format" in content:
        log.info(f"{path}: was written by an earlier version, without a hash; damage in it would not be noticed")
    return content


def as_checkpoint(path: Location, content: Any) -> Checkpoint:
    """Check that the content of a file is a checkpoint of ours.

    Raises:
        DataError: it is not, or it is one of another version.
    """
    if not isinstance(content, dict) or "format" not in content:
        raise DataError(f"{path}: is not a checkpoint of `sniper train`; weights of others serve as train.weights")
    found = content.keys() - {"format"}
    needed = set(Checkpoint._fields) - set(Checkpoint._field_defaults)
    if content["format"] != FORMAT or not needed <= found <= set(Checkpoint._fields):
        raise DataError(f"{path}: is a checkpoint of another version of this program; train anew")
    return Checkpoint(**{name: content[name] for name in found})


def read_last(folder: Location) -> Checkpoint | None:
    """Read the last sound checkpoint of a run, and say which damaged ones are passed over.

    Returns:
        None where the folder holds none.

    Raises:
        DamagedError: all of them are damaged.
        DataError: one is of another version of this program.
    """
    error = None
    for path in reversed(find_checkpoints(folder)):
        try:
            return read_checkpoint(path)
        except DamagedError as damaged:
            error = damaged
            log.warning(f"WARNING: {damaged}. It is passed over, for the one before")
    if error is not None:
        raise DamagedError(f"{folder}: every checkpoint is damaged; move the folder away to start anew") from error
    return None


def make_detector(checkpoint: Checkpoint) -> Detector:
    """Make the network of a checkpoint, with its average of weights where it has one."""
    settings = ModelSettings.model_validate(checkpoint.settings["model"])
    model = Detector(settings, len(checkpoint.categories), checkpoint.chips["size"])
    model.load_state_dict(checkpoint.ema or checkpoint.model)
    return model


def refuse_not_finite(origin: str, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse numbers of a network that would find nothing and learn nothing.

    Args:
        origin: where they come from, for the message.
        state: tensors by their names.

    Raises:
        DataError: some of them are NaN or infinite.
    """
    if odd := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise DataError(
            f"{origin}: {len(odd)} tensors hold values that are NaN or infinite, first {odd[0]}: that training had "
            "gone astray; choose a checkpoint from before, or another one"
        )


class Score(msgspec.Struct, frozen=True):
    """One validation: the AP after `step` optimiser steps and `epoch` passes; None where COCO gives none."""

    step: int
    epoch: int
    ap: float | None


def read_scores(run: Location) -> list[Score]:
    """Read the validations of a run, in the order of their steps; none where the run was never validated.

    Raises:
        DataError: the file is damaged.
    """
    path = run / SCORES
    if not is_file(path):
        return []
    try:
        return msgspec.json.decode(read_bytes(path), type=list[Score])
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: is damaged ({error}); delete it, and validations are made again") from error


def write_scores(run: Location, scores: list[Score]) -> None:
    """Write the validations of a run."""
    write_atomic(run / SCORES, msgspec.json.encode(scores))


def best_ap(scores: list[Score]) -> float:
    """Return the highest AP of some validations; -1 where there is none."""
    return max((score.ap for score in scores if score.ap is not None), default=-1.0)


def origin(path: Location, checkpoint: Checkpoint) -> str:
    """Say in one or two sentences which step of its run a checkpoint is, and how it came to be chosen.

    Args:
        path: file of the checkpoint.
        checkpoint: what the file holds.
    """
    done = f"step {checkpoint.step:,}, {checkpoint.loader[1]} of {checkpoint.settings['train']['epochs']} epochs done"
    if path.name != BEST:
        return f"{path}: {done}"
    scores = read_scores(path.parent)
    text = f"{path}: {done}; its AP of {checkpoint.best_ap:.3f} is the highest of {max(1, len(scores))} validations"
    steps = [int(other.stem.removeprefix("step-")) for other in find_checkpoints(path.parent)]
    if not steps or steps[-1] <= checkpoint.step:
        return text
    later = [score for score in scores if score.step == steps[-1]]
    if later and later[0].ap is not None:
        return f"{text}; the last checkpoint, of step {steps[-1]:,}, has {later[0].ap:.3f}"
    return (
        f"{text}. WARNING: the last checkpoint, of step {steps[-1]:,}, was never validated and may be better: name "
        "its file, or go on with `sniper train --resume` and validation data"
    )
