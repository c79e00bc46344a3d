"""SQLite: the default backend.

Invariant: no acknowledged row is lost, neither to SIGKILL nor to power loss, nor to SQLite's own WAL-reset bug
(https://www.sqlite.org/wal.html, "the WAL-reset bug": versions 3.7.0 to 3.51.2 except 3.44.6 and 3.50.7). A library with the bug is used
with a rollback journal instead of WAL, which is slower and lets readers and the writer wait for each other.
This module never opens the file by a second SQLite library in the same process: POSIX locks are per process, and the
other library's close would drop ours.
"""

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool, StaticPool

from recycledb.errors import QueryError, ReadOnlyError, StoreError
from recycledb.store.backend import Contents, Meaning, Row, names_as_if
from recycledb.store.opening import Reading, may_write, no_room

try:
    import pysqlite3.dbapi2 as driver
except ImportError:  # no wheel for this platform: the interpreter's own library
    import sqlite3 as driver

BUSY_TIMEOUT_S = 60.0
ONE_STATEMENT_ROWS = 32
MMAP_BYTES = 1 << 40  # a query over a store of 1 GB takes about a third less processor time when pages are not copied


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """Say whether this SQLite version can lose committed data when a write meets a checkpoint in WAL mode."""
    repaired = (3, 44, 6) <= version < (3, 45) or (3, 50, 7) <= version < (3, 51)
    return (3, 7) <= version < (3, 51, 3) and not repaired


_MEANINGS = {
    "locked": "another process has been writing {path} for over {busy:.0f} s; try again when it is done",
    "full": "no space is left for {path}; free some and run the same command again: nothing committed is lost",
    "disk I/O error": "the disk refused to write {path}; nothing committed is lost; "
    "check the disk, then run the same command again",
    "not a database": "{path} is not a SQLite file; check the URL",
    "malformed": "{path} is damaged; restore a copy (db upgrade leaves them beside it)",
    "codec can't decode": "{path} is damaged: it holds text that is not UTF-8; restore a copy",
    "unable to open": "cannot open {path}: check that its folder exists, and that this user may read both",
    "readonly": "{path} may not be written by this user",
}


# What SQLite tells of a table, and of an index of it: ?1 is the table's name, ?2 the thing's own.
_TOLD = {
    "table": (
        "SELECT * FROM pragma_table_xinfo(?1) WHERE ?2 IS NOT NULL",
        "SELECT * FROM pragma_foreign_key_list(?1) WHERE ?2 IS NOT NULL",
        "SELECT * FROM pragma_table_list WHERE name = ?1 AND ?2 IS NOT NULL",
    ),
    "index": (
        "SELECT * FROM pragma_index_xinfo(?2) WHERE ?1 IS NOT NULL",
        'SELECT "unique", partial FROM pragma_index_list(?1) WHERE name = ?2',
    ),
}


