"""`sniper verify`: hash a chip data set anew and name every bad shard and chip."""

import hashlib
import math
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import msgspec
import pyarrow as pa

from pipeline.dataset.build_file import COMMANDS, NEGATIVES, POSITIVES, build_place, command_for, is_of, read_build
from pipeline.dataset.shards import (
    BLOCK,
    UNBOUNDED,
    UNREADABLE,
    chip_json,
    member_behind,
    read_shard,
    shard_files,
    shard_name,
)
from pipeline.engines.progress import Progress
from pipeline.engines.run import run_tasks
from pipeline.engines.tasks import Engine, Task
from pipeline.storage import Location, is_folder, local_copy, location, read_bytes
from schemas.errors import DataError, UsageError
from schemas.tables import PLAN

ROWS = 256  # of a manifest that are Python objects at a time


class VerifyReport(NamedTuple):
    """What was looked at and found.

    Attributes:
        num_shards: shards with a manifest, of positives and negatives together.
        num_chips: chips of those that can be read.
        problems: a line each, naming shard and chip and what mends it.
    """

    num_shards: int
    num_chips: int
    problems: list[str]


def verify(data: Location | str, *, workers: int | None = 1) -> VerifyReport:
    """Check that a data set is complete, that every byte is as recorded, and that manifests and tars say the same.

    Args:
        data: the folder that `sniper chips` wrote.
        workers: number of processes; None: all cores.

    Returns:
        What was looked at and found.

    Raises:
        UsageError: `data` holds no chip data set.
    """
    data = location(data)
    folders = [folder for name in (POSITIVES, NEGATIVES) if is_folder(folder := data / name)]
    if not folders:
        raise UsageError(f"{data}: holds no chips; expected the folder that `sniper chips --out` wrote")
    records = [path for folder in folders for path in shard_files(folder, ".parquet")]
    found: dict[str, _Shard] = {}
    with Progress("verify", len(records), "shards") as progress:
        jobs = (Task(_name(path), path) for path in records)
        for shard in run_tasks(_check_shard, jobs, Engine(workers=workers), progress):
            found[shard.name] = shard
    problems = list(_check_build(data, POSITIVES, found))
    if data / NEGATIVES in folders:
        problems += _check_build(data, NEGATIVES, found)
        problems += _check_origin(data)
    for tar in (path for folder in folders for path in shard_files(folder, ".tar")):
        if _name(tar.with_suffix(".parquet")) not in found:
            problems.append(
                f"{_name(tar)}: has no manifest beside it: the build was interrupted; run `{command_for(tar)}`"
            )
    problems += [line for name in sorted(found) for line in found[name].problems]
    return VerifyReport(len(records), sum(shard.num_chips for shard in found.values()), problems)


class _Shard(NamedTuple):
    """What was found of one shard; its fingerprint is None where its record cannot be read."""

    name: str
    fingerprint: str | None
    num_chips: int
    problems: list[str]


def _check_build(data: Location, folder: str, found: dict[str, _Shard]) -> Iterator[str]:
    """Name what is missing or changed of the build whose shards lie in `folder`, its record and ledgers included."""
    record, command = build_place(data, folder), COMMANDS[folder]
    try:
        build = read_build(data, folder)
    except DataError as error:
        yield str(error)
        return
    fingerprints: list[str] = []
    wanted = [f"{folder}/{shard_name(index)}.parquet" for index in range(build.num_shards)]
    for name in wanted:
        if name not in found:
            yield f"{name.removesuffix('.parquet')}: is missing; run `{command}`"
        elif (fingerprint := found[name].fingerprint) is not None:
            fingerprints.append(fingerprint)
    for name in sorted(name for name in found.keys() - set(wanted) if name.startswith(f"{folder}/")):
        yield f"{name}: is beyond the {build.num_shards} shards of run.json; run `{command}`, which deletes it"
    if len(fingerprints) == build.num_shards and not is_of(build, fingerprints, read_bytes(record)):
        yield (
            f"{folder}: the shards are not all those that run.json was written for; run `{command}`, which makes "
            "those anew that do not belong"
        )
    for file, digest in build.files.items():
        try:
            with local_copy(record.parent / file) as copy, copy.open("rb") as content:
                found_digest = hashlib.file_digest(content, "sha256").hexdigest()
        except FileNotFoundError:
            yield f"{file}: is missing; run `{command}`"
            continue
        except OSError as error:
            yield f"{file}: cannot be read: {error}"
            continue
        if found_digest != digest:
            yield f"{file}: differs from what run.json records; delete it and run `{command}`"


