"""Chip shards: a plain tar of KEY.jpg and KEY.json, and the Parquet file beside it that is its commit record.

A shard exists once its Parquet file does. The file's metadata holds what a rerun or a check needs: the tar's byte
count and SHA-256, the fingerprint of what the shard was made from, the settings, and what was refused in it.
"""

import math
import re
import tarfile
import zlib
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.coco import Reject
from pipeline.dataset.build_file import command_for
from pipeline.storage import HashingFile, Location, atomic_file, files_in, read_bytes, start_writeback
from pipeline.storage.parquet import parse_table, read_metadata
from schemas.errors import DataError, MissingError
from schemas.tables import MANIFEST

BLOCK = 512  # tar's unit
WRITEBACK = 4 << 20  # bytes between requests to the system to write to disk, so that the final flush finds little left
METADATA_KEY = b"sniper"
SUFFIXES = (".tar", ".parquet")
_SHARD_NAME = re.compile(r"chips-(\d{5}|[1-9]\d{5,})")
UNBOUNDED = float(np.finfo(np.float32).max)
"""Stands in KEY.json for infinity, which JSON does not have. No size reaches it."""
UNREADABLE = (OSError, ValueError, KeyError, pa.ArrowException, msgspec.MsgspecError)
"""What pyarrow and msgspec raise on damaged manifests; ArrowInvalid and UnicodeDecodeError are ValueErrors."""


class Member(NamedTuple):
    """Where a file lies in a tar.

    Attributes:
        offset: of its first content byte, from the start of the tar.
        size: bytes of its content.
        crc32: checksum of its content.
    """

    offset: int
    size: int
    crc32: int


class TarWriter:
    """Writes a USTAR file with fixed header fields, so that equal contents give equal bytes.

    It is our own and not tarfile's because one pass must give each member's offset and checksum and the hash of the
    whole.

    Args:
        file: the file to write from its start; it stays open.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hashing = file, HashingFile(file)
        self._next_writeback = WRITEBACK

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._hashing.tell()

    def add(self, name: str, data: bytes) -> Member:
        """Append a regular file.

        Args:
            name: ASCII, at most 100 characters.
            data: the file's content.

        Returns:
            Where the content lies, and its checksum.
        """
        member = Member(self.size + BLOCK, len(data), zlib.crc32(data))
        self._hashing.write(_tar_header(name, len(data)))
        self._hashing.write(data)
        self._hashing.write(bytes(-len(data) % BLOCK))
        if self.size >= self._next_writeback:
            self._next_writeback += WRITEBACK
            start_writeback(self._file)
        return member

    def close(self) -> str:
        """Write the end mark and return the SHA-256 of the whole file, hex."""
        self._hashing.write(bytes(2 * BLOCK))
        return self._hashing.hexdigest()


_SIZE, _CHECKSUM = slice(124, 135), slice(148, 156)  # where these fields lie in a header
_HEADER = bytearray(tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT))  # mode 0644, owner 0, time 0
_HEADER[_CHECKSUM] = b" " * 8  # as which it counts while the sum is taken


def _tar_header(name: str, size: int) -> bytes:
    """Fill in a USTAR header. tarfile takes five times as long over one (50 us against 10)."""
    encoded = name.encode("ascii")
    assert len(encoded) <= 100, name
    header = _HEADER.copy()
    header[: len(encoded)] = encoded
    header[_SIZE] = b"%011o" % size
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header)


def member_behind(tar: IO[bytes], end: int) -> bytes:
    """Return the content of the tar member behind the one whose content ends at `end`; b"" where there is none."""
    tar.seek(end + -end % BLOCK)
    try:
        size = int(tar.read(BLOCK)[_SIZE], 8)
    except ValueError:
        return b""
    return tar.read(size)


def shard_name(index: int) -> str:
    """Return the name of a shard, such as `chips-00042`; past 99,999 it has more digits."""
    return f"chips-{index:05d}"


def shard_files(folder: Location, suffix: str) -> list[Location]:
    """List the tars (`.tar`) or manifests (`.parquet`) of a folder by number, and no file with another name."""
    named = [(_SHARD_NAME.fullmatch(path.stem), path) for path in files_in(folder, f"chips-*{suffix}")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def chip_json(row: dict[str, Any]) -> bytes:
    """Return a chip's row as JSON in which no null stands beside numbers.

    Readers guess the type of a key from the first chips, and cannot read a number after a null, nor a box after an
    empty list. So what does not apply is left out, `boxes` too where there is none, and infinity is UNBOUNDED.

    Args:
        row: a chip, by the names of schema PLAN.
    """
    said = {key: value for key, value in row.items() if value is not None and value != []}
    return msgspec.json.encode({key: UNBOUNDED if value == math.inf else value for key, value in said.items()})


class ImageHash(NamedTuple):
    """A source image and the XXH3-128 of its file's bytes, hex; None where the file could not be read."""

    image_id: int
    hash: str | None


