"""Which classes of an annotation file those of a network are: by their names where ids differ."""

from collections import Counter
from collections.abc import Sequence

from pipeline.storage import Location
from schemas.errors import DataError

Categories = Sequence[tuple[int, str]]
"""(id, name) of classes."""


def match_categories(known: Categories, there: Categories, where: Location) -> tuple[list[int | None], list[str]]:
    """Find the category of a file that each class of a network is: the one of its id, or where ids differ of its name.

    Args:
        known: (source id, name) of the network's classes, by label from 1.
        there: (id, name) of the file's categories.
        where: the file, for messages.

    Returns:
        The file's category id for each class, None for a class that the file cannot have; and notes for the user.

    Raises:
        DataError: the file has none of the classes.
    """
    name_of_id = dict(there)
    counts = Counter(name for _, name in there)
    id_of_name = {name: id_ for id_, name in there if counts[name] == 1}
    if name_of_id.keys().isdisjoint(id_ for id_, _ in known) and id_of_name.keys().isdisjoint(n for _, n in known):
        raise DataError(
            f"{where}: has categories {_listed(there)}, the network knows {_listed(known)}: none in common; give data "
            "with the categories it was trained on"
        )
    ids: list[int | None] = []
    moved, renamed = [], []
    for id_, name in known:
        found = id_ if name_of_id.get(id_) == name else id_of_name.get(name)
        ids.append(found)
        if found not in (id_, None):
            moved.append(f"{name} is {found} here, {id_} in training")
    for label, (id_, name) in enumerate(known):
        if ids[label] is None and id_ in name_of_id and id_ not in ids:  # renamed, it seems
            ids[label] = id_
            renamed.append(f"{id_}: {name!r} learnt, {name_of_id[id_]!r} here")
    notes = []
    if moved:
        notes.append(f"categories have other ids than in training and go by their names: {'; '.join(moved)}")
    if renamed:
        notes.append(f"categories have other names than in training, {'; '.join(renamed)}: are they the same?")
    if unknown := [f"{id_} ({name})" for id_, name in there if id_ not in ids]:
        notes.append(f"the network knows no category {', '.join(unknown)}: nothing of it can be found")
    return ids, notes


def _listed(categories: Categories) -> str:
    shown = ", ".join(f"{id_} ({name})" for id_, name in categories[:10])
    return shown + (", ..." if len(categories) > 10 else "")
