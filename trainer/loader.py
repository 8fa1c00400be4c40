"""Batches of chips, decoded by threads of this process straight into the batch's memory.

A step takes the next chips of the epoch's global order, as many as the global batch holds, and gives every rank its
part as micro-batches. State is a value: (seed, epoch, position in the global order). What comes next follows from it
alone, not from the number of ranks, threads or prefetched batches.
"""

import os
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from schemas.codes import Status
from schemas.errors import DataError, UsageError
from schemas.loader import LoaderSettings
from trainer.batch import Batch, flip
from trainer.dataset import ChipDataset, Pixels
from trainer.order import I64, Purpose, epoch_order, mix, part, ragged_rows, repeat_factors

Flags = npt.NDArray[np.bool_]


class State(NamedTuple):
    """Where loading stands: `position` chips of the global order of `epoch` have been handed out."""

    seed: int
    epoch: int = 0
    position: int = 0


class Micro(NamedTuple):
    """A micro-batch as stored, on the CPU, and which of its chips are to be mirrored."""

    batch: Batch
    flips: Tensor  # bool [B]

    def to(self, device: torch.device) -> Batch:
        """The batch on the device, pixels and boxes mirrored there."""
        batch = self.batch.to(device, non_blocking=True)
        return flip(batch, self.flips.to(device, non_blocking=True))


class Step(NamedTuple):
    """What one rank does for one global batch."""

    micros: list[Micro]  # as many as gradients are accumulated over; in a last, short step some may be empty
    num_chips: int  # of the global batch, all ranks together
    after: State  # what to go on with behind this step; beyond the last one the next epoch's beginning


