import pytest

from schemas.errors import UsageError
from trainer.runtime.launch import NEEDED, check_launch
from trainer.runtime.ranks import joined


def test_check_launch__alone_by_torchrun_and_in_one_slurm_task() -> None:
    torchrun = {"WORLD_SIZE": "8", **dict.fromkeys(NEEDED, "0")}
    for environment in ({}, torchrun, {"SLURM_NTASKS": "1"}, {**torchrun, "SLURM_NTASKS": "2"}):
        check_launch(environment)


def test_check_launch__names_what_torchrun_would_have_set() -> None:
    with pytest.raises(UsageError, match="but LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set: start .* by torchrun"):
        check_launch({"WORLD_SIZE": "2", "RANK": "0"})


def test_check_launch__several_slurm_tasks_would_train_alone() -> None:
    with pytest.raises(UsageError, match=r"2 tasks without torchrun(.|\n)*srun --ntasks-per-node=1 torchrun"):
        check_launch({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"})


def test_joined__looks_at_how_it_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="MASTER_ADDR"), joined():
        pass
