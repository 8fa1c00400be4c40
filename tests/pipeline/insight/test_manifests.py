"""The lazy frames hold what the files hold, and each question of docs/inspect.md is answered rightly."""

import ast
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from pipeline.commands.chips import chips
from pipeline.commands.negatives import negatives
from pipeline.insight.manifests import manifests
from schemas.errors import DataError, MissingError
from schemas.settings import ChipSettings, Settings
from tests.builders import build, sound_set
from tests.paths import ROOT
from tests.pipeline.conftest import DataSet
from tests.s3 import S3

TARGETS = ("valid", "rescued")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


class Rows(NamedTuple):
    """The files of a data set, read without the function that is tested."""

    chips: list[dict[str, Any]]
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    names: dict[int, str]


def read_rows(data: Path) -> Rows:
    shards = [shard for kind in ("positives", "negatives") for shard in sorted((data / kind).glob("chips-*.parquet"))]
    ledgers = (pl.read_parquet(data / f"{name}.parquet").to_dicts() for name in ("images", "annotations"))
    names = dict(pl.read_parquet(data / "categories.parquet").select("id", "name").iter_rows())
    return Rows([row for shard in shards for row in pl.read_parquet(shard).to_dicts()], *ledgers, names)


@pytest.fixture(scope="module")
def place(demo_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two builds of one annotation file, the first with a pool of negatives."""
    folder = tmp_path_factory.mktemp("inspect")
    chips(demo_set.annotations, demo_set.images, folder / "chips", Settings())
    negatives(folder / "chips", random=2)
    ranges = ((0, 60), (40, 150), (120, None))
    chips(demo_set.annotations, demo_set.images, folder / "chips-other", Settings(chips=ChipSettings(ranges=ranges)))
    return folder


@pytest.fixture(scope="module")
def answers(place: Path) -> dict[str, pl.DataFrame]:
    """What each block of docs/inspect.md gives, by its heading, run one after the other in one namespace."""
    text = (ROOT / "docs/inspect.md").read_text()
    namespace: dict[str, Any] = {}
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for section in re.split(r"^## \d+\. ", text, flags=re.MULTILINE):
            blocks = BLOCK.findall(section)
            assert len(blocks) == 1, section
            tree = ast.parse(blocks[0])
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "inspect.md", "exec"), namespace)
            if last is not None:
                found[section.splitlines()[0]] = eval(
                    compile(ast.Expression(last.value), "inspect.md", "eval"), namespace
                )
    return found


def answer(answers: dict[str, pl.DataFrame], word: str) -> list[dict[str, Any]]:
    (frame,) = (frame for heading, frame in answers.items() if word in heading)
    return frame.to_dicts()


def sides(box: dict[str, Any]) -> float:
    return float(((box["x2"] - box["x1"]) * (box["y2"] - box["y1"])) ** 0.5)


def targets(rows: Rows) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(chip, box) for chip in rows.chips for box in chip["boxes"] if box["status"] in TARGETS]


def test_inspect__answers_ten_questions(answers: dict[str, pl.DataFrame]) -> None:
    assert len(answers) == 10
    assert all(len(frame) for frame in answers.values())


def test_inspect__counts_are_those_of_the_files(answers: dict[str, pl.DataFrame], place: Path) -> None:
    rows = read_rows(place / "chips")
    lost = Counter((a["fate"], a["reason"]) for a in rows.annotations if a["fate"] not in ("covered", "rescued"))
    counted: Counter[tuple[str, str]] = Counter()
    for row in answer(answers, "whole in no chip"):
        counted[row["fate"], row["reason"]] += row["len"]
    assert counted == lost
    small = Counter(
        chip["scale_index"]
        for chip, box in targets(rows)
        if box["status"] == "valid" and sides(box) / chip["scale"] < 32
    )
    assert {row["scale_index"]: row["small_targets"] for row in answer(answers, "small objects")} == small
    classes = answer(answers, "balanced")
    objects = Counter(rows.names[a["category_id"]] for a in rows.annotations if a["fate"] in ("covered", "rescued"))
    assert {row["category"]: row["objects"] for row in classes} == objects
    assert {row["category"]: row["targets"] for row in classes} == Counter(
        rows.names[box["category_id"]] for _, box in targets(rows)
    )
    assert sum(row["share_of_targets"] for row in classes) == pytest.approx(1)


def test_inspect__chips_are_those_of_the_files(answers: dict[str, pl.DataFrame], place: Path) -> None:
    rows = read_rows(place / "chips")
    mean = sum(image["num_chips"] for image in rows.images) / len(rows.images)
    outliers = {image["image_id"] for image in rows.images if image["num_chips"] > 1.5 * mean}
    assert {row["image_id"] for row in answer(answers, "many more chips")} == outliers
    most = sorted((chip["num_valid"] for chip in rows.chips), reverse=True)[:10]
    assert [row["num_valid"] for row in answer(answers, "crowded")] == most
    pool = Counter(chip["image_id"] for chip in rows.chips if chip["kind"] == "negative")
    number = Counter(pool[image["image_id"]] for image in rows.images if image["state"] == "kept")
    assert {row["negatives"]: row["images"] for row in answer(answers, "negatives does")} == number
    keys = {chip["key"] for chip in rows.chips if chip["image_id"] == 1}
    assert {row["key"] for row in answer(answers, "one image")} == keys
    cost: defaultdict[str, float] = defaultdict(float)
    for chip in rows.chips:
        held = [box for box in chip["boxes"] if box["status"] in TARGETS]
        for box in held:
            cost[rows.names[box["category_id"]]] += chip["size"] / len(held)
    assert {row["category"]: row["bytes"] for row in answer(answers, "bytes")} == pytest.approx(cost)


def test_inspect__ranges_and_builds_are_those_of_the_files(answers: dict[str, pl.DataFrame], place: Path) -> None:
    rows, other = read_rows(place / "chips"), read_rows(place / "chips-other")
    sizes = [sides(a) for a in rows.annotations if a["fate"] in ("covered", "rescued")]
    (shares,) = answer(answers, "another range")
    for end in (40, 60, 80, 100, 120):
        assert shares[f"[0, {end})"] == pytest.approx(sum(size < end for size in sizes) / len(sizes))
    there = {a["row"]: (a["fate"], tuple(a["scales"])) for a in other.annotations}
    pairs = Counter((a["fate"], tuple(a["scales"]), *there[a["row"]]) for a in rows.annotations)
    assert {
        (row["fate"], tuple(row["scales"]), row["fate_other"], tuple(row["scales_other"])): row["len"]
        for row in answer(answers, "two builds")
    } == pairs
    assert len(pairs) > 2


def test_manifests__brackets_in_the_name_of_a_folder_are_no_pattern(tmp_path: Path) -> None:
    out = tmp_path / "run[1] *? a=b"
    build(sound_set(tmp_path / "data"), out)
    found = manifests(out)
    assert sorted(set(found.chips.collect()["image_id"])) == [1, 999]
    assert found.boxes.collect()["category"].unique().to_list() == ["thing"]
    assert found.images.collect().height == 2
    assert found.annotations.collect()["size"].to_list() == pytest.approx([40, (30 * 20) ** 0.5, (44 * 40) ** 0.5])


def test_manifests__of_a_bucket_are_those_of_a_disk(tmp_path: Path, s3: S3) -> None:
    made = sound_set(tmp_path / "data")
    build(made, tmp_path / "out")
    there = f"{s3.url}/out[1]"
    chips(made.path, made.image_root, there, Settings())
    for frame, remote in zip(manifests(tmp_path / "out"), manifests(there), strict=True):
        assert remote.collect().equals(frame.collect())


def test_manifests__every_box_of_a_chip_is_a_row(place: Path) -> None:
    rows, found = read_rows(place / "chips"), manifests(place / "chips")
    assert found.chips.collect().to_dicts() == rows.chips
    boxes = [(chip["key"], box) for chip in rows.chips for box in chip["boxes"]]
    frame = found.boxes.collect()
    assert frame.select("key", *boxes[0][1]).to_dicts() == [{"key": key, **box} for key, box in boxes]
    assert frame["size"].to_list() == pytest.approx([sides(box) for _, box in boxes], rel=1e-6)


def test_manifests__refuse_what_is_not_finished(tmp_path: Path, place: Path) -> None:
    with pytest.raises(MissingError, match="sniper chips"):
        manifests(tmp_path)
    out = tmp_path / "out"
    build(sound_set(tmp_path / "data"), out)
    (out / "negatives").mkdir()
    (out / "negatives/run.json").write_bytes((place / "chips/negatives/run.json").read_bytes())
    with pytest.raises(DataError, match="mined for positives"):
        manifests(out)


def test_manifests__an_unfinished_pool_is_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(sound_set(tmp_path / "data"), out)
    negatives(out, random=1)
    assert set(manifests(out).chips.collect()["kind"]) == {"positive", "negative"}
    (out / "negatives/run.json").unlink()
    assert set(manifests(out).chips.collect()["kind"]) == {"positive"}
