"""Which shards of the cache a process has open, and the threads that fetch what an epoch needs next."""

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

from upath import UPath

from trainer.loading.cache import Cache, Shard, make_room, open_shard

FETCHERS = 4
"""Downloads of a process at a time."""
RECENT = 4
"""Shards that stay open after a single read, so that they are not evicted between two reads."""


class OpenShards:
    """The descriptors of a data set's cached shards, each open as long as a thread of this process counts on it.

    Shards are numbered as in the manifest. A forked process begins anew, with none open.
    """

    def __init__(self, cache: Cache, data: UPath, names: list[str], sizes: list[int], sha256s: list[str]) -> None:
        """Prepare to open shards.

        Args:
            cache: where they are kept.
            data: URL of the data set.
            names: of each shard, relative to `data`.
            sizes: of each shard, bytes.
            sha256s: of each shard, hex.
        """
        self._cache, self._data, self._names, self._sizes, self._sha256s = cache, data, names, sizes, sha256s
        self._own = frozenset(sha256s)
        self._begin()
        _everywhere.add(self)
        with suppress(OSError):  # no cache yet, or one that can only be read
            make_room(cache.folder / "shards", cache.max_bytes, self._own)  # the cap may be lower than last time

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, list[int]] = {}  # shard -> descriptor and how many count on it
        self._recent: OrderedDict[int, None] = OrderedDict()
        self.coming: dict[int, Future[bool]] = {}  # what a Fetcher is at

    def __del__(self) -> None:
        for descriptor, _ in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def after_fork(self) -> None:
        """Begin anew in a forked child: without the parent's threads, locks and connections, and with no shard open.

        A descriptor that the child inherits would keep the parent's claim on a shard after the parent has let go.
        """
        self.__del__()
        self._begin()
        self._data = UPath(self._data.path, protocol=self._data.protocol, **self._data.storage_options)

    def hold(self, shard: int) -> int:
        """Return a descriptor that is good until `release`, after downloading the shard where it is missing.

        Raises:
            DataError: the shard cannot be had whole, or the cache cannot be written.
        """
        with self._lock:
            if entry := self._open.get(shard):
                entry[1] += 1
                return entry[0]
        descriptor = open_shard(self._cache, self._shard(shard), self._own)
        with self._lock:
            entry = self._open.setdefault(shard, [descriptor, 0])
            entry[1] += 1
            if entry[0] != descriptor:  # another thread was faster
                os.close(descriptor)
            return entry[0]

    def release(self, shard: int) -> None:
        """Give back what `hold` gave; the last one to do so closes the descriptor."""
        with self._lock:
            entry = self._open[shard]
            entry[1] -= 1
            if not entry[1]:
                del self._open[shard]
                os.close(entry[0])

    @contextmanager
    def descriptor(self, shard: int) -> Iterator[int]:
        """Yield a descriptor to read from, once the shard is there.

        A shard that nobody else holds stays open for a while, so that it is not evicted between two reads.

        Raises:
            DataError: the shard cannot be had whole, or the cache cannot be written.
        """
        if coming := self.coming.get(shard):
            with suppress(CancelledError):
                coming.exception()  # waits; after an error in the background this thread tries again, and meets it
        is_held = shard in self._open
        descriptor = self.hold(shard)
        try:
            yield descriptor
        finally:
            if is_held:
                self.release(shard)
            else:
                self._keep(shard)

    def _keep(self, shard: int) -> None:
        """Keep a shard open that the caller holds, in place of the one of RECENT that was read longest ago."""
        with self._lock:
            dropped = shard if shard in self._recent else None
            self._recent[shard] = None
            self._recent.move_to_end(shard)
            if len(self._recent) > RECENT:
                dropped, _ = self._recent.popitem(last=False)
        if dropped is not None:
            self.release(dropped)

    def path(self, shard: int) -> Path:
        """Return where a shard lies in the cache if it is there."""
        return self._cache.path(self._sha256s[shard])

    def _shard(self, shard: int) -> Shard:
        return Shard(self._data / self._names[shard], self._sizes[shard], self._sha256s[shard])


_everywhere: WeakSet[OpenShards] = WeakSet()


def _after_fork() -> None:
    for shards in _everywhere:
        shards.after_fork()


os.register_at_fork(after_in_child=_after_fork)


class Fetcher:
    """Fetches shards in the background in the order of need and holds each until it is past."""

    def __init__(
        self,
        shards: OpenShards,
        order: Sequence[int],
        past: Mapping[int, Sequence[int]],
        limit: int,
        max_files: int,
        then: Callable[[], Sequence[int]] | None = None,
    ) -> None:
        """Begin to fetch.

        Args:
            shards: where they are opened.
            order: shards by their first use, each once.
            past: micro-batch -> the shards that no later micro-batch uses.
            limit: how many shards to fetch ahead before earlier ones are past.
            max_files: how many of them to hold open; those beyond are fetched, but may be evicted again.
            then: tells which shards to fetch for the next epoch, when all of `order` are on their way.
        """
        self._shards, self._past, self._limit, self._max_files = shards, past, limit, max_files
        self._waiting = deque(order)
        self._then = then
        self._following: Future[Sequence[int]] | None = None
        self._kept = frozenset[int]()  # for the next epoch
        self._fetched: dict[int, Future[bool]] = {}  # shard -> whether it is held
        self._pool = ThreadPoolExecutor(FETCHERS)
        self._go_on()

    def passed(self, micro: int) -> None:
        """Let go of what is not used after this micro-batch, and go on fetching. Micro-batches come in order."""
        for shard in self._past.get(micro, ()):
            if shard not in self._kept and (future := self._fetched.pop(shard, None)):
                self._let_go(shard, future)
        self._go_on()

    def close(self) -> None:
        """Wait for the downloads under way and let go of all shards."""
        self._pool.shutdown(cancel_futures=True)
        for shard, future in self._fetched.items():
            self._let_go(shard, future)
        self._fetched.clear()

    def _go_on(self) -> None:
        while self._waiting and len(self._fetched) < self._limit:
            shard = self._waiting.popleft()
            if shard not in self._fetched:
                keep = len(self._fetched) < self._max_files
                self._fetched[shard] = self._shards.coming[shard] = self._pool.submit(self._fetch, shard, keep)
        if not self._waiting and self._then:
            self._following, self._then = self._pool.submit(self._then), None
        if self._following and self._following.done():
            self._kept = frozenset(self._following.result())
            self._waiting.extend(self._following.result())
            self._following = None

    def _fetch(self, shard: int, keep: bool) -> bool:
        self._shards.hold(shard)
        if not keep:
            self._shards.release(shard)
        return keep

    def _let_go(self, shard: int, future: Future[bool]) -> None:
        def release(done: Future[bool]) -> None:
            if not done.cancelled() and not done.exception() and done.result():
                self._shards.release(shard)

        self._shards.coming.pop(shard, None)
        if not future.cancel():
            future.add_done_callback(release)
