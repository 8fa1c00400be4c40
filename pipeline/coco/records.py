"""Finds the records of a JSON object's top-level lists by quotes and brackets alone, block by block.

Nothing is parsed here. What comes out is where runs of records lie, and the rest of the file with a mark in place of
each list's content. A parser then reads the runs and the rest. JSON's grammar composes: where all of these parse, the
file is JSON and holds just these values; where the brackets mislead (it is no JSON), some part does not parse, or not
to as many records as counted.
"""

from io import BufferedIOBase, RawIOBase
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.kernels import kernel

File = RawIOBase | BufferedIOBase

BLOCK = 1 << 18  # bytes scanned at a time
RUN_RECORDS = 4096
RUN_BYTES = 1 << 20
"""A run ends with the record that reaches either."""

MAX_LISTS = 1000  # an annotation file has three to six

STATE_SIZE = 7
_DEPTH, _NUM_LISTS, _START, _RECORDS, _IN_STRING, _ESCAPED, _IN_LIST = range(STATE_SIZE)
_QUOTE, _BACKSLASH, _COMMA = ord('"'), ord("\\"), ord(",")
_OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _CLOSE_OBJECT = ord("["), ord("]"), ord("{"), ord("}")


class Outline(NamedTuple):
    """Where the records of a file lie.

    Attributes:
        runs: int64 [R, 4], in file order: list (from 0, in file order), first byte, byte behind the last, number of
            records. The bytes are records with commas between them. An empty list has a run too, of one record.
        rest: all other bytes; the content of list i is replaced by the number i.
    """

    runs: npt.NDArray[np.int64]
    rest: bytes


def outline(file: File, run_records: int = RUN_RECORDS, run_bytes: int = RUN_BYTES) -> Outline | None:
    """Find the lists that are values of the top-level object; None where brackets do not match or lists abound.

    Args:
        file: seekable, read from its start.
        run_records, run_bytes: a run ends with the record that reaches either.

    Raises:
        OSError: it cannot be read.
    """
    block = np.empty(BLOCK, np.uint8)
    state = np.zeros(STATE_SIZE, np.int64)
    # In one block, a list more ends a run, or run_records commas do, or run_bytes do.
    found = np.empty((MAX_LISTS + BLOCK // run_records + BLOCK // run_bytes + 2, 4), np.int64)
    parts = []
    base = 0
    file.seek(0)
    while size := file.readinto(block.data):
        count = scan_block(block[:size], base, state, found, run_records, run_bytes)
        if count < 0:
            return None
        parts.append(found[:count].copy())
        base += size
    if state[_DEPTH] or state[_IN_STRING] or not parts:
        return None
    runs = np.concatenate(parts)
    return Outline(runs, _rest(file, runs, base))


def _rest(file: File, runs: npt.NDArray[np.int64], size: int) -> bytes:
    """The file without the content of its lists."""
    firsts = np.flatnonzero(np.diff(runs[:, 0], prepend=-1))
    lasts = np.flatnonzero(np.diff(runs[:, 0], append=-1))
    parts: list[bytes | bytearray] = []
    place = 0
    for i, (start, stop) in enumerate(zip(runs[firsts, 1].tolist(), runs[lasts, 2].tolist(), strict=True)):
        parts += [read_range(file, place, start), b"%d" % i]
        place = stop
    parts.append(read_range(file, place, size))
    return b"".join(parts)


def read_range(file: File, start: int, stop: int) -> bytearray:
    """Bytes [start, stop) of a file; fewer where it ends before.

    Raises:
        OSError: it cannot be read.
    """
    data = bytearray(stop - start)
    file.seek(start)
    view, done = memoryview(data), 0
    while size := file.readinto(view[done:]):
        done += size
    del view
    del data[done:]
    return data


@kernel
def scan_block(
    block: npt.NDArray[np.uint8],
    base: int,
    state: npt.NDArray[np.int64],
    found: npt.NDArray[np.int64],
    run_records: int,
    run_bytes: int,
) -> int:
    """Scan one block of a file and note the runs that end in it.

    Args:
        block: uint8 [n]; base: its place in the file.
        state: int64 [STATE_SIZE], zeros for the first block, changed in place.
        found: int64 [M, 4], filled with rows of Outline.runs.

    Returns:
        The number of runs found; -1 where brackets do not match or there are more than MAX_LISTS lists.
    """
    depth, num_lists, start, records = state[_DEPTH], state[_NUM_LISTS], state[_START], state[_RECORDS]
    in_string, escaped, in_list = state[_IN_STRING] != 0, state[_ESCAPED] != 0, state[_IN_LIST] != 0
    count = 0
    for i in range(len(block)):
        c = block[i]
        if c == _QUOTE:
            if not escaped:
                in_string = not in_string
            escaped = False
        elif in_string:
            escaped = c == _BACKSLASH and not escaped
        elif c < _OPEN_LIST:  # most that is in no string: digits, spaces
            if depth == 2 and c == _COMMA and in_list:
                records += 1
                stop = base + i
                if records >= run_records or stop - start >= run_bytes:
                    found[count, 0], found[count, 1], found[count, 2], found[count, 3] = (
                        num_lists,
                        start,
                        stop,
                        records,
                    )
                    count += 1
                    start, records = stop + 1, 0
        elif c in (_OPEN_LIST, _OPEN_OBJECT):
            depth += 1
            if depth == 2:
                in_list = c == _OPEN_LIST
                start, records = base + i + 1, 0
        elif c in (_CLOSE_LIST, _CLOSE_OBJECT):
            depth -= 1
            if depth == 1 and in_list:
                if c != _CLOSE_LIST or num_lists == MAX_LISTS:
                    return -1
                stop = base + i
                found[count, 0], found[count, 1], found[count, 2], found[count, 3] = (
                    num_lists,
                    start,
                    stop,
                    records + 1,
                )
                count += 1
                num_lists += 1
                in_list = False
            elif depth < 0:
                return -1
    state[_DEPTH], state[_NUM_LISTS], state[_START], state[_RECORDS] = depth, num_lists, start, records
    state[_IN_STRING], state[_ESCAPED], state[_IN_LIST] = in_string, escaped, in_list
    return count
