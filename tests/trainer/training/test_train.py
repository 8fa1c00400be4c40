"""Whole runs: interrupted and resumed, over ranks and accumulation, and what stops them."""

import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from pipeline.commands.chips import chips
from pipeline.commands.negatives import negatives
from schemas.build import Build
from schemas.errors import DataError, UsageError
from schemas.settings import Settings, TrainSettings, load_settings
from scripts.make_demo_data import make_demo_data
from tests.trainer.processes import Child, run_ranks, start
from tests.trainer.runs import TINY_CHIPS, tiny_settings
from trainer.loading.dataset import ChipDataset
from trainer.model import Detector
from trainer.runtime.checkpoint import (
    Checkpoint,
    checkpoint_path,
    find_checkpoints,
    read_checkpoint,
    read_last,
    write_checkpoint,
)
from trainer.runtime.weights import load_weights
from trainer.training.resuming import changed_settings, resumed_settings
from trainer.training.train import NETWORK, _memory_remedy, _other_network, train

RUNS = Path(__file__).parents[1] / "runs.py"
COUNTED = Path(__file__).parents[1] / "counted_ranks.py"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # also what the subprocesses use: sums in the same order


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    make_demo_data(folder, num_train=5, num_val=1)
    chips(folder / "train.json", folder / "train", folder / "chips", load_settings(None, TINY_CHIPS))
    return folder / "chips"


