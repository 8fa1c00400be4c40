"""One process per device: who this one is, and how all of them agree. Without torchrun there is one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Rank:
    index: int  # among all processes
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.index == 0


@contextmanager
def joined() -> Iterator[Rank]:
    """Join the processes that torchrun started: NCCL on GPUs, gloo on CPUs. Inside another `joined`, that one."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield Rank(int(os.environ.get("RANK", 0)), count, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Rank(dist.get_rank(), count, device)
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: Tensor) -> Tensor:
    """In place where there are several ranks."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()