def _check_origin(data: Location) -> Iterator[str]:
    """Name a pool that was mined for other positives; records that cannot be read are named elsewhere."""
    try:
        positives = read_build(data)
        origin = read_build(data, NEGATIVES).positives
    except DataError:
        return
    if origin not in positives.names:
        yield "negatives/run.json: the pool was mined for other positives; run `sniper negatives`"


def _name(path: Location) -> str:
    """Return the name of a shard's file within the data set."""
    return f"{path.parent.name}/{path.name}"


def _check_shard(path: Location) -> _Shard:
    name = _name(path)
    try:
        table, record = read_shard(path)
        keys = table["key"].to_pylist()
    except DataError as error:
        return _Shard(name, None, 0, [str(error)])
    except UNREADABLE as error:
        return _Shard(name, None, 0, [f"{name}: cannot be read: {error}"])
    tar_path = path.with_suffix(".tar")
    tar_name, advice = _name(tar_path), f"delete {name} and run `{command_for(path)}`"
    try:
        with local_copy(tar_path) as copy, copy.open("rb") as tar:  # read by its members: it may be larger than memory
            digest = hashlib.file_digest(tar, "sha256").hexdigest()
            tar_bytes = tar.tell()
            sizes = [_bytes_of(row, tar, tar_bytes, tar_name) for row in _rows(table)]
    except FileNotFoundError:
        return _Shard(name, record.fingerprint, 0, [f"{tar_name}: is missing; {advice}"])
    except OSError as error:
        return _Shard(name, record.fingerprint, 0, [f"{tar_name}: cannot be read: {error}"])
    bad = [key for key, size in zip(keys, sizes, strict=True) if size is None]
    problems = []
    if tar_bytes != record.tar_bytes or digest != record.tar_sha256:
        what = (
            f"{tar_bytes} bytes, {record.tar_bytes} recorded" if tar_bytes != record.tar_bytes else "SHA-256 differs"
        )
        problems = [f"{tar_name}: {what}; {len(bad)} of {len(keys)} chips damaged; {advice}"]
        problems += [f"{tar_name}: chip {key}: damaged" for key in bad]
    elif bad:
        problems = [f"{name}: {len(bad)} of {len(keys)} rows differ from what {tar_name} holds; {advice}"]
        problems += [f"{name}: chip {key}: its row is damaged" for key in bad]
    elif sum(size for size in sizes if size) + 2 * BLOCK != tar_bytes or len(set(keys)) < len(keys):
        problems = [f"{name}: its {len(keys)} rows are not the chips of {tar_name}, each once; {advice}"]
    return _Shard(name, record.fingerprint, len(keys), problems)


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield a table's rows, of which few are Python objects at a time."""
    for start in range(0, len(table), ROWS):
        yield from table.slice(start, ROWS).to_pylist()


def _bytes_of(row: dict[str, Any], tar: IO[bytes], tar_bytes: int, tar_name: str) -> int | None:
    """Count the bytes of a chip's JPEG and JSON in its tar, with headers; None where they are not as its row says."""
    offset, size = row["offset"], row["size"]
    if row["shard"] != tar_name or offset is None or size is None or not 0 <= offset <= offset + size <= tar_bytes:
        return None
    tar.seek(offset)
    if zlib.crc32(tar.read(size)) != row["crc32"]:
        return None
    said = member_behind(tar, offset + size)
    if not _is_said({name: row[name] for name in PLAN.names}, said):
        return None
    return sum(BLOCK + length + -length % BLOCK for length in (size, len(said)))


def _is_said(row: dict[str, Any], said: bytes) -> bool:
    """Tell whether a chip's JSON says the same as its row. Up to format 2 it had null for infinity and for nothing."""
    if any(isinstance(value, float) and (math.isnan(value) or value == -math.inf) for value in row.values()):
        return False
    expected = chip_json(row)
    if expected == said:
        return True
    try:
        found = msgspec.json.decode(said)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return isinstance(found, dict) and _bare(found) == _bare(msgspec.json.decode(expected))


def _bare(said: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in said.items() if value not in (None, [], UNBOUNDED)}
