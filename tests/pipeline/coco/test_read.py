"""Reading annotation files: what the columns hold, which files are refused as a whole, and that nothing is lost."""

import json
import math
import os
import tempfile
import threading
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.coco import text
from pipeline.coco.checks import boxes as coco_boxes
from pipeline.coco.read import read_coco
from pipeline.coco.rows import Rows
from pipeline.coco.source import Source
from schemas.codes import Fate
from schemas.errors import DataError
from tests.paths import shared_data

MINIMAL: dict[str, Any] = {
    "images": [
        {"id": 5, "file_name": "b.jpg", "width": 40, "height": 30},
        {"id": 2, "file_name": "a.jpg", "width": 20, "height": 10},
    ],
    "annotations": [
        {"id": 11, "image_id": 5, "category_id": 9, "bbox": [1, 2, 3, 4], "iscrowd": 0},
        {"id": 12, "image_id": 2, "category_id": 4, "bbox": [0.5, 0, 2, 2.25], "iscrowd": 1},
        {"id": 10, "image_id": 5, "category_id": 4, "bbox": [30, 20, 100, 5]},
    ],
    "categories": [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}],
}


def read(content: Any, folder: Path) -> Source:
    path = folder / "annotations.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_coco(path)


def refusal(content: Any, folder: Path) -> str:
    """The message of the error, less the file's name that it must start with."""
    with pytest.raises(DataError) as caught:
        read(content, folder)
    message = str(caught.value)
    assert caught.value.exit_status == 1
    assert message.startswith(f"{folder / 'annotations.json'}: ")
    return message.removeprefix(f"{folder / 'annotations.json'}: ")


def with_list(name: str, records: Any) -> dict[str, Any]:
    return MINIMAL | {name: records}


def assert_reconciles(source: Source, content: dict[str, Any]) -> None:
    """Kept, refused and repeated are everything; each refusal is in `rejects` once."""
    repeated = sum(int(line.split()[0]) for line in source.notes if "image records repeat" in line)
    assert source.num_images + len(source.refused_images) + repeated == len(content["images"])
    rows = sorted([*source.row.tolist(), *(box.row for box in source.refused_boxes)])
    assert rows == list(range(len(content["annotations"])))
    images = Counter((reject.id, reject.reason) for reject in source.rejects if reject.kind == "image")
    assert images == Counter((image.id, image.reason) for image in source.refused_images)
    boxes = Counter((reject.id, reject.reason) for reject in source.rejects if reject.kind == "annotation")
    refused = [box for box in source.refused_boxes if box.fate == Fate.REFUSED]
    assert boxes == Counter((box.annotation_id, box.reason) for box in refused)
    why = {image.id: image.reason for image in source.refused_images}
    assert all(why[b.image_id] == b.reason for b in source.refused_boxes if b.fate == Fate.IMAGE_REFUSED)
    assert source.offsets[0] == 0
    assert source.offsets[-1] == len(source.row)
    assert (np.diff(source.offsets) >= 0).all()
    assert (np.diff(source.image_id) > 0).all()
    owner = np.repeat(np.arange(source.num_images), np.diff(source.offsets))
    x1, y1, x2, y2 = source.box.T
    assert ((x1 >= 0) & (y1 >= 0) & (x2 <= source.width[owner]) & (y2 <= source.height[owner])).all()
    assert ((x2 - x1) * (y2 - y1) > 0).all()
    for i, row in enumerate(source.row.tolist()):
        record = content["annotations"][row]
        assert number(record["image_id"]) == source.image_id[owner[i]]
        assert source.annotation_id[i] in (number(record.get("id")), row)  # the row where there is no such id
        category_id = source.category_of_label[source.label[i]]
        assert number(record["category_id"]) == category_id == source.categories[source.label[i] - 1][0]


def number(value: Any) -> Any:
    """A number that is written as text."""
    return float(value) if isinstance(value, str) and value.strip().isdigit() else value


