"""Fixtures that all packages' tests may use."""

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

import pytest

from pipeline.engines.progress import log
from tests.s3 import S3, Server, serving

# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start would ignore it, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# `make test` tries the same examples each time, so that no change is blamed for a fault that only a new example shows.
# `make test-random` looks for such faults. No test fails for being slow on a machine with other work.
if importlib.util.find_spec("hypothesis"):  # .venv-peers has no such tests
    from hypothesis import settings

    settings.register_profile("same", derandomize=True, deadline=None)
    settings.register_profile("random", deadline=None)
    settings.load_profile("same")


class CommandResult(NamedTuple):
    status: int
    out: str
    err: str


RunSniper = Callable[..., CommandResult]


@pytest.fixture
def sniper(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[RunSniper]:
    """Runs the console script's entry point in this process; an exception that it lets out fails the test."""

    def run(*arguments: object) -> CommandResult:
        from sniper_chips import main

        monkeypatch.setattr("sys.argv", ["sniper", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return CommandResult(status, captured.out, captured.err)

    yield run
    log.handlers.clear()  # the functions are silent again
    log.setLevel("NOTSET")
    log.propagate = True


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """An S3 store on loopback, one per test process; use `s3`."""
    for package in ("moto", "flask", "s3fs"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: no S3 store to test with")
    with serving() as server:
        yield server


bucket_numbers = count()
s3_clients: set[str] = set()
"""Those of s3fs that tests with `s3` have left. They keep their endpoint, and are dear to make."""


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An empty bucket, with the environment set so that s3fs and boto3 of this and of child processes find it."""
    from s3fs import S3FileSystem

    store = S3(s3_server, f"bucket-{next(bucket_numbers)}")
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    store.server.client.create_bucket(Bucket=store.bucket)
    if not set(S3FileSystem._cache) <= s3_clients:
        S3FileSystem.clear_instance_cache()
    yield store
    store.reset()
    if any(os.environ.get(name) != value for name, value in store.environment.items()):  # the test has changed it
        S3FileSystem.clear_instance_cache()
    s3_clients.clear()
    s3_clients.update(S3FileSystem._cache)
