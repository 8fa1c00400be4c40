"""Batches of chips, decoded by threads of this process straight into the batch's memory.

A step takes the next chips of the epoch's global order, as many as the global batch holds, and deals them out to the
ranks as micro-batches. The state is a value, (seed, epoch, position in the global order). What comes next follows from
it alone, not from the number of ranks, threads or prefetched batches.
"""

import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.dataset.build_file import read_build
from pipeline.engines.tasks import available_cores
from schemas.arrays import IntArray
from schemas.codes import IGNORED
from schemas.errors import DataError, UsageError
from schemas.settings import ChipSettings, LoaderSettings, loader_section
from trainer.loading.augment import Draws, Limits, augment, draw_changes
from trainer.loading.batch import Batch
from trainer.loading.cache import gigabytes
from trainer.loading.dataset import ChipDataset, Pixels
from trainer.loading.fetch import Fetcher
from trainer.loading.order import (
    ShardNeeds,
    State,
    copy_hashes,
    copy_numbers,
    epoch_order,
    ragged_rows,
    rank_slice,
    repeat_factors,
    shard_needs,
)


class Micro(NamedTuple):
    """A micro-batch as stored, on the CPU, and how its chips are to be changed.

    Attributes:
        batch: as stored.
        draws: what was drawn for its chips.
        limits: what a target must show, if chips are resized.
    """

    batch: Batch
    draws: Draws
    limits: Limits = Limits()

    def to(self, device: torch.device) -> Batch:
        """Return the batch on the device; pixels and boxes are changed there."""
        return augment(self.batch.to(device, non_blocking=True), self.draws.to(device), self.limits)


