"""Refused images and boxes told to a person: by cause, with counts and some examples."""

from collections.abc import Iterable

from pipeline.coco.records import Reject
from schemas.wording import counted

EXAMPLES = 3


def describe_rejects(rejects: Iterable[Reject]) -> list[str]:
    """Return lines for a person: each cause with its count and the first examples, images before boxes."""
    counts: dict[tuple[str, str], int] = {}
    examples: dict[tuple[str, str], list[str]] = {}
    for reject in rejects:
        cause = (reject.kind, reject.reason)
        counts[cause] = counts.get(cause, 0) + 1
        some = examples.setdefault(cause, [])
        if len(some) < EXAMPLES:
            some.append(reject.message)
    lines = []
    for (kind, reason), count in sorted(counts.items(), key=lambda item: (item[0][0] != "image", -item[1])):
        lines.append(f"{counted(count, kind)}: {reason}")
        lines += [f"    {message}" for message in examples[kind, reason]]
        if count > EXAMPLES:
            lines.append(f"    ... and {count - EXAMPLES:,} more")
    return lines
