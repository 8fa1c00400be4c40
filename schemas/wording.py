"""Small pieces of the sentences that commands tell."""

import math
import shlex


def counted(number: int, one: str, many: str | None = None) -> str:
    """Write a number with its noun, in the singular for one; `many` where the plural is not the noun with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Write a length of time for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def interval(low: float, high: float | None) -> str:
    """Write an interval that holds its lower end and not its upper one, which None leaves open."""
    return f"[{low:g}, {math.inf if high is None else high:g})"


def shell(*words: object) -> str:
    """Write a command as a shell reads it, whatever stands in its words."""
    return shlex.join(map(str, words))
