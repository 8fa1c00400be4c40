"""JSON read member by member gives what Python's own parser gives for the whole, whatever the blocks."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.coco.stream import JsonText, NotJsonError


def members(text: str, block: int) -> list[tuple[str, Any]]:
    """All members, their lists whole."""
    blocks = (text[start : start + block] for start in range(0, len(text), block))
    return [(key, value if plain(value) else list(value)) for key, value in JsonText(blocks).members()]


def plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | dict)


def expected(text: str) -> list[tuple[str, Any]]:
    """What json.loads makes of it, repeated keys included."""
    pairs: list[tuple[str, Any]] = []

    def note(found: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = found  # the outermost object is the last
        return dict(found)

    value = json.loads(text, object_pairs_hook=note)
    return pairs if isinstance(value, dict) else [("", value)]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300)
@given(value=values, block=st.integers(1, 40), indent=st.sampled_from([None, 0, 1]), ascii_only=st.booleans())
def test_members__are_those_of_the_whole(value: Any, block: int, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert members(text, block) == expected(text)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_members__any_number_of_blanks_may_stand_between_items(block: int) -> None:
    text = '{"a": [1,  2,\t 3, \n{"b": 4} ,   []],  "c":   5}'
    assert members(text, block) == expected(text)


@settings(max_examples=300)
@given(value=values, block=st.integers(1, 40), cut=st.integers(0, 200), put=st.sampled_from(list('{}[],:"\\1 e.x')))
def test_members__of_damaged_text_are_refused(value: Any, block: int, cut: int, put: str) -> None:
    text = json.dumps({"a": value, "b": [value]})
    cut = min(cut, len(text))
    for damaged in (text[:cut], text[:cut] + put + text[cut:], text[:cut] + put + text[cut + 1 :]):
        try:
            whole = expected(damaged)
        except (ValueError, RecursionError):
            with pytest.raises(NotJsonError):
                members(damaged, block)
        else:
            assert repr(members(damaged, block)) == repr(whole)  # NaN is not equal to itself


POLYGONS = "[[1.5, 2,3e-2 ], [4,5],\n [-6]]"


@pytest.mark.parametrize("block", [3, 20, 1000])
def test_members__read_over_polygons_alone(block: int) -> None:
    """A polygon may come out empty; nothing else changes, nor where a fault is said to lie."""
    text = f'{{"a": [{{"x": "\\"segmentation\\": [[1]]", "segmentation": {POLYGONS}, "bbox": [1, 2], "n": 5}}]}}'
    ((_, (record,)),) = members(text, block)
    assert record.pop("segmentation") in ([], json.loads(POLYGONS))
    assert record == {"x": '"segmentation": [[1]]', "bbox": [1, 2], "n": 5}
    with pytest.raises(NotJsonError, match=f"character {len(text):,}"):
        members(text + "]", block)


@pytest.mark.parametrize("polygons", ["[[1, 2]", "[[1, 2]]]", "[[[1, 2]]", "[1, 2]]", "[[1, 2]] 3", "[[1"])
def test_members__of_unbalanced_polygons_are_refused(polygons: str) -> None:
    for end in (', "n": 5}]}', "}]}"):
        with pytest.raises(NotJsonError):
            members('{"a": [{"segmentation": ' + polygons + end, 1000)


@pytest.mark.parametrize(
    "polygons", ['{"counts": "aX", "size": [3, 4]}', '[{"counts": [1, 2], "size": [3, 4]}]', "[]", "[[]]"]
)
def test_members__other_masks_are_left(polygons: str) -> None:
    text = '{"a": [{"segmentation": ' + polygons + "}]}"
    assert members(text, 1000) == [("a", [{"segmentation": json.loads(polygons)}])] or polygons == "[[]]"


@pytest.mark.parametrize("text", ['{"a": "x', '{"a": "\t"}'])
def test_members__messages_of_the_parser_say_once_where(text: str) -> None:
    with pytest.raises(NotJsonError, match=r"(string starting|control character) at character \d$"):
        members(text, 1000)
