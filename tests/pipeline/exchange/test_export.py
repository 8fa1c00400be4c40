"""Chips as data sets of other formats: the same pixels and the same boxes, and an export that was stopped goes on."""

import json
import shlex
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from pipeline.coco.read import read_coco
from pipeline.dataset.shards import read_rows, shard_files
from pipeline.exchange.export import export
from pipeline.exchange.shard import ExportJob, Tally
from pipeline.storage import location
from schemas.codes import IGNORED_NAMES
from schemas.errors import DataError, UsageError
from tests.builders import CocoSet, build, digest
from tests.conftest import RunSniper
from tests.s3 import S3

Row = dict[str, Any]
Boxes = list[tuple[int, bool, list[float]]]  # label, whether to ignore, x1 y1 x2 y2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chips of a few images with two classes, a crowd, boxes that windows cut, and an image without any."""
    made = CocoSet(tmp_path_factory.mktemp("export"), categories=[{"id": 9, "name": "ü"}, {"id": 3, "name": "thing"}])
    rng = np.random.default_rng(0)
    for image_id in range(1, 7):
        made.add_image(image_id, width=700, height=500, boxes=[])
        for _ in range(8 * (image_id > 1)):
            width, height = rng.uniform(6, 200, 2).tolist()
            x, y = rng.uniform(0, 700 - width), rng.uniform(0, 500 - height)
            made.add_box(image_id, [x, y, width, height], category_id=int(rng.choice([3, 9])))
    made.add_box(2, [30.25, 40.5, 300, 220], iscrowd=1)
    build(made, made.root / "chips", workers=1)
    return made.root / "chips"


def chips_in(data: Path) -> list[Row]:
    return [row for path in shard_files(data / "positives", ".parquet") for row in read_rows(path).to_pylist()]


def boxes_of(row: Row) -> Boxes:
    return [(b["label"], b["status"] in IGNORED_NAMES, [b[n] for n in ("x1", "y1", "x2", "y2")]) for b in row["boxes"]]


def in_coco(out: Path) -> dict[str, tuple[bytes, Boxes]]:
    """What our own reader finds, once pycocotools has read the file, too."""
    path = out / "annotations/instances_train.json"
    content = json.loads(path.read_bytes())
    assert len(COCO(str(path)).anns) == len(content["annotations"])
    source = read_coco(path)
    assert not len(source.rejects)
    assert source.num_clipped == 0
    found = {}
    for i, name in enumerate(source.file_name.to_pylist()):
        rows = slice(source.offsets[i], source.offsets[i + 1])
        columns = zip(source.label[rows].tolist(), source.crowd[rows].tolist(), source.box[rows].tolist(), strict=True)
        found[name] = ((out / "train" / name).read_bytes(), list(columns))
    return found


def in_yolo(out: Path) -> dict[str, tuple[bytes, Boxes]]:
    found = {}
    for path in sorted((out / "images/train").iterdir()):
        width, height = Image.open(path).size
        boxes: Boxes = []
        for line in (out / f"labels/train/{path.stem}.txt").read_text().splitlines():
            label, *shares = line.split()
            x, y, w, h = (float(s) * side for s, side in zip(shares, (width, height) * 2, strict=True))
            boxes.append((int(label) + 1, False, [x - w / 2, y - h / 2, x + w / 2, y + h / 2]))
        found[path.name] = (path.read_bytes(), boxes)
    return found


