"""Checkpoint files: the hash, damage, and what a run goes on from."""

import random
import resource
from pathlib import Path

import pytest
import torch

from pipeline.storage import remove
from schemas.errors import DataError
from trainer.runtime.checkpoint import (
    FORMAT,
    SEAL,
    Checkpoint,
    DamagedError,
    checkpoint_path,
    find_checkpoints,
    read_checkpoint,
    read_last,
    save_checkpoint,
    write_checkpoint,
)


def make_checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        model={"weight": torch.randn(100, 100, generator=torch.Generator().manual_seed(step))},
        ema=None,
        optimizer={},
        scaler={},
        step=step,
        loader=(0, 0, 8 * step),
        settings={"train": {"epochs": 1}},
        norm="frozen",
        precision="fp32",
        rpn_only=False,
        categories=[(1, "disc")],
        chips={"size": 96},
        data={},
        best_ap=-1.0,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (1, 2, 3):
        write_checkpoint(checkpoint_path(tmp_path, step), make_checkpoint(step))
    return tmp_path


def flip_bit(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_read_checkpoint__every_flipped_bit_is_noticed(run: Path) -> None:
    path = checkpoint_path(run, 3)
    whole, draw = path.read_bytes(), random.Random(0)
    bits = 8 * (len(whole) - len(SEAL) - 64)
    for bit in [0, bits - 1, *(draw.randrange(bits) for _ in range(40))]:
        flip_bit(path, bit)
        with pytest.raises(DamagedError, match="step-00000003"):
            read_checkpoint(path)
        path.write_bytes(whole)
    assert read_checkpoint(path).model["weight"].equal(make_checkpoint(3).model["weight"])


def test_write_checkpoint__a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    """Full amid the numbers, where torch itself says no more than that its position is another one."""
    checkpoint = make_checkpoint(1)._replace(model={name: torch.randn(2**20) for name in "abc"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"step-1\.pt: cannot be written: File too large"):
            write_checkpoint(tmp_path / "step-1.pt", checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("keep", "stay"), [(1, [2]), (2, [1, 2])])
def test_save_checkpoint__passes_over_damaged_ones_of_later_steps(keep: int, stay: list[int], run: Path) -> None:
    """A run that was resumed from before them keeps what it writes, and as many sound ones as it should."""
    remove(checkpoint_path(run, 2))
    flip_bit(checkpoint_path(run, 3), 8_000)
    assert save_checkpoint(run, make_checkpoint(2), keep) == checkpoint_path(run, 2)
    assert find_checkpoints(run) == [checkpoint_path(run, step) for step in stay]


def test_read_checkpoint__is_a_file_that_torch_reads(run: Path) -> None:
    content = torch.load(checkpoint_path(run, 2), weights_only=True)
    assert content["format"] == FORMAT
    assert content["step"] == 2


def test_read_checkpoint__without_a_hash_loads_and_says_so(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the versions before wrote it, without what was added to checkpoints since."""
    path = run / "old.pt"
    content = make_checkpoint(7)._asdict()
    torch.save({"format": FORMAT, **{k: v for k, v in content.items() if k not in Checkpoint._field_defaults}}, path)
    caplog.set_level("INFO", "sniper")
    assert read_checkpoint(path).step == 7
    assert "without a hash" in caplog.text


def test_read_last__takes_the_one_before_a_damaged_one(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip_bit(checkpoint_path(run, 3), 8_000)
    last = read_last(run)
    assert last is not None
    assert last.step == 2
    assert "step-00000003.pt: is damaged" in caplog.text
    path = checkpoint_path(run, 2)
    path.write_bytes(path.read_bytes()[:-200])
    last = read_last(run)
    assert last is not None
    assert last.step == 1
    flip_bit(checkpoint_path(run, 1), 8_000)
    with pytest.raises(DamagedError, match="every checkpoint is damaged"):
        read_last(run)
    assert read_last(run / "elsewhere") is None


def test_read_last__a_broken_best_one_is_no_hindrance(run: Path) -> None:
    (run / "best.pt").write_bytes(b"no checkpoint")
    last = read_last(run)
    assert last is not None
    assert last.step == 3
    with pytest.raises(DataError, match=r"best\.pt"):  # what scores and detects wants that one, so it says so
        read_checkpoint(run)
