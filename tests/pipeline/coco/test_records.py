"""The scanner against a JSON parser: what it takes apart is the whole file, or it gives none."""

import json
from io import BytesIO
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.coco import records as scanner
from pipeline.coco.records import outline, read_range

ABSENT = object()

texts = st.text(st.sampled_from('"\\[]{},:/ \n\tau0é€😀\ud800') | st.characters(), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)
files = st.dictionaries(texts, st.lists(values, max_size=9) | values, max_size=5)
layouts = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.none() | st.integers(0, 2) | st.just("\t"),
        "separators": st.sampled_from([None, (",", ":"), (" ,\r\n", " : ")]),
    }
)


def put_together(data: bytes, run_records: int, run_bytes: int) -> Any:
    """What a parser makes of the parts; ABSENT where they are not all JSON, or not as many records as counted."""
    file = BytesIO(data)
    found = outline(file, run_records, run_bytes)
    if found is None:
        return ABSENT
    try:
        rest = json.loads(found.rest.decode("utf-8", "surrogatepass"))
        if not isinstance(rest, dict):
            return ABSENT
        lists: list[list[Any]] = []
        for number, start, stop, num_records in found.runs.tolist():
            records = json.loads(b"[%s]" % bytes(read_range(file, start, stop)))
            alone = (found.runs[:, 0] == number).sum() == 1
            if len(records) != num_records and (records or not alone):
                return ABSENT
            assert num_records <= run_records
            if number == len(lists):
                lists.append([])
            lists[number] += records
    except ValueError:
        return ABSENT
    return {key: lists[value[0]] if isinstance(value, list) else value for key, value in rest.items()}


@settings(max_examples=250, deadline=None)
@given(
    content=files,
    layout=layouts,
    run_records=st.integers(1, 4),
    run_bytes=st.integers(1, 40),
    block=st.integers(1, 30),
)
@example({"a\\": [["\\\\", '\\"'], {}, "]"], '"': {"b": [1, 2]}}, {}, 1, 9, 1)
@example({"a": [], "b": [[]], "c": [{}]}, {"indent": 1}, 2, 1, 2)
def test_outline_runs_and_rest_are_the_whole_file(
    content: dict[str, Any], layout: dict[str, Any], run_records: int, run_bytes: int, block: int
) -> None:
    data = json.dumps(content, **layout).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanner, "BLOCK", block)
        assert put_together(data, run_records, run_bytes) == json.loads(data)


@settings(max_examples=400, deadline=None)
@given(
    content=files,
    layout=layouts,
    place=st.floats(0, 1),
    removed=st.integers(0, 3),
    added=st.binary(max_size=2) | st.sampled_from([b"[", b"]", b"{", b"}", b",", b'"', b"\\", b",,", b"][", b"],["]),
    run_records=st.integers(1, 3),
)
def test_outline_of_what_is_no_json_never_gives_parts_that_are(
    content: dict[str, Any], layout: dict[str, Any], place: float, removed: int, added: bytes, run_records: int
) -> None:
    data = json.dumps(content, **layout).encode("utf-8", "surrogatepass")
    at = int(place * len(data))
    data = data[:at] + added + data[at + removed :]
    found = put_together(data, run_records, 20)
    if found is not ABSENT:
        assert found == json.loads(data.decode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    "text",
    ["", '{"a": [1', '{"a": [1}', '{"a": [1]', '{"a": "', '{"a": "\\', "]", "{}}", '{"a": [1]}]', '{"a": [1}}'],
)
def test_outline_of_brackets_that_do_not_match_is_none(text: str) -> None:
    assert outline(BytesIO(text.encode())) is None


def test_outline_of_very_many_lists_is_none() -> None:
    def file(num_lists: int) -> BytesIO:
        return BytesIO(json.dumps({str(i): [i] for i in range(num_lists)}).encode())

    most = scanner.MAX_LISTS
    found = outline(file(most))
    assert found is not None
    assert found.runs[:, 0].tolist() == list(range(most))
    assert outline(file(most + 1)) is None


def test_outline_run_ends_with_the_record_that_reaches_its_bytes() -> None:
    text = b'{"a": [%s, 1, 2, %s, 3]}' % (b"5" * 100, b"[%s]" % b",".join([b"7"] * 60))
    found = outline(BytesIO(text), 1000, 90)
    assert found is not None
    assert found.runs[:, 3].tolist() == [1, 3, 1]
    assert found.rest == b'{"a": [0]}'