class Step(NamedTuple):
    """What one rank does for one global batch.

    Attributes:
        micros: one per accumulation; in a last, short step some may be empty.
        num_chips: of the global batch, all ranks together; in a last, short step fewer than the batch size.
        after: where loading stands behind this step; behind an epoch's last one that is the next epoch's beginning.
    """

    micros: list[Micro]
    num_chips: int
    after: State


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
            dataset: the chips.
            settings: of the loader.
            batch_size: chips of the global batch, dealt out evenly to ranks x accumulation micro-batches.
            rank: number of this process, from 0.
            ranks: processes that share the batches.
            accumulation: micro-batches per step and rank.
            pin: put batches into page-locked memory, from which a CUDA device copies while the program goes on.

        Raises:
            DataError: there is no chip to load.
            UsageError: a number is out of its range, `settings` is something else, or the cache of a remote data set
                cannot hold what is needed at a time.
        """
        settings = loader_section(settings)
        if batch_size < 1 or accumulation < 1 or not 0 <= rank < ranks:
            raise UsageError(
                f"batch_size {batch_size}, accumulation {accumulation}, rank {rank} of {ranks}: expected a batch_size "
                "and an accumulation of at least 1, and a rank from 0 to below the number of ranks"
            )
        m = dataset.manifest
        if not m.num_positives:
            raise DataError(f"{dataset.data}: holds no positive chip; nothing to train on")
        if dataset.remote:
            _check_cache(dataset, settings.window)
        self.dataset, self.settings, self.batch_size = dataset, settings, batch_size
        self.rank, self.ranks, self.accumulation = rank, ranks, accumulation
        self.threads = settings.threads or available_cores()
        self._buffers = _Buffers(-(-batch_size // (ranks * accumulation)), m.chip_size, pin)
        self._limits = _limits(dataset) if settings.scale_jitter else Limits()
        self._factors = None
        self.repeats = settings.repeat_threshold is not None
        if settings.repeat_threshold is not None:
            offsets = m.box_offsets[: m.num_positives + 1]
            boxes = slice(offsets[-1])
            is_target = ~np.isin(m.status[boxes], IGNORED)
            self._factors = repeat_factors(offsets, m.labels[boxes] * is_target, settings.repeat_threshold)

    def epoch(self, state: State) -> "Epoch":
        """Return what is left of an epoch from a state on, to iterate over once or more.

        Raises:
            UsageError: the state is of another data set or other settings.
        """
        order = self._order(state)
        if not 0 <= state.position < len(order):
            raise UsageError(
                f"{self.dataset.data}: position {state.position} of an epoch of {len(order)} chips: this state was "
                "made with other data or settings; resume with those, or start anew"
            )
        return Epoch(self, state, order)

    def _order(self, state: State) -> IntArray:
        m = self.dataset.manifest
        pool = m.image_ids[m.num_positives :]
        per_image = self.settings.negatives_per_image
        shards, window = m.shard_indices, self.settings.window
        return epoch_order(
            m.key_hashes, pool, state.seed, state.epoch, per_image, self._factors, shards=shards, window=window
        )

    def needs(self, state: State, order: IntArray) -> ShardNeeds:
        """Find the shards that this rank reads in the rest of an epoch.

        Args:
            state: where the epoch stands.
            order: int64 [T], the epoch's chips as rows of the data set.
        """
        shards = self.dataset.manifest.shard_indices[order[state.position :]]
        ahead = self.settings.prefetch
        return shard_needs(shards, self.batch_size, self.rank, self.ranks, self.accumulation, ahead)

    def fetcher(self, state: State, order: IntArray) -> Fetcher | None:
        """Begin to fetch what this rank reads in the rest of an epoch and at the beginning of the next one.

        Returns:
            None where the data set is local, and there is nothing to fetch.
        """
        dataset, window = self.dataset, self.settings.window
        if not dataset.remote:
            return None
        shards, past, at_once = self.needs(state, order)
        if window is None:  # the cache holds all shards
            return Fetcher(dataset.remote, shards, past, len(shards), dataset.max_files)

        def beginning() -> list[int]:
            following = State(state.seed, state.epoch + 1)
            return self.needs(following, self._order(following)).shards[:window]

        return Fetcher(dataset.remote, shards, past, max(2 * window, at_once), dataset.max_files, beginning)

    def begin(self, rows: IntArray, copies: IntArray, draws: Draws, pool: Executor) -> "_Making":
        """Queue the work for one micro-batch.

        Args:
            rows: int64 [B], chips as rows of the data set.
            copies: int64 [B], their numbers among the copies of their rows in this epoch.
            draws: how they are to be changed.
            pool: the threads that do it.
        """
        pixels = self._buffers.take(len(rows))
        slots = pixels.numpy()
        micro = pool.submit(self._describe, rows, copies, draws, pixels)
        step = self.threads
        decoded = [pool.submit(self._decode, rows[k::step], slots[k::step]) for k in range(min(step, len(rows)))]
        return _Making(micro, decoded)

    def _decode(self, rows: IntArray, slots: Pixels) -> None:
        for row, slot in zip(rows.tolist(), slots, strict=True):
            self.dataset.decode(row, slot)

    def _describe(self, rows: IntArray, copies: IntArray, draws: Draws, pixels: Tensor) -> Micro:
        """Make a micro-batch; the contents of its `pixels` may still be in the making."""
        m = self.dataset.manifest
        starts = m.box_offsets[rows]
        counts = m.box_offsets[rows + 1] - starts
        boxes = ragged_rows(starts, counts)
        keys = m.keys.take(pa.array(rows)).to_pylist()
        pin = self._buffers.pinned
        batch = Batch(
            keys=[f"{k}~{n}" if n else k for k, n in zip(keys, copies.tolist(), strict=True)],
            images=pixels.permute(0, 3, 1, 2),
            sizes=pin(m.contents[rows].astype(np.int64)),
            scales=pin(m.scales[rows]),
            scale_indices=pin(m.scale_indices[rows].astype(np.int64)),
            ranges=pin(m.ranges[rows]),
            boxes=pin(m.corners[boxes]),
            labels=pin(m.labels[boxes].astype(np.int64)),
            status=pin(m.status[boxes]),
            visible=pin(m.visible[boxes]),
            offsets=pin(np.concatenate([[0], np.cumsum(counts)])),
        )
        return Micro(batch, draws.pinned() if self._buffers.pins else draws, self._limits)


class Epoch:
    """The steps of an epoch from a state on; their number is exact and the same on all ranks."""

    def __init__(self, loader: BatchLoader, state: State, order: IntArray) -> None:
        """Prepare to go on from a state; `order`, int64 [T], is the whole epoch's chips as rows of the data set."""
        self.loader, self.state = loader, state
        self.order = order  # int64 [T]: rows of the data set, all ranks together
        self._copies = copy_numbers(order) if loader.repeats else np.broadcast_to(np.int64(0), len(order))  # [T]
        hashes = copy_hashes(loader.dataset.manifest.key_hashes[order], self._copies)
        self._draws = draw_changes(hashes, loader.settings, state.seed, state.epoch)  # of T chips
        self._starts = range(state.position, len(order), loader.batch_size)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Step]:
        """Decode ahead and yield. The threads end with the iterator, however it ends.

        Raises:
            DataError: a chip of the step at hand cannot be read; names shard and chip.
        """
        loader, length = self.loader, len(self.order)
        slices = iter(self._rank_slices())
        ahead: deque[_Making] = deque()
        pool = ThreadPoolExecutor(loader.threads)
        fetcher = loader.fetcher(self.state, self.order)
        numbers = count()
        try:
            for start in self._starts:
                micros = []
                for _ in range(loader.accumulation):
                    for places in islice(slices, loader.settings.prefetch + 1 - len(ahead)):
                        draws = self._draws.take(places)
                        ahead.append(loader.begin(self.order[places], self._copies[places], draws, pool))
                    micros.append(ahead.popleft().wait())
                    if fetcher:
                        fetcher.passed(next(numbers))
                stop = min(start + loader.batch_size, length)
                seed, epoch, _ = self.state
                yield Step(micros, stop - start, State(seed, epoch, stop) if stop < length else State(seed, epoch + 1))
        finally:
            pool.shutdown(cancel_futures=True)
            if fetcher:
                fetcher.close()

    def _rank_slices(self) -> Iterator[slice]:
        """Yield the positions of this rank's micro-batches, one after the other."""
        loader = self.loader
        for start in self._starts:
            for micro in range(loader.accumulation):
                index = micro * loader.ranks + loader.rank
                num_slices = loader.accumulation * loader.ranks
                yield rank_slice(len(self.order), start, loader.batch_size, index, num_slices)


