"""Odd but common annotation files: what has one meaning is read, and it is said how; the rest is refused by cause."""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.coco.read import read_coco
from pipeline.coco.text import BLOCK
from schemas.errors import DataError, UsageError

IMAGES = [
    {"id": 5, "file_name": "b.jpg", "width": 40, "height": 30},
    {"id": 2, "file_name": "a.jpg", "width": 20, "height": 10},
]
BOXES: list[dict[str, Any]] = [
    {"id": 11, "image_id": 5, "category_id": 9, "bbox": [1, 2, 3, 4], "iscrowd": 0},
    {"id": 12, "image_id": 2, "category_id": 4, "bbox": [0.5, 0, 2, 2.25], "iscrowd": 1},
    {"id": 10, "image_id": 5, "category_id": 4, "bbox": [30, 20, 100, 5]},
]
CATEGORIES = [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}]


def content(**lists: Any) -> dict[str, Any]:
    return {"images": IMAGES, "annotations": BOXES, "categories": CATEGORIES} | lists


def read(value: Any, folder: Path, **options: Any) -> Any:
    path = folder / "a.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return read_coco(path, **options)


def changed(records: list[dict[str, Any]], **change: Any) -> list[dict[str, Any]]:
    return [{**record, **{key: make(record.get(key, 0)) for key, make in change.items()}} for record in records]


@pytest.mark.parametrize("write", [float, str, lambda v: f" {v}.0"])
def test_read_coco__numbers_written_otherwise(write: Any, tmp_path: Path) -> None:
    source = read(
        content(
            images=changed(IMAGES, id=write, width=write, height=write),
            annotations=changed(BOXES, id=write, image_id=write, category_id=write, iscrowd=write),
            categories=changed(CATEGORIES, id=write),
        ),
        tmp_path,
    )
    assert source.row.tolist() == [1, 0, 2]
    assert source.annotation_id.tolist() == [12, 11, 10]
    assert source.crowd.tolist() == [True, False, False]
    assert not source.rejects
    assert len(source.notes) == 7  # ids of images, sizes, 3 ids of annotations, crowd marks, ids of categories


def test_read_coco__category_names(tmp_path: Path) -> None:
    names: list[Any] = [0, 7.5, None, "x", "x", True]
    source = read(content(categories=[{"id": 4 + i, "name": name} for i, name in enumerate(names)]), tmp_path)
    assert [name for _, name in source.categories] == ["0", "7.5", "6", "x", "x", "9"]
    text = "\n".join(source.notes)
    assert "7, 8 are all called 'x'" in text
    assert "have no box" in text


def test_read_coco__ids_beyond_64_bits_are_refused_by_their_cause(tmp_path: Path) -> None:
    source = read(content(images=[*IMAGES, {**IMAGES[0], "id": 2**70, "file_name": "c"}]), tmp_path)
    assert "beyond 64 bits" in next(iter(source.rejects)).message
    with pytest.raises(DataError, match="none of its 2 images can be used.*beyond 64 bits"):
        read(content(images=changed(IMAGES, id=lambda v: v + 2**70)), tmp_path)


def test_read_coco__ids_as_text_may_have_64_bits(tmp_path: Path) -> None:
    """Ids with a time in them, such as those of Twitter, have 19 digits."""
    ids = (2**63 - 1, -(2**63) + 1, 1212092628029698048)
    images = [{**IMAGES[0], "id": str(id_), "file_name": str(id_)} for id_ in ids]
    assert read(content(images=images), tmp_path).image_id.tolist() == sorted(ids)
    for text, why in (
        (str(2**63), "beyond 64 bits"),
        (str(-(2**63)), "beyond 64 bits"),
        ("9" * 120, "beyond 64 bits"),
        ("\uff11", "the text"),
    ):
        source = read(content(images=[*IMAGES, {**IMAGES[0], "id": text, "file_name": "c"}]), tmp_path)
        assert why in next(iter(source.rejects)).message


@pytest.mark.parametrize("value", [2**70, "a1f3", None, 0])
def test_read_coco__annotation_ids_are_only_names(value: Any, tmp_path: Path) -> None:
    source = read(content(annotations=changed(BOXES, id=lambda v: value)), tmp_path)
    assert source.row.tolist() == [1, 0, 2]
    assert source.annotation_id.tolist() == ([0, 0, 0] if value == 0 else [1, 0, 2])
    assert len(source.notes) == 1


def test_read_coco__twins_are_kept_and_told(tmp_path: Path) -> None:
    source = read(content(annotations=[*BOXES, {**BOXES[0], "id": 99}]), tmp_path)
    assert source.row.tolist() == [1, 0, 2, 3]
    assert "1 boxes are the same as another" in source.notes[0]
    assert "annotations[3]" in source.notes[0]


