"""Classes of a network and of an annotation file are matched by their names where ids differ."""

from pathlib import Path

import pytest

from schemas.errors import DataError
from trainer.inference.categories import Categories, match_categories

KNOWN = [(1, "disc"), (3, "square"), (7, "triangle")]


@pytest.mark.parametrize(
    ("there", "ids", "said"),
    [
        (KNOWN, [1, 3, 7], []),
        ([(0, "disc"), (1, "square"), (2, "triangle")], [0, 1, 2], ["go by their names: disc is 0 here, 1 in"]),
        ([(1, "triangle"), (3, "disc"), (7, "square")], [3, 7, 1], ["square is 7 here, 3 in training"]),
        ([(1, "disc"), (3, "square"), (8, "star")], [1, 3, None], ["knows no category 8 (star)"]),
        ([(1, "disk"), (3, "square"), (7, "triangle")], [1, 3, 7], ["other names than in training, 1: 'disc' learnt"]),
        # the name of one is gone, and its id is another class now
        ([(1, "triangle"), (3, "disc")], [3, None, 1], ["disc is 3 here", "triangle is 1 here"]),
        # two classes of one name: the ids decide
        ([(1, "square"), (3, "square"), (7, "triangle")], [1, 3, 7], ["1: 'disc' learnt, 'square' here"]),
    ],
)
def test_match_categories__by_id_and_else_by_name(there: Categories, ids: list[int | None], said: list[str]) -> None:
    found, notes = match_categories(KNOWN, there, Path("val.json"))
    assert found == ids
    assert bool(notes) == bool(said)
    assert all(part in "\n".join(notes) for part in said), notes


def test_match_categories__nothing_in_common_is_refused() -> None:
    with pytest.raises(DataError, match=r"val.json: has categories 9 \(star\), the network knows 1 \(disc\), 3"):
        match_categories(KNOWN, [(9, "star")], Path("val.json"))
