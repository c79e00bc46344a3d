"""The digest of a row: 63 bits over all of its other columns, so that a changed bit is seen where no id covers it.

Invariant: a row has the same digest on every backend and after every additive migration. NULLs are left out, so a column that
is added later, and is NULL in the rows that were there, changes nothing.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import orjson
from sqlalchemy import Boolean, Double, Table

from recycledb.errors import StoreError

COLUMN = "digest"


def row_digest(table: str, values: dict[str, Any]) -> int:
    """Return the digest of a row, from 0 to 2^63 − 1; `values` without NULLs and in the order of the table's columns.

    StoreError where no database could hold a value: a lone surrogate in a text, a whole number of more than 64 bits.
    """
    try:
        content = orjson.dumps([table, values])
    except (TypeError, ValueError) as error:  # orjson's own error is both, by version
        raise StoreError(f"a row of {table} cannot be stored: {error}") from error
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 1


def digests_of(table: Table) -> Callable[[Sequence[Any]], int]:
    """Return the function that gives the digest of a row of `table`, whose values stand in the order of its columns."""
    columns = [(column.name, _plain(column.type)) for column in table.columns if column.name != COLUMN]

    def digest(row: Sequence[Any]) -> int:
        # Fewer values than columns: those that are missing are NULL.
        pairs = zip(columns, row, strict=False)
        return row_digest(
            table.name, {name: plain(value) if plain else value for (name, plain), value in pairs if value is not None}
        )

    return digest


def with_digests(table: Table, rows: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield rows as wide as `table`: columns that a row lacks at its end are NULL, and its digest is the last.

    A row of a table without digests, and one that has its digest already, is yielded as it is.
    """
    width, digest = len(table.columns), digests_of(table)
    digested = COLUMN in table.columns
    for row in rows:
        if len(row) == width:
            yield tuple(row)
        elif digested:
            yield (*row, *[None] * (width - 1 - len(row)), digest(row))
        else:
            yield (*row, *[None] * (width - len(row)))


def _plain(kind: object) -> Callable[[Any], Any] | None:
    """Return how a column's values become the same on every backend: SQLite has 0 and 1 for truth, and 0 for 0.0."""
    if isinstance(kind, Boolean):
        return bool
    return float if isinstance(kind, Double) else None
