"""Negatives from end to end: the RPN's run, its proposals, the pool; each step kept when it is done."""

import json
import shutil
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

import pipeline.pyramid.search
import trainer.inference.extract
from pipeline.commands.chips import chips
from pipeline.commands.negatives import negatives
from pipeline.commands.verify import verify
from pipeline.dataset.proposal_rows import COLUMNS
from pipeline.insight.show import show
from pipeline.storage import locked
from schemas.errors import DataError, UsageError
from schemas.settings import DetectSettings, Settings, load_settings
from scripts.make_demo_data import make_demo_data
from tests.conftest import RunSniper
from tests.trainer.processes import run_ranks
from tests.trainer.runs import TINY, TINY_CHIPS
from trainer.inference.extract import extract_proposals
from trainer.loading.dataset import ChipDataset
from trainer.runtime.checkpoint import find_checkpoints, read_checkpoint
from trainer.training.make_proposals import make_proposals
from trainer.training.train import NETWORK, train

OPTIONS = (*TINY, *TINY_CHIPS, "negatives.rpn_epochs=1", "negatives.min_finest=3", "negatives.min_others=3")


def settings(*more: str) -> Settings:
    return load_settings(None, (*OPTIONS, *more))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("rpn")
    make_demo_data(folder, num_train=8, num_val=1)
    chips(folder / "train.json", folder / "train", folder / "chips", settings())
    return folder / "chips"


@pytest.fixture(scope="module")
def proposals(data: Path) -> Path:
    return make_proposals(data, data.parent / "train", settings())


def stamps(folder: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }


def test_make_proposals__all_images_at_all_scales_inside_them(data: Path, proposals: Path) -> None:
    table = pl.read_parquet(proposals / "part-*.parquet")
    assert set(COLUMNS) <= set(table.columns)
    images = pl.read_parquet(data / "images.parquet")
    joined = table.join(images, on="image_id")
    assert len(joined) == len(table) > 100
    assert set(table["image_id"]) == set(images["image_id"])  # images without objects too
    assert set(table["scale_index"]) == {0, 1}
    assert joined.filter((pl.col("x1") < 0) | (pl.col("y1") < 0) | (pl.col("x2") > pl.col("width") + 0.01)).is_empty()
    assert table.filter(~pl.col("score").is_between(0, 1)).is_empty()
    checkpoint = read_checkpoint(find_checkpoints(proposals / "rpn")[-1])
    assert checkpoint.loader[1] == 1
    assert len(find_checkpoints(proposals / "rpn")) == 1
    assert checkpoint.optimizer == {}  # a finished run keeps what proposes, and no more
    assert json.loads((proposals / "network.json").read_bytes()) == settings().model.model_dump(mode="json")


