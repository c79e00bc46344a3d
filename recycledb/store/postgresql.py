"""PostgreSQL: the backend that many processes on many hosts share.

Invariant: every statement works behind a connection pool in transaction mode (pgbouncer): no prepared statement is kept, settings are those
of a transaction (SET LOCAL), and locks are advisory locks of a transaction. Parameters are inserted into the text of a statement by the
driver, as quoted literals, so that the planner sees their values and needs no type for them.
A store is the schema that is first in the connection's search_path. Readers have REPEATABLE READ, one snapshot a transaction; writers
READ COMMITTED: a statement that follows the lock must see what was committed while it waited.
"""

import os
import selectors
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors as pg_errors
from psycopg.adapt import Loader
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import QueuePool

from recycledb.errors import StoreError
from recycledb.store.backend import Contents, Meaning, Row
from recycledb.store.postgresql_sandbox import PostgreSQLSandbox, open_sandbox
from recycledb.store.postgresql_schema import SETTINGS, array_type, described
from recycledb.store.tables import metadata

READERS = 2  # connections kept open; as many again are opened for a while
FEW_VALUES = 50  # in one INSERT: the driver caches how it has parsed a statement of no more parameters
LOCK = 7231  # the class of this program's advisory locks
WAIT_S = 60  # for a lock that another transaction holds

# The transaction is begun by the statement that has its settings: one round trip in place of two.
_BEGIN = f"""
    BEGIN ISOLATION LEVEL {{}};
    SET LOCAL lock_timeout = '{WAIT_S}s';
    SET LOCAL idle_in_transaction_session_timeout = '{WAIT_S}s';
"""
_READING = f"{_BEGIN.format('REPEATABLE READ READ ONLY')} {SETTINGS}"
_ADDING = _BEGIN.format("READ COMMITTED")
_WRITING = f"{_ADDING} {SETTINGS};"
# Of the schema, since a database may hold several stores.
_TAKE_LOCK = f"SELECT pg_advisory_xact_lock({LOCK}, current_schema()::regnamespace::oid::integer)"
UNLOCKED = "recycledb_unlocked"  # the execution option of writers that only add rows of content


