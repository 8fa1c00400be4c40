"""run.json: what a finished build says of itself. A folder without one is not finished."""

import json
from typing import Any

from pipeline.storage import Location, read_bytes
from schemas.errors import DataError

NAME = "run.json"
CONTENT = ("fingerprint", "num_shards", "settings", "files", "counts")


def read_run(folder: Location, command: str) -> dict[str, Any]:
    """The content of folder/run.json, as pipeline.chips.finish_run writes it.

    Args:
        command: what makes it, such as `sniper chips`.

    Raises:
        DataError: it is missing or damaged. OSError: it cannot be read.
    """
    path = folder / NAME
    try:
        run: dict[str, Any] = json.loads(read_bytes(path))
        absent = [name for name in CONTENT if name not in run]
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing: no finished chips here, or unfinished; run `{command}`") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({error}); run `{command}` again") from error
    if absent:
        raise DataError(f"{path}: is damaged (has no {', '.join(absent)}); run `{command}` again")
    return run
