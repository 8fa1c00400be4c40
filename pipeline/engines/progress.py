"""What a command shows while it works: remarks, and progress with rate and time left.

On a terminal progress is a bar, elsewhere a line every ten seconds. Everything goes to the logger `sniper`, so that a
Python program that calls the functions hears warnings alone unless it sets that logger's level to INFO.
"""

import logging
import sys
import time
from typing import Self

from tqdm import tqdm

log = logging.getLogger("sniper")
"""Of all packages. Progress and remarks are INFO, what may have gone wrong is WARNING; results are returned."""

LOG_INTERVAL = 10.0  # seconds


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
        self._done = 0
        self._started = self._last_line = time.monotonic()

    def add(self, count: int) -> None:
        """Count further units as done, and show them when it is time for that."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._has_lines and not self._has_bar and now - self._last_line >= LOG_INTERVAL:
            self._last_line = now
            rate = self._done / (now - self._started)
            left = (self._total - self._done) / rate if rate else 0.0
            log.info(f"{self._what}: {self._done} of {self._total} {self._unit}, {rate:.1f}/s, {left:.0f} s left")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


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
