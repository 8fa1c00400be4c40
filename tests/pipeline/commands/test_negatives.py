"""The pool of negative chips: what is in it, the same bytes however it comes about, nothing stale."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageColor

from pipeline.commands.chips import chips
from pipeline.commands.negatives import NegativeReport, describe, negatives
from pipeline.commands.verify import verify
from pipeline.images.drawing import PROPOSAL_COLOR
from pipeline.insight.show import show
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, NegativeSettings, Settings
from schemas.tables import MANIFEST, PROPOSALS
from scripts.make_demo_data import make_demo_data

OPTIONS = ChipSettings(images_per_shard=3)


def weak_rpn(document: dict[str, Any], seed: int = 0) -> pa.Table:
    """Proposals as of an RPN that saw positives only: jittered objects and, with lower scores, look-alikes."""
    rng = np.random.default_rng(seed)
    sizes = {image["id"]: (image["width"], image["height"]) for image in document["images"]}
    rows = []
    for kind, number, mean in (("annotations", 15, 0.7), ("lookalikes", 15, 0.5)):
        for record in document[kind]:
            x, y, w, h = record["bbox"]
            limit = np.tile(sizes[record["image_id"]], 2)
            jitter = rng.normal(0, 0.15, (number, 4)) * [w, h, w, h]
            boxes = np.clip(np.array([x, y, x + w, y + h]) + jitter, 0, limit)
            for box in boxes[(boxes[:, 2:] - boxes[:, :2] > 1).all(axis=1)].tolist():
                rows.append([record["image_id"], 0, *box, float(np.clip(rng.normal(mean, 0.1), 0, 1))])
    rng.shuffle(rows)
    return pa.Table.from_pylist([dict(zip(PROPOSALS.names, row, strict=True)) for row in rows], PROPOSALS)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen demo scenes, their positive chips in `out`, proposals in proposals.parquet, and their pool in `pool`."""
    folder = tmp_path_factory.mktemp("scenes")
    make_demo_data(folder, num_train=16, num_val=1)
    chips(folder / "train.json", folder / "train", folder / "out", Settings(chips=OPTIONS))
    pq.write_table(weak_rpn(json.loads((folder / "train.json").read_bytes())), folder / "proposals.parquet")
    shutil.copytree(folder / "out", folder / "pool")
    build(folder, folder / "pool")
    return folder


@pytest.fixture
def out(scenes: Path, tmp_path: Path) -> Path:
    """A copy of the positives, to be changed at will."""
    shutil.copytree(scenes / "out", tmp_path / "out")
    return tmp_path / "out"


def build(scenes: Path, out: Path, **options: Any) -> NegativeReport:
    return negatives(out, **{"proposals": scenes / "proposals.parquet"} | options)


