"""run.json, the build record: what a finished build says of itself. A folder without one is not finished."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from pipeline import __version__
from pipeline.images.chip import codec
from pipeline.storage import Location, is_file, is_folder, read_bytes, write_atomic
from schemas.build import Build
from schemas.errors import DataError, MissingError, UsageError
from schemas.settings import ChipSettings
from schemas.settings.section import contradictions
from schemas.tables import FORMAT_VERSION

NAME = "run.json"
POSITIVES, NEGATIVES = "positives", "negatives"
COMMANDS = {POSITIVES: "sniper chips", NEGATIVES: "sniper negatives"}
"""What makes the shards of each folder."""

VERSIONS = {"sniper-chips": __version__, "format": FORMAT_VERSION}


def command_for(path: Location) -> str:
    """Return the command that makes a file of a data set, such as `sniper negatives` for one in OUT/negatives."""
    return COMMANDS.get(path.parent.name, COMMANDS[POSITIVES])


def build_versions() -> dict[str, Any]:
    """Return the versions that a build record names, for information."""
    return {**VERSIONS, **codec()._asdict()}


def build_fingerprint(shards: Sequence[str]) -> str:
    """Hash the fingerprints of a build's shards, in order, into the identity of the build; SHA-256, hex.

    A shard's fingerprint covers the settings that act on it, so nothing else is needed: a record that is written by
    another version, or from other counts, is the record of the same build.
    """
    return hashlib.sha256(msgspec.json.encode(list(shards))).hexdigest()


def write_build(path: Location, build: Build) -> None:
    """Write a build record, last of all, unless it stands there already.

    Raises:
        DataError: it cannot be written.
    """
    data = msgspec.json.format(msgspec.json.encode(build), indent=2) + b"\n"
    if not is_file(path) or read_bytes(path) != data:
        write_atomic(path, data)


def build_place(data: Location, folder: str) -> Location:
    """Return where the build record of `positives` or `negatives` lies; that of the positives lies in the data set."""
    return data / NAME if folder == POSITIVES else data / folder / NAME


def read_build(data: Location, folder: str = POSITIVES) -> Build:
    """Read a build record of a data set.

    Args:
        data: the data set.
        folder: whose record it is: `positives` or `negatives`.

    Raises:
        DataError: it is missing or damaged. OSError: it cannot be read.
    """
    path, command = build_place(data, folder), COMMANDS[folder]
    try:
        return msgspec.json.decode(read_bytes(path), type=Build)
    except FileNotFoundError as error:
        raise MissingError(f"{path}: is missing: no finished chips here, or unfinished; run `{command}`") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is damaged ({error}); delete it and run `{command}`") from error


def find_build(data: Location, folder: str = POSITIVES) -> Build | None:
    """Read the record of a data set's `positives` or `negatives`; None where there is none that can be read."""
    try:
        return read_build(data, folder)
    except DataError:
        return None


def former_names(standing: Build | None, fingerprint: str, num_shards: int, num_made: int) -> list[str]:
    """Return the names by which the shards of a new build went before, sorted.

    Args:
        standing: the record that stood there, if one did.
        fingerprint: of the new build.
        num_shards: of the new build.
        num_made: of these, how many were made anew; with one of them, the former names mean other shards.
    """
    if standing is None or num_made or standing.num_shards != num_shards:
        return []
    return sorted(standing.names - {fingerprint})


def is_of(build: Build, shards: Sequence[str], record: bytes) -> bool:
    """Tell whether a build record was written for these shards.

    Args:
        build: the record.
        shards: the fingerprints of the shards as they are, in order.
        record: the bytes that `build` was read from. Up to format 2 the identity of a build covered them, too.
    """
    if build.versions.get("format", FORMAT_VERSION) > 2:
        return build_fingerprint(shards) == build.fingerprint
    said = {
        key: value for key, value in json.loads(record).items() if key not in ("fingerprint", "images", "proposals")
    }
    digest = hashlib.sha256(msgspec.json.encode({**said, "shards": list(shards)}, order="sorted")).hexdigest()
    return digest == build.fingerprint


def finished_builds(data: Location, pool: bool) -> dict[str, Build]:
    """Read the records of the positives and, where wanted and there, of the pool, by folder name.

    Raises:
        DataError: one is unfinished, or they do not belong together.
    """
    builds = {POSITIVES: read_build(data)}
    if pool and is_folder(data / NEGATIVES):
        pool_build = read_build(data, NEGATIVES)
        if pool_build.positives not in builds[POSITIVES].names:
            raise DataError(
                f"{data / NEGATIVES}: mined for positives {pool_build.positives}, found "
                f"{builds[POSITIVES].fingerprint}; run `sniper negatives`, or remove the folder"
            )
        builds[NEGATIVES] = pool_build
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
    acting = ChipSettings().model_dump(mode="json") | chips | {"max_pixels": given.max_pixels}
    if differing := contradictions("chips", given, acting):
        raise UsageError(
            f"{data}: the chips were made with other settings than those given:\n  "
            + "\n  ".join(differing)
            + "\nLeave these out of --config and --set, or make the chips again with `sniper chips ... --overwrite`"
        )
