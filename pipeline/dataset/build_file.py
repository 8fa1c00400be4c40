"""run.json: what a finished build says of itself. A folder without one is not finished."""

import hashlib
import json
from typing import Any

import msgspec

from pipeline import __version__
from pipeline.images.chip import codec
from pipeline.storage import Location, is_file, is_folder, read_bytes, write_atomic
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings
from schemas.settings.section import contradictions
from schemas.tables import FORMAT_VERSION

NAME = "run.json"
POSITIVES, NEGATIVES = "positives", "negatives"
COMMANDS = {POSITIVES: "sniper chips", NEGATIVES: "sniper negatives"}
"""What makes the shards of each folder."""


def command_for(path: Location) -> str:
    """Return the command that makes a file of a data set, such as `sniper negatives` for one in OUT/negatives."""
    return COMMANDS.get(path.parent.name, COMMANDS[POSITIVES])


CONTENT = ("fingerprint", "num_shards", "settings", "files", "counts")
PLACES = ("images", "proposals")
"""Where things were: may differ between builds that are otherwise the same."""


def write_build(
    path: Location,
    shards: list[str],
    settings: dict[str, Any],
    files: dict[str, str],
    counts: dict[str, Any],
    **more: Any,
) -> None:
    """Write run.json, last of all, unless it is there already.

    Args:
        shards: their fingerprints, in order; run.json says them only together, since each shard carries its own.
        settings: by section; files: name -> SHA-256 of the ledgers that stand beside it.
        more: what else the build was made from, and the PLACES.
    """
    content: dict[str, Any] = {
        "settings": settings,
        "versions": {"sniper-chips": __version__, "format": FORMAT_VERSION, **codec()._asdict()},
        "num_shards": len(shards),
        "files": files,
        "counts": counts,
        **more,
    }
    build = {"fingerprint": build_fingerprint(content, shards), **content}
    data = msgspec.json.format(msgspec.json.encode(build), indent=2) + b"\n"
    if not is_file(path) or read_bytes(path) != data:
        write_atomic(path, data)


def build_fingerprint(content: dict[str, Any], shards: list[str]) -> str:
    """SHA-256, hex, over what run.json says, but for itself and PLACES, and its shards' fingerprints."""
    said = {name: value for name, value in content.items() if name not in ("fingerprint", *PLACES)}
    return hashlib.sha256(msgspec.json.encode({**said, "shards": shards}, order="sorted")).hexdigest()


def read_build(folder: Location, command: str) -> dict[str, Any]:
    """The content of folder/run.json, as write_build writes it.

    Args:
        command: what makes it, such as `sniper chips`.

    Raises:
        DataError: it is missing or damaged. OSError: it cannot be read.
    """
    path = folder / NAME
    try:
        build: dict[str, Any] = json.loads(read_bytes(path))
        absent = [name for name in CONTENT if name not in build]
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing: no finished chips here, or unfinished; run `{command}`") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({error}); delete it and run `{command}`") from error
    if absent:
        raise DataError(f"{path}: is damaged (has no {', '.join(absent)}); delete it and run `{command}`")
    return build


def finished_builds(data: Location, pool: bool) -> dict[str, dict[str, Any]]:
    """The run.json of the positives and, where wanted and there, of the pool, by folder name.

    Raises:
        DataError: one is unfinished, or they do not belong together.
    """
    builds = {"positives": read_build(data, COMMANDS["positives"])}
    if pool and is_folder(data / "negatives"):
        pool_build = read_build(data / "negatives", COMMANDS["negatives"])
        if pool_build.get("positives") != builds["positives"]["fingerprint"]:
            raise DataError(
                f"{data / 'negatives'}: mined for positives {pool_build.get('positives')}, found "
                f"{builds['positives']['fingerprint']}; run `sniper negatives`, or remove the folder"
            )
        builds["negatives"] = pool_build
    return builds


def refuse_other_chips(data: Location, chips: dict[str, Any], given: ChipSettings) -> None:
    """Refuse settings of chips that were given and contradict the chips that are there.

    Args:
        data: folder of the chips.
        chips: the settings they were made with. Their pixel limit does not count, since it only refuses images.
        given: settings of now; what was not given contradicts nothing.

    Raises:
        UsageError: names every setting that differs.
    """
    acting = {name: value for name, value in chips.items() if name != "max_pixels"}
    if differing := contradictions("chips", given, acting):
        raise UsageError(
            f"{data}: the chips were made with other settings than those given:\n  "
            + "\n  ".join(differing)
            + "\nLeave these out of --config and --set, or make the chips again with `sniper chips ... --overwrite`"
        )
