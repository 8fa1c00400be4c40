"""Finds image files whose names an annotation file writes otherwise, on a disk of this machine."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LOOKED_AT = 100  # missing files; more tell nothing new
ODD_NAME = r"[\\]|[^\x00-\x7f]"


def resolve_names(root: Path, file_name: pa.Array) -> tuple[pa.Array, int]:
    """Replace names that have backslashes or another Unicode form than their files.

    Only names with such characters are looked up, and a name is replaced where no file has it as it is written and
    exactly one file has it otherwise, which no other image names.

    Args:
        root: the image folder.
        file_name: large_string [n], the names, relative to it.

    Returns:
        The names as they are on the disk, and how many of them were replaced.
    """
    odd = np.flatnonzero(pc.match_substring_regex(file_name, ODD_NAME).to_numpy(zero_copy_only=False)).tolist()
    found: dict[int, str] = {}
    listing = _Listing()
    for place in odd:
        name = file_name[place].as_py()
        if not os.path.lexists(root / name) and (other := _resolved(root, name, listing)) is not None:
            found[place] = other
    taken = pc.is_in(pa.array(found.values(), pa.large_string()), file_name).to_pylist()
    found = {place: name for (place, name), is_taken in zip(found.items(), taken, strict=True) if not is_taken}
    if len(set(found.values())) < len(found) or not found:
        return file_name, 0
    mask = np.zeros(len(file_name), np.bool_)
    mask[list(found)] = True
    return pc.replace_with_mask(file_name, mask, pa.array(found.values(), pa.large_string())), len(found)


def _resolved(root: Path, name: str, listing: "_Listing") -> str | None:
    """Find the one file whose path is the name but for backslashes and Unicode forms; None unless just one is."""
    here: list[str] = []
    for part in name.replace("\\", "/").split("/"):
        same = [entry for entry in listing(root.joinpath(*here)) if _form(entry) == _form(part)]
        exact = [entry for entry in same if entry == part]
        if len(exact or same) != 1:
            return None
        here += exact or same
    return "/".join(here)


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


class _Listing:
    """Lists folders, each once."""

    def __init__(self) -> None:
        self._found: dict[Path, list[str]] = {}

    def __call__(self, folder: Path) -> list[str]:
        if folder not in self._found:
            try:
                self._found[folder] = sorted(entry.name for entry in folder.iterdir())
            except OSError:
                self._found[folder] = []
        return self._found[folder]


def _is_link(path: Path) -> bool:
    return os.path.islink(path)  # noqa: PTH114  is_symlink raises on names that are too long


def near_misses(root: Path, missing: Iterable[str]) -> list[str]:
    """Say of files that are missing under which other names they lie there.

    Args:
        root: the image folder.
        missing: names that no file has, relative to it.

    Returns:
        A line for each kind of difference, with the count and the first example.
    """
    listing = _Listing()
    missing = (name for name in missing if not _is_link(root / name))  # such a link is told otherwise
    counts: dict[str, int] = {}
    first: dict[str, str] = {}
    for _, name in zip(range(LOOKED_AT), missing, strict=False):
        kind, found = _near_miss(root, name, listing)
        if kind:
            counts[kind] = counts.get(kind, 0) + 1
            first.setdefault(kind, f"{name!r} is missing, {found!r} is there")
    return [f"{count:,} missing files may be there {kind}: {first[kind]}" for kind, count in counts.items()]


def _near_miss(root: Path, name: str, listing: _Listing) -> tuple[str, str]:
    """Tell what differs between a missing name and a file that is there, and that file; empty where there is none."""
    folder, _, base = name.replace("\\", "/").rpartition("/")
    entries = listing(root / folder)
    stem = PurePosixPath(base).stem
    alike = {
        "with blanks or line ends taken off": [entry for entry in entries if entry.strip() == base.strip()],
        "with %-escapes read": [entry for entry in entries if entry == unquote(base)],
        "in another case": [entry for entry in entries if entry.casefold() == base.casefold()],
        "with another suffix": [entry for entry in entries if PurePosixPath(entry).stem == stem],
    }
    for kind, found in alike.items():
        if found:
            return kind, f"{folder}/{found[0]}" if folder else found[0]
    if folder and base in listing(root):
        return "without the folders in the name", base
    if (root.parent / name).is_file():
        return "one folder higher; give the folder above as --images", str(root.parent / name)
    for entry in listing(root):
        if (root / entry / name).is_file():
            return "one folder deeper; give that folder as --images", f"{entry}/{name}"
    return "", ""
