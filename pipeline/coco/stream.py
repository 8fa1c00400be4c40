"""Reads a JSON object member by member, and its lists item by item, with the parser of Python's own json module.

Memory holds a block of text and one item. What is no number to JSON but occurs in the wild (NaN, Infinity, 1e999, half
a surrogate pair, integers of any size) comes out as Python has it.

Polygons make up most of many files and nothing here needs them, so that their numbers are blanked before the parser
sees them. Whether they are numbers that JSON knows is thereby not checked.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

LONGEST = 1 << 26  # characters of one item or member that is no list; what is longer counts as damaged

# The quote before the colon ends a key: inside a string it would be escaped. A polygon that is cut by the end of a
# block stays as it is.
_POLYGONS = re.compile(r'("segmentation"\s*+:\s*+\[)((?:\s*+\[[-+.,\deE\s]*+\]\s*+,?)++\s*+)(?=\]\s*+[,}])', re.ASCII)

_skip = re.compile(r"[ \t\n\r]*").match
_parse = json.JSONDecoder().raw_decode


class NotJsonError(ValueError):
    """The text is not JSON; the message says what was expected and at which character."""


def _without_polygons(block: str) -> str:
    """Return a text of the same length, with blanks for the polygons."""
    return _POLYGONS.sub(lambda found: found[1] + " " * len(found[2]), block)


class JsonText:
    """JSON text that comes in blocks."""

    def __init__(self, blocks: Iterable[str]) -> None:
        """Read from text that comes in blocks of any length."""
        self._blocks = map(_without_polygons, blocks)
        self._text, self._at = "", 0
        self._before = 0  # characters that are gone

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield (key, value) of the top-level object; a list comes as an iterator over its items.

        What an iterator has left is read over when the next member is asked for. Where the text is a list, or a plain
        value, it comes as the one member with the key "".

        Raises:
            NotJsonError: the text is not JSON; what stands before the fault has been yielded.
        """
        if self._next() != "{":
            yield from self._value("")
            self._end()
            return
        self._take("{")
        if self._next() != "}":
            while True:
                if self._next() != '"':
                    raise self._error("a key in quotes")
                key = self._parsed()
                self._take(":")
                yield from self._value(key)
                if self._next() != ",":
                    break
                self._take(",")
        self._take("}")
        self._end()

    def _value(self, key: str) -> Iterator[tuple[str, Any]]:
        if self._next() != "[":
            yield key, self._parsed()
            return
        items = self._items()
        yield key, items
        for _ in items:
            pass

    def _items(self) -> Iterator[Any]:
        self._take("[")
        if self._next() != "]":
            while True:
                yield self._parsed()
                # seen twice a record, so that the common case does without a call
                at = self._at
                if self._text.startswith(", ", at) and at + 3 < len(self._text) and self._text[at + 2] > " ":
                    self._at += 2
                elif self._next() == ",":
                    self._take(",")
                    self._next()
                else:
                    break
        self._take("]")

    def _parsed(self) -> Any:
        """Return the value that starts here."""
        while True:
            try:
                value, end = _parse(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or len(self._text) - self._at > LONGEST or not self._more():
                    raise self._located(error) from error
                continue
            if end + 3 <= len(self._text) or not self._more():  # a number may go on: 1 is the start of 1.5e-3
                self._at = end
                return value

    def _more(self) -> bool:
        """Read on, at least as much as waits already, so that a long value is not parsed in a hundred attempts."""
        rest = self._text[self._at :]
        parts, found = [rest], 0
        for block in self._blocks:
            parts.append(block)
            found += len(block)
            if found > len(rest):
                break
        if not found:
            return False
        self._before += self._at
        self._text, self._at = "".join(parts), 0
        return True

    def _next(self) -> str:
        """Return the next character that is no blank, which is not taken; empty at the end."""
        while True:
            found = _skip(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _take(self, character: str) -> None:
        if self._next() != character:
            raise self._error(repr(character))
        self._at += 1

    def _end(self) -> None:
        if self._next():
            raise self._error("the end")

    def _error(self, expected: str) -> NotJsonError:
        found = self._text[self._at : self._at + 20]
        where = f"character {self._before + self._at:,}"
        return NotJsonError(f"expected {expected} at {where}, found {found!r}" if found else f"it ends at {where}")

    def _located(self, error: ValueError | RecursionError) -> NotJsonError:
        if isinstance(error, json.JSONDecodeError):
            return NotJsonError(f"{error.msg.removesuffix(' at')} at character {self._before + error.pos:,}")
        return NotJsonError(f"{error} in what starts at character {self._before + self._at:,}")