def _limits(dataset: ChipDataset) -> Limits:
    """Return what the build that chips are from asks of a target."""
    chips = ChipSettings.model_validate(read_build(dataset.data).settings["chips"])
    return Limits(float(chips.min_visible), float(chips.min_side))


def _check_cache(dataset: ChipDataset, window: int | None) -> None:
    """Refuse a cache that would fetch the same shards again and again.

    Raises:
        UsageError: it cannot hold two windows, or without a window all shards.
    """
    sizes, limit = sorted(dataset.manifest.shard_bytes, reverse=True), dataset.cache.max_bytes
    needed = sum(sizes if window is None else sizes[: 2 * window])
    if needed <= limit:
        return
    largest = int(np.searchsorted(np.cumsum(sizes), limit, side="right")) // 2
    instead = f"loader.window={largest} (or less), or a " if largest else "a "
    held = "without loader.window all shards are" if window is None else f"loader.window={window} has two windows"
    raise UsageError(
        f"{dataset.data}: {held} in use at a time, {gigabytes(needed)}, but loader.cache_gb allows "
        f"{gigabytes(limit)}; give {instead}larger loader.cache_gb"
    )


class _Making(NamedTuple):
    """A micro-batch, and its pixels, in the making."""

    micro: Future[Micro]
    decoded: list[Future[None]]

    def wait(self) -> Micro:
        """Return the micro-batch once all its pixels are decoded."""
        for future in self.decoded:
            future.result()
        return self.micro.result()


class _Buffers:
    """Memory for the pixels of micro-batches, used again as soon as nobody holds the batch."""

    def __init__(self, capacity: int, side: int, pin: bool) -> None:
        self._shape = (capacity, side, side, 3)
        self.pins = pin
        self._free: list[Pixels] = []

    def take(self, num: int) -> Tensor:
        """Return memory for `num` chips, uint8 [num, side, side, 3], with undefined contents."""
        if self.pins:  # torch's own pool, which also waits for copies in flight
            return torch.empty(self._shape, dtype=torch.uint8, pin_memory=True)[:num]
        buffer = self._free.pop() if self._free else np.empty(self._shape, np.uint8)
        view = buffer[:num]  # the tensor's memory is this object's, so it lives as long as any view of the tensor
        weakref.finalize(view, self._free.append, buffer).atexit = False
        return torch.from_numpy(view)

    def pinned(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.pins else tensor
