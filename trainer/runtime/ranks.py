"""One process per device: which one this is, how all agree, and how all end when one fails.

Without torchrun there is one process, and nothing here costs anything.
"""

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _abort_process_group

from pipeline.engines.progress import log
from schemas.errors import SniperError, UsageError
from trainer.runtime.launch import check_launch
from trainer.runtime.stopping import Stop

Made = TypeVar("Made")

COLLECTIVE = timedelta(minutes=10)
"""A rank that lets the others wait longer than this in a step is lost."""
PATIENCE = timedelta(hours=12)
"""How long the others may wait while one rank does work of its own, such as scoring a validation set."""
POLL = 0.5  # seconds between two looks at what became of the other ranks
GRACE = 5.0  # seconds that a rank has to end by itself after another one has failed
FINISH = 60.0  # seconds that what this rank is writing then has, to be written whole
FAILED, STOPPED = "sniper/failed", "sniper/stopped"


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


@dataclass
class _Groups:
    """Groups of all ranks that exchange Python objects and flags on the host, whatever the devices."""

    prompt: Any  # for what all ranks do at about the same time
    patient: Any  # for waiting until one of them has done its work


_groups: _Groups | None = None


@contextmanager
def joined() -> Iterator[Rank]:
    """Join the processes that torchrun started, by NCCL on GPUs and gloo on CPUs; without torchrun there is one.

    Inside another `joined` block the processes are joined already, and nothing happens. An exception that leaves the
    block on one rank ends all of them within seconds, wherever they are.

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
        # float32 keeps all of its bits in convolutions as in products, so that the RPN's two forms agree
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield Rank(int(os.environ.get("RANK", 0)), count, device)
        return
    watch = _join(device)
    try:
        yield Rank(dist.get_rank(), count, device)
        wait_for_all()
    except BaseException as error:
        _leave_after(error, watch)
        raise
    watch.close()
    dist.destroy_process_group()


def _join(device: torch.device) -> "_Watch":
    global _groups
    is_gpu = device.type == "cuda"
    dist.init_process_group("nccl" if is_gpu else "gloo", timeout=COLLECTIVE, device_id=device if is_gpu else None)
    prompt = dist.new_group(backend="gloo", timeout=COLLECTIVE)
    _groups = _Groups(prompt, dist.new_group(backend="gloo", timeout=PATIENCE))
    return _Watch()


def _leave_after(error: BaseException, watch: "_Watch") -> None:
    """Tell the other ranks that this one ends, and leave without waiting for them.

    `destroy_process_group` would wait, with NCCL, for the work that the others will never do.
    """
    watch.close()
    rank = dist.get_rank()
    text = f"rank {rank} of {dist.get_world_size()} ended: {type(error).__name__}: {error}"
    log.error(text)
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(Exception):  # the process that holds the store may be gone already
        watch.store.set(FAILED, text)
    if dist.get_backend() == "nccl":
        with suppress(Exception):  # whatever the abort meets, the process is about to end
            _abort_process_group()
    else:
        dist.destroy_process_group()


unbroken = threading.Lock()
"""Is held while something is written that this process should not leave half done when another one has failed."""


class _Watch(threading.Thread):
    """Ends this process soon after another one has failed, and passes on a signal that came to any of them.

    The main thread may be waiting in a collective that will never end, where no Python runs.
    """

    def __init__(self) -> None:
        super().__init__(name="ranks", daemon=True)
        self.store = dist.distributed_c10d._get_default_store().clone()
        self._closed = threading.Event()
        self.start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self.join()

    def run(self) -> None:
        """Look at the store until closed."""
        while not self._closed.wait(POLL):
            try:
                self._pass_on_signals()
                found = self.store.get(FAILED).decode() if self.store.check([FAILED]) else ""
            except Exception:  # the store's process is gone
                found = "the process that holds the ranks together is gone"
            if found:
                if not self._closed.wait(GRACE) and unbroken.acquire(timeout=FINISH):
                    unbroken.release()
                if not self._closed.wait(POLL):
                    print(f"sniper: ended, since {found}", file=sys.stderr, flush=True)
                    os._exit(1)
                return

    def _pass_on_signals(self) -> None:
        if _stop is None:
            return
        if _stop.signal:
            self.store.set(STOPPED, str(_stop.signal))
        elif self.store.check([STOPPED]):
            os.kill(os.getpid(), int(self.store.get(STOPPED)))


_stop: Stop | None = None


@contextmanager
def stoppable(advice: str) -> Iterator[Stop]:
    """Take the signals that ask for an end. What comes to one rank comes to all.

    Inside another block, that one goes on to take them.

    Args:
        advice: tells the user how to go on after an end.
    """
    global _stop
    if _stop is not None:
        yield _stop
        return
    with Stop(advice) as stop:
        _stop = stop
        try:
            yield stop
        finally:
            _stop = None


def any_rank(flag: bool) -> bool:
    """Tell whether a flag is up on any rank. All ranks call this together and get the same answer."""
    if _groups is None or not dist.is_initialized():
        return flag
    value = torch.tensor(int(flag))
    dist.all_reduce(value, dist.ReduceOp.MAX, group=_groups.prompt)
    return bool(value)


def asked_to_stop() -> bool:
    """Tell whether this rank knows of a signal that asks for an end."""
    return _stop is not None and _stop.signal > 0


def stop_together(what: str) -> None:
    """End on all ranks where one of them is asked to. All ranks call this, and wait for the last as long as it takes.

    Args:
        what: is kept, for the user.

    Raises:
        StoppedError: on all ranks.
    """
    wait_for_all()  # what a rank did before this, such as its share of the images, may take it far longer than others
    if any_rank(asked_to_stop()) and _stop is not None:
        _stop.signal = _stop.signal or signal.SIGTERM
        raise _stop.error(what)


def breakable() -> AbstractContextManager[None]:
    """Return a block that a signal breaks off where it stands. Only for work that can be repeated."""
    return nullcontext() if _stop is None else _stop.at_once()


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
    """Call a function in the first process and return its value in all; the others wait as long as it takes.

    Raises:
        SniperError: the one that the first process raised, in all.
        RuntimeError: in the others, in place of any other exception that the first process raised.
    """
    if _groups is None or not dist.is_initialized():
        return make()
    if dist.get_rank() > 0:
        told: list[Any] = [None]
        dist.broadcast_object_list(told, group=_groups.patient, device=torch.device("cpu"))
        made, error = told[0]
        if error is not None:
            raise error
        return cast(Made, made)
    error = None
    try:
        made = make()
    except BaseException as raised:
        error, made = raised, None
    dist.broadcast_object_list([(made, _relayed(error))], group=_groups.patient, device=torch.device("cpu"))
    if error is not None:
        raise error
    return cast(Made, made)


def _relayed(error: BaseException | None) -> Exception | None:
    """Return an exception that another process can read, in place of one that may hold anything."""
    if error is None:
        return None
    with suppress(Exception):
        if isinstance(error, SniperError) and str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    return RuntimeError(f"the first process failed with {type(error).__name__}: {error}")


def gather_to_first(value: Made, rank: Rank) -> list[Made]:
    """Return the values of all ranks, in their order, on the first one, and nothing on the others."""
    if _groups is None or not dist.is_initialized():
        return [value]
    gathered: list[Any] | None = [None] * rank.count if rank.is_first else None
    dist.gather_object(value, gathered, group=_groups.patient)
    return gathered or []


def wait_for_all() -> None:
    """Wait until all processes have come here, as long as it takes."""
    if _groups is not None and dist.is_initialized():
        dist.barrier(group=_groups.patient)
