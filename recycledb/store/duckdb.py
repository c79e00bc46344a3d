"""DuckDB: the analytical backend.

Invariant: one process at a time. DuckDB locks its file for the whole process, even against readers, and the error message says so.
Rows are inserted in bulk through Arrow, since inserting them one by one is a hundred times slower.
"""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import duckdb
from alembic.ddl.impl import DefaultImpl
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool, StaticPool

from recycledb.errors import QueryError, ReadOnlyError, StoreError, is_interrupt
from recycledb.schema import utc_now
from recycledb.store.access import may_write
from recycledb.store.backend import Contents, Meaning, Row, names_as_if
from recycledb.store.files import InFile
from recycledb.store.statement import statements_in, with_dollars, without_comments
from recycledb.store.turns import Turns

# Queries that describe tables, constraints and indexes, for `schema`.
_TOLD = {
    "table": """
        SELECT t.table_name, c.column_name, c.data_type, c.is_nullable, c.column_default
        FROM duckdb_tables() t JOIN duckdb_columns() c ON c.table_oid = t.table_oid AND c.table_name = t.table_name
        WHERE NOT t.internal AND NOT t.temporary ORDER BY t.table_name, c.column_index
    """,
    "constraints of": """
        SELECT table_name, constraint_type, constraint_column_names, expression
        FROM duckdb_constraints() ORDER BY table_name, constraint_type, constraint_column_names
    """,
    "index": "SELECT index_name, table_name, is_unique, expressions FROM duckdb_indexes() ORDER BY index_name",
}
# What a file may contain besides tables.
_OTHERS = " UNION ALL ".join(
    f"SELECT 1 FROM duckdb_{kind}() WHERE NOT {built_in} AND database_name = current_database()"
    for kind, built_in in (
        ("views", "internal"), ("schemas", "internal"), ("types", "internal"), ("functions", "internal"), ("sequences", "temporary")
    )
)  # fmt: skip


class DuckDBImpl(DefaultImpl):
    """Tells Alembic that a `duckdb` dialect exists; additive DDL needs nothing special."""

    __dialect__ = "duckdb"
    transactional_ddl = True


# DuckDB draws one on stdout, amid the output of a command, where Python runs without a file: in a REPL, a notebook, `python -c`.
_NO_BAR = "SET enable_progress_bar = false"