def in_hf(out: Path) -> dict[str, tuple[bytes, Boxes]]:
    found = {}
    for path in sorted((out / "data").glob("train-*-of-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            objects = row["objects"]
            places = [[x, y, x + w, y + h] for x, y, w, h in objects["bbox"]]
            columns = zip([c + 1 for c in objects["category"]], objects["iscrowd"], places, strict=True)
            found[row["image"]["path"]] = (row["image"]["bytes"], list(columns))
    return found


@pytest.mark.parametrize(("kind", "read"), [("coco", in_coco), ("yolo", in_yolo), ("hf", in_hf)])
def test_export__every_chip_comes_back_with_its_boxes(
    data: Path, tmp_path: Path, kind: str, read: Callable[[Path], dict[str, tuple[bytes, Boxes]]]
) -> None:
    report = export(data, tmp_path, format=kind, workers=1)
    rows, found = chips_in(data), read(tmp_path)
    assert len(found) == len(rows) == report.tally.num_chips
    num_objects = num_ignored = 0
    for row in rows:
        content, boxes = found[f"{row['key']}.jpg"]
        with (data / row["shard"]).open("rb") as tar:
            tar.seek(row["offset"])
            assert content == tar.read(row["size"])
        wanted = boxes_of(row)
        num_objects += sum(not ignored for _, ignored, _ in wanted)
        num_ignored += sum(ignored for _, ignored, _ in wanted)
        wanted = [box for box in wanted if kind != "yolo" or not box[1]]
        assert [box[:2] for box in boxes] == [box[:2] for box in wanted]
        for (_, _, one), (_, _, other) in zip(boxes, wanted, strict=True):
            assert one == pytest.approx(other, abs=0.01)
    assert (report.tally.num_objects, report.tally.num_ignored) == (num_objects, num_ignored)
    assert num_ignored > 0


@pytest.mark.parametrize("kind", ["coco", "yolo", "hf"])
def test_export__goes_on_where_it_was_stopped_and_ends_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    whole = export(data, tmp_path / "whole", format=kind, workers=1)
    assert whole.num_shards == whole.num_made > 2
    module = f"pipeline.exchange.to_{kind}"
    seen = []

    def stop(job: ExportJob) -> tuple[int, Tally]:
        seen.append(job.number)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return write(job)

    write = import_module(module).write_shard
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.write_shard", stop)
        with pytest.raises(KeyboardInterrupt):
            export(data, tmp_path / "part", format=kind, workers=1)
    report = export(data, tmp_path / "part", format=kind, workers=1)
    assert report.num_made == whole.num_shards - 2
    assert report.tally == whole.tally
    assert digest(tmp_path / "part") == digest(tmp_path / "whole")


@pytest.mark.parametrize(
    ("kind", "lost"), [("coco", "train/*.jpg"), ("yolo", "labels/train/*.txt"), ("hf", "data/*.parquet")]
)
def test_export__files_that_are_gone_are_written_again(data: Path, tmp_path: Path, kind: str, lost: str) -> None:
    whole = export(data, tmp_path, format=kind, workers=1)
    wanted = digest(tmp_path)
    assert export(data, tmp_path, format=kind, workers=1).num_made == 0
    min(tmp_path.glob(lost)).unlink()
    report = export(data, tmp_path, format=kind, workers=1)
    assert (report.num_made, report.tally) == (1, whole.tally)
    for path in tmp_path.glob(lost):
        path.unlink()
    assert export(data, tmp_path, format=kind, workers=1).num_made > 3  # all but a shard without chips
    assert digest(tmp_path) == wanted


def test_export__stopped_while_it_deletes_trusts_no_note(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export(data, tmp_path, workers=1)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.exchange.export.remove_written", stop)
        with pytest.raises(KeyboardInterrupt):
            export(data, tmp_path, workers=1, overwrite=True)
    assert export(data, tmp_path, workers=1).num_made == whole.num_shards


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format":"\xff"}'])
def test_export__over_a_damaged_record_says_what_to_do(data: Path, tmp_path: Path, content: bytes) -> None:
    export(data, tmp_path, workers=1)
    (tmp_path / ".export/train.json").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.json: is damaged .* choose another --out"):
        export(data, tmp_path, workers=1, overwrite=True)


def test_export__categories_of_one_name_are_told_apart(tmp_path: Path) -> None:
    made = CocoSet(
        tmp_path, categories=[{"id": 3, "name": "cat"}, {"id": 9, "name": "cat"}, {"id": 11, "name": "dog"}]
    )
    made.add_image(1)
    build(made, tmp_path / "chips", workers=1)
    names = ["cat #3", "cat #9", "dog"]
    export(tmp_path / "chips", tmp_path / "yolo", format="yolo", workers=1)
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())["names"] == dict(enumerate(names))
    export(tmp_path / "chips", tmp_path / "hf", format="hf", workers=1)
    (file,) = (tmp_path / "hf/data").iterdir()
    features = json.loads(pq.read_schema(file).metadata[b"huggingface"])["info"]["features"]
    assert features["objects"]["category"]["feature"]["names"] == names


@pytest.mark.parametrize(
    ("splits", "wanted"),
    [
        (["test"], {"test": "test", "train": "test", "val": "test"}),
        (["day"], {"day": "day", "train": "day", "val": "day"}),
        (["val", "test"], {"val": "val", "test": "test", "train": "val"}),
        (["fold0", "fold1"], {"fold0": "fold0", "fold1": "fold1", "train": "fold0", "val": "fold0"}),
        (["train", "test", "extra"], {"train": "train", "extra": "extra", "test": "test", "val": "train"}),
    ],
)
def test_export__data_yaml_names_splits_that_are_there(
    data: Path, tmp_path: Path, splits: list[str], wanted: dict[str, str]
) -> None:
    (tmp_path / "images/other").mkdir(parents=True)  # no export
    for split in splits:
        export(data, tmp_path, format="yolo", split=split, workers=1)
    written = yaml.safe_load((tmp_path / "data.yaml").read_text())
    del written["names"]
    assert written == {name: f"images/{split}" for name, split in wanted.items()}


def test_export__yolo_blanks_what_is_not_to_be_learnt_and_spares_objects(data: Path, tmp_path: Path) -> None:
    export(data, tmp_path / "plain", format="yolo", workers=1)
    report = export(data, tmp_path / "blank", format="yolo", workers=1, blank=True)
    rows = [row for row in chips_in(data) if any(ignored for _, ignored, _ in boxes_of(row))]
    assert report.tally.num_blanked == len(rows) > 0
    for row in chips_in(data):
        plain, blank = (
            np.asarray(Image.open(tmp_path / f"{name}/images/train/{row['key']}.jpg")).astype(int)
            for name in ("plain", "blank")
        )
        if row not in rows:
            assert (plain == blank).all()
            continue
        inside, spared = np.zeros(plain.shape[:2], bool), np.zeros(plain.shape[:2], bool)
        for _, ignored, (x1, y1, x2, y2) in boxes_of(row):
            (inside if ignored else spared)[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = True
        hidden = inside & ~spared
        assert not hidden.any() or np.abs(blank - 114)[hidden].mean() < 12
        assert (np.abs(blank - plain)[spared].mean() if spared.any() else 0) < 12


def test_export__splits_share_a_folder_and_others_are_refused(data: Path, tmp_path: Path, sniper: RunSniper) -> None:
    first = sniper("export", data, "--format", "yolo", "--out", tmp_path / "yolo")
    assert first.status == 0
    assert "there is no split val yet" in first.err
    assert "data.yaml model=yolo11n.pt imgsz=512" in first.err
    second = sniper("export", data, "--format", "yolo", "--out", tmp_path / "yolo", "--split", "val")
    assert second.status == 0
    assert "the splits 'train' and 'val' hold the same chips" in second.err
    assert "hold the same chips" not in first.err
    written = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())
    assert written == {"train": "images/train", "val": "images/val", "names": {0: "thing", 1: "ü"}}
    other = CocoSet(tmp_path / "other")
    other.add_image(1)
    build(other, tmp_path / "chips")
    arguments = ("export", tmp_path / "chips", "--format", "yolo", "--out", tmp_path / "yolo")
    assert "has other categories" in sniper(*arguments, "--split", "test").err
    export(data, tmp_path / "coco", workers=1)
    with pytest.raises(UsageError, match="export of other chips or with other options as the split 'train'"):
        export(tmp_path / "chips", tmp_path / "coco", workers=1)
    report = export(tmp_path / "chips", tmp_path / "coco", workers=1, overwrite=True)
    assert len(list((tmp_path / "coco/train").iterdir())) == report.tally.num_chips
    for options, said in (
        ({"blank": True}, "only yolo"),
        ({"split": "a/b"}, "letters"),
        ({"format": "voc"}, "one of"),
    ):
        with pytest.raises(UsageError, match=said):
            export(data, tmp_path / "wrong", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["yolo", "hf"])
def test_export__its_hint_is_a_command(data: Path, tmp_path: Path, sniper: RunSniper, kind: str) -> None:
    out = tmp_path / "it's mine"
    told = sniper("export", data, "--format", kind, "--out", out)
    words = shlex.split(told.err.split("next: ")[1])
    assert f"data={out}/data.yaml" in words if kind == "yolo" else f"load_dataset({str(out)!r})" in words[2]


def test_export__a_damaged_chip_is_named(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "chips"
    shutil.copytree(data, copy)
    row = chips_in(copy)[0]
    with (copy / row["shard"]).open("r+b") as tar:
        tar.seek(row["offset"] + 100)
        tar.write(b"\0\1\2\3")
    with pytest.raises(DataError, match=f"chip {row['key']} is damaged; run `sniper verify"):
        export(copy, tmp_path / "out", workers=1)


@pytest.mark.parametrize("kind", ["coco", "yolo", "hf"])
def test_export__to_and_from_a_bucket(data: Path, tmp_path: Path, s3: S3, kind: str) -> None:
    """What lies in the bucket is what a folder would hold."""
    export(data, tmp_path / "here", format=kind, workers=1)
    export(data, f"{s3.url}/there", format=kind, workers=1)
    place = location(f"{s3.url}/there")
    files = sorted(path for path in (tmp_path / "here").rglob("*") if path.is_file() and path.name != ".lock")
    for path in files:
        assert (place / str(path.relative_to(tmp_path / "here"))).read_bytes() == path.read_bytes()


def test_export__ids_count_through_all_shards(data: Path, tmp_path: Path) -> None:
    export(data, tmp_path, workers=1)
    content = json.loads((tmp_path / "annotations/instances_train.json").read_bytes())
    ids = [image["id"] for image in content["images"]]
    assert ids == list(range(1, len(ids) + 1))
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    assert {a["image_id"] for a in content["annotations"]} <= set(ids)
    assert [c["id"] for c in content["categories"]] == [3, 9]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("yolo", "data.yaml"),
        ("yolo", "images/train/mine.jpg"),
        ("yolo", "labels/train/mine.txt"),
        ("coco", "train/mine.jpg"),
        ("coco", "annotations/instances_train.json"),
        ("hf", "README.md"),
        ("hf", "data/train-00000-of-00001.parquet"),
    ],
)
def test_export__refuses_what_it_did_not_write(
    data: Path, tmp_path: Path, sniper: RunSniper, kind: str, name: str
) -> None:
    own = tmp_path / "own" / name
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    for more in ((), ("--overwrite",)):
        told = sniper("export", data, "--format", kind, "--out", tmp_path / "own", *more)
        assert told.status == 2
        assert f"holds {own.name}, which `sniper export` did not write" in told.err
    assert [path for path in (tmp_path / "own").rglob("*") if path.is_file()] == [own]
    assert own.read_bytes() == b"mine"


def test_export__overwrite_deletes_only_what_it_wrote(data: Path, tmp_path: Path) -> None:
    export(data, tmp_path, format="yolo", workers=1)
    (tmp_path / "images/other").mkdir()
    (tmp_path / "images/other/a.jpg").touch()
    wanted = digest(tmp_path)
    export(data, tmp_path, format="yolo", workers=1, overwrite=True)
    assert digest(tmp_path) == wanted
    (tmp_path / "images/train/mine.jpg").touch()
    with pytest.raises(UsageError, match=r"holds mine\.jpg"):
        export(data, tmp_path, format="yolo", workers=1, overwrite=True)
    with pytest.raises(UsageError, match="is a chip data set"):
        export(data, data, workers=1)


def test_export__yolo_never_validates_on_test(data: Path, tmp_path: Path, sniper: RunSniper) -> None:
    for split in ("train", "test"):
        told = sniper("export", data, "--format", "yolo", "--out", tmp_path, "--split", split)
    assert "there is no split val yet; data.yaml names train for it" in told.err
    written = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert (written["val"], written["test"]) == ("images/train", "images/test")


@pytest.mark.parametrize("format_", ["coco", "yolo", "hf"])
def test_export__of_no_chip_is_refused(format_: str, tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    made.add_image(1, width=100, height=100, boxes=[])
    build(made, tmp_path / "chips", workers=1)
    with pytest.raises(DataError, match="holds no chips to export"):
        export(tmp_path / "chips", tmp_path / "out", format=format_)
    assert not (tmp_path / "out").exists()
