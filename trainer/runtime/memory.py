"""What to say when memory runs out: what was in use, and which setting to lower."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from schemas.errors import SniperError

SIGNS = (
    *("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "a memory object"),
    *("ALLOC_FAILED", "ALLOCATION_FAILED"),  # cuBLAS and cuDNN
    "unable to find an engine",  # cuDNN: each of its kernels asked for more memory than is left
)
"""Words by which a RuntimeError of PyTorch or of its libraries says that memory ran out."""


class OutOfMemoryError(SniperError):
    """The network needs more memory than there is."""


@contextmanager
def explained_memory(device: torch.device, remedy: Callable[[], str]) -> Iterator[None]:
    """Turn the errors of a device whose memory ran out into one message that says what to lower.

    Args:
        device: what computes.
        remedy: tells which setting to lower and what it is now; called only where memory ran out.

    Raises:
        OutOfMemoryError: memory ran out. Any other error passes.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        told = str(error).strip().splitlines() or ["no memory is left"]
        if isinstance(error, RuntimeError) and not any(sign in line for line in told for sign in SIGNS):
            raise
        raise OutOfMemoryError(
            f"out of memory on {device.type}, {in_use(device)} in use: {remedy()}\n  ({told[0]})"
        ) from error


def in_use(device: torch.device) -> str:
    """Tell how much memory this process uses: on a GPU that of its tensors, on a CPU the most that it has used."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return (
            f"{torch.cuda.memory_allocated(device) / 2**30:.1f} GiB of {total / 2**30:.1f} ({free / 2**30:.1f} free)"
        )
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