class DuckDB(InFile):
    """A store in one DuckDB file."""

    name = "duckdb"
    one_clock = False
    errors: tuple[type[Exception], ...] = (duckdb.Error,)  # bulk inserts bypass SQLAlchemy, which would wrap errors

    def __init__(self, path: Path) -> None:
        if "?" in str(path):  # DuckDB would cut the name of its log there
            raise StoreError(f"DuckDB cannot open a database at {path}: the path contains a question mark")
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise StoreError(f"DuckDB cannot open a database at {path!r}: the path is not UTF-8") from error
        if path.is_file() and not _is_empty_or_duckdb(path):  # DuckDB would read a data file into a database in memory
            raise StoreError(f"{path} is not a DuckDB file; check the URL")
        self.path = path
        self._is_written = False
        self._turns = Turns()
        self.writer = self._engine(StaticPool, writes=True)
        self.reader = self._engine(NullPool, writes=False)

    def _engine(self, pool: Any, *, writes: bool) -> Engine:
        engine = create_engine(URL.create("duckdb", database=str(self.path)), poolclass=pool)

        @event.listens_for(engine, "do_connect")
        def connect(dialect: object, record: object, arguments: object, options: dict[str, Any]) -> None:
            if not self.path.exists() or may_write(self.path):
                if writes and _is_blank(
                    self.path
                ):  # DuckDB creates a database if there is no file, but not in an empty one
                    self.path.unlink()
                self._is_written |= writes
                return
            if writes:
                raise ReadOnlyError(
                    f"{self.path} is read-only: this user has no write permission for it or for its folder"
                )
            options["read_only"] = True

        @event.listens_for(engine, "connect")
        def connected(connection: Any, record: object) -> None:
            connection.cursor().execute(_NO_BAR)

        return engine

    def insert(self, conn: Connection, table: str, columns: Sequence[str], rows: Sequence[Row]) -> int:
        """Insert from an Arrow table, typed by the target's columns."""
        import pyarrow as pa

        raw: Any = conn.connection.driver_connection
        types = {name: _arrow_type(kind, pa) for name, kind in self._types(raw, table)}
        schema = pa.schema([(column, types[column]) for column in columns])
        batch = pa.Table.from_arrays(
            [pa.array(values, type=field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)],
            schema=schema,
        )
        raw.register("incoming_rows", batch)
        try:
            names = ", ".join(columns)
            result = raw.execute(
                f"INSERT INTO {table} ({names}) SELECT {names} FROM incoming_rows ON CONFLICT DO NOTHING"
            )
            return int(result.fetchone()[0])
        finally:
            # A failed insert has aborted the transaction; report its error, not this one.
            with suppress(duckdb.TransactionException):
                raw.unregister("incoming_rows")

    @staticmethod
    def _types(raw: Any, table: str) -> list[tuple[str, str]]:
        sql = "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ?"
        return list(raw.execute(sql, [table]).fetchall())

    def now(self, conn: Connection) -> str:
        """Return this host's time: the processes that have the file open run on it."""
        return utc_now()

    def backup(self, target: Path) -> None:
        """Checkpoint the log into the file, close it, and copy it: an open DuckDB file must not be read by other means."""
        with self.writer.connect() as conn:
            conn.exec_driver_sql("CHECKPOINT")
        self.close()
        shutil.copy2(self.path, target)

    @contextmanager
    def look(self) -> Iterator[Connection]:
        """Open the file read-only if a process left a log there: closing it would otherwise checkpoint the log."""
        log = self.path.with_name(f"{self.path.name}.wal")
        engine = self.reader
        if _is_blank(self.path):
            engine = _in_memory()
        elif log.exists() and not self._is_written:
            url = URL.create("duckdb", database=str(self.path))
            engine = create_engine(url, poolclass=NullPool, connect_args={"read_only": True})
        with engine.connect() as conn:
            yield conn
        if engine is not self.reader:
            engine.dispose()

    def contents(self, conn: Connection) -> Contents:
        """Return the file's tables; a file with another program's schemas, types or macros is not blank either."""
        tables = {row[0] for row in conn.exec_driver_sql("SELECT table_name FROM duckdb_tables() WHERE NOT internal")}
        return Contents(tables, not tables and not conn.exec_driver_sql(_OTHERS).fetchall())

    def schema(self, conn: Connection) -> dict[str, str]:
        """Describe views by their SQL, tables by their columns and constraints, and indexes."""
        found: dict[str, str] = {}
        for name, sql in conn.exec_driver_sql("SELECT view_name, sql FROM duckdb_views() WHERE NOT internal"):
            found[f"view {name}"] = " ".join(sql.split())
        for kind, sql in _TOLD.items():
            for name, *description in conn.exec_driver_sql(sql):
                if name not in ("kept_place", "incoming_rows"):  # temporary, not in the file
                    found[f"{kind} {name}"] = found.get(f"{kind} {name}", "") + repr(description)
        return found

    @contextmanager
    def scratch(self) -> Iterator[Connection]:
        """Open a transaction in a new database in memory."""
        engine = _in_memory()
        try:
            with engine.begin() as conn:
                yield conn
        finally:
            engine.dispose()

    def commits(self, conn: Connection) -> int | None:
        """Return None: this process holds the file alone."""
        return None

    def turn(self, *, sandboxed: bool) -> AbstractContextManager[None]:
        """Wait for connections of the other sort: a process can have a file open either for writing or for reading."""
        return self._turns.take(sandboxed=sandboxed)

    def undisturbed(self) -> AbstractContextManager[None]:
        """Do nothing: while a process reads, no other process can write."""
        return nullcontext()

    def refused_writing(self, error: Exception) -> bool:
        """Return whether the store can still be read, but this user may not write it, or the disk is full."""
        return "read-only" in str(error) or "No space left" in str(error)

    def damage(self) -> list[str]:
        """Read every table completely: DuckDB verifies the checksum of each block that it reads."""
        with self.reader.connect() as conn:
            tables = [row[0] for row in conn.exec_driver_sql("SELECT table_name FROM duckdb_tables()")]
            found = []
            for table in tables:
                try:
                    conn.exec_driver_sql(f'SELECT count(*), max(hash("{table}")) FROM "{table}"').fetchall()
                except Exception as error:  # any error of the driver is a finding
                    if is_interrupt(error):
                        raise
                    found.append(f"{table}: {error}")
        return found

    def explain(self, error: Exception) -> str:
        """Translate DuckDB's messages."""
        text = str(error).splitlines()[0]
        if "Could not set lock" in text:
            return (
                f"another process has {self.path} open, and DuckDB allows only one at a time; "
                "wait until it is done, or use SQLite for a store that is read while it is written"
            )
        if "No space left" in text:
            return f"no space is left for {self.path}; free some space and run the same command again: nothing committed is lost"
        if "not a valid DuckDB database" in text or "Corrupt" in text or "corrupt" in text:
            return (
                f"{self.path} is damaged, or not a DuckDB file; restore a backup (`db upgrade` leaves them next to it)"
            )
        return f"{self.path}: {text}"

    @contextmanager
    def sandbox(self, *, allow_external: bool = False, as_if: Sequence[Meaning] = ()) -> Iterator["DuckDBSandbox"]:
        """Open the file read-only; lock its configuration, so that no statement can remove the restrictions."""
        self.close()  # a process can have a file open either for writing or for reading
        try:
            connection = duckdb.connect(str(self.path), read_only=True)
        except duckdb.Error as error:
            raise StoreError(self.explain(error)) from error
        opened = DuckDBSandbox(connection, allow_external)
        try:
            connection.execute(_NO_BAR)
            connection.execute("SET autoinstall_known_extensions = false")
            connection.execute("SET autoload_known_extensions = false")
            connection.execute("SET python_enable_replacements = false")  # Python variables are not tables
            with suppress(duckdb.Error):  # built without time zones
                connection.execute("SET TimeZone = 'UTC'")
            if not allow_external:
                connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            if as_if:  # DuckDB resolves a view's names when it is used, temporary ones first
                [(catalog,)] = connection.execute("SELECT current_database()").fetchall()
                quoted = catalog.replace('"', '""')
                connection.execute(names_as_if(f'"{quoted}".main.current_names', as_if))
            yield opened
        finally:
            if not opened.is_left:
                connection.close()

    def close(self) -> None:
        """Close every connection."""
        self._is_written = False
        self.writer.dispose()
        self.reader.dispose()