class StoreCursor(psycopg.ClientCursor[Any]):
    """A cursor for driver SQL with `?` marks, as the other backends have, whose result has the documented column names."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> "StoreCursor":
        """Run a statement; parameters in a tuple belong to `?` marks, without any `%` has no meaning."""
        if isinstance(params, tuple | list):
            if params:
                query = query.replace("%", "%%").replace("?", "%s")
            else:
                params = None
        super().execute(query, params, **options)
        return self

    @property
    def description(self) -> Any:
        """The columns; with the documented names."""
        return described(super().description)


class PostgreSQL:
    """A store in one schema of a PostgreSQL database."""

    name = "postgresql"
    folder: Path | None = None
    errors: tuple[type[Exception], ...] = (psycopg.Error,)
    is_server = True
    one_clock = True
    wait_s = 60.0

    def __init__(self, url: URL) -> None:
        self.url = _verified(url)
        self.label = (
            self.url.render_as_string(hide_password=True)
            .replace("postgresql+psycopg", "postgresql")
            .replace("%2F", "/")
        )
        self.title = url.database or os.environ.get("PGDATABASE") or "postgresql"
        self.identity = f"{url.host or os.environ.get('PGHOST', '')}:{url.port or ''}/{url.database or ''}?{sorted(url.query.items())}"
        self.writer = self._engine(1, 0, _WRITING)
        self.adder = self._engine(3, 1, _ADDING)  # without the store's lock: heartbeats, rows of content
        self.reader = self._engine(READERS, READERS, _READING)

    def _engine(self, size: int, more: int, begin: str) -> Engine:
        engine = create_engine(
            self.url,
            poolclass=QueuePool,
            pool_size=size,
            max_overflow=more,
            connect_args={
                "application_name": f"recycledb {os.getpid()}",
                "cursor_factory": StoreCursor,
                "prepare_threshold": None,
                **CONNECTING,
            },
        )

        @event.listens_for(engine, "connect")
        def configure(connection: Any, record: object) -> None:
            read_numbers(connection)
            connection.autocommit = True  # the driver begins no transaction: `start` does

        @event.listens_for(engine, "checkout")
        def require_open(connection: Any, record: object, proxy: object) -> None:
            if _has_input(connection):
                raise DisconnectionError  # the pool opens another

        @event.listens_for(engine, "begin")
        def start(connection: Connection) -> None:
            locks = begin is _WRITING and not connection.get_execution_options().get(UNLOCKED)
            connection.exec_driver_sql(f"{begin} {_TAKE_LOCK}" if locks else begin)

        return engine

    @contextmanager
    def begin(self, *, locked: bool) -> Iterator[Connection]:
        """Open a write transaction; with `locked` it takes the store's lock first, for those that check before they write."""
        engine = self.writer if locked else self.adder
        with engine.connect().execution_options(**{UNLOCKED: not locked}) as conn, conn.begin():
            yield conn

    def is_transient(self, error: Exception) -> bool:
        """Return whether the server was away, or ended the transaction in favour of another."""
        state = getattr(error, "sqlstate", None)
        if state is None:
            return isinstance(error, psycopg.OperationalError)
        return state.startswith("08") or state in _TRANSIENT

    def exists(self) -> bool:
        """Return True: whether the server has the database is seen when it is opened."""
        return True

    def require_place(self) -> None:
        """Do nothing: a store is created in the database that the URL names."""

    def copy_before_upgrade(self, revision: str) -> Path | None:
        """Return None: an upgrade is one transaction, and a copy of a server's database is its owner's business."""
        return None

    def insert(self, conn: Connection, table: str, columns: Sequence[str], rows: Sequence[Row]) -> int:
        """Insert by one statement, rows in the order of their keys: two transactions with different orders would wait for each other.

        Many rows go as arrays, one for each column; few as VALUES, since the driver takes long to prepare an array.
        """
        if not rows:
            return 0
        described = metadata.tables.get(table)  # None for a temporary table, of numbers
        of = None if described is None else described.columns
        key = [i for i, column in enumerate(columns) if of is None or of[column].primary_key]
        ordered = sorted(rows, key=lambda row: tuple(row[i] for i in key))
        names = ", ".join(columns)
        raw: Any = conn.connection.driver_connection
        if len(rows) * len(columns) <= FEW_VALUES:
            marks = f"({', '.join(['%s'] * len(columns))})"
            sql = f"INSERT INTO {table} ({names}) VALUES {', '.join([marks] * len(rows))} ON CONFLICT DO NOTHING"
            with psycopg.ClientCursor(raw) as cursor:
                cursor.execute(sql, [value for row in ordered for value in row])
                return max(0, cursor.rowcount)
        arrays = ", ".join(f"%s::{'bigint[]' if of is None else array_type(of[column].type)}" for column in columns)
        sql = f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays}) ON CONFLICT DO NOTHING"
        with psycopg.Cursor(raw) as cursor:
            cursor.execute(sql, [list(values) for values in zip(*ordered, strict=True)], prepare=False)
            return max(0, cursor.rowcount)

    def now(self, conn: Connection) -> str:
        """Return the server's time, which is the same for every host."""
        return str(conn.exec_driver_sql(_NOW).scalar())

    def grants(self, role: str) -> list[str]:
        """Return the statements that let a role read the store; TEMP is for `--prompt`, which sees older names by temporary views."""
        with self.reader.connect() as conn:
            schema, database = conn.exec_driver_sql("SELECT current_schema(), current_database()").one()
        to, of, within = (f'"{name.replace(chr(34), chr(34) * 2)}"' for name in (role, schema, database))
        return [
            f"GRANT CONNECT, TEMPORARY ON DATABASE {within} TO {to};",
            f"GRANT USAGE ON SCHEMA {of} TO {to};",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA {of} TO {to};",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {of} GRANT SELECT ON TABLES TO {to};",
        ]

    def analyze(self) -> None:
        """Vacuum and analyze the store's tables: an index alone answers only where pages are known to be visible to all.

        Small tables too: the server does not analyze a table by itself before fifty rows of it changed.
        """
        with self.reader.connect() as conn:
            tables = sorted(self.contents(conn).tables)
        with self.connect("analyze") as connection:
            connection.autocommit = True
            for table in tables:
                with suppress(psycopg.Error):  # another process analyzes it, or this role does not own it
                    connection.execute(f'VACUUM (ANALYZE, SKIP_LOCKED) "{table}"')

    def backup(self, target: Path) -> None:
        """Write a dump with PostgreSQL's own program, which is in the client's package."""
        program = shutil.which("pg_dump")
        address = self.url.set(drivername="postgresql", password=None).render_as_string()
        if program is None:
            raise StoreError(
                "pg_dump is not installed here; on a machine that has it: "
                f"pg_dump -Fc -Z1 -f {shlex.quote(target.name)} {shlex.quote(address)}"
            )
        password = {"PGPASSWORD": str(self.url.password)} if self.url.password else {}
        command = [program, "-Fc", "-Z1", "-f", str(target), "-d", address]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **password}, check=False)
        if done.returncode:
            raise StoreError(f"pg_dump failed: {' '.join(done.stderr.split())[:300]}")

    def save(self, target: Path) -> str:
        """Write a dump to a new file."""
        if target.exists():
            raise StoreError(f"{target} already exists; name a file that does not exist")
        unfinished = target.with_name(f".{target.name}.{os.urandom(8).hex()}.partial")
        try:
            self.backup(unfinished)
            unfinished.rename(target)
        finally:
            unfinished.unlink(missing_ok=True)
        return f"to restore it: createdb NAME, then pg_restore -d NAME {shlex.quote(str(target))}"

    def look(self) -> AbstractContextManager[Connection]:
        """Open a reader."""
        return self.reader.connect()

    def contents(self, conn: Connection) -> Contents:
        """Return the schema's tables; relations and types of extensions do not count."""
        tables = {row[0] for row in conn.exec_driver_sql(_TABLES)}
        return Contents(tables, not tables and not conn.exec_driver_sql(_OTHERS).fetchall())

    def schema(self, conn: Connection) -> dict[str, str]:
        """Describe tables, indexes, views and rules as PostgreSQL prints them, constraints by their definitions."""
        return {f"{kind} {name}": " ".join(told.split()) for kind, name, told in conn.exec_driver_sql(_TOLD)}

    @contextmanager
    def scratch(self) -> Iterator[Connection]:
        """Open a transaction in a schema of its own, which is rolled back."""
        with self.writer.connect().execution_options(**{UNLOCKED: True}) as conn:
            name = f"recycledb_{os.urandom(6).hex()}"
            conn.exec_driver_sql(f"CREATE SCHEMA {name}")
            conn.exec_driver_sql(f"SET LOCAL search_path = {name}")
            yield conn
            conn.rollback()

    def turn(self, *, sandboxed: bool) -> AbstractContextManager[None]:
        """Do nothing: readers and writers do not exclude each other."""
        return nullcontext()

    def undisturbed(self) -> AbstractContextManager[None]:
        """Do nothing: a reader has a snapshot."""
        return nullcontext()

    def commits(self, conn: Connection) -> int | None:
        """Return the server's count of the transactions that had ended when this was asked."""
        found = int(conn.exec_driver_sql("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").scalar() or 0)
        conn.rollback()
        return found

    def refused_writing(self, error: Exception) -> bool:
        """Return whether this role may not write, or the server cannot: a standby, a full disk."""
        return isinstance(
            error, pg_errors.InsufficientPrivilege | pg_errors.ReadOnlySqlTransaction | pg_errors.DiskFull
        )

    def damage(self) -> list[str]:
        """Read every table completely: the server verifies the checksum of each page that it reads, if it has checksums."""
        found = []
        with self.reader.connect() as conn:
            for table in sorted(self.contents(conn).tables):
                try:
                    conn.exec_driver_sql(
                        f'SELECT count(*), max(length(CAST(t AS VARCHAR))) FROM "{table}" t'
                    ).fetchall()
                except Exception as error:  # any error of the driver is a finding
                    found.append(f"{table}: {_first_line(error)}")
                    conn.rollback()
        return found

    def explain(self, error: Exception) -> str:
        """Translate the server's messages."""
        text = _first_line(error)
        meanings = [
            meaning
            for kinds, signs, meaning in _MEANINGS
            if isinstance(error, kinds) or any(all(part in text for part in sign) for sign in signs)
        ]
        said = meanings[0] if meanings else "{label}: {text}"
        detail = " ".join((getattr(getattr(error, "diag", None), "message_detail", None) or "").split())
        return said.format(label=self.label, text=text, title=self.title, detail=detail)

    def sandbox(
        self, *, allow_external: bool = False, as_if: Sequence[Meaning] = ()
    ) -> AbstractContextManager[PostgreSQLSandbox]:
        """Open a connection in a read-only transaction, on which a query can only be a cursor's SELECT."""
        return open_sandbox(self, allow_external=allow_external, as_if=as_if)

    def connect(self, name: str) -> Any:
        """Open a connection of the driver, for one purpose."""
        _, arguments = self.reader.dialect.create_connect_args(self.url)
        connection = psycopg.connect(
            **arguments, **CONNECTING, application_name=f"recycledb {os.getpid()} {name}", prepare_threshold=None
        )
        read_numbers(connection)
        return connection

    def close(self) -> None:
        """Close every connection."""
        self.writer.dispose()
        self.adder.dispose()
        self.reader.dispose()


