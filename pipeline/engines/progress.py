"""What a command shows while it works: remarks, and progress with rate and time left.

On a terminal progress is a bar, elsewhere a line every ten seconds. Everything goes to the logger `sniper`, so that a
Python program that calls the functions hears warnings alone unless it sets that logger's level to INFO.
"""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from tqdm import tqdm

log = logging.getLogger("sniper")
"""Of all packages. Progress and remarks are INFO, what may have gone wrong is WARNING; results are returned."""

LOG_INTERVAL = 10.0  # seconds
RECENT = 60.0  # seconds that rate and time left are taken from


class Progress:
    """Counts work up to a total and shows how far it is. Use it as a context manager."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        """Start to count.

        Args:
            what: Name of the work, such as "chips".
            total: Number of units that the work consists of.
            unit: What is counted, such as "images".
        """
        self._what, self._total, self._unit = what, total, unit
        self._has_lines = log.isEnabledFor(logging.INFO)
        self._has_bar = self._has_lines and sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=what, unit=f" {unit}", disable=not self._has_bar, smoothing=0.1)
        self._done = self._bytes = 0
        self._last_line = time.monotonic()
        self._recent = deque([(self._last_line, 0, 0)])  # (time, units, bytes), one per line, of RECENT seconds

    def add(self, count: int, size: int = 0) -> None:
        """Count further units as done, and bytes as read for them; show them when it is time for that."""
        self._done += count
        self._bytes += size
        self._bar.update(count)
        self.tick()

    def tick(self) -> None:
        """Show a line if it is time for one, even if nothing is done since the last. Call it every few seconds."""
        now = time.monotonic()
        if not self._has_lines or now - self._last_line < LOG_INTERVAL:
            return
        self._last_line = now
        rate, speed = self._rates(now)
        if self._has_bar:
            self._bar.set_postfix_str(f"{speed:.1f} MB/s" if speed else "")
            return
        read = f", {speed:.1f} MB/s" if speed else ""
        left = f"{(self._total - self._done) / rate:.0f} s left" if rate else "time left not known yet"
        log.info(f"{self._what}: {self._done} of {self._total} {self._unit}, {rate:.1f}/s{read}, {left}")

    def _rates(self, now: float) -> tuple[float, float]:
        """Return units and megabytes per second over the last RECENT seconds."""
        self._recent.append((now, self._done, self._bytes))
        while len(self._recent) > 2 and now - self._recent[1][0] >= RECENT:
            self._recent.popleft()
        then, done, read = self._recent[0]
        seconds = max(now - then, 1e-9)
        return (self._done - done) / seconds, (self._bytes - read) / seconds / 1e6

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


@contextmanager
def showing(what: str) -> Iterator[None]:
    """Show, for work that has no count, every LOG_INTERVAL seconds that it goes on.

    Args:
        what: The work, such as "reading a.json".
    """
    if not log.isEnabledFor(logging.INFO):
        yield
        return
    has_ended = threading.Event()
    started = time.monotonic()

    def remind() -> None:
        while not has_ended.wait(LOG_INTERVAL):
            log.info(f"{what}: {time.monotonic() - started:.0f} s so far")

    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


class _Lines(logging.Handler):
    """Writes each record as one plain line to standard error, above a bar that may stand there."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(record.getMessage(), file=sys.stderr)
        sys.stderr.flush()


def show_log() -> None:
    """Show what the functions tell on standard error, as the commands do."""
    if not any(isinstance(handler, _Lines) for handler in log.handlers):
        log.addHandler(_Lines())
    log.setLevel(logging.INFO)
    log.propagate = False  # a library that configures the root logger would show each line twice