class SQLite:
    """A store in one SQLite file, reached through one SQLite library: `library` is a DB-API module of it."""

    name = "sqlite"

    def __init__(self, path: Path, library: Any = driver) -> None:
        self.path = path
        self.library = library
        self.errors: tuple[type[Exception], ...] = (library.Error,)
        self.journal = "delete" if has_wal_reset_bug(library.sqlite_version_info) else "wal"
        self.reading = Reading(path, library, BUSY_TIMEOUT_S)
        self.writer = self._engine(StaticPool, "BEGIN IMMEDIATE", query_only=False)
        self.reader = self._engine(NullPool, "BEGIN", query_only=True)

    def _engine(self, pool: Any, begin: str, *, query_only: bool) -> Engine:
        engine = create_engine(
            URL.create("sqlite", database=str(self.path)),  # not as text: a path may hold ? and %
            module=self.library,
            poolclass=pool,
            connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S},
        )

        @event.listens_for(engine, "do_connect")
        def connect(*_: object) -> Any:
            if query_only:
                return self.reading.connect()
            if self.path.exists() and not may_write(self.path):
                raise ReadOnlyError(f"{self.path} may only be read: this user may not write it, or not in its folder")
            return None  # as SQLAlchemy does it

        @event.listens_for(engine, "connect")
        def configure(connection: Any, record: object) -> None:
            connection.isolation_level = None  # we say BEGIN ourselves: the driver's implicit one is deferred
            connection.execute("PRAGMA foreign_keys = ON")
            if query_only:
                connection.execute("PRAGMA query_only = ON")
            else:
                connection.execute(f"PRAGMA journal_mode = {self.journal}")
                # FULL survives power loss in WAL mode; a rollback journal also needs its directory synced.
                connection.execute(f"PRAGMA synchronous = {'FULL' if self.journal == 'wal' else 'EXTRA'}")
            # Taken only as needed; the default of 2 MB makes bulk inserts into large indexes half as fast.
            connection.execute(f"PRAGMA cache_size = {-65_536 if query_only else -262_144}")
            if query_only:
                connection.execute(f"PRAGMA mmap_size = {MMAP_BYTES}")
            register_functions(connection)

        @event.listens_for(engine, "begin")
        def start(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine

    def insert(self, conn: Connection, table: str, columns: Sequence[str], rows: Sequence[Row]) -> int:
        """Insert by the driver's executemany, the fastest way there is into SQLite; few rows by one statement.

        executemany gives Python's lock away and waits for it again with every row, which beside a busy thread takes longer than
        the row itself.
        """
        marks = f"({', '.join('?' * len(columns))})"
        head = f"INSERT INTO {table} ({', '.join(columns)}) VALUES "
        if 0 < len(rows) <= ONE_STATEMENT_ROWS:
            values = tuple(value for row in rows for value in row)
            sql = f"{head}{', '.join([marks] * len(rows))} ON CONFLICT DO NOTHING"
            return max(0, conn.exec_driver_sql(sql, values).rowcount)
        return max(0, conn.exec_driver_sql(f"{head}{marks} ON CONFLICT DO NOTHING", list(rows)).rowcount)

    def backup(self, target: Path) -> None:
        """Copy by SQLite's backup, which sees a consistent state whoever is writing."""
        with self.reader.connect() as conn:
            copy = self.library.connect(str(target))
            try:
                for setting in ("journal_mode", "synchronous"):  # whoever needs the copy to last syncs it, whole
                    copy.execute(f"PRAGMA {setting} = OFF")
                conn.connection.driver_connection.backup(copy)  # type: ignore[union-attr] # it is open, so it is there
            finally:
                copy.close()

    def look(self) -> AbstractContextManager[Connection]:
        """Open a reader; see `Reading` for what becomes of a log that is left there."""
        return self.reader.connect()

    def contents(self, conn: Connection) -> Contents:
        """Return the file's tables; a header that someone's program has marked is not blank, either."""
        found = conn.exec_driver_sql("SELECT name, type FROM sqlite_master").fetchall()
        marks = [conn.exec_driver_sql(f"PRAGMA {mark}").scalar() for mark in ("user_version", "application_id")]
        return Contents({row[0] for row in found if row[1] == "table"}, not found and marks == [0, 0])

    def schema(self, conn: Connection) -> dict[str, str]:
        """Return views and triggers by their text, tables and indexes by what SQLite makes of theirs."""
        rows = conn.exec_driver_sql(
            "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
        ).fetchall()
        found = {}
        for kind, name, table, sql in rows:
            if kind in ("view", "trigger"):
                found[f"{kind} {name}"] = " ".join(str(sql).split())
            elif not name.startswith("sqlite_"):
                told = [conn.exec_driver_sql(look, (table, name)).fetchall() for look in _TOLD[kind]]
                found[f"{kind} {name}"] = repr(told)
        return found

    def in_memory(self) -> Engine:
        """Return an engine of this SQLite library for a new database in memory."""
        return create_engine("sqlite://", module=self.library, poolclass=StaticPool)

    def undisturbed(self) -> AbstractContextManager[None]:
        """Raise StoreError where the file was written while it was read without locks."""
        return self.reading.undisturbed()

    def damage(self) -> list[str]:
        """Run SQLite's integrity and foreign key checks."""
        with self.reader.connect() as conn:
            found = [str(row[0]) for row in conn.exec_driver_sql("PRAGMA integrity_check") if row[0] != "ok"]
            broken = conn.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        return found + [f"a row of {row[0]} points at a row of {row[2]} that is not there" for row in broken]

    def explain(self, error: Exception) -> str:
        """Translate SQLite's messages."""
        text = str(error)
        if "disk I/O error" in text and no_room(self.path):
            text = "full"
        for sign, meaning in _MEANINGS.items():
            if sign in text:
                return meaning.format(path=self.path, busy=BUSY_TIMEOUT_S)
        return f"{self.path}: {' '.join(text.split())[:300]}"  # some quote a text of the store

    def refused_writing(self, error: Exception) -> bool:
        """Say whether the store can still be read, but this user may not write it, or the disk is full."""
        text = str(error)
        return "readonly" in text or "full" in text or ("disk I/O error" in text and no_room(self.path))

    @contextmanager
    def sandbox(self, *, allow_external: bool = False, as_if: Sequence[Meaning] = ()) -> Iterator["SQLiteSandbox"]:
        """Open a connection with an authorizer that lets nothing through but reading; it sees one state throughout.

        With `allow_external` it may ATTACH other databases, and read them too.
        """
        try:
            connection = self.reading.connect(read_only=True)
        except (self.library.DatabaseError, UnicodeDecodeError) as error:
            raise StoreError(self.explain(error)) from error
        try:
            register_functions(connection)
            if as_if:
                _stand_in(connection, as_if)
            connection.execute("PRAGMA query_only = ON")
            connection.execute(f"PRAGMA mmap_size = {MMAP_BYTES}")
            if not allow_external:  # ATTACH needs to stand outside a transaction
                connection.execute("BEGIN")
            connection.execute("SELECT 1 FROM sqlite_master").fetchall()
            connection.set_authorizer(_authorize_external if allow_external else _authorize)
            with self.undisturbed():
                yield SQLiteSandbox(connection, self.library, views="temp" if as_if else "main")
        except self.library.DatabaseError as error:
            raise StoreError(self.explain(error)) from error
        finally:
            connection.close()

    def close(self) -> None:
        """Close every connection."""
        self.writer.dispose()
        self.reader.dispose()


def _stand_in(connection: Any, as_if: Sequence[Meaning]) -> None:
    """Make the views anew, temporarily: SQLite looks names up beside the view that holds them, so the stand-in must lie there too."""
    views = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'view' ORDER BY rowid").fetchall()
    connection.execute(names_as_if("main.current_names", as_if))
    for name, sql in views:
        if name != "current_names":
            connection.execute(re.sub(r"(?i)^\s*CREATE\s+VIEW", "CREATE TEMP VIEW", sql, count=1))


# Actions that only read: SQLITE_READ, SQLITE_SELECT, SQLITE_FUNCTION, SQLITE_RECURSIVE, and PRAGMAs that tell.
_READING = {driver.SQLITE_READ, driver.SQLITE_SELECT, driver.SQLITE_FUNCTION, driver.SQLITE_RECURSIVE}
_TELLING_PRAGMAS = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "function_list"}


