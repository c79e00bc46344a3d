"""What a database must offer to hold a store: the contract that `sqlite.py` and `duckdb.py` fulfil.

What databases do differently stands behind these methods, and the rest of the library speaks SQL that both know. `merge.py` knows a
little more: how a SQLite source is held still, how many rows a batch has, how keys and truth values are written.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, Engine

Row = tuple[Any, ...]


class Meaning(NamedTuple):
    """What a name means: a row of `current_names`, without its date."""

    kind: str  # teacher, student, prompt (named by step), …
    name: str
    identity: str


class Contents(NamedTuple):
    """What a database file holds: its tables, and whether there is nothing at all in it."""

    tables: set[str]
    is_blank: bool


class Backend(Protocol):
    """One open database file (later: server)."""

    name: str
    path: Path
    errors: tuple[type[Exception], ...]  # the driver's own, where they are not wrapped by SQLAlchemy
    writer: Engine  # at most one connection, whose transactions take the write lock when they begin
    reader: Engine  # sees committed rows only and never holds up the writer

    def insert(self, conn: Connection, table: str, columns: Sequence[str], rows: Sequence[Row]) -> int:
        """Insert the rows that are not there yet, in bulk; return how many were new."""

    def backup(self, target: Path) -> None:
        """Copy the database as it stands to `target`."""

    def look(self) -> AbstractContextManager[Connection]:
        """Open a connection for a first look at a file that may be someone else's: nothing of it changes by that."""

    def contents(self, conn: Connection) -> Contents:
        """Return which tables the file has, and whether it is blank, so that a store may be made there."""

    def schema(self, conn: Connection) -> dict[str, str]:
        """Return every table, index, view and trigger by its kind and name, as a text that is equal where they are."""

    def in_memory(self) -> Engine:
        """Return an engine of this kind for a new database in memory."""

    def undisturbed(self) -> AbstractContextManager[None]:
        """Raise StoreError at the block's end where the file could only be read without locks and was written meanwhile."""

    def refused_writing(self, error: Exception) -> bool:
        """Say whether a driver's error means that the store may only be read: by this user, or as long as the disk is full."""

    def damage(self) -> list[str]:
        """Return what the database itself finds wrong with its file; empty when sound."""

    def explain(self, error: Exception) -> str:
        """Return one line that says what a driver's error means for the user and what to do."""

    def sandbox(
        self, *, allow_external: bool = False, as_if: Sequence[Meaning] = ()
    ) -> AbstractContextManager["Sandbox"]:
        """Open a connection on which no statement can change the store or, unless allowed, reach other files.

        `as_if` makes the views show the store as if these names meant these identities: an older prompt in use again, say.
        """

    def close(self) -> None:
        """Close every connection."""


class Sandbox(Protocol):
    """A read-only connection for SQL that we did not write."""

    views: str  # the schema in which the documented views are found by their qualified names

    def execute(self, sql: str, parameters: dict[str, Any] | None = None) -> tuple[list[str], Any]:
        """Run one statement; return the column names and an iterator of row tuples."""

    def interrupt(self) -> None:
        """Stop the statement under way, from another thread."""

    def leave(self) -> None:
        """Never close the connection: it is at a statement that nothing stops, and closing it would wait for that."""


def names_as_if(names: str, meanings: Sequence[Meaning]) -> str:
    """Return the view that stands in for `names` (current_names) where some names mean something else."""

    def quoted(text: str) -> str:
        return "'" + text.replace("'", "''") + "'"

    others = " AND ".join(f"NOT (n.kind = {quoted(each.kind)} AND n.name = {quoted(each.name)})" for each in meanings)
    rows = " UNION ALL ".join(
        f"SELECT {quoted(each.kind)}, {quoted(each.name)}, {quoted(each.identity)}, ''" for each in meanings
    )
    return f"CREATE TEMP VIEW current_names AS SELECT n.kind, n.name, n.id, n.since FROM {names} n WHERE {others} UNION ALL {rows}"
