"""The store: the only owner of engines, transactions and SQL writes.

Invariant: rows are inserted, never changed or deleted (except in `worker` and `lease`); every write is one short transaction that holds the
process's write lock, and it is durable when `write()` returns.
This package does not know what a reply contains or how a loss is computed: it stores, finds and counts rows.
`Store` has connections, transactions and inserts; queries are functions that take a `Store`, in one module for each subject.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy import Row as _SQLRow
from sqlalchemy.exc import DBAPIError

from recycledb.errors import ReadOnlyError, StoreError, is_interrupt, without_password
from recycledb.schema import utc_now
from recycledb.store import migrate
from recycledb.store.backend import Backend, Meaning, Row, Sandbox
from recycledb.store.digest import with_digests
from recycledb.store.liveness import HEARTBEAT_S, HEARTBEAT_TIMEOUT_S, Watch
from recycledb.store.naming import require_unused
from recycledb.store.rows import TABLES, NameRow, StoredRow
from recycledb.store.tables import metadata
from recycledb.store.watch import TimeLimit, stoppable, watched

__all__ = [
    "HEARTBEAT_S", "HEARTBEAT_TIMEOUT_S", "Meaning", "Row", "SQLRow", "Sandbox", "Store", "TimeLimit", "parse_url", "revisions",
    "upgrade",
]  # fmt: skip

INSERT_ROWS = 5_000  # in one statement

SQLRow = _SQLRow[*tuple[Any, ...]]
_T = TypeVar("_T")


def parse_url(url: str) -> tuple[str, Path]:
    """Return the backend's name and the path of a store's URL, or raise StoreError."""
    scheme, separator, rest = url.partition(":///")
    shown = without_password(url)
    if scheme == "postgresql+psycopg" or url.startswith("postgresql"):
        raise StoreError(f"{shown}: PostgreSQL is not supported yet; use sqlite:///PATH or duckdb:///PATH")
    if not separator or scheme not in ("sqlite", "duckdb"):
        raise StoreError(f"{shown!r} is not a store's URL; use sqlite:///PATH or duckdb:///PATH")
    if not rest or rest == ":memory:":
        raise StoreError(f"{shown!r} has no path; a store is a file, for example {scheme}:///recycle.db")
    if "\0" in rest:
        raise StoreError(f"{shown!r} is not a store's URL: a path cannot contain a NUL character")
    try:
        return scheme, Path(rest).expanduser()
    except RuntimeError as error:
        raise StoreError(f"{shown!r}: no home folder of {rest.split('/')[0]} was found; give the full path") from error


def open_backend(url: str) -> Backend:
    """Return the backend of a URL, without opening its file."""
    scheme, path = parse_url(url)
    try:
        path.exists()
    except OSError as error:  # no permission for a folder, a name that is too long
        raise StoreError(f"{path} cannot be opened: {error.strerror or error}") from error
    if scheme == "duckdb":
        from recycledb.store.duckdb import DuckDB

        return DuckDB(path)
    from recycledb.store.sqlite import SQLite

    return SQLite(path)


@contextmanager
def _explained(backend: Backend) -> Iterator[None]:
    """Turn a driver's error into one line for the user."""
    try:
        yield
    except DBAPIError as error:
        raise _translated(backend, error.orig if isinstance(error.orig, Exception) else error) from error
    except backend.errors as error:
        raise _translated(backend, error) from error
    except UnicodeDecodeError as error:  # raised for a text, or by a driver whose message quotes damaged bytes
        raise StoreError(f"{backend.path} is damaged: it contains text that is not UTF-8; restore a backup") from error
    except RuntimeError as error:
        if not is_interrupt(error):
            raise
        raise KeyboardInterrupt from error


def _translated(backend: Backend, error: Exception) -> StoreError:
    kind = ReadOnlyError if backend.refused_writing(error) else StoreError
    return kind(backend.explain(error))


def revisions(url: str) -> tuple[str | None, str]:
    """Return the schema revision of the store at `url`, and the newest."""
    backend = open_backend(url)
    if not backend.path.exists():
        raise StoreError(f"there is no store at {backend.path}; `recycledb init` or `recycledb add FILE` creates one")
    try:
        with _explained(backend), backend.look() as conn:
            return migrate.current(backend, conn), migrate.HEAD
    finally:
        backend.close()


def upgrade(url: str, *, force: bool = False) -> Path | None:
    """Upgrade the store at `url` to the newest schema; return the path of the backup, if one was made.

    SchemaError while processes are at work on it; `force` takes those for dead that have not sent a heartbeat for two minutes.
    """
    revisions(url)
    backend = open_backend(url)
    try:
        with _explained(backend):
            return migrate.upgrade(backend, force=force)
    finally:
        backend.close()


