"""The store: the only owner of engines, transactions and SQL writes.

Invariant: rows are inserted, never changed or deleted (except in `worker` and `lease`); every write is one short transaction, durable when
`write()` returns. It holds the write lock, but for rows of content and heartbeats on a server, which need none.
This package does not know what a reply contains or how a loss is computed: it stores, finds and counts rows.
`Store` has connections, transactions and inserts; queries are functions that take a `Store`, in one module for each subject.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, TextClause, text
from sqlalchemy import Row as _SQLRow
from sqlalchemy.exc import DBAPIError

from recycledb.errors import AwayError, ReadOnlyError, StoreError, is_interrupt
from recycledb.schema import utc_now
from recycledb.store import migrate
from recycledb.store.address import open_backend, parse_url
from recycledb.store.backend import Backend, Meaning, Row, Sandbox
from recycledb.store.digest import with_digests
from recycledb.store.liveness import HEARTBEAT_S, HEARTBEAT_TIMEOUT_S, Watch
from recycledb.store.naming import require_unused
from recycledb.store.rows import TABLES, NameRow, StoredRow
from recycledb.store.tables import metadata
from recycledb.store.watch import TimeLimit, stoppable, watched

__all__ = [
    "HEARTBEAT_S", "HEARTBEAT_TIMEOUT_S", "Meaning", "Row", "SQLRow", "Sandbox", "Store", "TimeLimit", "clause", "parse_url", "revisions",
    "upgrade",
]  # fmt: skip

INSERT_ROWS = 5_000  # in one statement
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0  # between tries of a transaction

FIRST_ANALYSIS_ROWS, ANALYSIS_FACTOR, ANALYSIS_S = 500, 4, 600.0

log = logging.getLogger(__name__)

SQLRow = _SQLRow[*tuple[Any, ...]]
_T = TypeVar("_T")


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
        raise StoreError(f"{backend.label} is damaged: it contains text that is not UTF-8; restore a backup") from error
    except RuntimeError as error:
        if not is_interrupt(error):
            raise
        raise KeyboardInterrupt from error


def _translated(backend: Backend, error: Exception) -> StoreError:
    kind = AwayError if backend.is_transient(error) else ReadOnlyError if backend.refused_writing(error) else StoreError
    return kind(backend.explain(error))


def revisions(url: str) -> tuple[str | None, str]:
    """Return the schema revision of the store at `url`, and the newest."""
    backend = open_backend(url)
    if not backend.exists():
        raise StoreError(_absent(backend))
    try:
        with _explained(backend), backend.look() as conn:
            return migrate.current(backend, conn), migrate.HEAD
    finally:
        backend.close()


def upgrade(url: str, *, force: bool = False) -> Path | None:
    """Upgrade the store at `url` to the newest schema; return where the copy of it is, if one was made.

    SchemaError while processes are at work on it; `force` takes those for dead that have not sent a heartbeat for two minutes.
    """
    revisions(url)
    backend = open_backend(url)
    try:
        with _explained(backend):
            return migrate.upgrade(backend, force=force)
    finally:
        backend.close()


def _absent(backend: Backend) -> str:
    return f"there is no store at {backend.label}; `recycledb init` or `recycledb add FILE` creates one"


def _prepare(backend: Backend, create: bool) -> None:
    """Require the newest schema; with `create`, create it if the database does not exist or is empty."""
    if not backend.exists():
        if not create:
            raise StoreError(_absent(backend))
        backend.require_place()
        migrate.upgrade(backend)
    with backend.look() as conn:
        if not (create and migrate.current(backend, conn) is None):
            migrate.require_newest(backend, conn)
            return
    migrate.upgrade(backend)


class Growth:
    """How many rows this process has inserted; a server is asked to analyze its tables each time that they have grown manyfold.

    Its own analysis comes minutes later, and until then it takes large tables for small ones and joins them accordingly.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._next = FIRST_ANALYSIS_ROWS
        self._thread: threading.Thread | None = None

    def note(self, backend: Backend) -> None:
        """Start an analysis in the background if enough rows were inserted since the last."""
        if self.rows < self._next or not backend.is_server or (self._thread is not None and self._thread.is_alive()):
            return
        self._next = ANALYSIS_FACTOR * self.rows
        self._thread = threading.Thread(target=_analyze, args=(backend,), name="analyze", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for a running analysis."""
        if self._thread is not None:
            self._thread.join(ANALYSIS_S)


def _analyze(backend: Backend) -> None:
    with suppress(*backend.errors, DBAPIError):  # the server analyzes by itself later
        backend.analyze()


class Store:
    """An open store at the newest schema."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._lock = threading.RLock()
        self._local = threading.local()
        self.watch = Watch()  # of other processes' workers
        self.growth = Growth()

    @classmethod
    def open(cls, url: str, *, create: bool = False, wait_s: float | None = None) -> "Store":
        """Open the store at `url`; with `create`, create it if there is none. Raises SchemaError unless it has the newest schema.

        `wait_s` is how long a transaction is tried again while a server is away; None for the default.
        """
        backend = open_backend(url)
        if backend.is_server and wait_s is not None:
            backend.wait_s = wait_s
        try:
            with _explained(backend):
                _prepare(backend, create)
        except BaseException:
            backend.close()
            raise
        return cls(backend)

    def close(self) -> None:
        """Close every connection, after the analysis of what was added."""
        self.growth.wait()
        self.backend.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- transactions

    @contextmanager
    def write(self, *, locked: bool = True) -> Iterator[Connection]:
        """Open a write transaction: it takes the write lock at once, and is durable when this returns.

        Without `locked`, a server lets others write at the same time: for rows of content alone, whose writer checks nothing before.
        """
        # On a server, those without the store's lock do not wait for those of this process either: a heartbeat must not be late.
        alone = self._lock if locked or not self.backend.is_server else nullcontext()
        with alone, self._turn(), _explained(self.backend), self.backend.begin(locked=locked) as conn:
            yield conn
        self.growth.note(self.backend)

    def transact(self, work: Callable[[Connection], _T], *, locked: bool = True, wait: bool = True) -> _T:
        """Run `work` in a write transaction and return its result; while a server is away, run it again, for `wait_s` seconds.

        A transaction whose COMMIT was not acknowledged may have been stored, so `work` must do no harm when it is run again.
        Without `wait`, AwayError is raised at once: for callers that must not be held up.
        """

        def write() -> _T:
            with self.write(locked=locked) as conn:
                return work(conn)

        return self._patiently(write) if wait else write()

    def _patiently(self, work: Callable[[], _T]) -> _T:
        """Run `work` until the server has answered, for `wait_s` seconds at most."""
        for pause_s in _pauses(self.backend.wait_s):
            try:
                return work()
            except AwayError as error:
                log.warning("%s; trying again in %.1f s", error, pause_s)
                time.sleep(pause_s)
        return work()

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

    def ask(self, work: Callable[[Connection], _T]) -> _T:
        """Run `work` on a connection that reads and return its result; while a server is away, run it again, for `wait_s` seconds."""

        def fetch() -> _T:
            with self.read() as conn:
                return work(conn)

        return self._patiently(fetch)

    def _turn(self) -> AbstractContextManager[None]:
        return self.backend.turn(sandboxed=False)

    def rows(self, sql: str, **parameters: Any) -> Sequence[SQLRow]:
        """Return every row of a SELECT with named parameters."""
        shared: Connection | None = getattr(self._local, "conn", None)
        if shared is not None:
            return shared.execute(clause(sql), parameters).fetchall()

        return self.ask(lambda conn: conn.execute(clause(sql), parameters).fetchall())

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
        self.growth.rows += new
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


@lru_cache(maxsize=64)
def clause(sql: str) -> TextClause:
    """Return a statement; kept, since finding hundreds of parameters in it takes longer than many a look-up."""
    return text(sql)


def _pauses(wait_s: float) -> Iterator[float]:
    """Yield pauses between tries until `wait_s` seconds have passed: twice as long each time, up to LONGEST_PAUSE_S, and random."""
    end, pause_s = time.monotonic() + wait_s, FIRST_PAUSE_S
    while time.monotonic() < end:
        yield pause_s * random.uniform(0.5, 1.0)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _moment_after(moment: str) -> str:
    """Return the time one microsecond later, so that a clock that was set back does not keep a name from changing."""
    return (datetime.fromisoformat(moment) + timedelta(microseconds=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
