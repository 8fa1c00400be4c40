"""What the log of a run tells: losses, rate and speed over the steps, and the scores of each validation."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from pipeline.storage import Location, is_file, read_bytes
from schemas.errors import DataError

LOG = "log.jsonl"
POINTS = 300  # of a curve: more records are averaged
OF_CLASS = re.compile(r"(AP|AP50)\[(.*)\]", re.DOTALL)  # a name may hold a line break

Record = dict[str, Any]


def holds_run(folder: Location) -> bool:
    """Tell whether a folder is that of a training run."""
    return is_file(folder / LOG)


def read_history(run: Location) -> dict[str, Any]:
    """Read the log of a run.

    Returns:
        steps: rows of step, epoch, loss, each of its terms, lr, chips_per_s and data_wait, averaged to at most POINTS.
        validations: rows of step, epoch and the scores of COCO's summary that are no class's.
        classes: class -> rows of step, epoch, AP and AP50.

    Raises:
        DataError: the log has no record that can be read.
    """
    records = [record for line in read_bytes(run / LOG).decode().splitlines() if (record := _parsed(line))]
    training = [record for record in records if "loss" in record]
    validations = [record for record in records if "AP" in record or "AP50" in record]
    if not training and not validations:
        raise DataError(
            f"{run / LOG}: has no record of a step; a run writes one every train.log_every steps, so wait for the "
            "first, or give the folder of another run of `sniper train`"
        )
    classes: dict[str, list[Record]] = {}
    for record in validations:
        of_class: dict[str, Record] = {}
        for name, value in record.items():
            if matched := OF_CLASS.fullmatch(name):
                of_class.setdefault(matched[2], {"step": record["step"], "epoch": record["epoch"]})[matched[1]] = value
        for name, row in of_class.items():
            classes.setdefault(name, []).append(row)
    whole = [{name: value for name, value in record.items() if "[" not in name} for record in validations]
    return {"steps": _averaged(training), "validations": whole, "classes": classes}


def _parsed(line: str) -> Record | None:
    """Return the record of a line; None for one that a crash has cut."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "step" in record else None


def _averaged(records: Sequence[Record]) -> list[Record]:
    """Average neighbouring records, so that at most POINTS are left; the last step of each group names it."""
    size = -(-len(records) // POINTS) or 1
    groups = [records[start : start + size] for start in range(0, len(records), size)]
    return [
        {
            name: group[-1][name] if name in ("step", "epoch") else sum(r.get(name, 0.0) for r in group) / len(group)
            for name in group[-1]
            if isinstance(group[-1][name], int | float) and all(math.isfinite(r.get(name, 0.0)) for r in group)
        }
        for group in groups
    ]
