"""What a row of a file may be: how large, of how many values; and what stands where one cannot be read."""

import re
from dataclasses import dataclass
from pathlib import Path

from recycledb.errors import FormatError

MAX_ROW = 1 << 26  # bytes of unpacked text; beyond these 64 MiB, most likely, a quote or bracket was left open
MAX_VALUES = 1 << 19  # of a row: as Python's objects, values take many times the room of their text
SMALL = 1 << 20  # bytes; a row of these is parsed without being counted

_VALUES = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{,]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Bad:
    """Stands where a row should be that is no JSON value; `reason` is one clause."""

    reason: str


def row_too_large(path: Path, number: int, max_row: int) -> FormatError:
    """Return the error for a row (counted from 0) that is larger than a row may be."""
    return FormatError(
        f"{path}: row {number} (counted from 0) is larger than {max_row / (1 << 20):g} MiB: a quote or bracket is left open, "
        "or else `recycledb add --max-row-mb N` allows more"
    )


def too_many_values(text: bytes) -> bool:
    """Tell whether a row of JSON has more values than a row may have."""
    if len(text) <= SMALL or text.count(b",") + text.count(b"[") + text.count(b"{") <= MAX_VALUES:
        return False
    count = 0
    for found in _VALUES.finditer(text):
        count += text[found.start()] != 0x22  # a quote, which begins a text
        if count > MAX_VALUES:
            return True
    return False