def test_read_coco_columns_are_sorted_by_image_then_row(tmp_path: Path) -> None:
    source = read(MINIMAL, tmp_path)
    assert source.image_id.tolist() == [2, 5]
    assert source.file_name.to_pylist() == ["a.jpg", "b.jpg"]
    assert source.width.tolist() == [20, 40]
    assert source.height.tolist() == [10, 30]
    assert source.offsets.tolist() == [0, 1, 3]
    assert source.row.tolist() == [1, 0, 2]
    assert source.annotation_id.tolist() == [12, 11, 10]
    assert source.category_of_label[source.label].tolist() == [4, 9, 4]
    assert source.label.tolist() == [1, 2, 1]
    assert source.box.tolist() == [[0.5, 0, 2.5, 2.25], [1, 2, 4, 6], [30, 20, 40, 25]]
    assert source.crowd.tolist() == [True, False, False]
    assert source.categories == [(4, "four"), (9, "nine")]
    assert source.num_clipped == 1
    assert not source.rejects
    assert source.images(1, 2) == [(5, "b.jpg", 40, 30)]
    assert_reconciles(source, MINIMAL)


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
@pytest.mark.parametrize("how", ["missing", "null"])
def test_read_coco_list_missing_is_named(name: str, how: str, tmp_path: Path) -> None:
    content = {key: value for key, value in MINIMAL.items() if key != name} | ({name: None} if how == "null" else {})
    assert f"has no `{name}`" in refusal(content, tmp_path)


def test_read_coco_all_missing_lists_are_named_at_once(tmp_path: Path) -> None:
    message = refusal({"info": {}}, tmp_path)
    assert message.startswith("has no `images` and no `annotations` and no `categories`")


def test_read_coco_without_any_image_is_refused(tmp_path: Path) -> None:
    assert "`images` is empty" in refusal(with_list("images", []), tmp_path)


def test_read_coco_boxes_without_any_category_are_refused(tmp_path: Path) -> None:
    assert "`categories` is empty" in refusal(with_list("categories", []), tmp_path)


def test_read_coco_images_without_boxes_need_no_category(tmp_path: Path) -> None:
    content = MINIMAL | {"annotations": [], "categories": []}
    assert_reconciles(read(content, tmp_path), content)


@pytest.mark.parametrize("name", ["images", "categories"])
def test_read_coco_repeated_id_refuses_the_file_and_names_both(name: str, tmp_path: Path) -> None:
    for other in ({"file_name": "c.jpg", "name": "five"}, {"width": 0, "name": ""}):
        records = [*MINIMAL[name], MINIMAL[name][0] | other]
        message = refusal(with_list(name, records), tmp_path)
        assert f"{name}[0] and {name}[2] both have id {records[0]['id']} and differ" in message


@pytest.mark.parametrize("name", ["images", "categories"])
def test_read_coco_repeated_record_is_read_once(name: str, tmp_path: Path) -> None:
    first, second = MINIMAL[name]
    source = read(with_list(name, [first, second, second, first, first]), tmp_path)
    assert columns(source) | {"notes": []} == columns(read(MINIMAL, tmp_path)) | {"notes": []}
    assert any(line.startswith("3 ") and "each is read once" in line for line in source.notes)
    broken = {"id": 8, "file_name": "/x.jpg", "width": 1, "height": 1}
    source = read(with_list("images", [*MINIMAL["images"], broken, broken]), tmp_path)
    assert len(source.refused_images) == 1


@pytest.mark.parametrize("record", [None, 5, "cat", [1], {}, {"id": None}, {"id": 1.5}, {"id": True}, {"id": [1]}])
def test_read_coco_category_without_integer_id_refuses_the_file(record: Any, tmp_path: Path) -> None:
    assert "categories[2]" in refusal(with_list("categories", [*MINIMAL["categories"], record]), tmp_path)