class Record(msgspec.Struct, frozen=True):
    """What a finished shard says of itself: JSON in the metadata of its manifest.

    Attributes:
        fingerprint: SHA-256, hex, over what the shard was made from.
        tar_bytes: size of the tar.
        tar_sha256: SHA-256 of the tar, hex.
        settings: those that it was made with.
        images: the source images of the shard, in order, with the hashes of their files.
        rejects: the images that were refused while cutting.
    """

    fingerprint: str
    tar_bytes: int
    tar_sha256: str
    settings: dict[str, Any]
    images: list[ImageHash]
    rejects: list[Reject]
    # Records of before format 3 lack these.
    decoders: dict[str, str] = {}  # of the formats met whose decoder a build of Pillow may lack, "none" where it did
    num_ambiguous: int = 0  # images that have the annotated size both as stored and as turned
    num_several: int = 0  # image files with several pages or frames


def commit_shard(path: Location, rows: pa.Table, record: Record) -> None:
    """Write the manifest of a finished tar. From then on the shard exists.

    Args:
        path: the manifest.
        rows: a row per chip, schema MANIFEST.
        record: what the shard says of itself.

    Raises:
        DataError: it cannot be written.
    """
    table = rows.cast(MANIFEST).replace_schema_metadata({METADATA_KEY: msgspec.json.encode(record)})
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_record(path: Location) -> Record:
    """Read the record of a committed shard from its manifest, of which only the end is read.

    Raises:
        DataError: not a Parquet file of ours, or none. OSError: whether it is cannot be found out.
    """
    metadata = read_metadata(path)
    try:
        return msgspec.json.decode(metadata[METADATA_KEY], type=Record)
    except UNREADABLE as error:
        raise DataError(f"{path}: is not a chip manifest: {error}; delete it and run `{command_for(path)}`") from error


def read_rows(path: Location) -> pa.Table:
    """Read the manifest rows of a committed shard, schema MANIFEST.

    Raises:
        DataError: not a Parquet file of ours, damaged, or none. OSError: whether it is cannot be found out.
    """
    return read_shard(path)[0]


def read_shard(path: Location) -> tuple[pa.Table, Record]:
    """Read the manifest rows and the record of a committed shard at once.

    Raises:
        DataError: not a Parquet file of ours, damaged, or none. OSError: whether it is cannot be found out.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError as error:
        raise MissingError(f"{path}: is missing; run `{command_for(path)}`") from error
    try:
        table = parse_table(content)
        record = msgspec.json.decode((table.schema.metadata or {})[METADATA_KEY], type=Record)
        rows = table.cast(MANIFEST)
        rows.validate(full=True)  # reading alone lets pass what is no UTF-8
    except UNREADABLE as error:
        raise DataError(f"{path}: is not a chip manifest: {error}; delete it and run `{command_for(path)}`") from error
    return rows, record
