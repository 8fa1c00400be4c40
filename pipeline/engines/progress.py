"""Progress with rate and time left: a bar on a terminal, a line every ten seconds in a log."""

import sys
import time
from typing import Self

from tqdm import tqdm

LOG_INTERVAL = 10.0  # seconds


class Progress:
    """Counts up to `total`; use as a context manager."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._is_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=what, unit=f" {unit}", disable=not self._is_terminal, smoothing=0.1)
        self._done = 0
        self._started = self._last_line = time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if not self._is_terminal and now - self._last_line >= LOG_INTERVAL:
            self._last_line = now
            rate = self._done / (now - self._started)
            left = (self._total - self._done) / rate if rate else 0.0
            print(
                f"{self._what}: {self._done} of {self._total} {self._unit}, {rate:.1f}/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
