"""The cache of shards: shared, bounded, whole whatever happens to the processes that fill it."""

import errno
import hashlib
import multiprocessing
import os
import pwd
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

import trainer.loading.cache
from schemas.errors import DataError
from schemas.settings import LoaderSettings
from tests.trainer.remote import PROTOCOL, RemoteFiles, downloads, num_open, remote
from trainer.loading.cache import Cache, Shard, cache_of, open_shard, user_folder
from trainer.loading.fetch import FETCHERS, RECENT, Fetcher, OpenShards

SIZE, NUM = 10_000, 6
FORK = multiprocessing.get_context("fork")


class Store(NamedTuple):
    """Six shards in a bucket, of random bytes, and a cache that is still empty."""

    remote: Path
    cache: Cache
    log: Path
    contents: list[bytes]

    def shard(self, number: int, delay: float = 0.0) -> Shard:
        place = remote(self.remote, self.log, delay) / f"{number}.tar"
        return Shard(place, SIZE, hashlib.sha256(self.contents[number]).hexdigest())

    def fetch(self, number: int, max_shards: float = 100, own: list[int] | None = None, delay: float = 0.0) -> int:
        cache = self.cache._replace(max_bytes=int(max_shards * SIZE))
        strangers = range(NUM) if own is None else own
        return open_shard(cache, self.shard(number, delay), [self.shard(i).sha256 for i in strangers])

    def use(self, number: int, max_shards: float = 100, own: list[int] | None = None) -> None:
        os.close(self.fetch(number, max_shards, own))

    def path(self, number: int) -> Path:
        return self.cache.path(self.shard(number).sha256)

    def cached(self) -> list[int]:
        return [number for number in range(NUM) if self.path(number).exists()]

    def leftovers(self) -> list[Path]:
        return list((self.cache.folder / "shards").glob(".tmp-*"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    contents = [bytes([number]) + os.urandom(SIZE - 1) for number in range(NUM)]
    (tmp_path / "remote").mkdir()
    for number, content in enumerate(contents):
        (tmp_path / f"remote/{number}.tar").write_bytes(content)
    store = Store(tmp_path / "remote", Cache(tmp_path / "cache", 0), tmp_path / "log", contents)
    yield store
    assert not store.leftovers()


def content_of(descriptor: int) -> bytes:
    content = os.pread(descriptor, 2 * SIZE, 0)
    os.close(descriptor)
    return content


def test_open_shard__fetched_once_and_found_again(store: Store) -> None:
    for number in (0, 1, 0, 1):
        assert content_of(store.fetch(number)) == store.contents[number]
    assert downloads(store.log) == {"0.tar": 1, "1.tar": 1}
    assert store.cached() == [0, 1]


def _fetch_all(store: Store, first: int) -> None:
    for i in range(NUM):
        number = (first * (i + 1) + i) % NUM
        assert content_of(store.fetch(number, delay=0.02)) == store.contents[number]


def test_processes_and_threads__one_of_them_downloads(store: Store) -> None:
    processes = [FORK.Process(target=_fetch_all, args=(store, first)) for first in range(6)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(_fetch_all, [store] * 4, range(4)))
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    assert set(downloads(store.log).values()) == {1}


def _fetch_slowly(store: Store) -> None:
    store.fetch(0, delay=60)


def wait_until(condition: str, store: Store) -> None:
    deadline = time.monotonic() + 120
    while not eval(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.01)


def test_killed_while_downloading__another_goes_on(store: Store) -> None:
    """Both one that waits already and one that comes later."""
    child = FORK.Process(target=_fetch_slowly, args=(store,))
    child.start()
    wait_until("any(path.stat().st_size == SIZE // 2 for path in store.leftovers())", store)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.fetch, 0)
        time.sleep(0.1)
        assert not waiting.done()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert content_of(waiting.result(timeout=120)) == store.contents[0]
    assert content_of(store.fetch(0)) == store.contents[0]
    assert downloads(store.log)["0.tar"] == 2


def test_killed_while_downloading__what_it_left_goes_with_the_next_download(store: Store) -> None:
    child = FORK.Process(target=_fetch_slowly, args=(store,))
    child.start()
    wait_until("any(path.stat().st_size == SIZE // 2 for path in store.leftovers())", store)
    store.use(1)
    assert len(store.leftovers()) == 2  # its lock and its half shard, as long as it lives
    child.kill()
    child.join()
    assert len(store.leftovers()) == 2
    store.use(1)
    store.use(2)
    assert not store.leftovers()


def test_truncated_in_the_cache__fetched_again(store: Store) -> None:
    store.use(0)
    store.path(0).write_bytes(store.contents[0][:100])
    assert content_of(store.fetch(0)) == store.contents[0]
    assert downloads(store.log) == {"0.tar": 2}


def test_damaged_by_a_power_cut__hash_compared_once_after_the_start(store: Store) -> None:
    store.use(0)
    store.use(1)
    store.path(0).write_bytes(bytes(SIZE))
    for number in (0, 1):
        os.utime(store.path(number), (0, 0))  # checked before the machine was started
        assert content_of(store.fetch(number)) == store.contents[number]
    assert downloads(store.log) == {"0.tar": 2, "1.tar": 1}
    assert store.path(1).stat().st_mtime > time.time() - 60  # not compared again


def damage_downloads(monkeypatch: pytest.MonkeyPatch, times: int, content: bytes) -> None:
    whole = RemoteFiles.get_file
    left = iter(range(times))

    def get_file(self: RemoteFiles, rpath: str, lpath: str, **options: object) -> None:
        whole(self, rpath, lpath, **options)
        if next(left, None) is not None:
            Path(lpath).write_bytes(content)

    monkeypatch.setattr(RemoteFiles, "get_file", get_file)


@pytest.mark.parametrize("content", [b"short", bytes(SIZE)])
def test_damaged_on_its_way__fetched_again(store: Store, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    damage_downloads(monkeypatch, 2, content)
    assert content_of(store.fetch(0)) == store.contents[0]


def test_damaged_in_the_bucket__named(store: Store) -> None:
    (store.remote / "0.tar").write_bytes(bytes(SIZE))
    expected, found = store.shard(0).sha256, hashlib.sha256(bytes(SIZE)).hexdigest()
    with pytest.raises(DataError, match=rf"{PROTOCOL}://.*/0\.tar: {SIZE} bytes .* {expected} expected.* {found} fou"):
        store.fetch(0)
    assert downloads(store.log) == {"0.tar": 3}
    (store.remote / "0.tar").unlink()
    with pytest.raises(DataError, match=rf"{PROTOCOL}://.*/0\.tar: cannot be read"):
        store.fetch(0)
    assert not store.cached()


def test_cap__strangers_go_first_then_what_was_just_passed(store: Store) -> None:
    own = [2, 3, 4, 5]
    for number in (0, 1, 2, 3):
        store.use(number, 4, own)
    store.use(0, 4, own)
    store.use(4, 4, own)
    assert store.cached() == [0, 2, 3, 4]  # of the strangers the one used longest ago went
    store.use(5, 4, own)
    assert store.cached() == [2, 3, 4, 5]
    store.use(3, 4, own)
    store.use(0, 4, own)
    assert store.cached() == [0, 2, 4, 5]  # of one's own the one used last


def test_cap__half_of_the_data_saves_half_of_the_downloads(store: Store) -> None:
    """Epochs in changing orders, as with a window of 1; deleting the longest unused would save a sixth."""
    for epoch in range(40):
        for number in sorted(range(NUM), key=lambda n: hashlib.md5(bytes([epoch, n])).digest()):
            store.use(number, NUM / 2)
    assert 0.4 < 1 - downloads(store.log).total() / (40 * NUM) < 0.6


def test_cap__what_is_open_stays_shared_and_is_accounted_for(store: Store) -> None:
    descriptors = [store.fetch(number, 2) for number in range(3)]
    assert store.cached() == [0, 1, 2]  # over the cap, but deleting frees nothing
    os.close(descriptors[0])
    store.use(3, 2)
    assert store.cached() == [1, 2, 3]
    assert [content_of(descriptor) for descriptor in descriptors[1:]] == store.contents[1:3]
    store.use(4, 2)
    assert len(store.cached()) == 2


def _hold(store: Store, ready: "multiprocessing.synchronize.Event") -> None:
    store.fetch(0)
    ready.set()
    time.sleep(60)


def test_cap__open_in_another_process_until_it_is_killed(store: Store) -> None:
    ready = FORK.Event()
    child = FORK.Process(target=_hold, args=(store, ready))
    child.start()
    assert ready.wait(120)
    store.use(1, 1)
    assert store.cached() == [0, 1]
    child.kill()
    child.join()
    store.use(2, 1)
    assert store.cached() == [2]


def test_cap__smaller_than_a_shard(store: Store) -> None:
    for number in range(NUM):
        assert content_of(store.fetch(number, 0.5)) == store.contents[number]
        assert len(store.cached()) == 1


def test_cap__shards_on_their_way_count(store: Store) -> None:
    store.use(0)
    store.use(1)
    with ThreadPoolExecutor(2) as pool:  # each makes room for both
        for descriptor in pool.map(lambda number: store.fetch(number, 3, delay=0.3), (2, 3)):
            os.close(descriptor)
    assert len(store.cached()) == 3


def pretend_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(trainer.loading.cache.shutil, "disk_usage", lambda _: usage._replace(free=free))


def test_disk_full__the_cache_gives_way_then_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        store.use(number)
    pretend_free(monkeypatch, SIZE // 2)
    store.use(3)
    assert len(store.cached()) == 3
    shutil.rmtree(store.cache.folder)
    with pytest.raises(DataError, match="cache/shards: the disk is full: 1e-05 GB wanted .* make room"):
        store.fetch(4)


def test_disk_full__while_writing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get_file(*_: object, **__: object) -> None:
        asked.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RemoteFiles, "get_file", get_file)
    with pytest.raises(DataError, match="the disk is full"):
        store.fetch(0)
    assert len(asked) == 1  # trying again would not help


def test_no_place_for_the_cache(store: Store) -> None:
    store.cache.folder.write_text("in the way")
    with pytest.raises(DataError, match=r"cache/shards: .* loader\.cache"):
        store.fetch(0)


def test_cache_of__settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_of(LoaderSettings()) == Cache(tmp_path / "sniper-chips", 100 * 10**9)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_of(LoaderSettings(cache="~/c", cache_gb=0.5)) == Cache(Path("/home/somebody/c"), 500_000_000)


# --- What one process has open ----------------------------------------------------------------------------


def open_shards(store: Store, max_shards: int = 100, delay: float = 0.0) -> OpenShards:
    shards = [store.shard(number) for number in range(NUM)]
    names, sizes, sha256s = [s.place.name for s in shards], [s.size for s in shards], [s.sha256 for s in shards]
    cache = store.cache._replace(max_bytes=max_shards * SIZE)
    return OpenShards(cache, remote(store.remote, store.log, delay), names, sizes, sha256s)


def read(shards: OpenShards, number: int) -> bytes:
    with shards.descriptor(number) as descriptor:
        return os.pread(descriptor, SIZE, 0)


def test_descriptor__a_few_stay_open_between_reads(store: Store) -> None:
    shards = open_shards(store, max_shards=1)
    for number in (0, 1, 0, 1, 2, 3, 0):  # in turns, as several workers read
        assert read(shards, number) == store.contents[number]
    assert set(downloads(store.log).values()) == {1}
    assert num_open(store.cache.folder) == RECENT
    read(shards, 4)
    read(shards, 5)
    assert num_open(store.cache.folder) == RECENT
    del shards
    assert num_open(store.cache.folder) == 0


def test_open_shards__a_lower_cap_holds_at_once(store: Store) -> None:
    for number in range(4):
        store.use(number)
    open_shards(store, max_shards=2)
    assert len(store.cached()) == 2


def test_hold__until_the_last_one_lets_go(store: Store) -> None:
    shards = open_shards(store)
    with ThreadPoolExecutor(8) as pool:
        descriptors = set(pool.map(shards.hold, [0] * 8))
        assert len(descriptors) == num_open(store.cache.folder) == 1
        for _ in range(7):
            shards.release(0)
        assert read(shards, 0) == store.contents[0]
        assert num_open(store.cache.folder) == 1
        shards.release(0)
    assert num_open(store.cache.folder) == 0


def test_fork__the_child_begins_anew(store: Store) -> None:
    """Though threads of the parent hold locks and fetch what the child wants, too."""
    shards = open_shards(store, delay=0.2)
    read(shards, 0)
    fetcher = Fetcher(shards, [1, 2], {}, limit=2, max_files=100)
    with shards._lock:
        child = FORK.Process(target=_read_inherited, args=(shards, shards._data.fs, store))
        child.start()
    child.join(20)
    child.kill()
    assert child.exitcode == 0
    fetcher.close()
    store.use(3, max_shards=1)  # no child claims what the parent had open
    assert store.cached() == [0, 3]
    del shards, fetcher
    store.use(4, max_shards=1)
    assert store.cached() == [4]


def _read_inherited(shards: OpenShards, former: object, store: Store) -> None:
    assert num_open(store.cache.folder) == 0
    for number in (0, 1, 2):
        assert read(shards, number) == store.contents[number]
    assert shards._data.fs is not former


def test_fetcher__so_many_ahead_and_closed_when_past(store: Store) -> None:
    shards = open_shards(store, max_shards=2)
    fetcher = Fetcher(shards, range(NUM), {part: [part] for part in range(NUM)}, limit=2, max_files=100)
    for part in range(NUM):
        assert read(shards, part) == store.contents[part]
        assert num_open(store.cache.folder) <= 2
        assert len(store.cached()) <= 2
        fetcher.passed(part)
    fetcher.close()
    assert num_open(store.cache.folder) == 0
    assert set(downloads(store.log).values()) == {1}


def test_fetcher__works_ahead_in_the_background(store: Store) -> None:
    shards = open_shards(store, delay=0.1)
    fetcher = Fetcher(shards, [3, 1, 4], {}, limit=3, max_files=2, then=lambda: [4, 5])
    wait_until("len(store.cached()) == 3", store)
    fetcher.passed(0)
    time.sleep(0.05)
    fetcher.passed(1)
    wait_until("store.cached() == [1, 3, 4]", store)  # no more than the limit
    assert num_open(store.cache.folder) == 2
    fetcher.close()
    assert num_open(store.cache.folder) == 0


def test_fetcher__what_follows_is_fetched_when_there_is_room(store: Store) -> None:
    shards = open_shards(store)
    fetcher = Fetcher(shards, [3, 1], {0: [3], 1: [1]}, limit=2, max_files=2, then=lambda: [1, 5])
    fetcher.passed(0)
    deadline = time.monotonic() + 120
    while store.cached() != [1, 3, 5] and time.monotonic() < deadline:
        time.sleep(0.01)
        fetcher.passed(2)
    assert store.cached() == [1, 3, 5]
    fetcher.close()
    assert num_open(store.cache.folder) == 0


def test_fetcher__errors_are_met_by_who_needs_the_shard(store: Store) -> None:
    (store.remote / "1.tar").unlink()
    shards = open_shards(store)
    fetcher = Fetcher(shards, [0, 1, 2], {0: [0, 1, 2]}, limit=3, max_files=100)
    assert read(shards, 0) == store.contents[0]
    with pytest.raises(DataError, match=r"1\.tar: cannot be read"):
        read(shards, 1)
    assert read(shards, 2) == store.contents[2]
    fetcher.passed(0)
    fetcher.close()
    assert num_open(store.cache.folder) <= RECENT


def test_fetcher__closed_while_fetching(store: Store) -> None:
    before = set(threading.enumerate())
    shards = open_shards(store, delay=0.2)
    fetcher = Fetcher(shards, range(NUM), {0: [0]}, limit=NUM, max_files=100)
    fetcher.passed(0)  # still on its way
    fetcher.close()
    assert set(threading.enumerate()) <= before
    assert num_open(store.cache.folder) == 0
    assert len(store.cached()) <= FETCHERS


def test_user_folder__of_a_user_whom_the_machine_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as any number, without HOME."""

    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert user_folder() == Path(tempfile.gettempdir()) / f"sniper-chips-{os.getuid()}"