# Operators of a query plan that write files (COPY may be in a WITH), settings or logs; and SQL that is known only when it runs.
_WRITING = re.compile(
    "COPY|INSERT|UPDATE|DELETE|MERGE|CREATE|ALTER|DROP|TRUNCATE|ATTACH|EXPORT|IMPORT|EXECUTE|CHECKPOINT|LOGGING|EXTERNAL_RESOURCE"
)

_EXPLAIN = re.compile(
    r"explain\b (?:\s+analyze\b)? (?:\s*\((?!\s*(?:select|with|from|values|table|\())[^()]*\))? (?P<inner>.*)",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)

# Without an option, an attached database is opened in the mode of this one: read-only.
_OPTION = r"(?:read_only(?:\s+true)?|type\s+'?\w+'?|encryption_key\s+'(?:[^']|'')*')"
_ATTACH = re.compile(
    rf"""
    attach \s+ (?:or \s+ replace \s+)? (?:database \s+)? (?:if \s+ not \s+ exists \s+)?
    '(?:[^']|'')*' (?:\s* \b as \s+ (?:\w+|"(?:[^"]|"")*"))?
    (?:\s*\( \s* (?:{_OPTION} \s* , \s*)* {_OPTION} \s* \))?
    """,
    re.IGNORECASE | re.VERBOSE,
)

_WITH_ZONE = "TIMESTAMP WITH TIME ZONE"