def _prepare(backend: Backend, create: bool) -> None:
    """Require the newest schema; with `create`, create it if the file does not exist or is empty."""
    path = backend.path
    if path.is_dir():
        example = f"{backend.name}:///{path / 'recycle.db'}"
        raise StoreError(f"{path} is a folder; a store is a file, for example {example}")
    if not path.exists():
        if options := re.search(r"\?\w+=.*", path.name):  # an existing file may have such a name, but none is created
            raise StoreError(f"there is no store at {path}: a store's URL takes no options; leave out {options[0]}")
        if not create:
            raise StoreError(f"there is no store at {path}; `recycledb init` or `recycledb add FILE` creates one")
        if not path.parent.is_dir():
            raise StoreError(f"there is no folder {path.parent} for the store {path.name}; create it first")
        migrate.upgrade(backend)
    with backend.look() as conn:
        if not (create and migrate.current(backend, conn) is None):
            migrate.require_newest(backend, conn)
            return
    migrate.upgrade(backend)


class Store:
    """An open store at the newest schema."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._lock = threading.RLock()
        self._local = threading.local()
        self.watch = Watch()  # of other processes' workers

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> "Store":
        """Open the store at `url`; with `create`, create it if there is none. Raises SchemaError unless it has the newest schema."""
        backend = open_backend(url)
        try:
            with _explained(backend):
                _prepare(backend, create)
        except BaseException:
            backend.close()
            raise
        return cls(backend)

    def close(self) -> None:
        """Close every connection."""
        self.backend.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- transactions

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a write transaction: it takes the write lock at once, and is durable when this returns."""
        with self._lock, self._turn(), _explained(self.backend), self.backend.writer.begin() as conn:
            yield conn

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a connection that sees committed rows; it never blocks a writer."""
        with (
            self._turn(),
            _explained(self.backend),
            self.backend.undisturbed(),
            self.backend.reader.connect() as conn,
        ):
            yield conn

    def _turn(self) -> AbstractContextManager[None]:
        return self.backend.turn(sandboxed=False)

    def rows(self, sql: str, **parameters: Any) -> Sequence[SQLRow]:
        """Return every row of a SELECT with named parameters."""
        shared: Connection | None = getattr(self._local, "conn", None)
        if shared is not None:
            return shared.execute(text(sql), parameters).fetchall()
        with self.read() as conn:
            return conn.execute(text(sql), parameters).fetchall()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let all `rows` of this thread read one snapshot by one connection: opening one takes longer than most look-ups by key."""
        with self.read() as conn:
            before, self._local.conn = getattr(self._local, "conn", None), conn
            try:
                yield
            finally:
                self._local.conn = before

    @contextmanager
    def sandbox(
        self, *, allow_external: bool = False, as_if: Sequence[Meaning] = (), limit: TimeLimit | None = None
    ) -> Iterator[Sandbox]:
        """Open a read-only connection for users' SQL; Ctrl-C and the time limit stop its statements.

        See `Backend.sandbox` for what is allowed.
        """
        with (
            self.backend.turn(sandboxed=True),
            self.backend.sandbox(allow_external=allow_external, as_if=as_if) as opened,
            watched(opened, limit or TimeLimit()) as sandbox,
        ):
            yield sandbox

    def stoppable(self, work: Callable[[], _T]) -> _T:
        """Run `work`, which reads this store by statements that may take long, and return its result; Ctrl-C stops them."""
        return stoppable(self.backend.reader, work)

    def insert(self, conn: Connection, rows: Iterable[StoredRow]) -> int:
        """Insert the rows that are not there yet, with their digests; return how many were new. A row's type decides its table."""
        new = 0
        for kind, group in groupby(rows, type):
            table = metadata.tables[TABLES[kind]]
            columns = [column.name for column in table.columns]
            digested = with_digests(table, group)
            while chunk := list(islice(digested, INSERT_ROWS)):
                new += self.backend.insert(conn, table.name, columns, chunk)
        return new

    # -- names

    def find_name(self, kind: str, name: str) -> str | None:
        """Return the current id of `name`."""
        found = self.rows("SELECT id FROM current_names WHERE kind = :kind AND name = :name", kind=kind, name=name)
        return str(found[0][0]) if found else None

    def ensure_name(self, conn: Connection, kind: str, name: str, identity: str) -> None:
        """Make `identity` the current id of `name`, even if the clock is behind the time of its last change.

        StoreError where a sync that works now uses the name for another id: else the two would move it to and fro.
        """
        sql = "SELECT id, since FROM current_names WHERE kind = :kind AND name = :name"
        found = conn.execute(text(sql), {"kind": kind, "name": name}).first()
        if found is not None and found.id != identity:
            require_unused(self.backend, self.watch, conn, kind, name, identity)
        if found is None or found.id != identity:
            since = utc_now() if found is None else max(utc_now(), _moment_after(found.since))
            self.insert(conn, [NameRow(kind, name, since, identity)])


def _moment_after(moment: str) -> str:
    """Return the time one microsecond later, so that a clock that was set back does not keep a name from changing."""
    return (datetime.fromisoformat(moment) + timedelta(microseconds=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