@pytest.fixture(scope="module")
def whole_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs without interruption, batch norm learning."""
    out = tmp_path_factory.mktemp("whole")
    train(data, out, tiny_settings("train.epochs=2", "train.norm=train", "train.ema=0.9"))
    return out


def last(out: Path) -> Checkpoint:
    return read_checkpoint(find_checkpoints(out)[-1])


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=name)


def logged_steps(out: Path) -> int:
    path = out / "log.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for_step(out: Path, step: int, process: Child) -> None:
    while logged_steps(out) < step and process.poll() is None:
        time.sleep(0.01)


def wait_for_checkpoints(out: Path, count: int, process: Child) -> None:
    while len(find_checkpoints(out)) < count and process.poll() is None:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("noted", "said"),
    [
        ('{"backbone": "resnet50"}', ["model.backbone resnet50 there and resnet18 here"]),
        ('{"backbone": "resnet18"}', []),
        ("{", []),  # damaged
        (None, []),  # made before it was noted
    ],
)
def test_other_network__is_told_where_it_is_known(tmp_path: Path, noted: str | None, said: list[str]) -> None:
    (tmp_path / "proposals").mkdir()
    if noted is not None:
        (tmp_path / "proposals" / NETWORK).write_text(noted)
    pool = Build("a", settings={}, num_shards=1, files={}, counts={}, proposals=str(tmp_path / "proposals"))
    lines = _other_network(tmp_path, {"negatives": pool}, load_settings(None, ["model.backbone=resnet18"]))
    assert [re.findall(r"\((.*?)\)", line)[0] for line in lines] == said


def test_train__killed_and_stopped_then_resumed_is_the_run_without_interruption(
    data: Path, whole_run: Path, tmp_path: Path
) -> None:
    options = ["train.epochs=2", "train.norm=train", "train.ema=0.9", "train.save_every=2"]
    total = last(whole_run).step
    killed = start(RUNS, data, tmp_path, *options)
    wait_for_checkpoints(tmp_path, 1, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 0 < last(tmp_path).step < total
    stopped = start(RUNS, data, tmp_path, *options, "resume")
    wait_for_step(tmp_path, total // 2 + 1, stopped)
    stopped.send_signal(signal.SIGTERM)
    status, message = stopped.wait()
    assert status == 143, message
    assert "--resume" in message
    assert "Traceback" not in message
    assert last(tmp_path).step < total
    finished = start(RUNS, data, tmp_path, *options, "resume", "loader.prefetch=1")
    status, message = finished.wait()
    assert status == 0, message
    ours, theirs = last(tmp_path), last(whole_run)
    assert ours.step == theirs.step
    assert ours.loader == theirs.loader
    assert_same(ours.model, theirs.model)
    assert ours.ema is not None
    assert theirs.ema is not None
    assert_same(ours.ema, theirs.ema)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == list(range(1, total + 1))  # the log has no step twice
    assert [record["settings"] for record in records if "settings" in record]  # what the last start changed


def test_train__killed_amid_the_writing_of_a_checkpoint_keeps_the_one_before(data: Path, tmp_path: Path) -> None:
    """The network is large enough for its writing to take some tenths of a second, while steps go on."""
    killed = start(RUNS, data, tmp_path, "train.save_every=1", "train.epochs=9", "model.head_width=3000")
    wait_for_checkpoints(tmp_path, 2, killed)
    while not (unfinished := list(tmp_path.glob(".tmp-*-step-*.pt"))) and killed.poll() is None:
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [path for path in unfinished if path.exists()]
    kept = read_last(tmp_path)
    assert kept is not None
    assert checkpoint_path(tmp_path, kept.step) == find_checkpoints(tmp_path)[-1]  # none is damaged
    assert int(unfinished[0].stem.split("-")[-1]) == kept.step + 1 <= logged_steps(tmp_path) + 1


@pytest.mark.parametrize("validation", ["val.json", Path("val.json"), ["val.json"]])
def test_train__validation_is_a_file_and_a_folder(data: Path, tmp_path: Path, validation: Any) -> None:
    with pytest.raises(UsageError, match="validation: expected .annotation file, image folder., found"):
        train(data, tmp_path / "run", validation=validation)
    assert not (tmp_path / "run").exists()


def test_train__without_chips_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished chips here"):
        train(tmp_path / "chips", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_train__losses_fall_and_a_picture_is_drawn(data: Path, tmp_path: Path) -> None:
    options = ["train.epochs=5", "train.norm=train", "train.picture_every=10", "train.norm_momentum=0.1"]
    train(data, tmp_path, tiny_settings(*options, "train.learning_rate=0.3", "train.keep=2"))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert (tmp_path / "pictures/step-00000010.png").stat().st_size > 1000
    steps = [int(path.stem.split("-")[1]) for path in find_checkpoints(tmp_path)]
    assert steps == [8, 12, 16, 20]  # the last two and two from well before


def test_train__accumulation_changes_nothing(data: Path, tmp_path: Path) -> None:
    for name, per_rank in (("whole", 8), ("parts", 2)):
        train(data, tmp_path / name, tiny_settings(f"train.chips_per_rank={per_rank}", "train.clip_gradient=5"))
    assert_same(last(tmp_path / "parts").model, last(tmp_path / "whole").model, 1e-4)


@pytest.mark.parametrize("ranks", [2, 8])
def test_train__ranks_change_nothing(data: Path, tmp_path: Path, ranks: int) -> None:
    """Also with a last batch that leaves some of the 8 ranks without a chip. What they exchange is counted."""
    options = ["train.clip_gradient=5"]
    run_ranks(ranks, COUNTED, data, tmp_path / "ranks", *options)
    train(data, tmp_path / "one", tiny_settings(*options))
    dataset = ChipDataset(data)
    assert len(dataset) % 8 not in (0, 7)
    ours, theirs = last(tmp_path / "ranks"), last(tmp_path / "one")
    assert ours.step == theirs.step == -(-len(dataset) // 8)
    assert_same(ours.model, theirs.model, 1e-4)
    counted = [json.loads((tmp_path / f"ranks/rank-{rank}.json").read_bytes()) for rank in range(ranks)]
    keys = [key for rank in counted for key in rank["keys"]]
    assert sorted(keys) == sorted(dataset.manifest.keys.to_pylist())  # each chip once in an epoch, on one rank
    for rank in counted:
        (asked_to_stop, *gradients, losses), (began, ended) = rank["sums"], rank["backward"]
        assert (asked_to_stop[0], losses[0]) == (1, 4)
        assert sum(num for num, _, _ in gradients) == rank["learning"]  # each gradient once, in some few buckets
        assert 2 <= len(gradients) <= 4
        assert began < gradients[0][1] < ended  # the ranks exchange the first while the others are being computed
        assert rank["other"] == []


RANK_SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
import trainer.evaluation.evaluate
import trainer.training.train
from schemas.errors import DataError, StoppedError
from tests.trainer.runs import tiny_settings
from trainer.runtime.ranks import joined

torch.set_num_threads(1)
out = Path(sys.argv[2]) / os.environ["RANK"]  # folders that the other rank does not see
loop = trainer.training.train.run_loop

def keeping(run, truth):
    path = loop(run, truth)
    torch.save([run.model.state_dict(), run.ema.state], out / f"{run.step}.state")
    return path

trainer.training.train.run_loop = keeping
with joined():
    for epochs in (1, 2, 3):  # the second goes on where the first ended
        settings = tiny_settings(f"train.epochs={epochs}", *sys.argv[3:])
        try:
            path = trainer.training.train.train(Path(sys.argv[1]), out, settings, resume="auto")
        except DataError as error:  # the third cannot be written
            (out / "said").write_text(str(error))
        if epochs == 2:
            (out / f"step-{int(path.stem[5:]) * 3 // 2:08d}.pt").mkdir()
    score = trainer.evaluation.evaluate.score
    trainer.evaluation.evaluate.score = lambda *all: signal.raise_signal(signal.SIGTERM) or score(*all)
    images = Path(sys.argv[1]).parent
    try:  # the signal comes to the first rank alone, which scores while the other waits
        validation = (images / "val.json", images / "val")
        trainer.training.train.train(Path(sys.argv[1]), out / "scored", tiny_settings(), validation=validation)
    except StoppedError as error:
        (out / "stopped").write_text(str(error))
"""


