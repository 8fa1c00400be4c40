"""One process per device: who this one is, and how all of them agree. Without torchrun there is one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from schemas.errors import SniperError, UsageError
from trainer.runtime.launch import check_launch

Made = TypeVar("Made")

PATIENCE = timedelta(hours=6)  # the others wait while the first scores a validation set, NCCL by default 10 minutes


@dataclass(frozen=True)
class Rank:
    """One process of a run, which has one device.

    Attributes:
        index: number of this process among all, from 0.
        count: processes on all machines together.
        device: what this process computes on.
    """

    index: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process alone writes files and tells the user."""
        return self.index == 0


@contextmanager
def joined() -> Iterator[Rank]:
    """Join the processes that torchrun started, by NCCL on GPUs and gloo on CPUs; without torchrun there is one.

    Inside another `joined` block the processes are joined already, and nothing happens.

    Raises:
        UsageError: more processes than GPUs on this machine, or several processes that do not know of each other.
    """
    check_launch(os.environ)
    count = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"process {local} of this machine has no GPU, {torch.cuda.device_count()} are there: start one "
                "process per GPU (make GPUS=N, torchrun --nproc-per-node N)"
            )
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield Rank(int(os.environ.get("RANK", 0)), count, device)
        return
    is_gpu = device.type == "cuda"
    dist.init_process_group("nccl" if is_gpu else "gloo", timeout=PATIENCE, device_id=device if is_gpu else None)
    try:
        yield Rank(dist.get_rank(), count, device)
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Add a tensor up over all ranks, in place, and return it; with one rank it stays as it is."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def mean_over_ranks(values: list[Tensor]) -> None:
    """Replace each tensor by its mean over all ranks, in place."""
    if dist.is_initialized():
        for tensor in values:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


def from_first(make: Callable[[], Made]) -> Made:
    """Call a function in the first process and return its value in all; its SniperError is raised in all, too."""
    if not dist.is_initialized():
        return make()
    made: list[Made | SniperError | None] = [None]
    if dist.get_rank() == 0:
        try:
            made[0] = make()
        except SniperError as error:
            made[0] = error
    dist.broadcast_object_list(made)
    if isinstance(made[0], SniperError):
        raise made[0]
    return made[0]  # type: ignore[return-value]


def wait_for_all() -> None:
    """Wait until every process has come to this call."""
    if dist.is_initialized():
        dist.barrier()
