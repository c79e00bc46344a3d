"""SQLite: the default backend.

Invariant: no committed row is lost, neither to SIGKILL nor to power loss, nor to SQLite's own WAL-reset bug
(https://www.sqlite.org/wal.html, "the WAL-reset bug": versions 3.7.0 to 3.51.2 except 3.44.6 and 3.50.7). A library with the bug is used
with a rollback journal instead of WAL, which is slower and makes readers and the writer wait for each other.
This module never opens the file with a second SQLite library in the same process: POSIX locks are per process, and the other library's
close would drop ours.
"""

import math
import os
import re
import statistics
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool, StaticPool

from recycledb.errors import QueryError, ReadOnlyError, StoreError
from recycledb.schema import utc_now
from recycledb.store.access import Reading, may_write, no_room
from recycledb.store.backend import Contents, Meaning, Row, names_as_if
from recycledb.store.files import InFile
from recycledb.store.statement import without_comments

try:
    import pysqlite3.dbapi2 as driver
except ImportError:  # no wheel for this platform: the interpreter's own library
    import sqlite3 as driver

__all__ = ["SQLite", "SQLiteSandbox", "driver", "has_wal_reset_bug", "register_functions"]

BUSY_TIMEOUT_S = 60.0
ONE_STATEMENT_ROWS = 32
MMAP_BYTES = 1 << 40  # a query on a store of 1 GB takes about a third less CPU time if pages are not copied


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """Return whether this SQLite version can lose committed data if a write coincides with a checkpoint in WAL mode."""
    repaired = (3, 44, 6) <= version < (3, 45) or (3, 50, 7) <= version < (3, 51)
    return (3, 7) <= version < (3, 51, 3) and not repaired


_MEANINGS = {
    "locked": "another process has been writing {path} for over {busy:.0f} s; try again when it is done",
    "full": "no space is left for {path}; free some space and run the same command again: nothing committed is lost",
    "disk I/O error": "the disk refused to write {path}; nothing committed is lost; "
    "check the disk, then run the same command again",
    "not a database": "{path} is not a SQLite file; check the URL",
    "malformed": "{path} is damaged; restore a backup (`db upgrade` leaves them next to it)",
    "codec can't decode": "{path} is damaged: it contains text that is not UTF-8; restore a backup",
    "unable to open": "cannot open {path}: check that its folder exists, and that this user may read both",
    "readonly": "permission denied: this user cannot write {path}",
}


# Queries that describe a table or an index, for `schema`: ?1 is the table's name, ?2 that of the table or index.
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


