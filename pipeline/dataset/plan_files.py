"""Write OUT/plan: the manifest of a build that has not been made, in a few Parquet files."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.build_file import NAME
from pipeline.storage import HashingFile, Location, atomic_file, remove_files
from schemas.tables import PLAN

PLAN_FILES = "plan-*.parquet"

PLAN_FILE_CHIPS = 200_000  # chips per file of plan/

PLAN_GROUP_CHIPS, PLAN_GROUP_SPANS = 2048, 256  # a row group of one ends with the span that reaches either


def write_plan_files(folder: Location, plans: Iterable[pa.Table]) -> dict[str, str]:
    """Write plan-00000.parquet and so on, at least one file. Memory holds one row group.

    Args:
        folder: where they go; it must be there.
        plans: the chips of each span, schema PLAN, in order.

    Returns:
        SHA-256, hex, of each file, by name.
    """
    groups = _row_groups(plans)
    group: pa.Table | None = next(groups, PLAN.empty_table())
    digests: dict[str, str] = {}
    while group is not None:
        name = f"plan-{len(digests):05d}.parquet"
        with atomic_file(folder / name) as file:
            hashing = HashingFile(file)
            with pq.ParquetWriter(hashing, PLAN, compression="zstd") as writer:
                num_chips = 0
                while group is not None and num_chips < PLAN_FILE_CHIPS:
                    writer.write_table(group)
                    pa.default_memory_pool().release_unused()  # it would keep a dozen megabytes
                    num_chips += group.num_rows
                    group = next(groups, None)
        digests[name] = hashing.hexdigest()
    return digests


def remove_plan(folder: Location) -> None:
    """Delete the files of a plan, its record first, and the folder if nothing else is in it."""
    remove_files(folder, NAME, PLAN_FILES)


def _row_groups(plans: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables into larger ones, in order."""
    waiting: list[pa.Table] = []
    num_chips = 0
    for chips in plans:
        waiting.append(chips)
        num_chips += chips.num_rows
        if num_chips >= PLAN_GROUP_CHIPS or len(waiting) >= PLAN_GROUP_SPANS:
            yield pa.concat_tables(waiting)
            waiting, num_chips = [], 0
    if waiting:
        yield pa.concat_tables(waiting)
