"""Ending a run on a signal: Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP.

Schedulers send SIGUSR1 before they take a machine back. SIGHUP says that the terminal or the ssh session has gone;
nohup has it ignored, and so it stays ignored here.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from schemas.errors import StoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
ECHO = 1.0  # seconds in which a signal that comes again is the first one, passed on by torchrun


class Stop:
    """Takes the signals that ask for an end, from `with` to the block's end, and remembers the first of them.

    A second Ctrl-C ends the process at once.
    """

    def __init__(self, advice: str) -> None:
        """Take no signal yet; `advice` tells the user how to go on after an end."""
        self.advice = advice
        self.signal = 0
        """The signal that came, or 0."""
        self._came = 0.0
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot take signals
            is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            taken = SIGNALS if is_ignored else (*SIGNALS, signal.SIGHUP)
            self._before = {number: signal.signal(number, self._take) for number in taken}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signal:
            self.signal, self._came = number, now
            if "WORLD_SIZE" not in os.environ:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends the process even where Python does not run
        elif number == signal.SIGINT and now - self._came > ECHO:
            os._exit(128 + number)
        if self._at_once:
            raise self.error("nothing is lost")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal break off this block by a StoppedError, where it stands. Only for work that can be repeated."""
        self._at_once = True
        try:
            if self.signal:
                raise self.error("nothing is lost")
            yield
        finally:
            self._at_once = False

    def error(self, what: str) -> StoppedError:
        """Return the error that ends the command: what came, `what` is kept, and how to go on."""
        name = "Ctrl-C" if self.signal == signal.SIGINT else signal.Signals(self.signal).name
        return StoppedError(f"stopped by {name}: {what}. {self.advice}", 130 if self.signal == signal.SIGINT else 143)
