"""`sniper verify`: hash a chip data set anew and name every bad shard and chip."""

import hashlib
import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from pipeline.dataset.build_file import COMMANDS, NEGATIVES, POSITIVES, build_fingerprint, command_for, read_build
from pipeline.dataset.shards import BLOCK, UNREADABLE, member_behind, read_shard
from pipeline.engines.progress import Progress
from pipeline.engines.run import run
from pipeline.engines.tasks import Engine, Task
from pipeline.storage import Location, files_in, is_folder, local_copy, read_bytes
from schemas.errors import DataError, UsageError
from schemas.tables import PLAN


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


def verify(data: Location, *, workers: int = 1) -> VerifyReport:
    """Check that a data set is complete, that every byte is as recorded, and that manifests and tars say the same.

    Args:
        data: the folder that `sniper chips` wrote.
        workers: number of processes.

    Returns:
        What was looked at and found.

    Raises:
        UsageError: `data` holds no chip data set.
    """
    folders = [folder for name in (POSITIVES, NEGATIVES) if is_folder(folder := data / name)]
    if not folders:
        raise UsageError(f"{data}: holds no chips; expected the folder that `sniper chips --out` wrote")
    records = [path for folder in folders for path in files_in(folder, "chips-*.parquet")]
    found: dict[str, _Shard] = {}
    with Progress("verify", len(records), "shards") as progress:
        jobs = (Task(_name(path), path) for path in records)
        for shard in run(_check_shard, jobs, Engine(workers=workers)):
            found[shard.name] = shard
            progress.add(1)
    problems = list(_check_build(data, data, data / POSITIVES, found))
    if data / NEGATIVES in folders:
        problems += _check_build(data, data / NEGATIVES, data / NEGATIVES, found)
        problems += _check_origin(data)
    for tar in (path for folder in folders for path in files_in(folder, "chips-*.tar")):
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


def _check_build(data: Location, root: Location, folder: Location, found: dict[str, _Shard]) -> Iterator[str]:
    """Name what is missing or changed of a build; its record and ledgers lie in `root`, its shards in `folder`."""
    command = COMMANDS[folder.name]
    try:
        build = read_build(root, command)
    except DataError as error:
        yield str(error)
        return
    fingerprints: list[str] = []
    for index in range(build["num_shards"]):
        name = f"{folder.name}/chips-{index:05d}"
        shard = found.get(f"{name}.parquet")
        if shard is None:
            yield f"{name}: is missing; run `{command}`"
        elif shard.fingerprint is not None:
            fingerprints.append(shard.fingerprint)
    wanted = {f"{folder.name}/chips-{index:05d}.parquet" for index in range(build["num_shards"])}
    for name in sorted(name for name in found.keys() - wanted if name.startswith(f"{folder.name}/")):
        yield f"{name}: is beyond the {build['num_shards']} shards of run.json; run `{command}`, which deletes it"
    if len(fingerprints) == build["num_shards"] and build_fingerprint(build, fingerprints) != build["fingerprint"]:
        yield (
            f"{folder.name}: the shards are not all those that run.json was written for; run `{command}`, which "
            "makes those anew that do not belong"
        )
    for file, digest in build["files"].items():
        try:
            with local_copy(root / file) as copy, copy.open("rb") as content:
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
        positives = read_build(data, COMMANDS[POSITIVES])["fingerprint"]
        origin = read_build(data / NEGATIVES, COMMANDS[NEGATIVES]).get("positives")
    except DataError:
        return
    if origin != positives:
        yield "negatives/run.json: the pool was mined for other positives; run `sniper negatives`"


def _name(path: Location) -> str:
    """Return the name of a shard's file within the data set."""
    return f"{path.parent.name}/{path.name}"


def _check_shard(path: Location) -> _Shard:
    name = _name(path)
    try:
        table, record = read_shard(path)
        rows = table.to_pylist()
    except DataError as error:
        return _Shard(name, None, 0, [str(error)])
    except UNREADABLE as error:
        return _Shard(name, None, 0, [f"{name}: cannot be read: {error}"])
    tar_path = path.with_suffix(".tar")
    tar_name, advice = _name(tar_path), f"delete {name} and run `{command_for(path)}`"
    try:
        tar = read_bytes(tar_path)
    except FileNotFoundError:
        return _Shard(name, record.fingerprint, 0, [f"{tar_name}: is missing; {advice}"])
    except OSError as error:
        return _Shard(name, record.fingerprint, 0, [f"{tar_name}: cannot be read: {error}"])
    sizes = [_bytes_of(row, tar, tar_name) for row in rows]
    bad = [row["key"] for row, size in zip(rows, sizes, strict=True) if size is None]
    problems = []
    if len(tar) != record.tar_bytes or hashlib.sha256(tar).hexdigest() != record.tar_sha256:
        what = f"{len(tar)} bytes, {record.tar_bytes} recorded" if len(tar) != record.tar_bytes else "SHA-256 differs"
        problems = [f"{tar_name}: {what}; {len(bad)} of {len(rows)} chips damaged; {advice}"]
        problems += [f"{tar_name}: chip {key}: damaged" for key in bad]
    elif bad:
        problems = [f"{name}: {len(bad)} of {len(rows)} rows differ from what {tar_name} holds; {advice}"]
        problems += [f"{name}: chip {key}: its row is damaged" for key in bad]
    elif sum(size for size in sizes if size) + 2 * BLOCK != len(tar) or len({row["key"] for row in rows}) < len(rows):
        problems = [f"{name}: its {len(rows)} rows are not the chips of {tar_name}, each once; {advice}"]
    return _Shard(name, record.fingerprint, len(rows), problems)


def _bytes_of(row: dict[str, Any], tar: bytes, tar_name: str) -> int | None:
    """Count the bytes of a chip's JPEG and JSON in its tar, with headers; None where they are not as its row says."""
    offset, size = row["offset"], row["size"]
    if row["shard"] != tar_name or offset is None or size is None:
        return None
    if zlib.crc32(tar[offset : offset + size]) != row["crc32"]:
        return None
    said = member_behind(tar, offset + size)
    if not _is_said({name: row[name] for name in PLAN.names}, said):
        return None
    return sum(BLOCK + length + -length % BLOCK for length in (size, len(said)))


def _is_said(row: dict[str, Any], said: bytes) -> bool:
    """Tell whether a chip's JSON says the same as its row. Its null stands for None and, in a range, for infinity."""
    if any(isinstance(value, float) and (math.isnan(value) or value == -math.inf) for value in row.values()):
        return False
    expected = msgspec.json.encode(row)
    try:
        return expected == said or expected == msgspec.json.encode(msgspec.json.decode(said))
    except msgspec.MsgspecError:
        return False
