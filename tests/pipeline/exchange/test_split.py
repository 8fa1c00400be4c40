"""`sniper split`: every record in one part, groups whole, each class in each part by its share."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.exchange.split import split
from schemas.errors import DataError, UsageError
from tests.conftest import RunSniper


def write_coco(path: Path, num_images: int, name: str = "clip{video:02d}-{index:03d}.jpg") -> dict[str, Any]:
    """A file of images of which each third shows a rare class and all show a common one; ten make a video."""
    content = {
        "info": {"year": 2024},
        "images": [
            {"id": 7 * i, "file_name": name.format(video=i // 10, index=i), "width": 64, "height": 48, "extra": [i]}
            for i in range(num_images)
        ],
        "annotations": [
            {"id": 2 * i + k, "image_id": 7 * i, "category_id": 3 + k, "bbox": [1, 2.50, 3, 4], "note": "kept"}
            for i in range(num_images)
            for k in range(1 + (i % 3 == 0))
        ],
        "categories": [{"id": 3, "name": "common"}, {"id": 4, "name": "rare"}],
    }
    path.write_text(json.dumps(content))
    return content


def parts_of(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_split__every_record_is_in_one_part_as_it_was(tmp_path: Path) -> None:
    content = write_coco(tmp_path / "all.json", 60)
    report = split(tmp_path / "all.json", tmp_path / "out", val=0.2, test=0.1)
    parts = parts_of(tmp_path / "out")
    assert report.images == {"train": 42, "val": 12, "test": 6}
    for name in ("images", "annotations"):
        records = [record for part in parts.values() for record in part[name]]
        assert sorted(records, key=lambda record: record["id"]) == content[name]
    for name, part in parts.items():
        ids = {image["id"] for image in part["images"]}
        assert {record["image_id"] for record in part["annotations"]} == ids
        assert (part["info"], part["categories"]) == (content["info"], content["categories"])
        assert '"bbox": [1, 2.5, 3, 4], "note": "kept"' in report.files[name].read_text()  # byte for byte
    assert report.boxes["val"] == {"common": 12, "rare": 4}


def test_split__the_seed_alone_decides(tmp_path: Path) -> None:
    write_coco(tmp_path / "all.json", 50)
    found = []
    for number, seed in enumerate((0, 0, 1)):
        files = split(tmp_path / "all.json", tmp_path / f"{number}", seed=seed).files
        found.append(files["val"].read_bytes())
    assert found[0] == found[1] != found[2]


def test_split__groups_stay_together(tmp_path: Path) -> None:
    write_coco(tmp_path / "all.json", 100)
    report = split(tmp_path / "all.json", tmp_path / "out", val=0.3, group=r"clip(\d+)")
    assert report.num_groups == 10
    clips = [{image["file_name"][:6] for image in part["images"]} for part in parts_of(tmp_path / "out").values()]
    assert not set.intersection(*clips)
    assert report.images == {"train": 70, "val": 30}


def test_split__a_group_that_takes_no_part_joins_nothing(tmp_path: Path) -> None:
    """Images are clip00 to clip09; the first group is of the last five alone."""
    write_coco(tmp_path / "all.json", 100)
    report = split(tmp_path / "all.json", tmp_path / "out", val=0.3, group=r"clip0[0-4]|clip(0[5-9])")
    assert report.num_groups == 10


def test_split__equal_images_stay_together_also_through_groups(tmp_path: Path) -> None:
    write_coco(tmp_path / "all.json", 30)
    (tmp_path / "images").mkdir()
    for image in json.loads((tmp_path / "all.json").read_text())["images"]:
        number = image["extra"][0]
        content = 0 if number in (5, 15) else number  # one frame of the first video is one of the second
        (tmp_path / "images" / image["file_name"]).write_bytes(bytes([content]))
    report = split(tmp_path / "all.json", tmp_path / "out", val=0.3, group=r"clip\d+", images=tmp_path / "images")
    assert (report.num_groups, report.num_equal) == (2, 2)
    assert report.images == {"train": 20, "val": 10}
    (tmp_path / "images/clip00-003.jpg").unlink()
    with pytest.raises(DataError, match="1 of 30 images cannot be read, such as clip00-003.jpg"):
        split(tmp_path / "all.json", tmp_path / "again", images=tmp_path / "images")


def test_split__records_of_one_image_stay_together(tmp_path: Path) -> None:
    """Ten images; each stands in the file twice as it is, once under another id, and once with another size."""
    content = write_coco(tmp_path / "all.json", 10)
    images = content["images"]
    same = [{**image, "id": 1000 + image["id"], "file_name": f"./{image['file_name']}"} for image in images]
    content["images"] = [*images, *images, *same, *({**image, "width": 65} for image in images)]
    (tmp_path / "all.json").write_text(json.dumps(content))
    report = split(tmp_path / "all.json", tmp_path / "out", val=0.3)
    assert (report.num_groups, report.images) == (10, {"train": 28, "val": 12})
    names = [{image["file_name"][-13:] for image in part["images"]} for part in parts_of(tmp_path / "out").values()]
    assert not set.intersection(*names)


def test_split__an_empty_file_with_groups(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(DataError, match="`images` is empty"):
        split(tmp_path / "all.json", tmp_path / "out", group="x")


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("all.json.gz", lambda text: gzip.compress(text.encode())),
        ("all.json", lambda text: b"\xef\xbb\xbf" + text.encode()),
        ("all.json", lambda text: text.encode("utf-16")),
    ],
    ids=["gzip", "mark", "utf-16"],
)
def test_split__takes_the_files_that_check_takes(tmp_path: Path, name: str, pack: Callable[[str], bytes]) -> None:
    """Packed, in another encoding, with URLs for names, ids as text, and categories without names."""
    content = write_coco(tmp_path / "plain", 20)
    for image in content["images"]:
        image["coco_url"] = f"http://server/set/{image.pop('file_name')}"
        image["id"] = str(image["id"])
    content["categories"] = [{"id": 3, "name": "ü"}, {"id": 4}]
    (tmp_path / name).write_bytes(pack(json.dumps(content, ensure_ascii=False)))
    (tmp_path / "images").mkdir()
    for number, image in enumerate(content["images"]):
        (tmp_path / "images" / image["coco_url"].rsplit("/", 1)[1]).write_bytes(bytes([number // 2]))
    report = split(tmp_path / name, tmp_path / "out", images=tmp_path / "images", group=r"clip\d+-\d+")
    assert (report.num_groups, report.num_equal, report.without_image) == (10, 10, 0)
    assert list(report.boxes["train"]) == ["ü", "4"]
    assert sum(sum(boxes.values()) for boxes in report.boxes.values()) == 27
    assert parts_of(tmp_path / "out")["val"]["categories"] == content["categories"]


def test_split__counts_categories_of_one_name_apart(tmp_path: Path) -> None:
    content = write_coco(tmp_path / "all.json", 30)
    content["categories"] = [{"id": 3, "name": "cat"}, {"id": 4, "name": "cat"}, {"id": 3, "name": "cat"}]
    (tmp_path / "all.json").write_text(json.dumps(content))
    boxes = split(tmp_path / "all.json", tmp_path / "out").boxes
    assert {name: boxes["train"][name] + boxes["val"][name] for name in boxes["train"]} == {"cat #3": 30, "cat #4": 10}


def test_split__annotations_of_no_image_are_not_lost(tmp_path: Path) -> None:
    content = write_coco(tmp_path / "all.json", 20)
    content["annotations"].append({"id": 999, "image_id": 123456, "category_id": 3, "bbox": [0, 0, 1, 1]})
    (tmp_path / "all.json").write_text(json.dumps(content))
    report = split(tmp_path / "all.json", tmp_path / "out")
    assert report.without_image == 1
    assert parts_of(tmp_path / "out")["train"]["annotations"][-1]["id"] == 999


def test_split__writes_over_nothing(tmp_path: Path) -> None:
    content = write_coco(tmp_path / "train.json", 20)
    with pytest.raises(UsageError, match="train.json: is there already"):
        split(tmp_path / "train.json", tmp_path)
    assert json.loads((tmp_path / "train.json").read_text()) == content
    assert not (tmp_path / "val.json").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="cannot be written: .*choose another folder"):
        split(tmp_path / "train.json", tmp_path / "file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": 0.0}, "expected --val and --test"),
        ({"val": 0.6, "test": 0.4}, "expected --val and --test"),
        ({"val": float("nan")}, "expected --val and --test"),
        ({"test": float("nan")}, "expected --val and --test"),
        ({"group": "("}, "no regular expression"),
        ({"group": "frame"}, "matches in no file name, .* leave it out"),
    ],
)
def test_split__says_what_is_wrong_with_its_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_coco(tmp_path / "all.json", 20)
    with pytest.raises(UsageError, match=message):
        split(tmp_path / "all.json", tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no COCO JSON file"),
        ('{"images": []}', "no list `annotations`"),
        ('{"images": [], "annotations": []}', "`images` is empty; expected one record per image file"),
        ('{"images": [], "annotations": [], "images": []}', "the key `images` stands twice .* merge both lists"),
        ('{"images": [{"id": 1}], "annotations": []}', r"images\[0\]: .*file_name"),
        ('{"images": [{"id": 1, "file_name": "a", "x": NaN}], "annotations": []}', "without NaN, Infinity"),
        ('{"images": [{"id": 1, "file_name": "\\ud800"}], "annotations": []}', "no COCO JSON file"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}', "too few: val would get none"),
    ],
)
def test_split__says_what_is_wrong_with_a_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "all.json").write_text(text)
    with pytest.raises(DataError, match=message):
        split(tmp_path / "all.json", tmp_path / "out")


def test_split__prints_a_table(sniper: RunSniper, tmp_path: Path) -> None:
    write_coco(tmp_path / "all.json", 60)
    told = sniper("split", "--annotations", tmp_path / "all.json", "--out", tmp_path / "out", "--val", 0.2)
    assert told.status == 0
    assert [line.split() for line in told.out.splitlines()[:4]] == [
        ["train", "val"],
        ["images", "48", "12"],
        ["common", "48", "12"],
        ["rare", "16", "4"],
    ]
