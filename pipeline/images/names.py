"""Finds image files whose names an annotation file writes otherwise, on a disk of this machine."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
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
    times = Counter(found.values())
    pairs = zip(found.items(), taken, strict=True)
    found = {place: name for (place, name), is_taken in pairs if not is_taken and times[name] == 1}
    if not found:
        return file_name, 0
    mask = np.zeros(len(file_name), np.bool_)
    mask[list(found)] = True
    return pc.replace_with_mask(file_name, mask, pa.array(found.values(), pa.large_string())), len(found)


def _resolved(root: Path, name: str, listing: "_Listing") -> str | None:
    """Find the one file whose path is the name but for backslashes and Unicode forms; None unless just one is."""
    here: list[str] = []
    for part in name.replace("\\", "/").split("/"):
        same = [entry for entry in listing(root.joinpath(*here)) if unicode_form(entry) == unicode_form(part)]
        exact = [entry for entry in same if entry == part]
        if len(exact or same) != 1:
            return None
        here += exact or same
    return "/".join(here)


def unicode_form(name: str) -> str:
    """Return the form of a name that is equal for all names that look the same: Macs write `ü` as `u` and two dots."""
    return unicodedata.normalize("NFC", name)


def _names_in(folder: Path) -> list[str]:
    """List the names of what is in a folder, sorted; none where it may not be looked into."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


class _Listing:
    """Lists folders, each once."""

    def __init__(self) -> None:
        self._found: dict[Path, list[str]] = {}

    def __call__(self, folder: Path) -> list[str]:
        if folder not in self._found:
            self._found[folder] = _names_in(folder)
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
    missing = (name for name in missing if not _is_link(root / name))  # such a link is told otherwise
    names = list(islice(missing, LOOKED_AT))
    alike = _alike_names(root, names)
    folders = _folders_in(root) if len(alike) < len(names) else []
    counts: dict[str, int] = {}
    first: dict[str, str] = {}
    for name in names:
        kind, found = alike.get(name) or _elsewhere(root, name, folders)
        if kind:
            counts[kind] = counts.get(kind, 0) + 1
            first.setdefault(kind, f"{name!r} is missing, {found!r} is there")
    return [f"{count:,} missing files may be there {kind}: {first[kind]}" for kind, count in counts.items()]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122  ten times as fast


ALIKE: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "with blanks or line ends taken off": (str.strip, str.strip),
    "with %-escapes read": (str, unquote),
    "in another case": (str.casefold, str.casefold),
    "with another suffix": (_stem, _stem),
}
"""How names may differ -> what a name that is there, and a name that is missing, have in common then."""


def _alike_names(root: Path, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Find missing names that a file of the same folder nearly has: name -> what differs, and that file.

    Every folder is gone through once, whatever the number of names, and nothing is kept of it.
    """
    bases: dict[str, dict[str, str]] = {}  # folder -> last part of a name -> the name
    for name in names:
        folder, _, base = name.replace("\\", "/").rpartition("/")
        bases.setdefault(folder, {})[base] = name
    found: dict[str, tuple[str, str]] = {}
    for folder, wanted in bases.items():
        entries = _names_in(root / folder)
        for kind, (of_entry, of_base) in ALIKE.items():
            forms: dict[str, list[str]] = {}
            for base, name in wanted.items():
                if name not in found:
                    forms.setdefault(of_base(base), []).append(name)
            for entry in entries if forms else ():
                for name in forms.pop(of_entry(entry), ()):
                    found[name] = kind, f"{folder}/{entry}" if folder else entry
    return found


def _folders_in(root: Path) -> list[str]:
    """List the names of the folders in a folder, sorted; one that may not be looked into is one, too."""
    with suppress(OSError), os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())
    return []


def _elsewhere(root: Path, name: str, folders: Sequence[str]) -> tuple[str, str]:
    """Tell in which other folder a missing file is, and the file; empty where there is none."""
    base = name.replace("\\", "/").rpartition("/")[2]
    # os.path, since is_file raises where a folder may not be looked into
    if base != name and os.path.isfile(root / base):  # noqa: PTH113
        return "without the folders in the name", base
    if os.path.isfile(root.parent / name):  # noqa: PTH113
        return "one folder higher; give the folder above as --images", str(root.parent / name)
    for folder in folders:
        if os.path.isfile(root / folder / name):  # noqa: PTH113
            return "one folder deeper; give that folder as --images", f"{folder}/{name}"
    return "", ""