# A server that no longer answers is noticed after half a minute; without this, after hours.
CONNECTING: dict[str, Any] = {
    "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 30_000,
}  # fmt: skip


_HERE = {"", "localhost", "127.0.0.1", "::1"}


def _verified(url: URL) -> URL:
    """Return the URL of a server on another machine with TLS that verifies it, unless `sslmode` says otherwise.

    libpq's own default goes on without TLS, silently, where the server has none.
    """
    hosts = [url.host] if url.host else url.query.get("host", os.environ.get("PGHOST", ""))
    names = [hosts] if isinstance(hosts, str) else hosts
    is_here = all(name is None or name.startswith(("/", "@")) or name.partition(":")[0] in _HERE for name in names)
    service = "service" in url.query or "PGSERVICE" in os.environ
    if is_here or "sslmode" in url.query or "PGSSLMODE" in os.environ or service:
        return url
    more = {"sslmode": "verify-full"}
    if "sslrootcert" not in url.query and not (Path.home() / ".postgresql" / "root.crt").exists():
        more["sslrootcert"] = "system"
    return url.update_query_dict(more)


LONGEST_INTEGER = 39  # characters: of 128 bits; longer ones are computed numbers of no precision


class NumberLoader(Loader):
    """Sums and means of integers, which are `numeric` to PostgreSQL, as the other backends give them: integers and floats."""

    def load(self, data: Any) -> int | float:
        """Return a number; a mean has a decimal point, a sum of integers has none."""
        written = bytes(data)
        return int(written) if len(written) < LONGEST_INTEGER and written.lstrip(b"-").isdigit() else float(written)


