"""Fixtures that all packages' tests may use."""

from collections.abc import Callable
from typing import NamedTuple

import pytest


class CommandResult(NamedTuple):
    status: int
    out: str
    err: str


RunSniper = Callable[..., CommandResult]


@pytest.fixture
def sniper(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunSniper:
    """Runs the console script's entry point in this process; an exception that it lets out fails the test."""

    def run(*arguments: object) -> CommandResult:
        from pipeline.cli import main

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

    return run