class DuckDBSandbox:
    """A connection that can only read: the store, and other files if that is allowed."""

    views = "main"

    def __init__(self, connection: Any, allow_external: bool) -> None:
        self.is_left = False
        self._connection = connection
        self._allow_external = allow_external

    def execute(self, sql: str, parameters: dict[str, Any] | None = None) -> tuple[list[str], Any]:
        """Run one statement; return column names and a lazy iterator of rows."""
        given = parameters or {}
        try:
            statement = self._checked(with_dollars(sql, given), given)
            named = _named(statement, given)
            result = self._connection.execute(statement, named)
            columns = [column[0] for column in result.description]
            types = [str(column[1]) for column in result.description]
            if any(_WITH_ZONE in kind for kind in types):  # the driver needs a package that it does not depend on
                result = self._connection.execute(_with_zones_as_text(statement.query, types), named)
        except duckdb.Error as error:
            raise QueryError(self._refusal(error)) from error
        return columns, self._rows(result)

    def require_reader(self) -> None:
        """Do nothing: what a statement may do does not depend on who runs it."""

    def columns(self, select: str, parameters: dict[str, Any] | None = None) -> list[str]:
        """Return the columns of a SELECT, as a subquery has them; DESCRIBE does not plan it, which for large views takes a second."""
        _, rows = self.execute(f"DESCRIBE SELECT * FROM (\n{select}\n) AS picked", parameters)
        return [str(row[0]) for row in rows]

    def _checked(self, sql: str, given: dict[str, Any]) -> Any:
        """Return the single statement of a text; raise QueryError unless it only reads."""
        statement = self._one(sql)
        match statement.type.name:
            case "SELECT":
                self._require_reading(sql, statement, given)
            case "EXPLAIN":  # ANALYZE runs it; check exactly what is run, so without comments
                found = _EXPLAIN.fullmatch(without_comments(sql).strip())
                inner = self._one(found["inner"]) if found else None
                if inner is None or inner.type.name != "SELECT":
                    raise QueryError(_ONLY_READS)
                self._require_reading(inner.query, inner, given)
                statement = self._one(without_comments(sql))
            case "ATTACH" if self._allow_external:
                bare = without_comments(sql).strip().rstrip("; \t\r\n")
                if not _ATTACH.fullmatch(bare):
                    raise QueryError("refused: write ATTACH in the form ATTACH 'FILE' AS name (READ_ONLY)")
                statement = self._one(bare)
            case "DETACH" if self._allow_external:
                pass
            case _:
                raise QueryError(_ONLY_READS)
        return statement

    def _one(self, sql: str) -> Any:
        statements = self._connection.extract_statements(sql)
        if not statements:
            raise QueryError("the query is empty")
        if len(statements) > 1:
            raise QueryError(f"one statement at a time, not {len(statements)}")
        return statements[0]

    def _require_reading(self, sql: str, statement: Any, given: dict[str, Any]) -> None:
        """Raise QueryError if a SELECT would write a file; without external access the database itself prevents that."""
        if not self._allow_external:
            return
        [(_, plan)] = self._connection.execute(f"EXPLAIN (FORMAT json) {sql}", _named(statement, given)).fetchall()
        for step in _steps(json.loads(plan)):
            if _WRITING.search(step):
                raise QueryError(f"refused: a query may only read ({step})")

    def _rows(self, result: Any) -> Iterator[Row]:
        try:
            while rows := result.fetchmany(1024):
                yield from rows
        except duckdb.Error as error:
            raise QueryError(self._refusal(error)) from error

    def interrupt(self) -> None:
        """Stop the running statement."""
        self._connection.interrupt()

    def leave(self) -> None:
        """Never close the connection."""
        self.is_left = True

    def _refusal(self, error: Exception) -> str:
        """Return a driver's message on one line, without the excerpt of the SQL."""
        text = " ".join(str(error).split("\nLINE ")[0].split())
        signs = ("disabled by configuration", "configuration has been locked", "read-only")
        if any(sign in text for sign in signs) and "does not exist" not in text:
            more = "" if self._allow_external else "; --allow-external lets it read other files"
            return f"refused: a query may only read the store ({text}){more}"
        return text


_ONLY_READS = "refused: a query may only read the store; use SELECT (or WITH … SELECT, EXPLAIN)"


def _named(statement: Any, given: dict[str, Any]) -> dict[str, Any] | None:
    return {key: value for key, value in given.items() if key in statement.named_parameters} or None


def _steps(plan: Any) -> Iterator[str]:
    """Yield the names of a plan's operators and table functions."""
    for step in plan if isinstance(plan, list) else [plan]:
        yield str(step.get("name", ""))
        yield from _steps(step.get("children", []))


def _with_zones_as_text(sql: str, types: Sequence[str]) -> str:
    """Return the query with timestamps, also those in lists and structs, as texts in UTC."""
    names = [f"c{i}" for i in range(len(types))]
    columns = [
        f"CAST({name} AS {kind.replace(_WITH_ZONE, 'VARCHAR')})" if _WITH_ZONE in kind else name
        for name, kind in zip(names, types, strict=True)
    ]
    [query] = statements_in(sql)
    return f"SELECT {', '.join(columns)} FROM (\n{query}\n) AS result({', '.join(names)})"


def _in_memory() -> Engine:
    return create_engine("duckdb:///:memory:", poolclass=StaticPool)


def _is_blank(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _is_empty_or_duckdb(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    return head == b"" or head[8:] == b"DUCK"


def _arrow_type(kind: str, pa: Any) -> Any:
    match kind:
        case "VARCHAR":
            return pa.string()
        case "INTEGER" | "BIGINT":
            return pa.int64()
        case "BOOLEAN":
            return pa.bool_()
        case "FLOAT" | "DOUBLE":
            return pa.float64()
        case "BLOB":
            return pa.binary()
    raise StoreError(f"a column of type {kind} cannot be filled from Arrow")
