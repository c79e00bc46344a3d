"""Limits of a row of a file, the marker for a row that cannot be read, and conversion of values to JSON."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from recycledb.errors import FormatError

MAX_ROW = 1 << 26  # bytes of uncompressed text; a row beyond 64 MiB most likely has an unclosed quote or bracket
MAX_VALUES = 1 << 19  # of a row: as Python objects, values take many times the memory of their text
SMALL = 1 << 20  # bytes; the values of a row up to this size are not counted before parsing

_VALUES = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{,]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Bad:
    """Takes the place of a row that cannot be read; `reason` is one clause."""

    reason: str


def row_too_large(path: Path, number: int, max_row: int) -> FormatError:
    """Return the error for a row (counted from 0) that is too large."""
    return FormatError(
        f"{path}: row {number} (counted from 0) is larger than {max_row / (1 << 20):g} MiB: a quote or bracket is unclosed, "
        "or `recycledb add --max-row-mb N` must allow more"
    )


def too_many_values(text: bytes) -> bool:
    """Return whether a row of JSON has more than MAX_VALUES values."""
    if len(text) <= SMALL or text.count(b",") + text.count(b"[") + text.count(b"{") <= MAX_VALUES:
        return False
    count = 0
    for found in _VALUES.finditer(text):
        count += text[found.start()] != 0x22  # a quote, which begins a string
        if count > MAX_VALUES:
            return True
    return False


def plain(value: Any) -> Any:
    """Return a database value as JSON can hold it: NaN and infinity as None, bytes in hexadecimal, other types as text."""
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
    """Return a number as JSON can hold it; a decimal as text if a float would lose digits."""
    number = float(value)
    if isinstance(value, Decimal) and not (math.isfinite(number) and Decimal(repr(number)) == value):
        return str(value)
    return number if math.isfinite(number) else None


def flat(value: Any) -> Any:
    """Return a value for one field: lists and structures as JSON text."""
    found = plain(value)
    return json.dumps(found, ensure_ascii=False) if isinstance(found, list | dict) else found