class BatchLoader:
    """Hands one rank its batches of a data set, epoch by epoch.

    A batch belongs to whoever holds it: its memory is used again only after its last tensor is gone, so it is never
    overwritten. The loader itself holds at most `prefetch` + 1 micro-batches.
    """

    def __init__(
        self,
        dataset: ChipDataset,
        settings: LoaderSettings,
        batch_size: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        accumulation: int = 1,
        pin: bool = False,
    ) -> None:
        """Prepare to load.

        Args:
            batch_size: chips of the global batch. Each of ranks x accumulation micro-batches gets an even part.
            accumulation: micro-batches per step and rank.
            pin: put batches into page-locked memory, from which a CUDA device copies while the program goes on.

        Raises:
            DataError: there is no chip to load.
        """
        assert batch_size > 0
        assert 0 <= rank < ranks
        assert accumulation > 0
        m = dataset.manifest
        if not m.num_positives:
            raise DataError(f"{dataset.data}: holds no positive chip; nothing to train on")
        self.dataset, self.settings, self.batch_size = dataset, settings, batch_size
        self.rank, self.ranks, self.accumulation = rank, ranks, accumulation
        self.threads = settings.threads or available_cores()
        self._buffers = _Buffers(-(-batch_size // (ranks * accumulation)), m.chip_size, pin)
        self._factors = None
        if settings.repeat_threshold is not None:
            offsets = m.box_offsets[: m.num_positives + 1]
            boxes = slice(offsets[-1])
            is_target = ~np.isin(m.status[boxes], [Status.CROWD, Status.IGNORE])
            self._factors = repeat_factors(offsets, m.labels[boxes] * is_target, settings.repeat_threshold)

    def epoch(self, state: State) -> "Epoch":
        """What is left of an epoch, to iterate over once or more.

        Raises:
            UsageError: the state is of another data set or other settings.
        """
        m = self.dataset.manifest
        pool = m.image_ids[m.num_positives :]
        per_image = self.settings.negatives_per_image
        order = epoch_order(m.key_hashes, pool, state.seed, state.epoch, per_image, self._factors)
        if not 0 <= state.position < len(order):
            raise UsageError(
                f"{self.dataset.data}: position {state.position} of an epoch of {len(order)} chips: this state was "
                "made with other data or settings; resume with those, or start anew"
            )
        return Epoch(self, state, order)

    def begin(self, rows: I64, flips: Flags, pool: Executor) -> "_Making":
        """Queue the work for one micro-batch of the given chips."""
        pixels = self._buffers.take(len(rows))
        slots = pixels.numpy()
        micro = pool.submit(self._describe, rows, flips, pixels)
        step = self.threads
        decoded = [pool.submit(self._decode, rows[k::step], slots[k::step]) for k in range(min(step, len(rows)))]
        return _Making(micro, decoded)

    def _decode(self, rows: I64, slots: Pixels) -> None:
        for row, slot in zip(rows.tolist(), slots, strict=True):
            self.dataset.decode(row, slot)

    def _describe(self, rows: I64, flips: Flags, pixels: Tensor) -> Micro:
        """Everything of a batch but the contents of `pixels`, which may still be in the making."""
        m = self.dataset.manifest
        starts = m.box_offsets[rows]
        counts = m.box_offsets[rows + 1] - starts
        boxes = ragged_rows(starts, counts)
        pin = self._buffers.pinned
        batch = Batch(
            keys=m.keys.take(pa.array(rows)).to_pylist(),
            images=pixels.permute(0, 3, 1, 2),
            sizes=pin(m.contents[rows].astype(np.int64)),
            scales=pin(m.scales[rows]),
            ranges=pin(m.ranges[rows]),
            boxes=pin(m.corners[boxes]),
            labels=pin(m.labels[boxes].astype(np.int64)),
            status=pin(m.status[boxes]),
            visible=pin(m.visible[boxes]),
            offsets=pin(np.concatenate([[0], np.cumsum(counts)])),
        )
        return Micro(batch, pin(flips))


class Epoch:
    """The steps of an epoch from a state on; their number is exact and the same on all ranks."""

    def __init__(self, loader: BatchLoader, state: State, order: I64) -> None:
        self.loader, self.state = loader, state
        self.order = order  # int64 [T]: rows of the data set, all ranks together
        hashes = mix(loader.dataset.manifest.key_hashes[order], state.seed, state.epoch, Purpose.FLIP)
        self._flips = hashes < np.uint64(loader.settings.flip * 2**63)  # bool [T]: every other chip, or none
        self._starts = range(state.position, len(order), loader.batch_size)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Step]:
        """Decode ahead and yield. The threads end with the iterator, however it ends.

        Raises:
            DataError: a chip of the step at hand cannot be read; names shard and chip.
        """
        loader, length = self.loader, len(self.order)
        parts = iter(self._parts())
        ahead: deque[_Making] = deque()
        pool = ThreadPoolExecutor(loader.threads)
        try:
            for start in self._starts:
                micros = []
                for _ in range(loader.accumulation):
                    for places in islice(parts, loader.settings.prefetch + 1 - len(ahead)):
                        ahead.append(loader.begin(self.order[places], self._flips[places].copy(), pool))
                    micros.append(ahead.popleft().wait())
                stop = min(start + loader.batch_size, length)
                seed, epoch, _ = self.state
                yield Step(micros, stop - start, State(seed, epoch, stop) if stop < length else State(seed, epoch + 1))
        finally:
            pool.shutdown(cancel_futures=True)

    def _parts(self) -> Iterator[slice]:
        """The positions of this rank's micro-batches, one after the other."""
        loader = self.loader
        for start in self._starts:
            for micro in range(loader.accumulation):
                index = micro * loader.ranks + loader.rank
                num_parts = loader.accumulation * loader.ranks
                yield part(len(self.order), start, loader.batch_size, index, num_parts)


def available_cores() -> int:
    """The cores this process may use, shared evenly with the other ranks on its machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class _Making(NamedTuple):
    """A micro-batch, and its pixels, in the making."""

    micro: Future[Micro]
    decoded: list[Future[None]]

    def wait(self) -> Micro:
        for future in self.decoded:
            future.result()
        return self.micro.result()


class _Buffers:
    """Memory for the pixels of micro-batches, used again as soon as nobody holds the batch."""

    def __init__(self, capacity: int, side: int, pin: bool) -> None:
        self._shape = (capacity, side, side, 3)
        self._pin = pin
        self._free: list[Pixels] = []

    def take(self, num: int) -> Tensor:
        """uint8 [num, side, side, 3], contents undefined."""
        if self._pin:  # torch's own pool, which also waits for copies in flight
            return torch.empty(self._shape, dtype=torch.uint8, pin_memory=True)[:num]
        buffer = self._free.pop() if self._free else np.empty(self._shape, np.uint8)
        view = buffer[:num]  # the tensor's memory is this object's, so it lives as long as any view of the tensor
        weakref.finalize(view, self._free.append, buffer).atexit = False
        return torch.from_numpy(view)

    def pinned(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self._pin else tensor