def test_make_proposals__a_second_call_does_nothing_and_a_lost_part_is_made_again(
    data: Path, proposals: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = stamps(proposals)
    caplog.set_level("INFO", "sniper")
    make_proposals(data, data.parent / "train", settings())
    assert "nothing is left to train; --set negatives.rpn_epochs=N with more goes on" in caplog.text
    after = stamps(proposals)
    assert {path for path in before if "log.jsonl" not in path and before[path] != after[path]} == set()
    part = proposals / "part-00000.parquet"
    content = pq.read_table(part)
    part.unlink()
    make_proposals(data, data.parent / "train", settings())
    assert pq.read_table(part).equals(content)


def test_extract__an_unreadable_image_ends_every_run_until_it_is_back(
    data: Path, proposals: Path, tmp_path: Path
) -> None:
    copy, images = tmp_path / "chips", tmp_path / "train"
    shutil.copytree(data, copy)
    shutil.copytree(data.parent / "train", images)
    part = copy / "proposals/part-00000.parquet"
    expected = pq.read_table(part)
    part.unlink()
    name = pl.read_parquet(copy / "images.parquet")["file_name"][0]
    content = (images / name).read_bytes()
    (images / name).unlink()
    checkpoint = find_checkpoints(proposals / "rpn")[-1]
    for _ in range(2):
        with pytest.raises(DataError, match="1 images that the chips were cut from cannot be read now"):
            extract_proposals(copy, checkpoint, images, settings().detect)
        assert not part.exists()
    (images / name).write_bytes(content)
    extract_proposals(copy, checkpoint, images, settings().detect)
    assert pq.read_table(part).equals(expected)


def test_make_proposals__other_settings_are_refused_unless_overwritten(data: Path, proposals: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.momentum"):
        make_proposals(data, data.parent / "train", settings("train.momentum=0.5"))


def test_make_proposals__settings_of_other_chips_are_refused_before_anything_is_deleted(
    data: Path, proposals: Path
) -> None:
    with pytest.raises(UsageError, match=r"chips\.quality"):
        make_proposals(data, data.parent / "train", settings("chips.quality=50"), overwrite=True)
    assert (proposals / "network.json").exists()


def test_make_proposals__holds_the_chips_before_anything_is_deleted(data: Path, proposals: Path) -> None:
    before = stamps(proposals)
    with locked(data, "sniper negatives"), pytest.raises(UsageError, match="negatives.* is writing here; wait"):
        make_proposals(data, data.parent / "train", settings(), overwrite=True)
    assert stamps(proposals) == before


def test_make_proposals__views_of_another_size_give_other_proposals(
    data: Path, proposals: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "chips")
    part = tmp_path / "chips/proposals/part-00000.parquet"
    before = pl.read_parquet(part)
    for options, is_same in ((settings(), True), (settings("detect.max_side=128"), False), (settings(), True)):
        make_proposals(tmp_path / "chips", data.parent / "train", options)
        assert pl.read_parquet(part).equals(before) == is_same


def test_make_proposals__an_rpn_of_positives_that_have_changed_is_refused_and_kept(
    data: Path, proposals: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "chips"
    shutil.copytree(data, copy)
    record = json.loads((copy / "run.json").read_bytes())
    former = record["fingerprint"]
    record["fingerprint"] = "0" * 64
    (copy / "run.json").write_text(json.dumps(record))
    before = stamps(copy)
    with pytest.raises(UsageError, match=r"trained on positives that have changed since.*--proposals .*--overwrite"):
        make_proposals(copy, data.parent / "train", settings())
    assert stamps(copy) == before
    record["formerly"] = [former]  # the same shards, under the name that an earlier version gave them
    (copy / "run.json").write_text(json.dumps(record))
    make_proposals(copy, data.parent / "train", settings())
    after = stamps(copy)
    assert all(after[path] == stamp for path, stamp in before.items() if path.endswith((".pt", ".parquet")))


def test_negatives__then_training_uses_the_pool(
    data: Path,
    proposals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = settings()
    report = negatives(data, proposals=proposals, settings=options)
    assert report.num_made == report.num_shards
    assert verify(data).problems == []
    show(data, tmp_path / "parts.png", kind="negative")
    monkeypatch.setattr("pipeline.dataset.proposals.find_parts", lambda *_: None)
    show(data, tmp_path / "whole.png", kind="negative")
    assert (tmp_path / "parts.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    dataset = ChipDataset(data)
    pool = len(dataset) - dataset.manifest.num_positives
    assert pool > 0
    run = json.loads((data / "negatives/run.json").read_bytes())
    assert run["positives"] == json.loads((data / "run.json").read_bytes())["fingerprint"]
    note = data / "proposals" / NETWORK
    content = note.read_bytes()
    earlier = {name: value for name, value in json.loads(content).items() if name != "deformable"}
    note.write_text(json.dumps(earlier))  # as by a version without this setting
    train(data, tmp_path / "run", settings("model.width=24", "model.focus=true", "model.deformable=true"))
    note.write_bytes(content)
    differing = "model.width 16 there and 24 here, model.deformable False there and True here"
    assert f"the RPN of another network ({differing})" in caplog.text
    kept = read_checkpoint(find_checkpoints(tmp_path / "run")[-1])
    assert kept.step > -(-dataset.manifest.num_positives // options.train.batch_size)  # more than the positives alone


def test_make_proposals__two_ranks_write_the_same_parts(
    data: Path, proposals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Extraction only: with another number of ranks the RPN's own training differs in rounding."""
    script = tmp_path / "extract.py"
    script.write_text(
        "import torch, sys; torch.set_num_threads(1)\nfrom pathlib import Path\n"
        "import trainer.inference.extract, pipeline.pyramid.search\nfrom schemas.settings import DetectSettings\n"
        "pipeline.pyramid.search.SPAN = trainer.inference.extract.SPAN = 3\n"
        "trainer.inference.extract.extract_proposals(*map(Path, sys.argv[1:4]), DetectSettings())"
    )
    arguments = (data, find_checkpoints(proposals / "rpn")[-1], data.parent / "train")

    def parts_now() -> dict[str, bytes]:
        return {part.name: part.read_bytes() for part in proposals.glob("part-*.parquet")}

    def remove_parts() -> None:
        for part in proposals.glob("part-*.parquet"):
            part.unlink()

    for module in (pipeline.pyramid.search, trainer.inference.extract):
        monkeypatch.setattr(module, "SPAN", 3)  # so that both ranks have parts
    remove_parts()
    extract_proposals(*arguments, DetectSettings())
    expected = parts_now()
    assert len(expected) == 3
    remove_parts()
    run_ranks(2, script, *arguments)
    assert parts_now() == expected


def test_negatives__refuses_settings_that_contradict_the_chips(data: Path, sniper: RunSniper) -> None:
    refused = sniper("negatives", "--data", data, "--random", 1, "--set", "chips.size=512")
    assert refused.status == 2
    assert "chips.size: 64 there, 512 given" in refused.err