def test_read_coco_all_that_refuses_the_file_is_named_at_once(tmp_path: Path) -> None:
    content = {
        "images": [*MINIMAL["images"], MINIMAL["images"][0] | {"width": 3}, {"id": "x"}],
        "annotations": [{"id": str(i), "image_id": "x", "category_id": "9"} for i in range(40)],
        "categories": [*MINIMAL["categories"], {"id": 4}, {"id": "four"}, None],
    }
    lines = refusal(content, tmp_path).splitlines()
    assert len(lines) == 5
    assert any("images[0] and images[2]" in line for line in lines)
    assert any("categories[1] and categories[2]" in line for line in lines)
    assert any("categories[3].id is the text 'four'" in line for line in lines)
    assert any("categories[4] is None" in line for line in lines)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n", "git lfs pull"),
        (json.dumps(MINIMAL).encode()[:-20], "is not valid JSON"),
        (json.dumps(MINIMAL).encode() + b"}", "is not valid JSON"),
        (b"<annotation><folder>x</folder></annotation>", "is not valid JSON"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is not valid JSON"),
        (b'{"images": "\xff\xfe"}', "its text is cut short, or in an encoding other than UTF-8"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"images": ' + b"[" * 100_000, "is not valid JSON"),
        (b"1" * 5000, "is not valid JSON"),
        (json.dumps([MINIMAL]).encode(), "expected a COCO object"),
        (b"[]", "expected a COCO object"),
        (b"5", "expected a COCO object"),
        (b"null", "expected a COCO object"),
        (b'{"images": {}, "annotations": [], "categories": []}', "expected a COCO object"),
        (b'{"images": 5, "annotations": [], "categories": []}', "expected a COCO object"),
    ],
)
def test_read_coco_file_that_is_not_coco_says_what_it_is(content: bytes, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(content, tmp_path)


def test_read_coco_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such annotation file"):
        read_coco(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_coco(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be read: Not a directory"):
        read_coco(tmp_path / "file" / "annotations.json")


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_read_coco_number_that_is_none_costs_its_box_alone(literal: bytes, tmp_path: Path) -> None:
    content = json.dumps(MINIMAL).encode().replace(b"[0.5, 0,", b"[" + literal + b", 0,")
    source = read(content, tmp_path)
    (reject,) = source.rejects
    assert (reject.id, reject.file, reject.reason) == (12, "a.jpg", "bad_numbers")
    assert source.annotation_id.tolist() == [11, 10]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_read_coco_byte_order_mark_is_read_over(encoding: str, tmp_path: Path) -> None:
    source = read(json.dumps(MINIMAL).encode(encoding), tmp_path)
    assert source.box.tolist() == read(MINIMAL, tmp_path).box.tolist()


def test_read_coco_half_a_letter_in_a_name_is_replaced_or_refused(tmp_path: Path) -> None:
    content = MINIMAL | {
        "images": [*MINIMAL["images"], {"id": 6, "file_name": "\udc80.jpg", "width": 9, "height": 9}],
        "categories": [{"id": 9, "name": "n\ud800"}, {"id": 4, "name": "four"}],
    }
    source = read(content, tmp_path)
    assert source.categories == [(4, "four"), (9, "n?")]
    assert [(reject.id, reject.file, reject.reason) for reject in source.rejects] == [(6, None, "bad_record")]
    assert_reconciles(source, content)


def test_read_coco_rejects_are_in_file_order_images_first(tmp_path: Path) -> None:
    bad = [[1, 1, 0, 0], "x", [99, 99, 1, 1], None, [1, 1, -1, 1]]
    boxes = [{"id": 100 + i, "image_id": 5, "category_id": 4, "bbox": bbox} for i, bbox in enumerate(bad)]
    content = {
        "images": [{"id": 7}, *MINIMAL["images"], {"id": 6}],
        "annotations": [*boxes, *MINIMAL["annotations"]],
        "categories": MINIMAL["categories"],
    }
    source = read(content, tmp_path)
    assert [reject.id for reject in source.rejects] == [7, 6, 100, 101, 102, 103, 104]
    assert_reconciles(source, content)


def test_read_coco_box_without_area_inside_is_told_from_one_outside(tmp_path: Path) -> None:
    bad = [[5, 5, 1e-300, 1], [0, 0, 1e-200, 1e-200], [40, 0, 5, 5], [-5, 0, 5, 5]]
    boxes = [{"id": i, "image_id": 5, "category_id": 4, "bbox": bbox} for i, bbox in enumerate(bad)]
    source = read(with_list("annotations", boxes), tmp_path)
    assert [r.reason for r in source.rejects] == ["no_area", "no_area", "outside_image", "outside_image"]


def test_read_coco_corners_instead_of_sizes_are_noted(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}
    corners = [[5 * i, 5 * i, 5 * i + 20, 5 * i + 20] for i in range(1, 15)]
    boxes = [{"id": i, "image_id": 1, "category_id": 4, "bbox": bbox} for i, bbox in enumerate(corners)]
    (warning,) = read(MINIMAL | {"images": [image], "annotations": boxes}, tmp_path).warnings
    assert "x1 y1 x2 y2" in warning
    assert read(MINIMAL, tmp_path).warnings == []


def columns(source: Source) -> dict[str, Any]:
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else list(value) if isinstance(value, Rows) else value
        for name, value in vars(source).items()
        if name != "category_of_label"
    }


@pytest.mark.parametrize("names", [["annotations", "images", "categories"], ["categories", "annotations", "images"]])
def test_read_coco_lists_may_come_in_any_order(names: list[str], tmp_path: Path) -> None:
    expected = columns(read(MINIMAL, tmp_path))
    assert columns(read({"info": [[], {}]} | {name: MINIMAL[name] for name in names}, tmp_path)) == expected


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_read_coco_list_that_stands_twice_refuses_the_file(name: str, tmp_path: Path) -> None:
    text = json.dumps(MINIMAL)
    content = text.replace("{", f'{{"{name[:-1]}\\u0073": [], ', 1).encode()
    assert f"the key `{name}` stands twice" in refusal(content, tmp_path)
    others = text.replace("{", '{"x": [], "x": 5, ', 1).encode()
    assert columns(read(others, tmp_path)) == columns(read(MINIMAL, tmp_path))


def mixed() -> dict[str, Any]:
    """Forty images and 300 boxes in no order, with one of everything that is refused."""
    rng = np.random.default_rng(3)
    ids = rng.permutation(40).tolist()
    images: list[Any] = [{"id": i, "file_name": f"{i}.jpg", "width": 90 - i, "height": 50 + i} for i in ids]
    images[7]["width"] = 0
    images[9]["file_name"] = "./" + images[31]["file_name"]
    images[20] = None
    boxes: list[Any] = [
        {"id": i, "image_id": int(rng.integers(0, 41)), "category_id": 4, "bbox": rng.uniform(0, 70, 4).tolist()}
        for i in rng.permutation(300).tolist()
    ]
    boxes[30]["bbox"][2] = 0
    boxes[77]["id"], boxes[240]["id"] = boxes[200]["id"], boxes[30]["id"]
    boxes[100]["iscrowd"], boxes[101]["iscrowd"] = 1, "x"
    boxes[150]["bbox"][1] = math.inf
    boxes[170] = "x"
    boxes[210]["category_id"] = 5
    boxes[211]["image_id"] = 2**70
    return {"annotations": boxes, "images": images, "categories": MINIMAL["categories"]}


@pytest.mark.parametrize(("boxes", "block"), [(1, 1000), (7, 64), (64, 1 << 18)])
def test_read_coco_is_the_same_by_blocks_of_any_length(
    boxes: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = mixed()
    whole = read(content, tmp_path)
    assert_reconciles(whole, content)
    assert len(whole.refused_images) == 3
    assert {box.reason for box in whole.refused_boxes if box.fate == Fate.REFUSED} == {
        "no_area", "outside_image", "bad_record", "bad_numbers", "unknown_category", "unknown_image",
    }  # fmt: skip
    monkeypatch.setattr(text, "BLOCK", block)
    monkeypatch.setattr(coco_boxes, "BLOCK", boxes)
    assert columns(read(content, tmp_path)) == columns(whole)


def test_read_coco_from_a_pipe(tmp_path: Path) -> None:
    expected = columns(read(MINIMAL, tmp_path))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[json.dumps(MINIMAL).encode()])
    writer.start()
    assert columns(read_coco(pipe)) == expected
    writer.join()


def test_read_coco_memory_per_image_and_box_is_bounded(tmp_path: Path) -> None:
    """200 bytes per image and 60 per box, whatever the file holds beside; bench_plan.py --scale measures all of it."""
    peaks = []
    for num_images in (4_000, 12_000):
        ids = range(num_images)
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480} for i in ids]
        boxes = [
            {
                "id": -i,
                "image_id": i % num_images,
                "category_id": 4,
                "bbox": [1, 2, 30.5, 40],
                "segmentation": [[0] * 40],
            }
            for i in range(4 * num_images)
        ]
        path = tmp_path / "large.json"
        path.write_bytes(msgspec.json.encode(MINIMAL | {"images": images, "annotations": boxes}))
        del images, boxes
        tracemalloc.start()
        source = read_coco(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(source.row) == 4 * num_images
    assert peaks[1] - peaks[0] < 8_000 * 200 + 32_000 * 60


def test_read_coco_message_of_a_huge_wrong_value_stays_short(tmp_path: Path) -> None:
    boxes = [{"id": 1, "image_id": 5, "category_id": 4, "bbox": list(range(100_000))}, {"id": [0] * 100_000}]
    source = read(with_list("annotations", boxes), tmp_path)
    assert [reject.reason for reject in source.rejects] == ["bad_numbers", "unknown_image"]
    assert max(len(reject.message) for reject in source.rejects) < 250


def test_read_coco_visdrone_file_keeps_every_box() -> None:
    path = shared_data("odd/visdrone_train_first50.json")
    content = json.loads(path.read_bytes())
    source = read_coco(path)
    assert_reconciles(source, content)
    assert len(source.row) > 0.95 * len(content["annotations"])


def test_read_coco_lvis_file_without_iscrowd_keeps_every_box() -> None:
    path = shared_data("odd/lvis_val_100.json")
    content = json.loads(path.read_bytes())
    assert not any("iscrowd" in record for record in content["annotations"])
    source = read_coco(path)
    assert_reconciles(source, content)
    assert not source.crowd.any()
    assert len(source.row) == len(content["annotations"])


odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([2**63, -(2**63), 10**30, 0.5, 1e300, 1e-300, -0.0, math.nan, math.inf, 5.0]),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.one_of(st.integers(-50, 50), st.floats(), st.none(), st.text(max_size=1)), max_size=5),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
some_ids = st.integers(0, 6)