def _authorize(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    if action == driver.SQLITE_FUNCTION and second in (
        "load_extension",
        "readfile",
        "writefile",
        "edit",
        "fts3_tokenizer",
    ):
        return int(driver.SQLITE_DENY)
    if action in _READING or (action == driver.SQLITE_PRAGMA and first in _TELLING_PRAGMAS):
        return int(driver.SQLITE_OK)
    return int(driver.SQLITE_DENY)


def _authorize_external(action: int, *rest: str | None) -> int:
    if action in (driver.SQLITE_ATTACH, driver.SQLITE_DETACH):
        return int(driver.SQLITE_OK)
    return _authorize(action, *(rest + (None,) * 4)[:4])


class SQLiteSandbox:
    """A connection that can read the store and nothing else."""

    def __init__(self, connection: Any, library: Any, *, views: str) -> None:
        self.views = views
        self._connection = connection
        self._errors = (library.Error, library.Warning)  # a second statement is a Warning before Python 3.12

    def execute(self, sql: str, parameters: dict[str, Any] | None = None) -> tuple[list[str], Any]:
        """Run one statement; return column names and a lazy iterator of rows."""
        try:
            cursor = self._connection.execute(sql, parameters or {})
        except self._errors as error:
            raise QueryError(_refusal(str(error))) from error
        if cursor.description is None and sql.lstrip()[:6].lower() not in ("attach", "detach"):
            raise QueryError(
                "the query returns no rows; only SELECT (or WITH … SELECT, VALUES, EXPLAIN) can be run here"
            )
        return [column[0] for column in cursor.description or ()], self._rows(cursor)

    def _rows(self, cursor: Any) -> Iterator[Row]:
        try:
            for row in cursor:  # noqa: UP028 — `yield from` closes the cursor in the end, and by then its connection may be gone
                yield row
        except self._errors as error:
            raise QueryError(_refusal(str(error))) from error

    def interrupt(self) -> None:
        """Stop the statement under way."""
        self._connection.interrupt()


def _refusal(text: str) -> str:
    if "not authorized" in text or "prohibited" in text or "readonly" in text or "VACUUM" in text:
        return f"refused: a query may only read the store ({text}); --allow-external lets it ATTACH and read others"
    return text


def register_functions(connection: Any) -> None:
    """Give a connection the mathematical functions that the SQL surface promises, whatever SQLite was built with."""
    try:
        connection.execute("SELECT exp(1), ln(1), sqrt(1)").fetchall()
    except Exception:  # the driver's own; this library was built without them, and its own would be three times as fast
        for name, function in (("exp", _exp), ("ln", _ln), ("sqrt", _sqrt)):
            connection.create_function(name, 1, function, deterministic=True)
    connection.create_aggregate("median", 1, _Median)
    connection.create_aggregate("quantile", 2, _Quantile)
    connection.create_aggregate("corr", 2, _Correlation)
    connection.create_aggregate("stddev", 1, _Stddev)


def _exp(x: float | None) -> float | None:
    if x is None:
        return None
    return math.exp(x) if x < 709.0 else math.inf


def _ln(x: float | None) -> float | None:
    return math.log(x) if x is not None and x > 0 else None


def _sqrt(x: float | None) -> float | None:
    return math.sqrt(x) if x is not None and x >= 0 else None


class _Values:
    """The values of one group, NULLs left out."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def step(self, value: float | None) -> None:
        if value is not None:
            self.values.append(value)


class _Median(_Values):
    def finalize(self) -> float | None:
        return float(statistics.median(self.values)) if self.values else None


class _Stddev(_Values):
    """Sample standard deviation, as DuckDB and PostgreSQL define `stddev`."""

    def finalize(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None


class _Quantile:
    """The value below which a share of the group lies: DuckDB's `quantile`, which picks a value and never interpolates."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.share = 0.5

    def step(self, value: float | None, share: float) -> None:
        self.share = share
        if value is not None:
            self.values.append(value)

    def finalize(self) -> float | None:
        if not self.values:
            return None
        ordered = sorted(self.values)
        return ordered[max(0, math.ceil(self.share * len(ordered)) - 1)]


class _Correlation:
    """Pearson's correlation of the pairs without NULLs."""

    def __init__(self) -> None:
        self.pairs: list[tuple[float, float]] = []

    def step(self, y: float | None, x: float | None) -> None:
        if x is not None and y is not None:
            self.pairs.append((x, y))

    def finalize(self) -> float | None:
        xs, ys = [x for x, _ in self.pairs], [y for _, y in self.pairs]
        if len(set(xs)) < 2 or len(set(ys)) < 2:
            return None
        return statistics.correlation(xs, ys)
