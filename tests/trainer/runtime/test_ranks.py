"""Two ranks, of which one fails or is stopped: the other one ends, too, whatever it was doing."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.paths import ROOT
from tests.trainer.runtime import rank_phases

ENDS = {  # exit statuses: 3 an error of ours, 4 any other, 1 ended by the watch, 143 stopped
    "preparing": [{3}, {3}],
    "preparing_with_a_bug": [{4}, {4}],
    "stepping": [{1, 4}, {3}],  # gloo notices a lost peer by itself
    "scoring": [{4}, {1, 4}],
    "busy": [{1}, {3}],
    "writing": [{rank_phases.WRITTEN}, {3}],
    "leaving": [{1, 4}, {3}],
    "stopping": [{143}, {143}],
    "uneven": [{0}, {0}],
    "ending": [{0}, {0}],
}


def ends(**environment: str) -> dict[str, list[int | str]]:
    done = subprocess.run(
        [sys.executable, rank_phases.__file__],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, list[int | str]] = json.loads(done.stdout)
    print(done.stderr)
    return found


def check(found: dict[str, list[int | str]]) -> None:
    assert found.keys() == ENDS.keys()
    wrong = {
        phase: statuses
        for phase, statuses in found.items()
        if not all(status in allowed for status, allowed in zip(statuses, ENDS[phase], strict=True))
    }
    assert wrong == {}


def test_joined__all_ranks_end_when_one_raises() -> None:
    check(ends(CUDA_VISIBLE_DEVICES=""))


@pytest.mark.gpu
def test_joined__all_ranks_end_when_one_raises_with_nccl() -> None:
    """NCCL does not notice a lost peer, so every end of a waiting rank is the watch's doing."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs: NCCL takes no two ranks on one")
    check(ends())


def test_rank_phases__are_all_judged() -> None:
    assert [phase.__name__ for phase in rank_phases.PHASES] == list(ENDS)
