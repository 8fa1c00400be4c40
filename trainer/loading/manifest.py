"""The manifest as the loader needs it: flat columns in one Arrow file, memory-mapped, so that processes share them.

The file is made from the Parquet manifests at the first opening and lies under OUT/.loader, or in the user's cache
folder where OUT cannot be written; that of a remote data set lies in the cache folder. Its name holds the fingerprints
of the builds that it was made from; a changed data set has another fingerprint and gets another file.
"""

import fcntl
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline.dataset.build_file import COMMANDS, POSITIVES, command_for, finished_builds
from pipeline.dataset.shards import read_shard, shard_files
from pipeline.storage import TEMPORARY, Location, ahead, atomic_file
from schemas.arrays import Float32Array, IntArray
from schemas.build import Build
from schemas.codes import STATUS_NAMES
from schemas.errors import DataError
from trainer.loading.cache import user_folder

CACHE_FORMAT = 4
"""Part of the file's name, to be raised whenever the columns change."""

CACHE_BOX = pa.struct(
    [
        ("corners", pa.list_(pa.float32(), 4)),
        ("label", pa.int32()),
        ("visible", pa.float32()),
        ("status", pa.uint8()),
    ]
)
CACHE = pa.schema(
    [
        ("key", pa.large_string()),
        ("key_hash", pa.uint64()),  # XXH3-64 of the key, what every draw starts from
        ("image_id", pa.int64()),
        ("scale", pa.float32()),
        ("scale_index", pa.int8()),
        ("range", pa.list_(pa.float32(), 2)),
        ("content", pa.list_(pa.int16(), 2)),  # height, width
        ("shard", pa.int32()),  # position in Manifest.shards
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("crc32", pa.uint32()),
        ("boxes", pa.large_list(CACHE_BOX)),
    ]
)


@dataclass(frozen=True)
class Manifest:
    """Columns of N chips, the positives first, then the pool; and of their M boxes. Read-only views of the file."""

    chip_size: int  # side of the square that holds any chip
    num_positives: int
    shards: list[str]  # tar files, relative to the data folder
    shard_bytes: list[int]
    shard_sha256: list[str]  # hex
    keys: pa.Array  # strings [N]
    key_hashes: npt.NDArray[np.uint64]  # [N]
    image_ids: IntArray  # [N]
    scales: Float32Array  # [N], source -> chip
    scale_indices: npt.NDArray[np.int8]  # [N], the finest 0
    ranges: Float32Array  # [N, 2], [lo, hi) in source pixels, hi maybe infinite
    contents: npt.NDArray[np.int16]  # [N, 2], height and width, chip pixels
    shard_indices: npt.NDArray[np.int32]  # [N], into `shards`
    jpeg_offsets: IntArray  # [N], bytes from the shard's start
    jpeg_sizes: npt.NDArray[np.int32]  # [N], bytes
    jpeg_crc32s: npt.NDArray[np.uint32]  # [N], CRC-32 of the JPEG's bytes
    box_offsets: IntArray  # [N + 1]; chip i owns the boxes box_offsets[i]:box_offsets[i + 1]
    corners: Float32Array  # [M, 4], x1 y1 x2 y2, chip pixels
    labels: npt.NDArray[np.int32]  # [M], 1..K
    visible: Float32Array  # [M]
    status: npt.NDArray[np.uint8]  # [M], schemas.codes.Status


