"""The storage room on this machine's disk, in fsspec's memory and on an S3 store, which answers badly at times."""

import copy
import errno
import importlib
import importlib.util
import logging
import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.images.sources import image_place
from pipeline.storage import (
    TEMPORARY,
    Location,
    ahead,
    atomic_file,
    files_in,
    is_file,
    is_folder,
    local_copy,
    location,
    locked,
    make_folder,
    names_in,
    probe_writable,
    read_bytes,
    read_each,
    read_range,
    refuse_foreign,
    remove,
    remove_all,
    remove_files,
    remove_folder,
    remove_temporary,
    size_of,
    stores,
    write_atomic,
    write_together,
)
from pipeline.storage.stores import AHEAD, ATTEMPTS
from schemas.errors import DataError, UsageError
from tests.s3 import ACCESS_KEY, S3, SECRET_KEY, SECRETS, Kind, free_port

DATA = bytes(range(256)) * 40
NAMES = [
    "plain.jpg",
    "with space.jpg",
    " leading and trailing ",
    "hash#1.jpg",
    "per%20cent%.jpg",
    "what?.jpg",
    "star*.jpg",
    "[ab].jpg",
    "{a,b}.jpg",
    "at@2x.jpg",
    "plus+and&=;:,.jpg",
    "quotes'\".jpg",
    "back\\slash.jpg",
    "~tilde.jpg",
    ".hidden.jpg",
    "..two.jpg",
    "ünïcödé-图-🐘.jpg",
]
PASSING: list[Kind] = ["error", "slow-down", "drop", "lost", "hang"]
OPERATIONS: dict[str, Callable[[Location], Any]] = {
    "read_bytes": read_bytes,
    "read_range": lambda place: read_range(place, 0, len(DATA)),
    "local_copy": lambda place: _copied(place),
    "size_of": size_of,
    "is_folder": lambda place: is_folder(place.parent),
    "files_in": lambda place: files_in(place.parent, "*"),
    "remove": remove,
    "remove_folder": lambda place: remove_folder(place.parent),
    "write_atomic": lambda place: write_atomic(place, DATA),
    "write_together": lambda place: write_together([(place, DATA)]),
}
"""On a file with DATA, alone in its folder."""


def _copied(place: Location) -> bytes:
    with local_copy(place) as path:
        return path.read_bytes()


