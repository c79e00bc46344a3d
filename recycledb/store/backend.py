"""What a database must offer to hold a store: the contract that `sqlite.py` and `duckdb.py` fulfil.

Every difference between databases lives behind these methods; the rest of the library speaks portable SQL.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

Row = tuple[Any, ...]


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

    def damage(self) -> list[str]:
        """Return what the database itself finds wrong with its file; empty when sound."""

    def explain(self, error: Exception) -> str:
        """Return one line that says what a driver's error means for the user and what to do."""

    def sandbox(self, *, allow_external: bool) -> AbstractContextManager["Sandbox"]:
        """Open a connection on which no statement can change the store or, unless allowed, reach other files."""

    def close(self) -> None:
        """Close every connection."""


class Sandbox(Protocol):
    """A read-only connection for SQL that we did not write."""

    def execute(self, sql: str, parameters: dict[str, Any] | None = None) -> tuple[list[str], Any]:
        """Run one statement; return the column names and an iterator of row tuples."""

    def interrupt(self) -> None:
        """Stop the statement under way, from another thread."""
