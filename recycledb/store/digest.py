"""The digest of a row: 63 bits over all of its other columns, so that a changed bit is seen where no id covers it.

Invariant: a row has the same digest on every backend and after every additive migration. NULLs at a row's end are left out, so a
column that is added later, behind the others and NULL in the rows that were there, changes nothing; and a value counts as what a
database gives back for it.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import orjson
from sqlalchemy import Boolean, Double, Integer, Table

from recycledb.errors import StoreError

COLUMN = "digest"


def row_digest(table: str, values: Sequence[Any]) -> int:
    """Return the digest of a row, from 0 to 2^63 − 1; `values` in the order of the table's columns, the last of them no NULL.

    StoreError where no database could hold a value: a lone surrogate in a text, a whole number of more than 64 bits.
    """
    try:
        content = orjson.dumps((table, *values))
    except (TypeError, ValueError) as error:  # orjson's own error is both, by version
        raise StoreError(f"a row of {table} cannot be stored: {error}") from error
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 1


def digests_of(table: Table) -> Callable[[Sequence[Any]], int]:
    """Return the function that gives the digest of a row of `table`, whose values stand in the order of its columns."""
    kinds = [column.type for column in table.columns if column.name != COLUMN]
    classes = tuple(map(_class, kinds))
    plain = list(map(_plain, kinds))
    doubles = [place for place, kind in enumerate(kinds) if isinstance(kind, Double)]
    name = table.name

    def digest(row: Sequence[Any]) -> int:
        if tuple(map(type, row)) == classes and all(map(_is_even, map(row.__getitem__, doubles))):
            return row_digest(name, row)  # the way of most rows: nothing to settle
        values = [None if value is None else settle(value) for value, settle in zip(row, plain, strict=True)]
        while values and values[-1] is None:
            values.pop()
        return row_digest(name, values)

    return digest


def with_digests(table: Table, rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Yield rows as `table` has them: with their digest last, unless it is a table without digests."""
    if COLUMN not in table.columns:
        yield from rows
        return
    digest = digests_of(table)
    for row in rows:
        yield (*row, digest(row))


def _is_even(value: float) -> bool:
    return 0.0 < value < math.inf


def _class(kind: object) -> type:
    """Return the class that a column's values have, as drivers of both backends take and give them."""
    if isinstance(kind, Boolean):
        return bool
    if isinstance(kind, Double):
        return float
    return int if isinstance(kind, Integer) else str


def _plain(kind: object) -> Callable[[Any], Any]:
    """Return how a column's values become what every backend gives back for them."""
    if isinstance(kind, Boolean):
        return _truth
    if isinstance(kind, Double):
        return _number
    return _same


def _number(value: Any) -> float | str | None:
    """SQLite gives 0.0 for -0.0, and NULL for NaN; JSON has no infinity."""
    if math.isnan(value):
        return None
    number = float(value) + 0.0
    return number if math.isfinite(number) else str(number)


def _truth(value: Any) -> Any:
    """SQLite has 0 and 1; another number is not what was written."""
    return bool(value) if value in (0, 1) else value


def _same(value: Any) -> Any:
    return value
