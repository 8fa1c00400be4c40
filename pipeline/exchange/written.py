"""What a command writes into a folder, so that the user's own files are neither mixed with it nor deleted.

Names that begin with a dot do not count: our records have such names, and systems leave files of such names anywhere.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from pipeline.dataset.build_file import NAME
from pipeline.storage import TEMPORARY, Location, files_in, is_file, names_in, remove_all
from schemas.errors import UsageError


class Written(NamedTuple):
    """Files of one folder that a command writes.

    Attributes:
        folder: where they lie.
        names: regular expression that the whole name of each of them matches.
        alone: whether nothing else may lie in the folder.
    """

    folder: Location
    names: str
    alone: bool = True


def refuse_others(written: Iterable[Written], command: str, *, recorded: bool) -> None:
    """Refuse folders with files or folders in them that an earlier run of the command did not write.

    Args:
        written: what the command writes.
        command: its name, such as `sniper views`, for the message.
        recorded: whether a record of an earlier run is there. Without one, no file is the command's.

    Raises:
        UsageError: a folder holds something that would be mixed with the command's files, or overwritten by them.
    """
    for folder, names, alone in written:
        for name in names_in(folder):
            is_ours = re.fullmatch(names, name) is not None
            if not name.startswith(".") and (not recorded if is_ours else alone):
                raise UsageError(
                    f"{folder}: holds {name}, which `{command}` did not write; choose another --out, or move that away"
                )


def remove_written(written: Iterable[Written]) -> None:
    """Delete the files of an earlier run, those that it left unfinished too, and nothing else.

    Raises:
        OSError: a file cannot be deleted.
    """
    for folder, names, _ in written:
        name = re.compile(rf"({re.escape(TEMPORARY)}\d+-)?({names})")
        remove_all([path for path in files_in(folder, "*") if name.fullmatch(path.name)])


def refuse_chips(out: Location) -> None:
    """Refuse to write into a chip data set.

    Raises:
        UsageError: `out` is one.
    """
    if is_file(out / NAME):
        raise UsageError(f"{out}: holds {NAME}, so it is a chip data set; choose another --out")
