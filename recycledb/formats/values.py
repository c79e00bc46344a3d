"""What a row of a file may be: how large, of how many values; what stands where one cannot be read; a value as JSON has it."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

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


def plain(value: Any) -> Any:
    """Return a database's value as JSON has it: no NaN, no infinity; bytes in hexadecimal; the rest as text."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float | Decimal):
        return _plain_number(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _plain_number(value: float | Decimal) -> float | str | None:
    """Return a number as JSON has it, a decimal one as text where a float would lose a part of it."""
    number = float(value)
    if isinstance(value, Decimal) and not (math.isfinite(number) and Decimal(repr(number)) == value):
        return str(value)
    return number if math.isfinite(number) else None


def flat(value: Any) -> Any:
    """Return a value that stands in one field: lists and structures as JSON."""
    found = plain(value)
    return json.dumps(found, ensure_ascii=False) if isinstance(found, list | dict) else found
