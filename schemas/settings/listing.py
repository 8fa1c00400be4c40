"""Write settings out for a person to read and to change."""

import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from schemas.settings.section import Section, as_yaml
from schemas.settings.whole import Settings

HEADER = """\
# All settings. A line such as "# size: 512" holds a default: take the # away and change the value.
# A file like this one is what --config reads; --set chips.size=256 sets one value.
"""
COLUMNS = 110


class Entry(NamedTuple):
    """One setting.

    Attributes:
        name: its name within its section.
        value: its value now, and `default` without --config and --set, both as YAML in one line.
        is_given: whether it was set.
        meaning: what it means, in whole sentences.
    """

    name: str
    value: str
    default: str
    is_given: bool
    meaning: str


def list_settings(settings: Settings) -> Iterator[tuple[str, str, list[Entry]]]:
    """Yield for each section its name, what it is about, and its settings in order."""
    for name in Settings.model_fields:
        section: Section = getattr(settings, name)
        defaults, values = type(section)().model_dump(mode="json"), section.model_dump(mode="json")
        entries = [
            Entry(
                field,
                as_yaml(values[field]),
                as_yaml(defaults[field]),
                field in section.model_fields_set,
                " ".join([*(about.description or "").split(), *_choices(about.annotation)]),
            )
            for field, about in type(section).model_fields.items()
        ]
        yield name, " ".join(inspect.cleandoc(type(section).__doc__ or "").split()), entries


def as_config(settings: Settings) -> str:
    """Write all settings as a YAML file with their meanings; what was not given is commented out."""
    lines = [HEADER]
    for name, about, entries in list_settings(settings):
        lines += [*comment(about, ""), f"{name}:"]
        for entry in entries:
            lines += comment(entry.meaning + (f" Default: {entry.default}" if entry.is_given else ""), "  ")
            lines.append(f"  {'' if entry.is_given else '# '}{entry.name}: {entry.value}")
        lines.append("")
    return "\n".join(lines)


def _choices(annotation: Any) -> list[str]:
    """Name the words that a setting may be, where it is one of a few."""
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is Literal:
            return [f"One of {', '.join(map(as_yaml, get_args(kind)))}."]
    return []


def comment(text: str, indent: str) -> list[str]:
    """Return the lines of a YAML comment."""
    return textwrap.wrap(text, COLUMNS, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