@pytest.mark.parametrize("mark", [1, True, "1", 1.0])
def test_read_coco__ignore_is_crowd(mark: Any, tmp_path: Path) -> None:
    source = read(content(annotations=changed(BOXES, ignore=lambda v: mark)), tmp_path)
    assert source.crowd.all()
    assert any("3 boxes are marked by `ignore`" in note for note in source.notes)


def test_read_coco__ignore_categories(tmp_path: Path) -> None:
    categories = [{"id": 9, "name": "ignored regions"}, CATEGORIES[1]]
    assert "looks like regions that nobody labelled" in read(content(categories=categories), tmp_path).warnings[0]
    source = read(content(categories=categories), tmp_path, ignore_categories=["ignored regions"])
    assert source.crowd.tolist() == [True, True, False]
    assert source.warnings == []
    with pytest.raises(UsageError, match="'nein', which no category is called; there are 'four', ") as refused:
        read(content(categories=categories), tmp_path, ignore_categories=["nein"])
    assert refused.value.exit_status == 2


@pytest.mark.parametrize("mark", [2, "true", 0.5, [1]])
def test_read_coco__ignore_that_is_no_mark_refuses_its_box(mark: Any, tmp_path: Path) -> None:
    source = read(content(annotations=[*BOXES[:2], {**BOXES[2], "ignore": mark}]), tmp_path)
    (reject,) = source.rejects
    assert reject.message.endswith(f"ignore is {mark!r}; expected 0 or 1")


def test_read_coco__a_category_whose_boxes_are_refused_has_boxes(tmp_path: Path) -> None:
    source = read(content(annotations=changed(BOXES, bbox=lambda v: None)), tmp_path)
    assert len(source.refused_boxes) == 3
    assert not any("have no box" in line for line in source.notes)


def test_read_coco__coco_url(tmp_path: Path) -> None:
    def urls(*paths: str) -> list[dict[str, Any]]:
        sizes = [{k: v for k, v in image.items() if k != "file_name"} for image in IMAGES]
        return [{**s, "coco_url": f"http://x.org/{path}"} for s, path in zip(sizes, paths, strict=True)]

    one = read(content(images=urls("c/val2017/b.jpg", "c/val2017/a%20b.jpg")), tmp_path)
    assert one.file_name.to_pylist() == ["a b.jpg", "b.jpg"]
    two = read(content(images=urls("c/val2017/b.jpg", "c/train2017/a.jpg")), tmp_path)
    assert two.file_name.to_pylist() == ["train2017/a.jpg", "val2017/b.jpg"]
    assert "2 images have no file_name but a coco_url" in two.notes[0]
    detours = read(content(images=urls("c//val2017/b.jpg", "c/./val2017//a.jpg")), tmp_path)
    assert detours.file_name.to_pylist() == ["a.jpg", "b.jpg"]
    odd = content(images=[*urls("c/b.jpg", "c/a.jpg"), {"id": 9, "width": 5, "height": 5, "coco_url": "http://["}])
    assert [reject.reason for reject in read(odd, tmp_path).rejects] == ["bad_record"]


def test_read_coco__rotated_boxes(tmp_path: Path) -> None:
    boxes = [{**BOXES[0], "bbox": [10, 10, 8, 4], "attributes": {"rotation": 90.0}}]
    source = read(content(annotations=boxes), tmp_path)
    assert np.allclose(source.box, [[12, 8, 16, 16]])
    assert "rotated" in source.notes[0]
    for angle in (10**400, float("nan"), float("inf"), 1e300, True, "90", None, 720):
        boxes = [{**BOXES[0], "attributes": {"rotation": angle}}]
        assert read(content(annotations=boxes), tmp_path).box.tolist() == [[1, 2, 4, 6]]
    boxes = [{**BOXES[0], "bbox": [10, 10, 8, 4, 30]}]
    assert "rotated" in next(iter(read(content(annotations=boxes), tmp_path).rejects)).message


def test_read_coco__other_coco_files(tmp_path: Path) -> None:
    panoptic = {
        "image_id": 5,
        "file_name": "x.png",
        "segments_info": [{"id": 1, "category_id": 4, "bbox": [1, 1, 2, 2]}],
    }
    with pytest.raises(DataError, match="panoptic"):
        read(content(annotations=[panoptic]), tmp_path)
    with pytest.raises(DataError, match="image_info"):
        read({"images": IMAGES, "categories": CATEGORIES}, tmp_path)
    keypoints = changed(BOXES, keypoints=lambda v: [1] * 51, num_keypoints=lambda v: 17)
    assert len(read(content(annotations=keypoints), tmp_path).row) == 3
    with pytest.raises(DataError, match="list of detections"):
        read([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], tmp_path)