def _names(places: list[Location]) -> list[str]:
    return [place.name for place in places]


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, and one request per attempt."""
    monkeypatch.setattr(stores, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(stores, "LONGEST_WAIT", 0.02)
    options = copy.deepcopy(stores.S3)
    options["config_kwargs"]["retries"]["total_max_attempts"] = 1
    monkeypatch.setitem(stores.OPTIONS, "s3", options)


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    """An empty folder."""
    if request.param == "local":
        yield tmp_path
        return
    if request.param == "memory":
        yield location(f"memory://{tmp_path}")
        fsspec.filesystem("memory").store.clear()
        return
    yield location(f"{request.getfixturevalue('s3').url}/top/in ner")


@pytest.fixture
def there(s3: S3) -> Location:
    """A file with DATA in the store, alone in its folder."""
    s3.put("run/data.bin", DATA)
    return location(f"{s3.url}/run/data.bin")


def impatient(place: Location, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> Location:
    """The same place; where the store is to hang, not for long."""
    if kind not in ("hang", "stall"):
        return place
    options = copy.deepcopy(stores.OPTIONS["s3"])
    options["config_kwargs"]["read_timeout"] = 0.3
    monkeypatch.setitem(stores.OPTIONS, "s3", options)
    place = location(str(place))
    is_file(place)  # the first request makes the client, which takes time too
    monkeypatch.setattr("pipeline.storage.writing.PUT_PATIENCE", 0.3)
    return place


# What holds wherever a folder lies.


@pytest.mark.parametrize("data", [b"", b"\0", DATA], ids=len)
def test_what_is_written_is_read(folder: Location, data: bytes) -> None:
    place = folder / "file.bin"
    write_atomic(place, data)
    assert read_bytes(place) == data
    assert _copied(place) == data
    assert size_of(place) == len(data)
    assert is_file(place)
    assert not is_folder(place)
    assert is_folder(folder)
    assert not is_file(folder)
    assert files_in(folder, "*") == [place]
    assert list(read_each([place, place])) == [data, data]


def test_write_together__every_file_is_whole_and_what_breaks_off_leaves_no_part(folder: Location) -> None:
    contents = {f"{number:03d}.bin": bytes([number]) * (number * 1000) for number in range(40)}

    def until(stop: int) -> Iterator[tuple[Location, bytes]]:
        for number, (name, data) in enumerate(contents.items()):
            if number == stop:
                raise KeyboardInterrupt
            yield folder / name, data

    with pytest.raises(KeyboardInterrupt):
        write_together(until(35))
    some = files_in(folder, "*")
    assert 0 < len(some) <= 35
    assert all(read_bytes(place) == contents[place.name] for place in some)
    write_together(until(40))
    assert {place.name: read_bytes(place) for place in files_in(folder, "*")} == contents
    write_together(iter(()))


def test_any_name_is_a_name(folder: Location, request: pytest.FixtureRequest) -> None:
    """And none is a pattern, a query, a fragment or an escape."""
    for name in NAMES:
        write_atomic(folder / name, name.encode())
    assert _names(files_in(folder, "*")) == sorted(NAMES)
    for name in NAMES:
        place = folder / name
        assert read_bytes(place) == name.encode()
        assert size_of(place) == len(name.encode())
        assert _copied(place) == name.encode()
        assert read_bytes(location(str(place))) == name.encode()
    if "s3" in request.fixturenames:
        store: S3 = request.getfixturevalue("s3")
        assert sorted(store.keys()) == sorted(f"top/in ner/{name}" for name in NAMES)
    for number, name in enumerate(sorted(NAMES), 1):
        remove(folder / name)
        assert _names(files_in(folder, "*")) == sorted(NAMES)[number:]


def test_files_in_matches_names_of_files_alone(folder: Location) -> None:
    for name in ["chips-1.tar", "chips-2.tar", "chips-2.tar.bak", "Chips-3.tar", "sub.tar/deep.tar", "other"]:
        make_folder((folder / name).parent)
        write_atomic(folder / name, b"x")
    assert _names(files_in(folder, "chips-*.tar")) == ["chips-1.tar", "chips-2.tar"]
    assert _names(files_in(folder, "*.tar")) == ["Chips-3.tar", "chips-1.tar", "chips-2.tar"]
    assert _names(files_in(folder, "chips-[13].ta?")) == ["chips-1.tar"]
    assert files_in(folder, "nothing*") == []
    assert files_in(folder / "absent", "*") == []
    assert files_in(folder / "other", "*") == []
    assert _names(files_in(folder / "sub.tar", "*")) == ["deep.tar"]


def test_a_folder_may_have_the_name_of_a_key(s3: S3) -> None:
    """Some tools put an empty object in place of a folder."""
    for key in ("chips", "chips/", "chips/a.tar", "chips/sub/b.tar", "chips-other/c.tar"):
        s3.put(key, b"")
    folder = location(f"{s3.url}/chips")
    assert is_folder(folder)
    assert not is_folder(folder / "a.tar")
    assert _names(files_in(folder, "*")) == ["a.tar"]
    assert names_in(folder) == ["a.tar", "sub"]


def test_absent_files(folder: Location) -> None:
    write_atomic(folder / "file", b"x")
    absent = folder / "absent"
    for place in [absent, absent / "below", folder / "fil"]:
        assert size_of(place) is None
        assert not is_file(place)
        assert not is_folder(place)
        with pytest.raises(FileNotFoundError) as caught:
            read_bytes(place)
        assert place.name in str(caught.value)
        assert caught.value.strerror == os.strerror(errno.ENOENT)
        with pytest.raises(FileNotFoundError):
            _copied(place)
        remove(place)
        remove_folder(place)
    assert read_bytes(folder / "file") == b"x"


@pytest.mark.parametrize("old", [None, b"old"])
def test_an_unfinished_file_never_is(folder: Location, old: bytes | None) -> None:
    place = folder / "file"
    if old is not None:
        write_atomic(place, old)

    def interrupted() -> None:
        with atomic_file(place) as file:
            file.write(DATA)
            file.flush()
            assert is_file(place) == (old is not None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    if old is None:
        assert files_in(folder, "*") == []
    else:
        assert files_in(folder, "*") == [place]
        assert read_bytes(place) == old


def test_remove_folder_takes_it_whole_and_nothing_else(folder: Location) -> None:
    """Neither what begins with the same letters, nor what its name would match as a pattern."""
    kept = ["run1/a", "run1b/a", "runs", "run]/a"]
    for name in [*kept, "run[1]/a", "run[1]/deep/er/b", "run?/c d#", "run*/x*"]:
        make_folder((folder / name).parent)
        write_atomic(folder / name, b"x")
    for name in ["run[1]", "run?", "run*", "run"]:
        remove_folder(folder / name)
        assert not is_folder(folder / name)
    with suppress(NotADirectoryError):
        remove_folder(folder / "runs")
    assert [name for name in kept if is_file(folder / name)] == kept


def test_remove_all_takes_the_files_that_are_there_alone(folder: Location) -> None:
    for name in "abc":
        write_atomic(folder / name, b"x")
    remove_all([folder / "a", folder / "absent", folder / "b"])
    assert files_in(folder, "*") == [folder / "c"]
    remove_all([])


def test_remove_files_takes_what_matches_and_a_folder_that_is_then_empty(folder: Location) -> None:
    files = ["run.json", "chips-0.tar", "chips-1.tar", "chips-1.parquet", "chips-x/chips-1.tar", "mine.tar"]
    for name in files:
        make_folder((folder / "run" / name).parent)
        write_atomic(folder / "run" / name, b"x")
    remove_files(folder / "run", "run.json", "chips-*.tar")
    assert [name for name in files if is_file(folder / "run" / name)] == files[3:]
    remove_files(folder / "run", "*")
    assert is_folder(folder / "run")  # for the folder in it
    remove_files(folder / "run/chips-x", "chips-*")
    assert not is_folder(folder / "run/chips-x")
    remove_files(folder / "absent", "*")


@pytest.mark.parametrize("name", ["./a/b c.jpg", "a//b c.jpg", "a/./b c.jpg", ".//a/b c.jpg", "a/b c.jpg"])
def test_image_place_is_one_for_all_ways_to_write_it(folder: Location, name: str) -> None:
    make_folder(folder / "a")
    write_atomic(folder / "a" / "b c.jpg", DATA)
    assert image_place(folder, name) == folder / "a" / "b c.jpg"
    assert read_bytes(image_place(folder, name)) == DATA


def test_read_each_keeps_order_and_tells_errors_in_their_place(folder: Location) -> None:
    places = [folder / f"{number:02}" for number in range(3 * AHEAD)]
    for number, place in enumerate(places):
        if number % 7:
            write_atomic(place, place.name.encode())
    for number, content in enumerate(read_each(places)):
        if number % 7:
            assert content == places[number].name.encode()
        else:
            assert isinstance(content, FileNotFoundError)
    assert list(read_each([])) == []


def test_a_range_is_cut_to_the_file(folder: Location) -> None:
    place, empty = folder / "file", folder / "empty"
    write_atomic(place, DATA)
    write_atomic(empty, b"")
    end = len(DATA)
    for offset, size in [(0, 1), (5, 700), (0, end), (end - 1, 1), (end - 3, 9), (end, 4), (end + 5, 4), (7, 0)]:
        assert read_range(place, offset, size) == DATA[offset : offset + size]
    assert read_range(empty, 0, 10) == b""
    with pytest.raises(FileNotFoundError):
        read_range(folder / "absent", 0, 1)


def test_a_local_copy_goes_away_and_the_file_stays(folder: Location) -> None:
    place = folder / "file.parquet"
    write_atomic(place, DATA)
    with local_copy(place) as path:
        assert path.read_bytes() == DATA
    if isinstance(folder, Path):
        assert path == place
    else:
        assert not path.exists()
    assert read_bytes(place) == DATA


def test_many_threads_use_one_location(folder: Location) -> None:
    def use(number: int) -> bytes:
        place = folder / str(number)
        for size in (number, 1000 + number):
            write_atomic(place, bytes([number]) * size)
        assert place in files_in(folder, "*")
        assert size_of(place) == 1000 + number
        return read_bytes(place)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(use, range(24))) == [bytes([number]) * (1000 + number) for number in range(24)]


# Locations.


@pytest.mark.parametrize("text", ["a/b", "/a/b c#?%20", ".", "s3:/bucket/one-slash", "", "a:b"])
def test_a_path_is_a_path(text: str) -> None:
    assert location(text) == Path(text).absolute()  # for workers in folders of their own


def test_a_location_is_its_own() -> None:
    assert location(Path("a")) == Path("a").absolute()
    assert location("file:///a/b c") == location("local:///a/b c") == Path("/a/b c")


def test_a_bucket_may_have_a_trailing_slash_or_none(s3: S3) -> None:
    s3.put("a", b"1")
    s3.put("sub/b", b"2")
    for text in [s3.url, s3.url + "/"]:
        bucket = location(text)
        assert is_folder(bucket)
        assert size_of(bucket) is None
        assert _names(files_in(bucket, "*")) == ["a"]
        assert read_bytes(bucket / "sub" / "b") == b"2"
        assert _names(files_in(location(f"{s3.url}/sub/"), "*")) == ["b"]
    remove_folder(location(s3.url))
    assert s3.keys() == []
    assert is_folder(location(s3.url)), "the bucket itself is not ours to delete"
    assert not is_folder(location(f"{s3.url}-absent"))
    with pytest.raises(DataError, match="bucket does not exist"):
        write_atomic(location(f"{s3.url}-absent/a"), b"")


def test_a_folder_made_in_a_console_has_a_key_of_its_own(s3: S3) -> None:
    for key in ["run/", "run/a", "run/sub/"]:
        s3.put(key, b"")
    run = location(f"{s3.url}/run")
    assert is_folder(run)
    assert is_folder(run / "sub")
    assert _names(files_in(run, "*")) == ["a"]
    assert files_in(run / "sub", "*") == []
    remove_folder(run)
    assert s3.keys() == []


@pytest.mark.parametrize(
    "text",
    [
        "s3://{key}:{secret}@bucket/folder",
        "s3://{key}:a/b/{secret}@bucket/folder",
        "s3://{key}@bucket",
        "s3a://{key}:{secret}@bucket",
        "ftp://me:{secret}@host:21/file",
        "nonsense://{key}:{secret}@host",
        "simplecache::s3://{key}:{secret}@bucket/folder",
        "https://host:443/file?X-Amz-Credential={key}&X-Amz-Signature={secret}",
        "https://host/file?sv=1&sig={secret}",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="has credentials in it") as caught:
        location(text.format(key=ACCESS_KEY, secret="s3cr3t"))
    assert ACCESS_KEY not in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("nonsense://a/b", "expected a path or an fsspec URL"), ("s3://", "no bucket"), ("s3:///folder", "no bucket")],
)
def test_a_url_that_leads_nowhere(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        location(text)


@pytest.mark.parametrize(
    "text", ["s3://bucket/a@2x.jpg", "s3://bucket/12:30@home", "s3://arn:aws:s3:eu:1:accesspoint/x/a@b"]
)
def test_an_at_sign_in_a_name_is_no_credential(text: str) -> None:
    pytest.importorskip("s3fs")
    assert str(location(text)) == text


@pytest.mark.parametrize(
    ("text", "package"),
    [
        ("hdfs://me@namenode:8020/a", None),
        ("sftp://me@host/a", "paramiko"),
        ("abfs://container@account.dfs.core.windows.net/a", "adlfs"),
    ],
)
def test_a_name_before_the_at_sign_is_no_credential(text: str, package: str | None) -> None:
    """And nothing is connected to yet."""
    if package is None or importlib.util.find_spec(package) is not None:
        place = location(text)
        assert place.path.endswith("/a")  # type: ignore[union-attr]
        return
    with pytest.raises(UsageError, match="pip install"):
        location(text)


def test_a_password_before_the_at_sign_is_one() -> None:
    for text in ("sftp://me:s3cr3t@host/a", "hdfs://me:s3cr3t@host/a", "abfs://c:s3cr3t@account/a"):
        with pytest.raises(UsageError, match="has credentials in it") as caught:
            location(text)
        assert "s3cr3t" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'PATH_OF_THE_CLONE\[s3\]'"):
        location("s3://bucket/folder")


def test_a_location_goes_to_a_new_process(there: Location) -> None:
    assert read_bytes(there) == DATA
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        jobs: list[Future[Any]] = [pool.submit(read_bytes, there), pool.submit(files_in, there.parent, "*")]
        assert jobs[0].result(timeout=120) == DATA
        assert _names(jobs[1].result(timeout=120)) == [there.name]


def test_a_location_is_of_use_on_both_sides_of_a_fork(there: Location) -> None:
    """Though the threads that it has made use of do not come along."""
    assert read_bytes(there) == DATA
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        write_atomic(there, DATA[::-1])
        sender.send_bytes(read_bytes(there))

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    try:
        assert receiver.poll(60)
        assert receiver.recv_bytes() == DATA[::-1]
        assert read_bytes(there) == DATA[::-1]
    finally:
        child.kill()
        child.join()


# A store that answers badly.


@pytest.mark.parametrize(
    ("operation", "kind"),
    [("read_bytes", kind) for kind in [*PASSING, "truncated", "stall"]]
    + [(operation, kind) for operation in ("read_range", "local_copy") for kind in ("error", "truncated", "stall")],
)
def test_what_is_answered_badly_is_read_again(
    s3: S3, there: Location, operation: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = impatient(there, kind, monkeypatch)
    s3.fault(kind, "GET", times=2 if operation == "read_bytes" else 1)
    assert OPERATIONS[operation](there) == DATA


@pytest.mark.parametrize("kind", PASSING)
def test_what_is_answered_badly_is_written_again(
    s3: S3, there: Location, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = impatient(there, kind, monkeypatch)
    s3.fault(kind, "PUT", times=1 if kind == "hang" else 2)
    with atomic_file(there) as file:
        file.write(b"new " * 30_000)
        file.seek(0)
        file.write(b"NEW ")
    assert s3.get("run/data.bin") == b"NEW " + b"new " * 29_999
    assert s3.keys() == ["run/data.bin"]


@pytest.mark.parametrize("kind", ["error", "slow-down", "lost"])
def test_what_is_answered_badly_is_asked_again(s3: S3, there: Location, kind: Kind) -> None:
    s3.fault(kind, "HEAD", times=2)
    assert size_of(there) == len(DATA)
    assert is_folder(there.parent)
    s3.fault(kind, "GET", "list-type", times=2)
    assert files_in(there.parent, "*") == [there]
    s3.fault(kind, "DELETE", times=2)
    remove(there)
    assert s3.keys() == []
    s3.put("run/data.bin", DATA)
    s3.fault(kind, "DELETE|POST|GET", times=2)
    remove_folder(there.parent)
    assert s3.keys() == []


def test_a_listing_that_breaks_off_is_no_short_listing(s3: S3, there: Location) -> None:
    s3.fault("truncated", "GET", "list-type", times=2)
    assert files_in(there.parent, "*") == [there]


@pytest.mark.parametrize(
    ("operation", "kind"),
    [("read_bytes", kind) for kind in [*PASSING, "truncated", "stall"]]
    + [("write_atomic", kind) for kind in PASSING]
    + [("local_copy", "truncated"), ("files_in", "error"), ("files_in", "truncated")],
)
def test_a_store_that_stays_bad_is_given_up(
    s3: S3, there: Location, operation: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = impatient(there, kind, monkeypatch)
    s3.clear()
    monkeypatch.setattr(stores, "ATTEMPTS", 2)
    s3.fault(kind, "GET|PUT", times=math.inf)
    start = time.perf_counter()
    with pytest.raises(
        DataError if operation == "write_atomic" else OSError, match=r"in 2 attempts, the last: \w"
    ) as caught:
        OPERATIONS[operation](there)
    assert time.perf_counter() - start < 8
    assert str(there) in str(caught.value) or str(there.parent) in str(caught.value)
    # aiohttp repeats a request by itself where a connection that was open before breaks.
    assert s3.count("GET|PUT") in ([2, 3, 4] if kind in ("drop", "lost") else [2])
    if operation == "write_atomic":
        assert s3.get("run/data.bin") == DATA


def test_retries_do_not_multiply(s3: S3, there: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """As s3fs is set to begin with, each of our attempts may be up to 75 requests."""
    options = copy.deepcopy(stores.S3)
    most = options["config_kwargs"]["retries"]["total_max_attempts"]
    options["config_kwargs"]["read_timeout"] = 0.1
    monkeypatch.setitem(stores.OPTIONS, "s3", options)
    monkeypatch.setattr(stores, "ATTEMPTS", 2)
    s3.fault("hang", times=math.inf)
    with pytest.raises(OSError, match="Read timeout"):
        read_bytes(location(str(there)))
    assert s3.count() == 2 * most
    # As it is shipped: the longest that one file takes which the store neither serves nor refuses.
    waits = sum(min(0.2 * 3**attempt, 10) for attempt in range(ATTEMPTS - 1))
    assert ATTEMPTS * most * stores.S3["config_kwargs"]["read_timeout"] + waits < 300


@pytest.mark.parametrize("fault", [TypeError, AttributeError, KeyError, NameError, AssertionError])
def test_a_fault_in_a_program_is_not_asked_again(there: Location, fault: type[Exception]) -> None:
    asked = []

    def ask() -> None:
        asked.append(1)
        raise fault("a slip")

    with pytest.raises(fault, match="a slip"):
        stores.insist(ask, there)
    assert len(asked) == 1


def test_whether_a_bucket_takes_files_is_found_out_at_once(s3: S3, tmp_path: Path) -> None:
    probe_writable(location(f"{s3.url}/new/folder"))
    assert s3.keys() == []
    probe_writable(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="bucket does not exist; make the bucket"):
        probe_writable(location(f"{s3.url}-absent/folder"))
    with (
        pytest.raises(UsageError, match="bucket does not exist"),
        locked(location(f"{s3.url}-absent"), "sniper train"),
    ):
        pytest.fail("the work began")
    s3.fault("denied", times=math.inf)
    with pytest.raises(UsageError, match=r"new: cannot be written: .*; make the bucket"):
        probe_writable(location(f"{s3.url}/new"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_refusal_is_not_asked_again(s3: S3, there: Location, operation: str) -> None:
    s3.fault("denied", times=math.inf)
    error = DataError if operation.startswith("write") else PermissionError
    with pytest.raises(error, match="Access Denied|Forbidden") as caught:
        OPERATIONS[operation](there)
    assert s3.url in str(caught.value)
    assert s3.count() == 1
    assert s3.get("run/data.bin") == DATA


@pytest.mark.parametrize("operation", ["read_bytes", "local_copy", "size_of", "read_range"])
def test_an_absent_file_is_not_asked_for_again(s3: S3, there: Location, operation: str) -> None:
    absent = there.with_name("absent")
    if operation == "size_of":
        assert size_of(absent) is None
    else:
        with pytest.raises(FileNotFoundError):
            OPERATIONS[operation](absent)
    assert s3.count("GET|HEAD", "absent/?($|[?])") == 1


def test_a_folder_that_cannot_be_emptied_is_told(s3: S3) -> None:
    for number in range(3):
        s3.put(f"run/{number}", DATA)
    s3.fault("denied", "DELETE|POST", after=1)
    with pytest.raises(PermissionError):
        remove_folder(location(f"{s3.url}/run"))


def test_a_read_costs_one_request(s3: S3, there: Location) -> None:
    for ask in (read_bytes, lambda place: read_range(place, 3, 4), size_of):
        s3.clear()
        ask(there)
        assert s3.count() == 1


def test_whether_a_folder_is_there_costs_no_listing_of_it(s3: S3) -> None:
    for number in range(5):
        s3.put(f"big/{number}", b"")
    assert is_folder(location(f"{s3.url}/big"))
    listings = [request.path for request in s3.requests if "list-type" in request.path]
    assert len(listings) == 1
    assert "max-keys=1&" in listings[0] + "&"


def test_listings_of_many_pages(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stores.OPTIONS, "s3", stores.OPTIONS["s3"] | {"s3_additional_kwargs": {"MaxKeys": 3}})
    names = list("abcdefgh")
    for name in names:
        s3.put(f"many/{name}", b"")
    s3.fault("error", "GET", "list-type", after=2)  # the second page; the first request is is_folder's
    assert _names(files_in(location(f"{s3.url}/many"), "*")) == names
    s3.clear()
    remove_folder(location(f"{s3.url}/many"))
    assert s3.keys() == []
    assert s3.count("GET", "list-type") == 3


def test_what_others_write_is_seen(s3: S3, there: Location) -> None:
    folder = there.parent
    assert files_in(folder, "*") == [there]
    assert not is_folder(folder / "new")
    s3.put("run/other", b"1")
    s3.put("run/new/file", b"2")
    s3.put("run/data.bin", b"short")
    assert _names(files_in(folder, "*")) == ["data.bin", "other"]
    assert is_folder(folder / "new")
    assert size_of(there) == 5
    assert read_bytes(there) == b"short"
    s3.server.client.delete_object(Bucket=s3.bucket, Key="run/data.bin")
    assert not is_file(there)
    assert _names(files_in(folder, "*")) == ["other"]


def test_files_are_fetched_ahead_but_not_all(s3: S3) -> None:
    places = [location(s3.url) / f"{number:03}" for number in range(6 * AHEAD)]
    for place in places[:2]:
        s3.put(place.name, place.name.encode())
    contents = read_each(places)
    time.sleep(0.05)
    assert s3.count() == 0
    assert next(contents) == b"000"
    _wait_for(lambda: s3.count() == AHEAD + 1)
    assert next(contents) == b"001"
    _wait_for(lambda: s3.count() == AHEAD + 2)
    contents.close()  # type: ignore[attr-defined]
    time.sleep(0.05)
    assert s3.count() == AHEAD + 2


def test_files_are_fetched_ahead_by_bytes(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [location(s3.url) / f"{number:03}" for number in range(20)]
    for place in places:
        s3.put(place.name, DATA)
    monkeypatch.setattr("pipeline.storage.reading.AHEAD_BYTES", 3 * len(DATA))
    s3.clear()
    contents = read_each(places)
    assert next(contents) == DATA
    _wait_for(lambda: s3.count() == 1 + 3)
    assert list(contents) == [DATA] * 19


def test_requests_ahead_wait_at_the_same_time(s3: S3) -> None:
    s3.put("a", b"1")
    s3.fault("slow", times=math.inf, seconds=0.2)
    start = time.perf_counter()
    assert list(read_each([location(f"{s3.url}/a")] * AHEAD)) == [b"1"] * AHEAD
    assert time.perf_counter() - start < 0.2 * AHEAD / 2


def _wait_for(condition: Callable[[], bool]) -> None:
    """A little longer than it takes, to see whether it goes on."""
    end = time.perf_counter() + 5
    while not condition() and time.perf_counter() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    assert condition()


def test_a_large_file_goes_in_parts(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not twice as large as a part of 50 MB must be, in a test."""
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize: 5 << 20)
    data = os.urandom(1 << 20) * 11
    place = location(f"{s3.url}/large")
    s3.fault("drop", "PUT", "partNumber=2")
    s3.fault("error", "POST", "uploadId")
    write_atomic(place, data)
    assert s3.get("large") == data
    assert s3.uploads() == 0
    assert s3.count("PUT", "partNumber=3") >= 1
    s3.fault("error", "PUT", "partNumber=3", times=math.inf)
    with pytest.raises(DataError):
        write_atomic(place, data[::-1])
    assert s3.get("large") == data
    assert s3.uploads() == 0


