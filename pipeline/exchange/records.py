"""What an export notes of itself in OUT/.export: of what each split was made."""

import msgspec

from pipeline.storage import Location, files_in, make_folder, read_bytes, write_atomic
from schemas.errors import DataError

NOTES = ".export"


class Record(msgspec.Struct, frozen=True):
    """What the export of a split was made of; one of another kind in its place is refused."""

    format: str
    kind: str
    blank: bool
    builds: dict[str, str]
    categories: list[tuple[int, str]]


def read_records(out: Location) -> dict[str, Record]:
    """Return the record of each split that was exported to a folder, by the split's name, sorted.

    Raises:
        DataError: a record is damaged.
    """
    records = {}
    for path in files_in(out / NOTES, "*.json"):
        try:
            records[path.stem] = msgspec.json.decode(read_bytes(path), type=Record)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}: is damaged ({error}), so what was exported to {out} is not known; choose another --out, or "
                f"delete {out} and export again"
            ) from error
    return records


def write_record(out: Location, split: str, record: Record) -> None:
    """Note of what a split is made."""
    make_folder(out / NOTES)
    write_atomic(out / NOTES / f"{split}.json", msgspec.json.encode(record))