def test_read_coco__categories_counted_from_zero_are_told(tmp_path: Path) -> None:
    boxes = [{**box, "category_id": i} for i, box in enumerate(BOXES)]
    categories = [{"id": i, "name": str(i)} for i in (1, 2, 3)]
    warnings = read(content(annotations=boxes, categories=categories), tmp_path).warnings
    assert any("may count from 0" in line for line in warnings)
    boxes = [{**box, "category_id": i} for i, box in zip((0, 1, 3), BOXES, strict=True)]  # one of them is wrong
    assert read(content(annotations=boxes, categories=categories), tmp_path).warnings == []


def test_read_coco__packed_files(tmp_path: Path) -> None:
    data = json.dumps(content()).encode()
    assert len(read(gzip.compress(data), tmp_path).row) == 3
    with pytest.raises(DataError, match="damaged archive"):
        read(gzip.compress(data)[:-30], tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("annotations/instances.JSON", data)
        archive.writestr("__MACOSX/annotations/instances.json", "x")
    assert len(read_coco(tmp_path / "a.zip").row) == 3
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("val.json", data)
        archive.writestr("train.json", data)
    with pytest.raises(DataError, match="2 JSON files"):
        read_coco(tmp_path / "b.zip")


def test_read_coco__gbk(tmp_path: Path) -> None:
    text = json.dumps(content(categories=[{"id": 9, "name": "汽车"}, {"id": 4, "name": "人"}]), ensure_ascii=False)
    source = read(text.encode("gbk"), tmp_path)
    assert source.categories == [(4, "人"), (9, "汽车")]
    assert "GBK" in source.notes[0]
    assert len(source.row) == 3


def test_read_coco__gbk_that_shows_right_behind_a_value(tmp_path: Path) -> None:
    """The first block ends with a value, which may go on in the next block, and that is no UTF-8."""
    start, rest = '{"info": [', json.dumps(content())[1:]
    text = start + " " * (BLOCK - len(start) - 1) + f'1, "汽车"], {rest}'
    assert len(read(text.encode("gbk"), tmp_path).row) == 3


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_read_coco__text_that_cannot_be_decoded_names_what_mends_it(encoding: str, tmp_path: Path) -> None:
    text = json.dumps(content(info="caf\u00e9"), ensure_ascii=False)
    with pytest.raises(DataError, match=r"a\.json: its text is cut short, or in an encoding .* `iconv -f LATIN1"):
        read(text.encode(encoding)[: None if encoding == "latin-1" else -1], tmp_path)


def test_read_coco__second_reading_starts_afresh(tmp_path: Path) -> None:
    """GBK is found out at the end, and the last of repeated keys counts; what was read before leaves no trace."""
    bad = [{"id": 1}, *changed(BOXES, id=str), {"id": 2, "image_id": 5, "category_id": 4, "bbox": "x"}]
    text = json.dumps(
        content(annotations=bad, categories=[{"id": 9, "name": "汽"}, CATEGORIES[1]]), ensure_ascii=False
    )
    source = read(text.encode("gbk"), tmp_path)
    assert [reject.reason for reject in source.rejects] == ["unknown_image", "bad_numbers"]
    assert sum("3 ids of annotations" in note for note in source.notes) == 1


def test_read_coco__shares_instead_of_pixels_are_told(tmp_path: Path) -> None:
    boxes = changed(BOXES, bbox=lambda v: [0.1, 0.2, 0.3, 0.4])
    assert any("between 0 and 1" in line for line in read(content(annotations=boxes), tmp_path).warnings)


@pytest.mark.parametrize("share", [[0.5, 0.6, 0.9, 0.8], [0.5, 0.5, 1, 1]])
def test_read_coco__corners_as_shares_are_told(tmp_path: Path, share: list[float]) -> None:
    boxes = changed(BOXES, bbox=lambda v: share)
    assert any("between 0 and 1" in line for line in read(content(annotations=boxes), tmp_path).warnings)


def test_read_coco__shares_among_pixels_are_told(tmp_path: Path) -> None:
    boxes = [*BOXES, {**BOXES[0], "id": 99, "bbox": [0.1, 0.2, 0.3, 0.4]}]
    warnings = read(content(annotations=boxes), tmp_path).warnings
    assert any("1 of 4 boxes lie between 0 and 1" in line for line in warnings)
    boxes = [*BOXES * 50, boxes[-1]]
    assert read(content(annotations=boxes), tmp_path).warnings == []
    boxes = [*BOXES, {**BOXES[0], "id": 99, "bbox": [0, 0, 0, 0]}]  # a place without an object
    assert read(content(annotations=boxes), tmp_path).warnings == []


def test_read_coco__all_crowd_is_told(tmp_path: Path) -> None:
    boxes = changed(BOXES, iscrowd=lambda v: 1)
    assert any("all 3 boxes are crowd" in line for line in read(content(annotations=boxes), tmp_path).warnings)
    assert read(content(annotations=[]), tmp_path).warnings == []


def test_read_coco__all_crowd_by_the_setting_names_it(tmp_path: Path) -> None:
    (told,) = read(content(), tmp_path, ignore_categories=["nine", "four"]).warnings
    assert "all 3 boxes are crowd" in told
    assert "leave their category out of chips.ignore_categories" in told


def test_read_coco__several_files(tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    first.write_text(json.dumps(content()))
    other = content(
        categories=[{"id": 1, "name": "four"}, {"id": 4, "name": "five"}],
        annotations=[
            {"id": 11, "image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4]},
            {"id": 12, "image_id": 77, "category_id": 4, "bbox": [1, 2, 3, 4]},
            {"id": 13, "image_id": 2, "category_id": 4, "bbox": [1, 2, 3, 4]},
        ],
    )
    second.write_text(json.dumps(other))
    source = read_coco([first, second], folders=["", "more"])
    assert source.image_id.tolist() == [2, 5, 102, 105]
    assert source.file_name.to_pylist() == ["a.jpg", "b.jpg", "more/a.jpg", "more/b.jpg"]
    assert source.categories == [(4, "four"), (9, "nine"), (10, "five")]
    assert source.row.tolist() == [1, 0, 2, 5, 3]
    assert source.category_of_label[source.label].tolist() == [4, 9, 4, 10, 4]
    assert [tuple(box)[:4] for box in source.refused_boxes] == [(4, 12, 177, 4)]
    assert next(iter(source.rejects)).message == f"{second}: annotations[1]: image_id 77 is not among images"


def test_read_coco__refused_images_of_several_files_have_the_ids_of_the_ledger(tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    first.write_text(json.dumps(content()))
    second.write_text(json.dumps(content(images=[IMAGES[0], {**IMAGES[1], "width": 0}])))
    source = read_coco([first, second], folders=["", "more"])
    ids = [image.id for image in source.refused_images]
    assert ids == [reject.id for reject in source.rejects if reject.kind == "image"] == [100 + IMAGES[1]["id"]]


def test_read_coco__names_that_mean_the_same_file_are_shared(tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    first.write_text(json.dumps(content()))
    second.write_text(json.dumps(content(images=changed(IMAGES, file_name=lambda name: f".//{name}"))))
    with pytest.raises(DataError, match=f"{len(IMAGES)} images are named by more than one of the annotation files"):
        read_coco([first, second])


def test_read_coco__huge_ids_of_refused_records_of_several_files(tmp_path: Path) -> None:
    """They are left out where they leave 64 bits, and keep no other record from being read."""
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    most = 2**63 - 1
    first.write_text(json.dumps(content()))
    boxes = [*BOXES, {"id": 99, "image_id": most, "category_id": 4, "bbox": [1, 2, 3, 4]}]
    images = [*IMAGES, {"id": most, "file_name": "../x.jpg", "width": 9, "height": 9}]
    second.write_text(json.dumps(content(images=images, annotations=boxes)))
    source = read_coco([first, second], folders=["", "more"])
    assert [image.id for image in source.refused_images] == [None]
    assert next(box for box in source.refused_boxes if box.annotation_id == 99).image_id is None
    assert source.num_images == 2 * len(IMAGES)


def test_read_coco__ids_of_refused_images_of_one_file_meet_no_image_of_another(tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    first.write_text(json.dumps(content(images=[*IMAGES, {"id": 105, "file_name": "c.jpg", "width": 0, "height": 9}])))
    second.write_text(json.dumps(content()))
    source = read_coco([first, second], folders=["", "more"])
    assert 105 in [image.id for image in source.refused_images]
    assert 105 not in source.image_id.tolist()


def test_read_coco__zip_files_that_python_cannot_unpack(tmp_path: Path) -> None:
    data = json.dumps(content()).encode()
    place = tmp_path / "a.zip"
    for offset, value, told in ((6, 1, "encrypted"), (8, 9, "compression method is not supported")):
        with zipfile.ZipFile(place, "w") as archive:
            archive.writestr("a.json", data)
        raw = bytearray(place.read_bytes())
        central = raw.index(b"PK\1\2")
        raw[offset] = raw[central + offset + 2] = value  # in the member's own header, and in the list of members
        place.write_bytes(raw)
        with pytest.raises(DataError, match=f"cannot be opened: .*{told}.*; unpack it"):
            read_coco(place)
    with zipfile.ZipFile(place, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.json", data * 50)
    raw = bytearray(place.read_bytes())
    raw[60:120] = bytes(range(60))
    place.write_bytes(raw)
    with pytest.raises(DataError, match="damaged archive"):
        read_coco(place)