def digests(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def manifest(out: Path, kind: str = "negatives") -> pl.DataFrame:
    return pl.concat(pl.read_parquet(path) for path in sorted((out / kind).glob("chips-*.parquet")))


def test_negatives__manifest_and_counts(scenes: Path) -> None:
    out = scenes / "pool"
    rows = manifest(out)
    counts = json.loads((out / "negatives/run.json").read_bytes())["counts"]
    assert pl.read_parquet_schema(out / "negatives/chips-00000.parquet").names() == MANIFEST.names
    assert pl.scan_parquet(out / "*/chips-*.parquet").collect().height == len(rows) + len(manifest(out, "positives"))
    assert len(rows) == counts["chips"]["total"] > 10
    assert rows["key"].n_unique() == len(rows)
    for row in rows.iter_rows(named=True):
        stem, number = row["key"][:-4], row["key"][-4:]
        assert (stem, number[0], number[1:].isdigit()) == (f"{row['image_id']:012d}-{row['scale_index']}", "n", True)
        assert row["num_proposals"] >= (25 if row["scale_index"] == 0 else 10)
        assert 0.3 < row["mean_score"] < 0.9
        assert row["shard"].startswith("negatives/")
    assert set(rows["kind"]) == {"negative"}
    per_scale = dict(rows.group_by("scale_index").len().iter_rows())
    assert [scale["chips"] for scale in counts["scales"]] == [per_scale.get(s, 0) for s in range(3)]
    assert sum(scale["proposals_covered"] for scale in counts["scales"]) == rows["num_proposals"].sum()
    assert counts["proposals"]["read"] > counts["proposals"]["after_nms"] > 0
    assert "mean score" in describe(counts)
    assert not {"proposals", "covered", "mean"} & set(describe(counts, random=True).split())
    assert verify(out).problems == []


def test_negatives__positives_have_neither_count_nor_score(scenes: Path) -> None:
    rows = manifest(scenes / "pool", "positives")
    assert rows["num_proposals"].null_count() == rows["mean_score"].null_count() == len(rows)


def test_negatives__images_without_objects_take_part(scenes: Path) -> None:
    images = pl.read_parquet(scenes / "pool/images.parquet")
    empty = images.filter(pl.col("num_boxes") == 0)["image_id"]
    assert len(empty) > 0
    assert manifest(scenes / "pool").filter(pl.col("image_id").is_in(empty.implode())).height > 0


def test_negatives__chips_carry_every_box_they_meet_but_rescue_none(scenes: Path) -> None:
    boxes = pl.read_parquet(scenes / "pool/annotations.parquet")
    seen = set()
    for chip in manifest(scenes / "pool").iter_rows(named=True):
        met = boxes.filter(
            (pl.col("image_id") == chip["image_id"])
            & (pl.col("x1") < chip["x2"])
            & (pl.col("x2") > chip["x1"])
            & (pl.col("y1") < chip["y2"])
            & (pl.col("y2") > chip["y1"])
        )
        assert [box["annotation_id"] for box in chip["boxes"]] == met["annotation_id"].to_list()
        for box, source in zip(chip["boxes"], met.iter_rows(named=True), strict=True):
            x1 = max(source["x1"], chip["x1"])
            assert box["x1"] == pytest.approx((x1 - chip["x1"]) * chip["scale"], abs=1e-2)
            seen.add(box["status"])
    assert "rescued" not in seen
    assert {"out_of_range", "cut"} <= seen


@pytest.mark.parametrize("workers", [2, 5])
def test_negatives__same_bytes_for_any_number_of_workers(scenes: Path, out: Path, workers: int) -> None:
    build(scenes, out, workers=workers)
    assert digests(out / "negatives") == digests(scenes / "pool/negatives")


def test_negatives__same_bytes_for_any_order_of_proposals(scenes: Path, out: Path, tmp_path: Path) -> None:
    rows = pq.read_table(scenes / "proposals.parquet")
    order = np.random.default_rng(1).permutation(len(rows))
    pq.write_table(rows.take(order), tmp_path / "shuffled.parquet")
    build(scenes, out, proposals=tmp_path / "shuffled.parquet")
    assert manifest(out).equals(manifest(scenes / "pool"))


def test_negatives__killed_then_rerun_gives_the_same_bytes(scenes: Path, out: Path) -> None:
    script = "import sys; from pathlib import Path; from pipeline.commands.negatives import negatives; "
    script += "negatives(Path(sys.argv[1]), proposals=Path(sys.argv[2]), workers=2)"
    command = [sys.executable, "-c", script, str(out), str(scenes / "proposals.parquet")]
    rng = random.Random(3)
    pool = out / "negatives"
    for wanted in (".tmp-*.tar", "chips-*.parquet"):
        before = set(pool.glob("*"))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not set(pool.glob(wanted)) - before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in pool.glob("chips-*.parquet"):
            name = path.with_suffix(".tar").name
            assert (pool / name).read_bytes() == (scenes / "pool/negatives" / name).read_bytes()
    build(scenes, out)
    assert digests(pool) == digests(scenes / "pool/negatives")


def test_negatives__a_finished_pool_is_left_alone(scenes: Path, out: Path) -> None:
    shutil.copytree(scenes / "pool/negatives", out / "negatives")
    before = {path: path.stat().st_mtime_ns for path in (out / "negatives").iterdir()}
    assert build(scenes, out).num_made == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_negatives__other_settings_are_refused_by_name_and_replaced_on_demand(scenes: Path, out: Path) -> None:
    shutil.copytree(scenes / "pool/negatives", out / "negatives")
    other = Settings(negatives=NegativeSettings(min_finest=15))
    with pytest.raises(UsageError, match=r"negatives\.min_finest: 25 there, 15 now"):
        build(scenes, out, settings=other)
    with pytest.raises(UsageError, match=r"negatives\.random: None there, 2 now"):
        negatives(out, random=2)
    report = build(scenes, out, settings=other, overwrite=True)
    assert report.num_made == report.num_shards
    assert verify(out).problems == []


def test_negatives__a_stale_pool_is_noticed_and_remade(scenes: Path, out: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes / "pool/negatives", out / "negatives")
    coco = json.loads((scenes / "train.json").read_bytes())
    del coco["annotations"][0]
    (tmp_path / "changed.json").write_text(json.dumps(coco))
    chips(tmp_path / "changed.json", scenes / "train", out, Settings(chips=OPTIONS))
    assert any("mined for other positives" in problem for problem in verify(out).problems)
    report = build(scenes, out)
    assert report.num_made == 1  # the shard whose boxes have changed
    run = json.loads((out / "negatives/run.json").read_bytes())
    assert run["positives"] == json.loads((out / "run.json").read_bytes())["fingerprint"]
    assert verify(out).problems == []


def test_negatives__a_changed_ledger_is_refused(scenes: Path, out: Path) -> None:
    """Without it the people of an image would become background."""
    path = out / "annotations.parquet"
    pl.read_parquet(path).with_columns(fate=pl.lit("refused"), x1=pl.lit(None, pl.Float64)).write_parquet(path)
    with pytest.raises(
        DataError, match=r"annotations\.parquet: is not the file that the chips were made with.*`sniper"
    ):
        build(scenes, out)
    assert not (out / "negatives").exists()


def test_negatives__settings_that_do_not_act_refuse_nothing(scenes: Path, out: Path) -> None:
    negatives(out, random=1)
    other = Settings(negatives=NegativeSettings(nms=0.5, min_finest=7, rpn_epochs=9))
    assert negatives(out, random=1, settings=other).num_made == 0
    shutil.rmtree(out / "negatives")
    shutil.copytree(scenes / "pool/negatives", out / "negatives")
    assert build(scenes, out, settings=Settings(negatives=NegativeSettings(rpn_epochs=9))).num_made == 0


def test_negatives__overwrite_removes_only_what_builds_write(scenes: Path, out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(scenes / "pool/negatives", elsewhere)
    (out / "negatives").symlink_to(elsewhere)
    (elsewhere / "notes.txt").write_text("of the user")
    (elsewhere / "picture.png").symlink_to(scenes / "train.json")
    report = build(scenes, out, settings=Settings(negatives=NegativeSettings(min_finest=15)), overwrite=True)
    assert report.num_made == report.num_shards
    assert (out / "negatives").is_symlink()
    assert (elsewhere / "notes.txt").read_text() == "of the user"
    assert (elsewhere / "picture.png").is_symlink()
    assert verify(out).problems == []


def test_negatives__unfinished_positives_are_refused(scenes: Path, out: Path) -> None:
    (out / "run.json").unlink()
    with pytest.raises(DataError, match="no finished chips here"):
        build(scenes, out)
    assert not (out / "negatives").exists()


def test_negatives__image_files_must_be_those_of_the_positives(scenes: Path, out: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(scenes / "train", images)
    used = manifest(scenes / "pool")["image_id"].unique(maintain_order=True).to_list()
    gone, other = (images / f"{image_id:06d}.jpg" for image_id in used[:2])
    good = other.read_bytes()
    gone.unlink()
    other.write_bytes(good + b"\0" * 4)  # decodes all the same
    with pytest.raises(DataError, match=r"2 image files are not those(.|\n)*no such file(.|\n)*have changed"):
        build(scenes, out, images=images)
    assert not (out / "negatives/run.json").exists()
    other.write_bytes(good)
    shutil.copy(scenes / "train" / gone.name, gone)
    build(scenes, out, images=images)
    assert digests(out / "negatives") == digests(scenes / "pool/negatives")
    with pytest.raises(UsageError, match="no such image folder"):
        build(scenes, out, images=tmp_path / "absent")


def test_negatives__overwrite_keeps_the_pool_where_there_is_nothing_to_mine(scenes: Path, out: Path) -> None:
    shutil.copytree(scenes / "pool/negatives", out / "negatives")
    with pytest.raises((DataError, UsageError)):
        build(scenes, out, proposals=out / "mistyped.parquet", overwrite=True)
    assert digests(out / "negatives") == digests(scenes / "pool/negatives")


@pytest.mark.parametrize("per_shard", [3, 16])
def test_negatives__chips_that_are_stored_otherwise_than_the_positives_are_refused(
    scenes: Path, out: Path, per_shard: int
) -> None:
    """Else their quality alone would tell positives and negatives apart. Where the data set has fewer shards than the
    pool, the surplus is not deleted before the refusal either."""
    shutil.copytree(scenes / "pool/negatives", out / "negatives")
    before = digests(out / "negatives")
    shutil.rmtree(out / "positives")
    for path in (out / "run.json", *out.glob("*.parquet")):
        path.unlink()
    settings = OPTIONS.model_copy(update={"quality": 60, "images_per_shard": per_shard})
    chips(scenes / "train.json", scenes / "train", out, Settings(chips=settings))
    for _ in range(2):
        with pytest.raises(UsageError, match=r"chips\.quality: 95 there, 60 now"):
            build(scenes, out)
        assert digests(out / "negatives") == before
    assert build(scenes, out, overwrite=True).num_made > 0


def test_negatives__malformed_proposals_leave_nothing(scenes: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('[{"image_id": 2, "bbox": [0, 0, 9, 9], "score": 1}]')
    with pytest.raises(DataError, match=r"row 0: image_id 2 is not in images\.parquet"):
        build(scenes, out, proposals=tmp_path / "bad.json")
    assert not (out / "negatives").exists()


def test_negatives__refused_images_take_no_part(scenes: Path, tmp_path: Path) -> None:
    """Their proposals are no fault: an RPN may have run on every file."""
    images = tmp_path / "images"
    shutil.copytree(scenes / "train", images)
    lost = int(manifest(scenes / "pool")["image_id"][0])
    (images / f"{lost:06d}.jpg").write_bytes(b"damaged")
    chips(scenes / "train.json", images, tmp_path / "out", Settings(chips=OPTIONS), max_bad=1.0)
    build(scenes, tmp_path / "out")
    expected = manifest(scenes / "pool").filter(pl.col("image_id") != lost)
    assert manifest(tmp_path / "out")["key"].to_list() == expected["key"].to_list()


def test_negatives__settings_of_other_chips_are_refused_before_a_pool_is_deleted(scenes: Path, out: Path) -> None:
    negatives(out, random=1)
    before = digests(out / "negatives")
    with pytest.raises(UsageError, match="chips.quality"):
        negatives(out, random=1, settings=Settings(chips=ChipSettings(quality=50)), overwrite=True)
    assert digests(out / "negatives") == before


@pytest.mark.parametrize("arguments", [{}, {"random": 0}, {"random": 2, "proposals": Path("p.parquet")}])
def test_negatives__arguments_that_contradict(scenes: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        negatives(scenes / "out", **arguments)


def lookalikes_in(rows: pl.DataFrame, document: dict[str, Any]) -> dict[int, float]:
    """Per scale index, look-alikes whole inside a chip, on average."""
    boxes: dict[int, list[list[float]]] = {}
    for record in document["lookalikes"]:
        boxes.setdefault(record["image_id"], []).append(record["bbox"])

    def held(chip: dict[str, Any]) -> Iterator[bool]:
        for x, y, w, h in boxes.get(chip["image_id"], []):
            yield chip["x1"] <= x and chip["y1"] <= y and x + w <= chip["x2"] and y + h <= chip["y2"]

    counted = rows.with_columns(pl.Series("held", [sum(held(chip)) for chip in rows.to_dicts()]))
    return dict(counted.group_by("scale_index").agg(pl.col("held").mean()).iter_rows())


def test_negatives__find_lookalikes_that_random_chips_miss(scenes: Path, out: Path) -> None:
    document = json.loads((scenes / "train.json").read_bytes())
    negatives(out, random=4)
    mined, drawn = lookalikes_in(manifest(scenes / "pool"), document), lookalikes_in(manifest(out), document)
    assert set(mined) >= {0, 1}
    for scale_index in (0, 1):
        assert mined[scale_index] >= 3 * drawn[scale_index]
    assert drawn[0] > 0
    rows = manifest(out)
    assert set(rows["num_proposals"]) == {0}
    assert rows["mean_score"].null_count() == len(rows)
    assert rows.group_by("image_id").len()["len"].max() == 4
    assert verify(out).problems == []


def test_show__negative_chips_with_their_proposals(scenes: Path, out: Path, tmp_path: Path) -> None:
    number = show(scenes / "pool", tmp_path / "sheet.png", kind="negative", columns=3)
    assert number == 6
    color = ImageColor.getrgb(PROPOSAL_COLOR)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))[28:]
    drawn = (sheet == color).all(axis=2)
    assert drawn.sum() > 200
    assert drawn.mean() < 0.05  # what a chip shows is not hidden under them
    negatives(out, random=1)
    show(out, tmp_path / "random.png", kind="negative", columns=3)
    assert not (np.asarray(Image.open(tmp_path / "random.png")) == color).all(axis=2).any()