def maybe(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Usually in order, sometimes anything."""
    return st.one_of(usual, usual, usual, usual, usual, odd_values)


names = st.sampled_from(["a.jpg", "b/c.jpg", "./a.jpg", "../x", "/y", "z\\w", "\ud800", "é"])
image_records = maybe(
    st.fixed_dictionaries(
        {},
        optional={
            "id": maybe(some_ids),
            "file_name": maybe(names | st.text(min_size=1, max_size=4)),
            "width": maybe(st.integers(1, 60)),
            "height": maybe(st.integers(1, 60)),
        },
    )
)
sides = st.integers(-20, 80) | st.floats(-20, 80)
annotation_records = maybe(
    st.fixed_dictionaries(
        {
            "id": maybe(st.integers(0, 30)),
            "image_id": maybe(some_ids),
            "category_id": maybe(some_ids),
            "bbox": maybe(st.lists(sides, min_size=4, max_size=4)),
        },
        optional={"iscrowd": maybe(st.integers(0, 1)), "segmentation": odd_values, "area": odd_values},
    )
)
category_records = st.fixed_dictionaries({"id": some_ids}, optional={"name": odd_values})


@settings(max_examples=400)
@given(
    images=st.lists(image_records, max_size=8),
    annotations=st.lists(annotation_records, max_size=12),
    categories=st.lists(maybe(category_records), max_size=5),
    cut=st.none() | st.integers(0, 400),
)
def test_read_coco_mangled_records_reconcile_or_refuse_the_file(
    images: list[Any], annotations: list[Any], categories: list[Any], cut: int | None
) -> None:
    content = {"images": images, "annotations": annotations, "categories": categories}
    text = json.dumps(content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.json"
        path.write_text(text if cut is None else text[:cut])
        try:
            source = read_coco(path)
        except DataError as error:
            named = str(error).startswith(f"{path}: ")
        else:
            assert_reconciles(source, content)
            return
    assert named


@settings(max_examples=300)
@given(
    images=st.lists(image_records, max_size=6),
    annotations=st.lists(annotation_records, max_size=12),
)
def test_read_coco_mangled_records_beside_sound_ones_lose_none_of_these(
    images: list[Any], annotations: list[Any]
) -> None:
    """Ids that refuse the whole file are taken out, so that every example is read."""
    taken = {2, 5}
    kept_images = []
    for record in images:
        if isinstance(record, dict):
            identifier = record.get("id")
            # a whole float is read as its whole number
            named = type(identifier) is int or (isinstance(identifier, float) and identifier.is_integer())
            if isinstance(identifier, str) or (named and identifier in taken):
                continue
            if named:
                taken.add(identifier)
        kept_images.append(record)
    kept_boxes = [
        record
        for record in annotations
        if not isinstance(record, dict)
        or not any(isinstance(record.get(key), str) for key in ("id", "image_id", "category_id"))
    ]
    content = MINIMAL | {
        "images": [{**record, "file_name": f"sound{i}.jpg"} for i, record in enumerate(MINIMAL["images"])]
        + kept_images,
        "annotations": MINIMAL["annotations"] + kept_boxes,
    }
    with tempfile.TemporaryDirectory() as folder:
        source = read(content, Path(folder))
    assert_reconciles(source, content)
    assert {2, 5} <= set(source.image_id.tolist())
    assert {0, 1, 2} <= set(source.row.tolist())
