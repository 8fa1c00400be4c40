"""What an export notes of itself in OUT/.export: of what each split was made."""

import msgspec

from pipeline.storage import Location, files_in, make_folder, read_bytes, write_atomic

NOTES = ".export"


class Record(msgspec.Struct, frozen=True):
    """What the export of a split was made of; one of another kind in its place is refused."""

    format: str
    kind: str
    blank: bool
    builds: dict[str, str]
    categories: list[tuple[int, str]]


def read_records(out: Location) -> dict[str, Record]:
    """Return the record of each split that was exported to a folder, by the split's name, sorted."""
    return {path.stem: msgspec.json.decode(read_bytes(path), type=Record) for path in files_in(out / NOTES, "*.json")}


def write_record(out: Location, split: str, record: Record) -> None:
    """Note of what a split is made."""
    make_folder(out / NOTES)
    write_atomic(out / NOTES / f"{split}.json", msgspec.json.encode(record))