def read_numbers(connection: Any) -> None:
    """Let a connection return Python's own numbers."""
    connection.adapters.register_loader("numeric", NumberLoader)


def _has_input(connection: Any) -> bool:
    """Return whether an idle connection is closed, or has something to read: that the server closes it. A ping takes a round trip."""
    if connection.closed:
        return True
    with selectors.DefaultSelector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ)
        return bool(selector.select(0))


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split()) or type(error).__name__


# Kinds of errors, parts of their texts, and what they mean.
_MEANINGS: list[tuple[tuple[type[Exception], ...], tuple[tuple[str, ...], ...], str]] = [
    (
        (pg_errors.LockNotAvailable,),
        (),
        f"{{label}}: another process has held a lock for {WAIT_S} s; run the same command again when it is done",
    ),
    (
        (pg_errors.DependentObjectsStillExist,),
        (),
        "{label}: {text} ({detail}); drop what depends on it, run the same command again, then create it anew",
    ),
    (
        (pg_errors.InsufficientPrivilege,),
        (),
        "{label}: {text}; `recycledb db grant ROLE` prints what a reader's role needs",
    ),
    ((pg_errors.DiskFull,), (), "no space is left on the server of {label}; nothing committed is lost"),
    (
        (pg_errors.UntranslatableCharacter, pg_errors.CharacterNotInRepertoire),
        (),
        "{label}: PostgreSQL cannot store this text: {text}",
    ),
    (
        (),
        (("certificate",), ("SSL",)),
        "{label}: {text}; give sslrootcert=FILE in the URL, or sslmode=require (encrypted, not verified) or sslmode=disable",
    ),
    (
        (),
        (("database ", "does not exist"),),
        "there is no database {title!r} on the server of {label}; `createdb {title}` creates it",
    ),
]
# Shutdown, crash, starting; serialization, deadlock; too many connections; waited too long for a lock, or in a transaction.
_TRANSIENT = {"57P01", "57P02", "57P03", "40001", "40P01", "53300", "55P03", "25P03"}
_NOW = """SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
_SCHEMA = "current_schema()::regnamespace"
_OWN = """NOT EXISTS (
    SELECT 1 FROM pg_depend d WHERE d.objid = {0}.oid AND d.classid = '{1}'::regclass AND d.deptype = 'e'
)"""
_TABLES = f"""
    SELECT c.relname FROM pg_class c WHERE c.relnamespace = {_SCHEMA}
    AND c.relkind IN ('r', 'p') AND {_OWN.format("c", "pg_class")}