def test_train__ranks_keep_one_network_in_the_first_ones_folder(data: Path, tmp_path: Path) -> None:
    """Batch norm takes each rank's own batches, the folder is not shared, and the run is resumed.

    Then a write fails, and a signal comes amid the scoring of a validation set: all ranks end.
    """
    script = tmp_path / "ranks.py"
    script.write_text(RANK_SCRIPT)
    run_ranks(2, script, data, tmp_path, "train.norm=train", "train.ema=0.5", "train.norm_momentum=0.5")
    assert find_checkpoints(tmp_path / "1") == []
    checkpoints = [read_checkpoint(path) for path in find_checkpoints(tmp_path / "0")]
    assert [kept.loader for kept in checkpoints] == [(0, 1, 0), (0, 2, 0)]
    for kept in checkpoints:
        assert kept.ema is not None
        for rank in "01":
            model, ema = torch.load(tmp_path / rank / f"{kept.step}.state", weights_only=True)
            assert_same(model, kept.model)
            assert_same(ema, kept.ema)
    for rank in "01":
        assert "its validation is not done" in (tmp_path / rank / "stopped").read_text()
    said = {(tmp_path / rank / "said").read_text() for rank in "01"}
    assert len(said) == 1  # all ranks end with what the thread of the first one has met
    assert re.search(
        rf"cannot be written(.|\n)*the last checkpoint that is kept is .*{checkpoints[-1].step}\.pt", *said
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_train__half_precision_runs(tmp_path: Path, precision: str) -> None:
    """In two steps of one chip, since a CPU is slow at fp16."""
    make_demo_data(tmp_path, num_train=2, num_val=1)
    options = load_settings(
        None, ("chips.size=64", "chips.scales=[{long_side: 64}]", "chips.ranges=[[0, null]]")
    ).chips
    chips(tmp_path / "train.json", tmp_path / "train", tmp_path / "chips", Settings(chips=options))
    passes = tiny_settings(f"train.precision={precision}", "train.batch_size=1", "train.epochs=2")
    train(tmp_path / "chips", tmp_path / "run", passes)
    assert last(tmp_path / "run").step == 2
    assert all(torch.isfinite(value).all() for value in last(tmp_path / "run").model.values())


def test_train__a_loss_that_is_not_finite_stops_before_the_weights_change(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not finite") as caught:
        train(data, tmp_path, tiny_settings("train.learning_rate=1000", "train.warmup_steps=0", "train.save_every=1"))
    assert "non-finite-rank0.json" in str(caught.value)
    report = json.loads((tmp_path / "non-finite-rank0.json").read_bytes())
    keys = set(ChipDataset(data).manifest.keys.to_pylist())
    assert {chip["key"] for chip in report["chips"]} <= keys
    assert report["step"] == last(tmp_path).step  # the checkpoint is from before the failing step
    assert "--resume" in str(caught.value)
    # what the message advises can be done, is said, and stays on record
    advised = load_settings(None, ("train.learning_rate=0.01", "train.warmup_steps=1", "train.clip_gradient=10"))
    (tmp_path / "log.jsonl").write_text("")
    for path in find_checkpoints(tmp_path):  # after the first step, of such a rate, nothing can be mended any more
        kept = read_checkpoint(path)
        write_checkpoint(path, kept._replace(model=Detector(tiny_settings().model, 3, 64).state_dict()))
    train(data, tmp_path, advised, resume=True)
    log = (tmp_path / "log.jsonl").read_text()
    assert "train.learning_rate: 1000.0 there, 0.01 now" in log
    assert last(tmp_path).settings["train"]["clip_gradient"] == 10
    assert last(tmp_path).loader[1] == 1


def test_train__writes_into_no_chip_data_set(data: Path) -> None:
    for out in (data, data / "positives"):
        with pytest.raises(UsageError, match="a chip data set; choose another --out"):
            train(data, out, tiny_settings(), resume="auto")


def test_train__refuses_to_mix_runs(data: Path, whole_run: Path, tmp_path: Path) -> None:
    options = tiny_settings("train.epochs=2", "train.norm=train", "train.ema=0.9")
    with pytest.raises(UsageError, match="holds a run already"):
        train(data, whole_run, options)
    other = tiny_settings(
        "train.epochs=2", "train.norm=train", "train.ema=0.9", "train.momentum=0.8", "model.width=24"
    )
    with pytest.raises((UsageError, RuntimeError)) as caught:
        train(data, whole_run, other, resume=True)
    assert "train.momentum: 0.9 there, 0.8 now" in str(caught.value)
    assert "model.width: 16 there, 24 now" in str(caught.value)
    for given in (options, Settings()):  # what is not given is the run's own
        assert train(data, whole_run, given, resume=True) == find_checkpoints(whole_run)[-1]  # done already


def test_train__a_best_checkpoint_of_another_run_is_not_left_beside_a_new_one(
    data: Path, whole_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(find_checkpoints(whole_run)[-1], tmp_path / "run/best.pt")
    for resume in (False, "auto"):
        with pytest.raises(UsageError, match=r"holds best\.pt of a run whose other checkpoints are gone"):
            train(data, tmp_path / "run", tiny_settings(), resume=resume)  # type: ignore[arg-type]


@pytest.mark.parametrize(("section", "name"), [("loader", "unheard_of"), ("unheard_of", "x")])
def test_resumed_settings__of_a_newer_version_are_named(whole_run: Path, section: str, name: str) -> None:
    checkpoint = read_checkpoint(find_checkpoints(whole_run)[-1])
    checkpoint.settings.setdefault(section, {})[name] = 1
    with pytest.raises(DataError, match="settings that this version of the program does not know .*unheard_of"):
        resumed_settings(checkpoint, tiny_settings())


def test_changed_settings__one_that_is_younger_than_the_checkpoint_had_its_default(whole_run: Path) -> None:
    checkpoint = read_checkpoint(find_checkpoints(whole_run)[-1])
    settings = tiny_settings().model_dump(mode="json")
    changed = changed_settings(checkpoint, settings)
    del checkpoint.settings["loader"]["vertical_flip"]
    assert changed_settings(checkpoint, settings) == changed
    settings["loader"]["vertical_flip"] = not settings["loader"]["vertical_flip"]
    [younger] = set(changed_settings(checkpoint, settings)) - set(changed)
    assert younger.startswith("loader.vertical_flip: ")


def test_train__resumes_past_damaged_checkpoints(
    data: Path, whole_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped bit in the last one, and a best one that is none: the run goes on from the one before."""
    out = tmp_path / "out"
    shutil.copytree(whole_run, out)
    damaged = find_checkpoints(out)[-1]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    (out / "best.pt").write_bytes(b"nothing")
    options = tiny_settings("train.epochs=2", "train.norm=train", "train.ema=0.9")
    caplog.set_level("INFO", "sniper")
    assert train(data, out, options, resume=True) == damaged
    assert f"{damaged.name}: is damaged" in caplog.text
    assert "epoch 1, step" in caplog.text
    assert_same(last(out).model, last(whole_run).model)


def test_train__a_resumed_run_keeps_what_it_chose(data: Path, tmp_path: Path) -> None:
    """Fewer chips per rank would freeze batch norm; the weights it began with need not be there any more."""
    weights = tmp_path / "weights.pt"
    torch.save(Detector(tiny_settings().model, 3, 64).state_dict(), weights)
    options = [f"train.weights={weights}", "train.norm=null"]
    train(data, tmp_path / "out", tiny_settings("train.epochs=1", *options))
    assert last(tmp_path / "out").norm == "train"
    weights.unlink()
    train(data, tmp_path / "out", tiny_settings("train.epochs=2", "train.chips_per_rank=4", *options), resume=True)
    assert last(tmp_path / "out").norm == "train"
    with pytest.raises(UsageError, match="neither a file, nor a folder"):
        train(data, tmp_path / "anew", tiny_settings(*options))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"chips_per_rank": 8},
            r"8 chips .*chips_per_rank=4\. Steps take longer, and batch norm is frozen .*norm=train",
        ),
        ({"chips_per_rank": 16}, r"16 chips .*chips_per_rank=8\. Steps take longer; batch norm, where it learns, has"),
        ({"chips_per_rank": 8, "norm": "train"}, r"Steps take longer; batch norm, where it learns, has"),
        ({"chips_per_rank": 8, "norm": "frozen"}, r"Steps take longer$"),
        ({"chips_per_rank": 8, "weights": None}, r"Steps take longer; batch norm, where it learns, has"),
        ({"batch_size": 1}, r"1 chip .*take a smaller network"),
    ],
)
def test_memory_remedy__says_what_fewer_chips_do_to_batch_norm(
    given: dict[str, object], said: str, tmp_path: Path
) -> None:
    options = TrainSettings.model_validate({"batch_size": 16, "weights": "ResNet18_Weights.IMAGENET1K_V1", **given})
    assert re.search(said, _memory_remedy(tmp_path, options, 1, rpn_only=False))


def test_memory_remedy__names_resume_where_the_command_has_it(tmp_path: Path) -> None:
    (tmp_path / "step-00000001.pt").touch()
    options = TrainSettings(batch_size=16)
    assert "chips_per_rank=8 with --resume. Steps" in _memory_remedy(tmp_path, options, 1, rpn_only=False)
    assert "chips_per_rank=8. Steps" in _memory_remedy(tmp_path, options, 1, rpn_only=True)


def test_train__refuses_to_go_on_with_another_pool(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "chips")
    pool = {"random": 2}
    negatives(tmp_path / "chips", **pool)
    train(tmp_path / "chips", tmp_path / "out", tiny_settings("train.epochs=1"))
    negatives(tmp_path / "chips", **{**pool, "random": 3}, overwrite=True)
    with pytest.raises(UsageError, match="was trained on other negatives"):
        train(tmp_path / "chips", tmp_path / "out", tiny_settings("train.epochs=2"), resume=True)


def test_train__refuses_to_go_on_with_other_classes(data: Path, whole_run: Path, tmp_path: Path) -> None:
    """The chips are the same, and so is their fingerprint: it is the table of classes that has changed."""
    shutil.copytree(data, tmp_path / "chips")
    shutil.copytree(whole_run, tmp_path / "run")
    path = tmp_path / "chips/categories.parquet"
    table = pl.read_parquet(path)
    table.with_columns(name=pl.col("name").reverse()).write_parquet(path)
    with pytest.raises(UsageError, match="label 1 was 'disc' with id 1 and is now 'triangle' with id 1"):
        train(tmp_path / "chips", tmp_path / "run", resume=True)


def test_train__a_finished_run_says_that_nothing_is_left(
    data: Path, whole_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "sniper"):
        train(data, whole_run, resume=True)
    assert "2 epochs done: nothing is left to train" in caplog.text
    assert "the run's own, of step" in caplog.text
    assert "from scratch" not in caplog.text


def test_train__leaves_sigterm_as_it_was(data: Path, whole_run: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    options = ("train.epochs=2", "train.norm=train", "train.ema=0.9")
    train(data, whole_run, tiny_settings(*options), resume=True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_train__statistics_of_several_gpus_need_gpus(data: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match=r"train\.norm: sync"):
        train(data, tmp_path, tiny_settings("train.norm=sync"))


def test_train__weights_of_a_checkpoint_with_other_classes(
    data: Path, whole_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = find_checkpoints(whole_run)[-1]
    settings = tiny_settings()
    same = Detector(settings.model, 3, 64)
    names = [name for _, name in last(whole_run).categories]
    assert "start anew" not in load_weights(same, str(path), names)
    assert_same(dict(same.state_dict()), last(whole_run).ema or {})
    other = Detector(settings.model, 5, 64)
    assert "new classes     cone, cube" in load_weights(other, str(path), [*names, "cone", "cube"])
    caplog.set_level("INFO", "sniper")
    train(data, tmp_path, tiny_settings(f"train.weights={path}"))
    assert "weights from" in caplog.text


def test_checkpoint__half_written_files_are_not_seen(data: Path, whole_run: Path, tmp_path: Path) -> None:
    content = find_checkpoints(whole_run)[-1].read_bytes()
    (tmp_path / ".tmp-1-step-00000009.pt").write_bytes(content[:1000])
    assert find_checkpoints(tmp_path) == []
    (tmp_path / "step-00000009.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="is not a checkpoint"):
        read_checkpoint(tmp_path / "step-00000009.pt")
