"""The chips of one shard, as every format that they are exported to needs them."""

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pipeline.dataset.shards import read_rows
from pipeline.storage import Location, open_binary
from schemas.codes import IGNORED_NAMES
from schemas.errors import DataError
from schemas.wording import shell

Row = dict[str, Any]
"""A row of a manifest, by the names of schema MANIFEST."""

KEY = r"[-\d]{12,}-\d+[pn]\d{3,}"
"""What the key of a chip looks like, as a regular expression."""


class ExportJob(NamedTuple):
    """One shard that is to be exported.

    Attributes:
        data: the chip data set.
        manifest: of the shard.
        out: folder of the data set that is written.
        split: its part of the data set, such as train.
        categories: (source id, name) by label from 1.
        number: position of the shard among all that are exported, from 0.
        num_shards: how many are exported.
        blank: whether regions to ignore are painted over.
        jpeg: quality and subsampling of the chips, for those that are encoded anew.
    """

    data: Location
    manifest: Location
    out: Location
    split: str
    categories: list[tuple[int, str]]
    number: int
    num_shards: int
    blank: bool
    jpeg: tuple[int, str]


class Tally(NamedTuple):
    """Counts of what was exported.

    Attributes:
        num_chips: chips.
        num_objects: boxes that are objects.
        num_ignored: boxes that nothing is to be learnt from.
        num_blanked: chips in which such boxes were painted over.
    """

    num_chips: int = 0
    num_objects: int = 0
    num_ignored: int = 0
    num_blanked: int = 0


def read_chips(job: ExportJob) -> Iterator[tuple[Row, bytes]]:
    """Read the chips of a shard one after the other: the row of each, and its JPEG.

    Raises:
        DataError: a chip is not the one that the manifest describes.
    """
    tar, command = job.manifest.with_suffix(".tar"), shell("sniper", "verify", job.data)
    try:
        with open_binary(tar) as file:
            for row in read_rows(job.manifest).to_pylist():
                file.seek(row["offset"])
                content = file.read(row["size"])
                if zlib.crc32(content) != row["crc32"]:
                    raise DataError(f"{tar}: chip {row['key']} is damaged; run `{command}`")
                yield row, content
    except FileNotFoundError as error:
        raise DataError(f"{tar}: is missing; run `{command}`") from error


def read_keys(job: ExportJob) -> list[str]:
    """Return the keys of the chips of a shard."""
    keys: list[str] = read_rows(job.manifest)["key"].to_pylist()
    return keys


def split_boxes(row: Row) -> tuple[list[Row], list[Row]]:
    """Part the boxes of a chip into objects, and regions that nothing is to be learnt from."""
    objects = [box for box in row["boxes"] if box["status"] not in IGNORED_NAMES]
    return objects, [box for box in row["boxes"] if box["status"] in IGNORED_NAMES]


def tally_of(row: Row, *, blanked: bool = False) -> Tally:
    """Count what a chip holds."""
    objects, ignored = split_boxes(row)
    return Tally(1, len(objects), len(ignored), int(blanked))


def total(tallies: Iterable[Tally]) -> Tally:
    """Add counts up."""
    return Tally(*map(sum, zip(Tally(), *tallies, strict=True)))


def xywh(box: Row) -> list[float]:
    """Return a box as x y width height, chip pixels, to a ten-thousandth."""
    x1, y1, x2, y2 = (box[name] for name in ("x1", "y1", "x2", "y2"))
    return [round(value, 4) for value in (x1, y1, x2 - x1, y2 - y1)]
