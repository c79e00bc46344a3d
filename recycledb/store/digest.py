"""The digest of a row: 63 bits over all its other columns, which detects changes in columns that no id covers.

Invariant: a row has the same digest in every backend and after every additive migration. Trailing NULLs are left out, so a column that
is added last, and is NULL in existing rows, changes nothing. Values are hashed in the form in which databases return them.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import orjson
from sqlalchemy import Boolean, Double, Integer, LargeBinary, Table

from recycledb.errors import StoreError

COLUMN = "digest"


def row_digest(table: str, values: Sequence[Any]) -> int:
    """Return the digest of a row, from 0 to 2^63 − 1; `values` are in the order of the table's columns, and the last is not NULL.

    Raises StoreError for a value that no database can store: a lone surrogate in a text, an integer of more than 64 bits.
    """
    try:
        content = orjson.dumps((table, *values))
    except (TypeError, ValueError) as error:  # which of the two orjson raises depends on its version
        raise StoreError(f"a row of {table} cannot be stored: {error}") from error
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 1


def digests_of(table: Table) -> Callable[[Sequence[Any]], int]:
    """Return the function that computes the digest of a row of `table`, whose values are in the order of its columns."""
    kinds = [column.type for column in table.columns if column.name != COLUMN]
    classes = tuple(map(_class, kinds))
    plain = list(map(_plain, kinds))
    doubles = [place for place, kind in enumerate(kinds) if isinstance(kind, Double)]
    name = table.name

    def digest(row: Sequence[Any]) -> int:
        if tuple(map(type, row)) == classes and all(map(_is_even, map(row.__getitem__, doubles))):
            return row_digest(name, row)  # most rows need no conversion
        values = [None if value is None else settle(value) for value, settle in zip(row, plain, strict=True)]
        while values and values[-1] is None:
            values.pop()
        return row_digest(name, values)

    return digest


def with_digests(table: Table, rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Yield rows in the layout of `table`: with their digest last, unless the table has no digests."""
    if COLUMN not in table.columns:
        yield from rows
        return
    digest = digests_of(table)
    for row in rows:
        yield (*row, digest(row))


def _is_even(value: float) -> bool:
    return 0.0 < value < math.inf


def _class(kind: object) -> type:
    """Return the Python class of a column's values in both backends' drivers."""
    if isinstance(kind, Boolean):
        return bool
    if isinstance(kind, Double):
        return float
    return (
        int if isinstance(kind, Integer) else str
    )  # for bytes too, which never take the short way: they are converted


def _plain(kind: object) -> Callable[[Any], Any]:
    """Return the function that converts a column's values to the form in which every backend returns them."""
    if isinstance(kind, Boolean):
        return _truth
    if isinstance(kind, Double):
        return _number
    if isinstance(kind, LargeBinary):
        return _content
    return _same


def _content(value: bytes) -> str:
    """Convert bytes, which JSON does not have, to their hash."""
    return hashlib.blake2b(value, digest_size=16).hexdigest()


def _number(value: Any) -> float | str | None:
    """Convert a float: SQLite returns 0.0 for -0.0, and NULL for NaN; JSON has no infinity."""
    if math.isnan(value):
        return None
    number = float(value) + 0.0
    return number if math.isfinite(number) else str(number)


def _truth(value: Any) -> Any:
    """Convert SQLite's 0 and 1 to booleans; any other number means that the value was changed."""
    return bool(value) if value in (0, 1) else value


def _same(value: Any) -> Any:
    return value
