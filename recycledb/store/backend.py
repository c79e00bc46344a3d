"""The interface of a database that can hold a store; `sqlite.py`, `duckdb.py` and `postgresql.py` implement it.

Differences between databases belong behind these methods; the rest of the library uses SQL that all support. `merge.py` is an
exception: it takes the snapshot of a SQLite source, and knows how many rows to commit at once and how keys and booleans are stored.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, Engine

Row = tuple[Any, ...]


class Meaning(NamedTuple):
    """The id that a name stands for: a row of `current_names`, without `since`."""

    kind: str  # teacher, student, prompt (named by step), …
    name: str
    identity: str


class Contents(NamedTuple):
    """What a database file holds: its tables, and whether it is completely empty."""

    tables: set[str]
    is_blank: bool


class Backend(Protocol):
    """One open database: a file, or a database of a server."""

    name: str
    errors: tuple[type[Exception], ...]  # the driver's own, for calls that SQLAlchemy does not wrap
    is_server: bool
    wait_s: float  # how long a transaction is tried again while the server is away; 0 for files
    writer: Engine  # at most one connection, whose transactions take the write lock when they begin
    reader: Engine  # sees committed rows only and never blocks the writer
    one_clock: bool  # whether `now` is the same clock for every host

    @property
    def label(self) -> str:
        """How messages name the store: the path, or the URL without its password."""

    @property
    def title(self) -> str:
        """A short name: of the file, or of the database."""

    @property
    def folder(self) -> Path | None:
        """The folder of the file, in which temporary files of its size can be written; None for a server."""

    @property
    def identity(self) -> str:
        """A text that is equal for two URLs of one store."""

    def exists(self) -> bool:
        """Return whether there is a database to open; StoreError if there can be none."""

    def require_place(self) -> None:
        """Raise StoreError if no store can be created here."""

    def copy_before_upgrade(self, revision: str) -> Path | None:
        """Copy the store, which has this revision, and return where the copy is; None where the user makes one."""

    def begin(self, *, locked: bool) -> AbstractContextManager[Connection]:
        """Open a write transaction; without `locked`, where the database can, others may write at the same time."""

    def is_transient(self, error: Exception) -> bool:
        """Return whether a transaction that failed with a driver's error may succeed if it is run again."""

    def insert(self, conn: Connection, table: str, columns: Sequence[str], rows: Sequence[Row]) -> int:
        """Insert the rows that are not there yet, in bulk; return how many were new."""

    def grants(self, role: str) -> list[str]:
        """Return the statements that let a role of a server read the store; none for a file."""

    def analyze(self) -> None:
        """Tell the planner what the tables hold, after many rows were added."""

    def now(self, conn: Connection) -> str:
        """Return the time by the clock that heartbeats and leases of this store go by, as `utc_now` writes it."""

    def backup(self, target: Path) -> None:
        """Copy the database in its current state to the file `target`, which others do not see yet."""

    def save(self, target: Path) -> str:
        """Write a backup to a new file `target`, whole or not at all; return how it is restored."""

    def look(self) -> AbstractContextManager[Connection]:
        """Open a connection to inspect a file that may not be a store; this does not change the file."""

    def contents(self, conn: Connection) -> Contents:
        """Return which tables the file has, and whether it is blank, so that a store may be created in it."""

    def schema(self, conn: Connection) -> dict[str, str]:
        """Return a text for every table, index, view and trigger, by kind and name; equal definitions have equal texts."""

    def scratch(self) -> AbstractContextManager[Connection]:
        """Open a transaction in a new, empty database of this backend that is gone afterwards."""

    def turn(self, *, sandboxed: bool) -> AbstractContextManager[None]:
        """Wait where sandboxes and other connections cannot be open in one process at the same time; held while one is open."""

    def undisturbed(self) -> AbstractContextManager[None]:
        """Raise StoreError at the end of the block if the file was read without locks and written in the meantime."""

    def commits(self, conn: Connection) -> int | None:
        """Return a number that changes when another connection has committed; None if no other process can write meanwhile.

        It costs nothing, and compares with earlier numbers of the same connection, outside of its transactions.
        """

    def refused_writing(self, error: Exception) -> bool:
        """Return whether a driver's error means that the store is read-only: no permission, or the disk is full."""

    def damage(self) -> list[str]:
        """Return the findings of the database's own integrity check; empty if there are none."""

    def explain(self, error: Exception) -> str:
        """Return one line for the user: what a driver's error means and what to do."""

    def sandbox(
        self, *, allow_external: bool = False, as_if: Sequence[Meaning] = ()
    ) -> AbstractContextManager["Sandbox"]:
        """Open a connection on which no statement can change the store or, unless `allow_external`, read other files.

        `as_if` overrides rows of `current_names` in all views, for example to use an older prompt again.
        """

    def close(self) -> None:
        """Close every connection."""


class Sandbox(Protocol):
    """A read-only connection for users' SQL."""

    views: str  # the schema in which the documented views are found by their qualified names

    def execute(self, sql: str, parameters: dict[str, Any] | None = None) -> tuple[list[str], Any]:
        """Run one statement; return the column names and an iterator of row tuples."""

    def require_reader(self) -> None:
        """Raise QueryError if what a user's statement may read is not limited, because of who is connected."""

    def columns(self, select: str, parameters: dict[str, Any] | None = None) -> list[str]:
        """Return the columns of a SELECT, as a subquery has them, without reading its rows."""

    def interrupt(self) -> None:
        """Stop the running statement, from another thread."""

    def leave(self) -> None:
        """Never close the connection: it runs a statement that cannot be stopped, and closing it would wait for that."""


def names_as_if(names: str, meanings: Sequence[Meaning]) -> str:
    """Return DDL of a temporary view that overrides `names` (current_names) with these meanings."""

    def quoted(text: str) -> str:
        return "'" + text.replace("'", "''") + "'"

    others = " AND ".join(f"NOT (n.kind = {quoted(each.kind)} AND n.name = {quoted(each.name)})" for each in meanings)
    rows = " UNION ALL ".join(
        f"SELECT {quoted(each.kind)}, {quoted(each.name)}, {quoted(each.identity)}, ''" for each in meanings
    )
    return f"CREATE TEMP VIEW current_names AS SELECT n.kind, n.name, n.id, n.since FROM {names} n WHERE {others} UNION ALL {rows}"