class SQLite(InFile):
    """A store in one SQLite file, used through one SQLite library: `library` is its DB-API module."""

    name = "sqlite"
    one_clock = False

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
            URL.create("sqlite", database=str(self.path)),  # not as text: a path may contain ? and %
            module=self.library,
            poolclass=pool,
            connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S},
        )

        @event.listens_for(engine, "do_connect")
        def connect(*_: object) -> Any:
            if query_only:
                return self.reading.connect()
            if self.path.exists() and not may_write(self.path):
                raise ReadOnlyError(
                    f"{self.path} is read-only: this user has no write permission for it or for its folder"
                )
            return None  # SQLAlchemy connects as usual

        @event.listens_for(engine, "connect")
        def configure(connection: Any, record: object) -> None:
            connection.isolation_level = None  # we send BEGIN ourselves: the driver's implicit one is deferred
            connection.execute("PRAGMA foreign_keys = ON")
            if query_only:
                connection.execute("PRAGMA query_only = ON")
            else:
                connection.execute(f"PRAGMA journal_mode = {self.journal}")
                # FULL survives power loss in WAL mode; a rollback journal also needs its directory synced.
                connection.execute(f"PRAGMA synchronous = {'FULL' if self.journal == 'wal' else 'EXTRA'}")
            # Allocated only as needed; with the default of 2 MB, bulk inserts into large indexes are half as fast.
            connection.execute(f"PRAGMA cache_size = {-65_536 if query_only else -262_144}")
            if query_only:
                connection.execute(f"PRAGMA mmap_size = {MMAP_BYTES}")
            register_functions(connection)

        @event.listens_for(engine, "begin")
        def start(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine

    def insert(self, conn: Connection, table: str, columns: Sequence[str], rows: Sequence[Row]) -> int:
        """Insert with the driver's executemany, which is fastest for many rows; few rows with one statement.

        executemany releases and reacquires the GIL for each row, which next to a busy thread takes longer than the insert.
        """
        marks = f"({', '.join('?' * len(columns))})"
        head = f"INSERT INTO {table} ({', '.join(columns)}) VALUES "
        if 0 < len(rows) <= ONE_STATEMENT_ROWS:
            values = tuple(value for row in rows for value in row)
            sql = f"{head}{', '.join([marks] * len(rows))} ON CONFLICT DO NOTHING"
            return max(0, conn.exec_driver_sql(sql, values).rowcount)
        return max(0, conn.exec_driver_sql(f"{head}{marks} ON CONFLICT DO NOTHING", list(rows)).rowcount)

    def now(self, conn: Connection) -> str:
        """Return this host's time: the processes that have the file open run on it."""
        return utc_now()

    def backup(self, target: Path) -> None:
        """Copy with SQLite's backup API, which sees a consistent state even while others write."""
        with self.reader.connect() as conn:
            copy = self.library.connect(str(target))
            try:
                for setting in ("journal_mode", "synchronous"):  # a caller that needs durability syncs the whole file
                    copy.execute(f"PRAGMA {setting} = OFF")
                conn.connection.driver_connection.backup(copy)  # type: ignore[union-attr] # it is open, so it is there
            finally:
                copy.close()

    def look(self) -> AbstractContextManager[Connection]:
        """Open a reader; `Reading` leaves the log of a killed process as it is."""
        return self.reader.connect()

    def contents(self, conn: Connection) -> Contents:
        """Return the file's tables; a file whose header another program has marked is not blank either."""
        found = conn.exec_driver_sql("SELECT name, type FROM sqlite_master").fetchall()
        marks = [conn.exec_driver_sql(f"PRAGMA {mark}").scalar() for mark in ("user_version", "application_id")]
        return Contents({row[0] for row in found if row[1] == "table"}, not found and marks == [0, 0])

    def schema(self, conn: Connection) -> dict[str, str]:
        """Describe views and triggers by their SQL, tables and indexes by SQLite's pragmas."""
        rows = conn.exec_driver_sql(
            "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
        ).fetchall()
        found = {}
        for kind, name, table, sql in rows:
            if kind in ("view", "trigger"):
                found[f"{kind} {name}"] = " ".join(str(sql).split())
            elif not name.startswith("sqlite_"):
                described = [conn.exec_driver_sql(query, (table, name)).fetchall() for query in _TOLD[kind]]
                found[f"{kind} {name}"] = repr(described)
        return found

    @contextmanager
    def scratch(self) -> Iterator[Connection]:
        """Open a transaction in a new database in memory."""
        engine = create_engine("sqlite://", module=self.library, poolclass=StaticPool)
        try:
            with engine.begin() as conn:
                yield conn
        finally:
            engine.dispose()

    def turn(self, *, sandboxed: bool) -> AbstractContextManager[None]:
        """Do nothing: SQLite has readers and a writer at the same time."""
        return nullcontext()

    def undisturbed(self) -> AbstractContextManager[None]:
        """Raise StoreError if the file was written while it was read without locks."""
        return self.reading.undisturbed()

    def commits(self, conn: Connection) -> int | None:
        """Return SQLite's counter of other connections' commits."""
        found = int(conn.exec_driver_sql("PRAGMA data_version").scalar() or 0)
        conn.rollback()  # within a transaction the counter stands still
        return found

    def damage(self) -> list[str]:
        """Run SQLite's integrity and foreign key checks."""
        with self.reader.connect() as conn:
            found = [str(row[0]) for row in conn.exec_driver_sql("PRAGMA integrity_check") if row[0] != "ok"]
            broken = conn.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        return found + [f"a row of {row[0]} references a row of {row[2]} that does not exist" for row in broken]

    def explain(self, error: Exception) -> str:
        """Translate SQLite's messages."""
        text = str(error)
        if "disk I/O error" in text and no_room(self.path):
            text = "full"
        for sign, meaning in _MEANINGS.items():
            if sign in text:
                return meaning.format(path=self.path, busy=BUSY_TIMEOUT_S)
        return f"{self.path}: {' '.join(text.split())[:300]}"  # some messages quote a text of the store

    def refused_writing(self, error: Exception) -> bool:
        """Return whether the store can still be read, but this user may not write it, or the disk is full."""
        text = str(error)
        return "readonly" in text or "full" in text or ("disk I/O error" in text and no_room(self.path))

    @contextmanager
    def sandbox(self, *, allow_external: bool = False, as_if: Sequence[Meaning] = ()) -> Iterator["SQLiteSandbox"]:
        """Open a connection with an authorizer that allows only reading; it sees one snapshot throughout.

        With `allow_external` it may also ATTACH other databases read-only.
        """
        try:
            connection = self.reading.connect(read_only=True)
        except (self.library.DatabaseError, UnicodeDecodeError) as error:
            raise StoreError(self.explain(error)) from error
        opened = SQLiteSandbox(
            connection, self.library, views="temp" if as_if else "main", allow_external=allow_external
        )
        try:
            register_functions(connection)
            if as_if:
                _stand_in(connection, as_if)
            connection.execute("PRAGMA query_only = ON")
            connection.execute(f"PRAGMA mmap_size = {MMAP_BYTES}")
            if not allow_external:  # ATTACH is not allowed in a transaction
                connection.execute("BEGIN")
            connection.execute("SELECT 1 FROM sqlite_master").fetchall()
            connection.set_authorizer(opened.authorize)
            with self.undisturbed():
                yield opened
        except self.library.DatabaseError as error:
            raise StoreError(self.explain(error)) from error
        finally:
            if not opened.is_left:
                connection.close()

    def close(self) -> None:
        """Close every connection."""
        self.writer.dispose()
        self.reader.dispose()


def _stand_in(connection: Any, as_if: Sequence[Meaning]) -> None:
    """Override `current_names`: SQLite resolves names in a view's own schema, so temporary copies of all views are needed too."""
    views = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'view' ORDER BY rowid").fetchall()
    connection.execute(names_as_if("main.current_names", as_if))
    for name, sql in views:
        if name != "current_names":
            connection.execute(re.sub(r"(?i)^\s*CREATE\s+VIEW", "CREATE TEMP VIEW", sql, count=1))


# Actions that only read: SQLITE_READ, SQLITE_SELECT, SQLITE_FUNCTION, SQLITE_RECURSIVE, and PRAGMAs that describe the schema.
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


# Parses ATTACH, since the file must be opened read-only; the schema name is used unchanged.
_ATTACH = re.compile(
    r"""
    attach \s+ (?:database\s+)?
    (?: '(?P<single>(?:[^']|'')*)' | "(?P<double>(?:[^"]|"")*)" | [:$@](?P<parameter>\w+) )
    \s* \b as \s+ (?P<schema>\w+|"(?:[^"]|"")*")
    """,
    re.IGNORECASE | re.VERBOSE,
)


class SQLiteSandbox:
    """A connection that can only read: the store, and attached databases if that is allowed."""

    def __init__(self, connection: Any, library: Any, *, views: str, allow_external: bool) -> None:
        self.views = views
        self.is_left = False
        self._connection = connection
        # A second statement raises Warning before Python 3.12; an integer of more than 64 bits OverflowError.
        self._errors = (library.Error, library.Warning, OverflowError)
        self._allow_external = allow_external
        self._attaching = False

    def authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, by: str | None
    ) -> int:
        """Allow or deny an action of a statement; called by SQLite.

        VACUUM INTO attaches too, and would create a file, so ATTACH is allowed only within `_attach`.
        """
        if action == driver.SQLITE_ATTACH and self._attaching:
            return int(driver.SQLITE_OK)
        if action == driver.SQLITE_DETACH and self._allow_external:
            return int(driver.SQLITE_OK)
        return _authorize(action, first, second, database, by)

    def execute(self, sql: str, parameters: dict[str, Any] | None = None) -> tuple[list[str], Any]:
        """Run one statement; return column names and a lazy iterator of rows."""
        bare = without_comments(sql).strip().rstrip("; \t\r\n")
        if not bare:
            raise QueryError("the query is empty")
        try:
            if self._allow_external and bare[:6].lower() == "attach":
                return self._attach(bare, parameters or {})
            cursor = self._connection.execute(sql, parameters or {})
        except self._errors as error:
            raise QueryError(self._refusal(str(error))) from error
        if cursor.description is None and bare[:6].lower() != "detach":
            raise QueryError(
                "the query returns no rows; only SELECT (or WITH … SELECT, VALUES, EXPLAIN) can be run here"
            )
        return [column[0] for column in cursor.description or ()], self._rows(cursor)

    def require_reader(self) -> None:
        """Do nothing: what a statement may do does not depend on who runs it."""

    def columns(self, select: str, parameters: dict[str, Any] | None = None) -> list[str]:
        """Return the columns of a SELECT, as a subquery has them, without reading its rows."""
        return self.execute(f"SELECT * FROM (\n{select}\n) AS picked LIMIT 0", parameters)[0]

    def _attach(self, sql: str, parameters: dict[str, Any]) -> tuple[list[str], Any]:
        found = _ATTACH.fullmatch(sql)
        if found is None:
            raise QueryError("refused: write ATTACH in the form ATTACH 'FILE' AS name")
        if found["parameter"] is not None:
            file = str(parameters.get(found["parameter"], ""))
        else:
            file = (found["single"] or "").replace("''", "'") + (found["double"] or "").replace('""', '"')
        self._attaching = True
        try:
            self._connection.execute(f"ATTACH ? AS {found['schema']}", (_read_only(file),))
        finally:
            self._attaching = False
        return [], iter(())

    def _rows(self, cursor: Any) -> Iterator[Row]:
        try:
            for row in cursor:  # noqa: UP028 — `yield from` closes the cursor at the end, when its connection may be closed already
                yield row
        except self._errors as error:
            raise QueryError(self._refusal(str(error))) from error

    def interrupt(self) -> None:
        """Stop the running statement."""
        self._connection.interrupt()

    def leave(self) -> None:
        """Never close the connection."""
        self.is_left = True

    def _refusal(self, text: str) -> str:
        signs = ("not authorized", "authorization denied", "prohibited", "readonly", "VACUUM")
        if any(sign in text for sign in signs):
            more = "" if self._allow_external else "; --allow-external lets it ATTACH other databases"
            return f"refused: a query may only read the store ({text}){more}"
        if "has no name" in text:
            return "write parameters as :name, not ?, and give their values as --param name=…"
        if text.startswith("Could not decode to UTF-8"):
            column = text.partition("column ")[2].partition(" with")[0]
            return f"column {column} contains a text that is not UTF-8; hex(…) of it shows its bytes"
        return " ".join(text.split())


