"""What ends or disturbs a run: signals, bad steps, full disks, another process in the folder, a mistyped one."""

import json
import logging
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
import torch

import trainer.training.loop
from pipeline.storage import locked
from schemas.errors import DataError, StoppedError, UsageError
from schemas.settings import Settings
from tests.trainer.runs import tiny_settings
from trainer.loading.dataset import ChipDataset
from trainer.runtime.checkpoint import Checkpoint, find_checkpoints, kept_steps, read_checkpoint, write_checkpoint
from trainer.runtime.ranks import Rank
from trainer.training.journal import Journal
from trainer.training.loop import train_step
from trainer.training.run import Run, make_run
from trainer.training.train import train

OPTIONS = ("train.norm=train", "train.norm_momentum=0.5", "train.chips_per_rank=4", "train.ema=0.5", "model.width=8")
CPU = Rank(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(chip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An epoch without interruption, two micro-batches to each step. Not to be changed."""
    out = tmp_path_factory.mktemp("whole")
    train(chip_folder, out, tiny_settings(*OPTIONS))
    return out


def last(out: Path) -> Checkpoint:
    return read_checkpoint(find_checkpoints(out)[-1])


class SignalAt(logging.Handler):
    """Sends this process a signal when the run logs a text for the first time."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(logging.INFO)
        self.text, self.number = text, number

    def emit(self, record: logging.LogRecord) -> None:
        if self.text and self.text in record.getMessage():
            self.text = ""
            signal.raise_signal(self.number)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    log = logging.getLogger("sniper")
    handlers, level = list(log.handlers), log.level
    log.setLevel(logging.INFO)
    yield log
    log.handlers[:] = handlers
    log.setLevel(level)


@pytest.mark.parametrize(
    ("at", "number", "status", "step"),
    [
        ("first step, pass 1 of 2", signal.SIGINT, 130, 0),  # amid a step, which leaves no trace
        ("step 1:", signal.SIGTERM, 143, 1),
        ("step 2:", signal.SIGUSR1, 143, 2),
    ],
)
def test_train__stopped_by_a_signal_and_resumed_is_the_run_without_interruption(
    chip_folder: Path,
    whole: Path,
    tmp_path: Path,
    logger: logging.Logger,
    at: str,
    number: int,
    status: int,
    step: int,
) -> None:
    before = signal.getsignal(number)
    logger.addHandler(SignalAt(at, number))
    with pytest.raises(StoppedError, match=r"sniper train .* --resume") as stopped:
        train(chip_folder, tmp_path, tiny_settings(*OPTIONS))
    assert stopped.value.exit_status == status
    assert signal.getsignal(number) is before
    kept = last(tmp_path)
    assert kept.step == step
    if step == 0:
        assert all(int(v) == 0 for name, v in kept.model.items() if name.endswith("num_batches_tracked"))
        assert all(not v.any() for name, v in kept.model.items() if name.endswith("running_mean"))
    train(chip_folder, tmp_path, resume=True)
    ours, theirs = last(tmp_path), last(whole)
    assert ours.step == theirs.step
    for mine, other in ((ours.model, theirs.model), (ours.ema, theirs.ema)):
        assert mine is not None
        assert other is not None
        assert all(torch.equal(mine[name], other[name]) for name in other)


@pytest.fixture
def run(chip_folder: Path, tmp_path: Path) -> Run:
    dataset = ChipDataset(chip_folder, pool=False)
    return make_run(dataset, tmp_path, tiny_settings(*OPTIONS), CPU, last=None, rpn_only=False)


def test_train_step__a_loss_or_a_gradient_that_is_not_finite_changes_nothing(run: Run) -> None:
    step = next(iter(run.loader.epoch(run.state)))
    bias = run.model.rpn.conv.bias
    for spoil in (lambda: bias.data.fill_(torch.nan), lambda: bias.register_hook(lambda grad: grad * torch.inf)):
        healthy = bias.data.clone()
        spoil()
        before = {name: value.clone() for name, value in run.model.state_dict().items()}
        with pytest.raises(DataError, match="not finite(.|\n)*run the same command with it$"):
            train_step(run, step)
        after = run.model.state_dict()
        assert all(torch.equal(after[name].nan_to_num(), before[name].nan_to_num()) for name in before)
        assert run.ema is not None
        assert all(value.isfinite().all() for value in run.ema.state.values())
        assert all(parameter.grad is None for parameter in run.model.parameters())
        bias.data.copy_(healthy)


def test_train_step__of_the_rpn_is_not_advised_a_resume_that_sniper_negatives_does_not_have(
    chip_folder: Path, tmp_path: Path
) -> None:
    dataset = ChipDataset(chip_folder, pool=False)
    run = make_run(dataset, tmp_path, tiny_settings(*OPTIONS), CPU, last=None, rpn_only=True)
    run.kept_step = 1
    run.model.rpn.conv.bias.data.fill_(torch.nan)
    with pytest.raises(DataError, match="run the same command with it$"):
        train_step(run, next(iter(run.loader.epoch(run.state))))


def test_kept_steps__the_last_ones_and_some_from_well_before() -> None:
    there: list[int] = []
    for step in range(1, 101):
        there = sorted(kept_steps([*there, step], 3))
        assert there[-3:] == list(range(max(1, step - 2), step + 1))
        assert len(there) <= 5
        if step >= 8:
            assert step / 5 <= there[0] <= step / 2
    assert kept_steps([1, 2, 3], 1) == {3}


def test_train__goes_on_without_pictures_and_log(
    chip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").write_text("in the way of the folder")
    take = trainer.training.loop.train_step

    def filling(run: Run, step: object) -> object:
        """The disk is full from the first step on, as far as the log is concerned."""
        if run.step == 0:
            (tmp_path / "log.jsonl").unlink()
            (tmp_path / "log.jsonl").symlink_to("/dev/full")
        return take(run, step)  # type: ignore[arg-type]

    monkeypatch.setattr("trainer.training.loop.train_step", filling)
    train(chip_folder, tmp_path, tiny_settings(*OPTIONS, "train.picture_every=1"))
    assert last(tmp_path).loader[1] == 1
    said = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    assert [text.split(" cannot")[0] for text in said] == ["WARNING: the log", "WARNING: pictures"]


def test_journal__a_line_that_a_full_disk_has_cut_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    journal = Journal(tmp_path, 2, tensorboard=False, warned=set())
    journal.record(3, {"loss": 1.0})
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 3]


@pytest.mark.parametrize(
    ("kept", "failing", "said"),
    [
        ("train.save_every=2", 2, "ends at step [34]; no checkpoint is kept"),  # noticed with a record of the log
        ("train.save_minutes=1e-6", 5, r"ends at step 5; .*step-00000004\.pt"),  # the last one of all
    ],
)
def test_train__ends_where_a_checkpoint_cannot_be_written_and_says_what_is_kept(
    chip_folder: Path, tmp_path: Path, kept: str, failing: int, said: str
) -> None:
    (tmp_path / f"step-{failing:08d}.pt").mkdir()
    with pytest.raises(DataError, match=rf"cannot be written(.|\n)*{said}"):
        train(chip_folder, tmp_path, tiny_settings(*OPTIONS, kept))


def test_keep__writes_the_run_as_it_was_while_steps_are_taken(run: Run, tmp_path: Path) -> None:
    """The thread is kept from writing until weights, momenta, average and statistics have changed."""
    steps = iter(run.loader.epoch(run.state))
    train_step(run, next(steps))
    run.step = 1
    write_checkpoint(tmp_path / "at-once.pt", run.checkpoint())
    before = run.model.rpn.conv.weight.detach().clone()
    may_write = Event()
    run.writer.submit(may_write.wait)
    run.keep()
    train_step(run, next(steps))
    assert not run.model.rpn.conv.weight.equal(before)
    assert not find_checkpoints(tmp_path)
    may_write.set()
    run.settle()
    assert find_checkpoints(tmp_path)[0].read_bytes() == (tmp_path / "at-once.pt").read_bytes()


def test_train__refuses_a_folder_where_another_process_is_at_work(chip_folder: Path, tmp_path: Path) -> None:
    with locked(tmp_path, "sniper train"), pytest.raises(UsageError, match="`sniper train` .* is writing here"):
        train(chip_folder, tmp_path, tiny_settings(*OPTIONS))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_train__has_nothing_to_resume_in_an_empty_or_mistyped_folder(chip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to resume"):
        train(chip_folder, tmp_path / "mistyped", tiny_settings(*OPTIONS), resume=True)
    assert not (tmp_path / "mistyped").exists()


def test_train__refuses_settings_that_contradict_the_chips(chip_folder: Path, tmp_path: Path) -> None:
    given = tiny_settings(*OPTIONS, "chips.size=512", "chips.scales=[2.0]", "chips.ranges=[[0, null]]")
    said = r"chips\.size: 96 there, 512 given\n  chips\.scales: \[0\.5, 0\.25"
    with pytest.raises(UsageError, match=said) as refused:
        train(chip_folder, tmp_path, given)
    assert "max_pixels" not in str(refused.value)
    assert not find_checkpoints(tmp_path)


def test_train__text_serves_for_paths(chip_folder: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    path = train(str(chip_folder), str(tmp_path / "run"), Settings(), resume=True)
    assert path == find_checkpoints(tmp_path / "run")[-1]


def test_journal__tensorboard_is_cut_back_when_a_run_is_resumed(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, until, loss in ((0, 6, 1.0), (4, 8, 2.0)):  # steps 5 and 6 come after the last checkpoint
        journal = Journal(tmp_path, first, tensorboard=True, warned=set())
        for step in range(first + 1, until + 1):
            journal.record(step, {"loss": loss})
        journal.put()
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(s, 1.0 if s <= 4 else 2.0) for s in range(1, 9)]
