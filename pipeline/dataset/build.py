"""What building positives and negatives has in common: the target folder, its shards, and who may resume it."""

from collections.abc import Iterable, Sequence

from pipeline.coco import SourceImage
from pipeline.dataset.cutting import Target
from pipeline.dataset.shards import read_record
from pipeline.engines.tasks import DEFAULT_MEMORY
from pipeline.images.sources import pixels_held
from pipeline.storage import Location, files_in, make_folder, remove
from schemas.errors import DataError, UsageError


def prepare(target: Target, names: Iterable[str], section: str) -> None:
    """Make the target folder ready: delete the shards that the build does not name, since the data set has shrunk.

    Args:
        target: the build.
        names: the shards that the build will have.
        section: the section of the settings in question, for the message.

    Raises:
        UsageError: the shards there were made with other settings; all that differ are named.
    """
    folder = target.out / target.folder
    make_folder(folder)
    records = files_in(folder, "chips-*.parquet")
    _refuse_other_settings(target, records, section)
    wanted = set(names)
    surplus = [path for path in [*records, *files_in(folder, "chips-*.tar")] if path.stem not in wanted]
    if surplus:
        remove(target.build_file)  # first of all: it speaks of them
    for path in surplus:
        remove(path)


def _refuse_other_settings(target: Target, records: Sequence[Location], section: str) -> None:
    """Look at the first sound record: builds with other settings are refused, so all records have the same."""
    for path in records:
        try:
            then, now = read_record(path).settings, target.recorded
        except DataError:
            continue  # damaged: it is made again
        if then != now:
            changed = [
                f"{section}.{key}: {then.get(key)!r} there, {now.get(key)!r} now"
                for key in sorted(then.keys() | now.keys())
                if then.get(key) != now.get(key)
            ]
            raise UsageError(
                f"{target.build_file.parent}: holds chips made with other settings:\n  "
                + "\n  ".join(changed)
                + "\nReplace them with --overwrite, or build in another folder"
            )
        return


def task_memory(images: Sequence[SourceImage]) -> int:
    """Return the bytes that cutting these images takes.

    They are those of the libraries and, of the largest image, of its pixels as decoded and as converted.
    """
    return DEFAULT_MEMORY + 8 * max(map(pixels_held, images), default=0)