def open_manifest(data: Location, *, pool: bool, cache: Path | None = None) -> Manifest:
    """Open a data set's columns, making their file first where it is missing.

    Args:
        data: the folder that `sniper chips` wrote.
        pool: take in the negative chips, where there are any.
        cache: folder for the file where it cannot lie with the data; None is the user's cache folder.

    Returns:
        The columns, mapped into memory.

    Raises:
        DataError: the data set or its pool is unfinished, they do not belong together, or a manifest is damaged.
    """
    builds = finished_builds(data, pool)
    identity = json.dumps([CACHE_FORMAT, [(name, build.fingerprint) for name, build in builds.items()]])
    kind = "-".join(builds)
    name = f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:20]}.arrow"
    own = data / ".loader" if isinstance(data, Path) else None
    folders = [*([own] if own else []), cache or user_folder()]
    for folder in folders:
        if manifest := _map(folder / name):
            return manifest
    writable = next((folder for folder in folders if _is_writable(folder)), None)
    if writable is None:
        tried = " and ".join(map(str, folders))
        none = "can be written in neither; allow one" if own else "cannot be written; name another as loader.cache"
        raise DataError(f"{tried}: the loader's index {none}")
    with (writable / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # this machine's other processes wait, and find the file made
        if manifest := _map(writable / name):
            return manifest
        for path in writable.glob(f"{TEMPORARY}*"):  # of killed processes
            path.unlink(missing_ok=True)
        _write(_gather(data, builds), writable / name)
        if writable == own:
            for path in writable.glob(f"{kind}-{'?' * 20}.arrow"):  # of former fingerprints; who has one open keeps it
                if path.name != name:
                    path.unlink(missing_ok=True)
    manifest = _map(writable / name)
    assert manifest is not None, writable / name
    return manifest


def _is_writable(folder: Path) -> bool:
    """Tell whether files can be made in a folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").open("a").close()
    except OSError:
        return False
    return True


def _gather(data: Location, builds: dict[str, Build]) -> pa.Table:
    """Read all manifest rows into one table of schema CACHE, whose metadata hold what else a Manifest needs."""
    tables, num_positives = [CACHE.empty_table()], 0
    shards, sizes, hashes = list[str](), list[int](), list[str]()
    for name, build in builds.items():
        paths = shard_files(data / name, ".parquet")
        if len(paths) != build.num_shards:
            raise DataError(
                f"{data / name}: {build.num_shards} manifests expected, {len(paths)} found; run `{COMMANDS[name]}`"
            )
        for path, (rows, record) in zip(paths, ahead(read_shard, paths), strict=True):
            if rows.num_rows:
                tables.append(_cache_rows(path, rows, len(shards)))
                shards.append(_one_shard(path, rows))
                sizes.append(record.tar_bytes)
                hashes.append(record.tar_sha256)
        if name == POSITIVES:
            num_positives = sum(table.num_rows for table in tables)
    about = {"num_positives": num_positives, "chip_size": builds[POSITIVES].settings["chips"]["size"]}
    about |= {"shards": shards, "shard_bytes": sizes, "shard_sha256": hashes}
    return pa.concat_tables(tables).replace_schema_metadata({"sniper": json.dumps(about)})


def _one_shard(path: Location, rows: pa.Table) -> str:
    """Return the tar file whose chips the rows of a manifest describe, relative to the data folder."""
    names: list[str] = rows["shard"].unique().to_pylist()
    if len(names) != 1:
        raise DataError(f"{path}: one tar file expected, {', '.join(map(str, names))} found; {_remedy(path)}")
    return names[0]


def _remedy(path: Location) -> str:
    return f"delete it and run `{command_for(path)}`, which makes the shard anew"


def _cache_rows(path: Location, rows: pa.Table, shard: int) -> pa.Table:
    """Convert the rows of one manifest to the schema CACHE.

    Args:
        path: the manifest, for messages.
        rows: schemas.tables.MANIFEST.
        shard: number of its tar file in Manifest.shards.
    """
    rows = rows.combine_chunks()
    lists = pa.concat_arrays(rows["boxes"].chunks or [pa.array([], rows.schema.field("boxes").type)])
    boxes, counts = lists.flatten(), lists.value_lengths().to_numpy(zero_copy_only=False)
    status = pc.index_in(boxes.field("status"), pa.array(STATUS_NAMES))
    if status.null_count:
        raise DataError(f"{path}: a box has a status that is none of {', '.join(STATUS_NAMES)}; {_remedy(path)}")
    corners = np.stack([boxes.field(name).to_numpy() for name in ("x1", "y1", "x2", "y2")], 1)
    flat = [_lists_of(corners), boxes.field("label"), boxes.field("visible"), status.cast(pa.uint8())]
    keys = rows["key"].to_pylist()
    ranges = np.stack([rows["range_min"].to_numpy(), rows["range_max"].to_numpy()], 1)
    contents = np.stack([rows["height"].to_numpy(), rows["width"].to_numpy()], 1)
    columns = [
        pa.array(keys, pa.large_string()),
        pa.array([xxhash.xxh3_64_intdigest(key.encode()) for key in keys], pa.uint64()),
        rows["image_id"],
        rows["scale"].cast(pa.float32(), safe=False),
        rows["scale_index"],
        _lists_of(ranges),
        _lists_of(contents),
        np.full(rows.num_rows, shard, np.int32),
        rows["offset"],
        rows["size"],
        rows["crc32"],
        pa.LargeListArray.from_arrays(
            np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
            pa.StructArray.from_arrays(flat, fields=list(CACHE_BOX)),
        ),
    ]
    return pa.table(columns, schema=CACHE)


def _lists_of(rows: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    """Return the rows of an array [N, n] as lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).ravel()), rows.shape[1])


def _write(table: pa.Table, path: Path) -> None:
    """Write a table as one record batch, so that each column is one piece of memory when it is mapped."""
    columns = [column.combine_chunks() for column in table.columns]
    with atomic_file(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=table.schema))


def _map(path: Path) -> Manifest | None:
    """Map the file with the columns into memory; None where there is no sound one."""
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        about = json.loads(batch.schema.metadata[b"sniper"])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None

    def numbers(name: str) -> npt.NDArray[Any]:
        column: npt.NDArray[Any] = batch.column(name).to_numpy()
        return column

    boxes = batch.column("boxes")
    return Manifest(
        chip_size=about["chip_size"],
        num_positives=about["num_positives"],
        shards=about["shards"],
        shard_bytes=about["shard_bytes"],
        shard_sha256=about["shard_sha256"],
        keys=batch.column("key"),
        key_hashes=numbers("key_hash"),
        image_ids=numbers("image_id"),
        scales=numbers("scale"),
        scale_indices=numbers("scale_index"),
        ranges=batch.column("range").values.to_numpy().reshape(-1, 2),
        contents=batch.column("content").values.to_numpy().reshape(-1, 2),
        shard_indices=numbers("shard"),
        jpeg_offsets=numbers("offset"),
        jpeg_sizes=numbers("size"),
        jpeg_crc32s=numbers("crc32"),
        box_offsets=boxes.offsets.to_numpy(),
        corners=boxes.values.field("corners").values.to_numpy().reshape(-1, 4),
        labels=boxes.values.field("label").to_numpy(),
        visible=boxes.values.field("visible").to_numpy(),
        status=boxes.values.field("status").to_numpy(),
    )