"""
_OTHERS = f"""
    SELECT 1 FROM pg_class c WHERE c.relnamespace = {_SCHEMA} AND {_OWN.format("c", "pg_class")}
    UNION ALL SELECT 1 FROM pg_proc p WHERE p.pronamespace = {_SCHEMA} AND {_OWN.format("p", "pg_proc")}
"""
_TOLD = f"""
    SELECT 'view', c.relname, regexp_replace(pg_get_viewdef(c.oid), '\\m' || current_schema() || '\\.', '', 'g')
    FROM pg_class c WHERE c.relnamespace = {_SCHEMA} AND c.relkind = 'v'
    UNION ALL
    SELECT 'table', c.relname, string_agg(
        a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull || ' ' || coalesce(l.collname, ''), ', '
        ORDER BY a.attnum)
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_collation l ON l.oid = a.attcollation
    WHERE c.relnamespace = {_SCHEMA} AND c.relkind = 'r' GROUP BY c.relname
    UNION ALL
    SELECT 'constraints of', c.relname, string_agg(
        n.conname || ' ' || replace(pg_get_constraintdef(n.oid), current_schema() || '.', ''), ', ' ORDER BY n.conname)
    FROM pg_class c JOIN pg_constraint n ON n.conrelid = c.oid AND n.contype <> 'n' WHERE c.relnamespace = {_SCHEMA} GROUP BY c.relname
    UNION ALL
    SELECT 'index', i.indexname, replace(i.indexdef, current_schema() || '.', '')
    FROM pg_indexes i WHERE i.schemaname = current_schema()
    UNION ALL
    SELECT 'rule', c.relname || '.' || r.rulename, replace(pg_get_ruledef(r.oid), current_schema() || '.', '')
    FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class WHERE c.relnamespace = {_SCHEMA} AND r.rulename <> '_RETURN'
"""