# Credentials.


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("kind", ["error", "denied", "drop", "hang"])
def test_no_message_tells_credentials(
    s3: S3, there: Location, kind: Kind, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stores, "ATTEMPTS", 1)
    there = impatient(there, kind, monkeypatch)
    s3.fault(kind, times=math.inf)
    told = ""
    with caplog.at_level(logging.DEBUG, logger="pipeline"):
        for name, operation in OPERATIONS.items():
            if kind in ("drop", "hang") and name not in ("read_bytes", "write_atomic"):
                continue
            with pytest.raises((OSError, DataError)) as caught:
                operation(there)
            told += _told(caught.value)
    told += caplog.text
    assert s3.bucket in told
    assert not [secret for secret in SECRETS if secret in told]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("AWS_SECRET_ACCESS_KEY", None, PermissionError),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY + "\n", None),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY + "\n", OSError),
        ("AWS_SESSION_TOKEN", SECRET_KEY + "\r\nx", OSError),
        ("AWS_ENDPOINT_URL", f"http://{ACCESS_KEY}:{SECRET_KEY.replace('/', '')}@ho st", OSError),
        ("AWS_ENDPOINT_URL", f"http://{ACCESS_KEY}:{SECRET_KEY.replace('/', '')}@127.0.0.1:1", OSError),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:{free_port}", OSError),
        ("AWS_PROFILE", "absent", PermissionError),
    ],
)
def test_an_environment_that_cannot_work(
    s3: S3, name: str, value: str | None, error: type[OSError] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends in an error that says where and does not tell the credentials."""
    s3.put("a", DATA)
    monkeypatch.setitem(stores.OPTIONS, "s3", stores.OPTIONS["s3"] | {"skip_instance_cache": True})
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value.replace("{free_port}", str(free_port())))
    if error is None:
        assert read_bytes(location(f"{s3.url}/a")) == DATA
        return
    monkeypatch.setattr(stores, "ATTEMPTS", 2)
    place = location(f"{s3.url}/a")
    for operation in (read_bytes, size_of):
        with pytest.raises(error) as caught:
            operation(place)
        message = str(caught.value)
        assert s3.url in message
        assert not [secret for secret in (*SECRETS, SECRET_KEY.replace("/", "")) if secret in message]


# This machine's disk.


@pytest.mark.parametrize("obstacle", ["no folder", "a folder", "a file above"])
def test_a_path_that_cannot_be_written(tmp_path: Path, obstacle: str) -> None:
    path = tmp_path / "a" / "b"
    if obstacle == "a folder":
        path.mkdir(parents=True)
    elif obstacle == "a file above":
        (tmp_path / "a").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_atomic(path, b"")
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))


def test_a_full_temporary_folder_is_not_the_stores_fault(there: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(DataError, match="No space left on device, in the temporary folder .* Make room there") as put:
        write_atomic(there, DATA)
    assert "See to the store" not in str(put.value)
    with pytest.raises(OSError, match="No space left on device, in .*: make room there"), local_copy(there):
        pass
    assert read_bytes(there) == DATA


UNFINISHED = """
import sys
from pipeline.storage import atomic_file, local_copy, location, write_atomic
write_atomic(location("memory://a/b"), b"x" * 100_000)
with atomic_file(location("memory://a/c")) as file, local_copy(location("memory://a/b")):
    file.write(b"x" * 10_000_000)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_leaves_no_temporary_file(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", UNFINISHED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "held\n"
    finally:
        writer.kill()
        writer.communicate()
    assert list(tmp_path.iterdir()) == []


def test_a_folders_name_is_no_pattern(folder: Location) -> None:
    odd = folder / "a[1] *?"
    make_folder(odd)
    write_atomic(odd / "chips-1.tar", DATA)
    assert files_in(odd, "chips-*.tar") == [odd / "chips-1.tar"]
    remove_files(odd, "chips-*.tar")
    assert not is_folder(odd)


def test_paths_are_read_one_by_one(tmp_path: Path) -> None:
    read: list[Path] = []

    def note(path: Path) -> int:
        read.append(path)
        return threading.get_ident()

    paths = [tmp_path / str(number) for number in range(5)]
    done = ahead(note, paths)
    assert next(done) == threading.get_ident()
    assert read == paths[:1]
    assert len(list(done)) == 4


HOLD = """
import sys
from pathlib import Path
from pipeline.storage import atomic_file, locked
folder = Path(sys.argv[1])
with locked(folder, "sniper train"), atomic_file(folder / "positives" / "chips.tar") as file:
    file.write(b"x" * 10_000_000)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_holds_until_its_process_ends_however(tmp_path: Path) -> None:
    """And what that process left unfinished is then removed; nothing else is."""
    folder = tmp_path / "out"
    (folder / "positives").mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="`sniper train`.* is writing here"), locked(folder, "sniper chips"):
            pass
        with locked(tmp_path / "other", "sniper chips"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    (folder / "positives" / "kept.tar").touch()
    with locked(folder, "sniper chips"):
        assert [path.name.startswith(TEMPORARY) for path in (folder / "positives").iterdir()].count(True) == 1
        remove_temporary(folder / "positives")
    assert _names(files_in(folder / "positives", "*")) == ["kept.tar"]
    remove_temporary(tmp_path / "absent")


def test_a_disk_without_locks_is_no_other_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UsageError, match="cannot be locked: No locks available"), locked(tmp_path, "sniper chips"):
        pass


def test_locked__on_a_full_disk_it_holds_all_the_same(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to("/dev/full")
    with locked(tmp_path, "sniper detect"):
        pass


def test_a_store_has_neither_locks_nor_remains(there: Location) -> None:
    with locked(there.parent, "sniper chips"), locked(there.parent, "sniper chips"):
        remove_temporary(there.parent)
    assert files_in(there.parent, "*") == [there]


@pytest.mark.parametrize("name", ["found.csv", "new/found.csv"])
def test_refuse_foreign__a_folder_that_takes_no_file_is_refused_before_any_work(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        refuse_foreign(Path("/proc") / name, lambda _: True, "a test")
