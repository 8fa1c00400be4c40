"""A store that is not this machine's, as far as the code can tell: local files behind a protocol of their own.

Import it in each process that uses such a place.
"""

import json
import os
import shutil
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from upath import UPath
from upath.registry import register_implementation

from pipeline.dataset.shards import Record, TarWriter, commit_shard, read_rows

PROTOCOL = "sniperremote"


class RemoteFiles(LocalFileSystem):
    """Downloads take a while and are logged, by whichever process."""

    protocol = PROTOCOL

    def __init__(self, log: str, delay: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.log, self.delay = log, delay

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(super()._strip_protocol(str(path).removeprefix(f"{PROTOCOL}://")))

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        with Path(self.log).open("a") as file:
            file.write(f"{os.getpid()} {Path(rpath).name}\n")
        data = Path(rpath).read_bytes()
        with Path(lpath).open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            time.sleep(self.delay)
            file.write(data[len(data) // 2 :])


class RemotePath(UPath):
    pass


fsspec.register_implementation(PROTOCOL, RemoteFiles, clobber=True)
register_implementation(PROTOCOL, RemotePath, clobber=True)


def remote(folder: Path, log: Path, delay: float = 0.0) -> UPath:
    return UPath(f"{PROTOCOL}://{folder}", log=str(log), delay=delay)


def downloads(log: Path) -> Counter[str]:
    """How often each file was fetched, all processes together."""
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(line.partition(" ")[2] for line in lines)


def open_shards(folder: Path) -> dict[int, int]:
    """Inode and size of the tar files below a folder that this process holds open, deleted ones included."""
    found = {}
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that lists them
            target = descriptor.readlink()
            if ".tar" in target.name and target.is_relative_to(folder):
                found[descriptor.stat().st_ino] = descriptor.stat().st_size
    return found


def num_open(folder: Path) -> int:
    return len(open_shards(folder))


def reshard(source: Path, out: Path, chips_per_shard: int) -> None:
    """The same chips in smaller shards: a data set with many of them, made in no time."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns(".loader", "chips-*"))
    for folder in (path for path in (source / "positives", source / "negatives") if path.is_dir()):
        paths = sorted(folder.glob("chips-*.parquet"))
        rows = [row for path in paths for row in read_rows(path).to_pylist()]
        schema = read_rows(paths[0]).schema
        starts = range(0, len(rows), chips_per_shard)
        for number, start in enumerate(starts):
            name = f"{folder.name}/chips-{number:05d}"
            part = rows[start : start + chips_per_shard]
            with (out / f"{name}.tar").open("wb") as file:
                tar = TarWriter(file)
                for row in part:
                    with (source / row["shard"]).open("rb") as tarred:
                        tarred.seek(row["offset"])
                        jpeg = tarred.read(row["size"])
                    row |= {"shard": f"{name}.tar", "offset": tar.add(f"{row['key']}.jpg", jpeg).offset}
                sha256 = tar.close()
            record = Record("resharded", tar.size, sha256, {}, [], [])
            commit_shard(out / f"{name}.parquet", pa.Table.from_pylist(part, schema), record)
        path = (out / folder.name if folder.name == "negatives" else out) / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "num_shards": len(starts)}))