def _read_only(file: str) -> str:
    """Return the URI with which SQLite opens a file read-only and does not create it."""
    if file.startswith("file:"):
        path, _, options = file[len("file:") :].partition("#")[0].partition("?")
        others = [option for option in options.split("&") if option and not option.startswith("mode=")]
        if not set(others) <= {"immutable=1"}:
            raise QueryError(
                f"refused: {file}: databases are attached read-only, and the only option allowed is immutable=1"
            )
        return f"file:{path}?{'&'.join(['mode=ro', *others])}"
    if file in ("", ":memory:"):
        raise QueryError(f"refused: ATTACH {file!r}: give the path of a file")
    return _read_only_uri(Path(file))


def _read_only_uri(path: Path) -> str:
    """Return the URI of a file, read-only; what follows two slashes would be a host."""
    name = os.fsencode(path)
    return f"file:{'//' if name.startswith(b'//') else ''}{quote(name)}?mode=ro"


def register_functions(connection: Any) -> None:
    """Register the documented mathematical functions, since SQLite may be built without them."""
    try:
        connection.execute("SELECT exp(1), ln(1), sqrt(1)").fetchall()
    except Exception:  # the library is built without them; its own, used otherwise, are three times as fast
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
    """The value below which a share of the group lies: like DuckDB's `quantile`, which returns one of the values, not interpolated."""

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
