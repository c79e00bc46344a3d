"""A read-only connection to PostgreSQL for users' SQL.

Invariant: a query is the SELECT of a cursor that is declared by the extended protocol, which takes one statement, in a READ ONLY
transaction. What such a transaction may still do depends on the role: a superuser may read files and run programs, so a superuser's
queries are refused unless they are asked for.
The planner is kept from the worst plans: where a plan without nested loops costs at most ten times the estimate of the best plan, the
query runs without them. Estimates of `is_current` and of joined views are wrong by orders of magnitude, and nested loops suffer from that.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg

from recycledb.errors import QueryError, StoreError
from recycledb.store.backend import Meaning, Row, names_as_if
from recycledb.store.postgresql_schema import SETTINGS, described
from recycledb.store.statement import statements_in, with_percentiles, with_percents, without_comments

if TYPE_CHECKING:
    from recycledb.store.postgresql import PostgreSQL

FETCH_ROWS = 1_024
INSURANCE = 10  # how much more a plan without nested loops may cost by estimate
DISABLED = 1e10  # what the planner before PostgreSQL 18 adds for each nested loop that cannot be avoided
AS_SUPERUSER = "RECYCLEDB_AS_SUPERUSER"  # set to let a superuser query
_EXPLAIN = "explain"
_READING = re.compile(r"[\s(]*(select|with|values|table|explain)\b", re.IGNORECASE)
_REFUSALS = (
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.FeatureNotSupported,
)
_ONLY_READS = "refused: a query may only read the store; use SELECT (or WITH … SELECT, VALUES, EXPLAIN)"


@contextmanager
def open_sandbox(
    backend: "PostgreSQL", *, allow_external: bool, as_if: Sequence[Meaning]
) -> Iterator["PostgreSQLSandbox"]:
    """Open a connection on which no statement can change the store."""
    if allow_external:
        raise QueryError("--allow-external is for stores in a file: PostgreSQL reads the files of its own machine only")
    try:
        connection = backend.connect("query")
    except psycopg.Error as error:
        raise StoreError(backend.explain(error)) from error
    opened = None
    try:
        # One transaction: behind pgbouncer the next may be on another connection of the server, without the temporary views.
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        schema = connection.execute("SELECT current_schema()").fetchone()[0]
        if as_if:
            _stand_in(connection, schema, as_if)
        connection.execute(f"SET TRANSACTION READ ONLY; {SETTINGS}; SET LOCAL idle_in_transaction_session_timeout = 0")
        opened = PostgreSQLSandbox(connection, "pg_temp" if as_if else schema)
        yield opened
    except psycopg.Error as error:
        raise StoreError(backend.explain(error)) from error
    finally:
        if opened is None or not opened.is_left:
            with suppress(psycopg.Error):
                connection.rollback()
                connection.close()


def _stand_in(connection: Any, schema: str, as_if: Sequence[Meaning]) -> None:
    """Override `current_names`: a view holds the relations that it read when it was created, so all views are created again."""
    views = connection.execute(
        "SELECT c.relname, pg_get_viewdef(c.oid) FROM pg_class c WHERE c.relkind = 'v' "
        "AND c.relnamespace = current_schema()::regnamespace ORDER BY c.oid"
    ).fetchall()
    quoted = schema.replace('"', '""')
    connection.execute(names_as_if(f'"{quoted}".current_names', as_if))
    for name, sql in views:
        if name != "current_names":
            connection.execute(f'CREATE TEMP VIEW "{name}" AS {sql}')


class PostgreSQLSandbox:
    """A connection that can only read."""

    def __init__(self, connection: Any, views: str) -> None:
        self.views = views
        self.is_left = False
        self._connection = connection
        self._cursors = 0

    def execute(self, sql: str, parameters: dict[str, Any] | None = None) -> tuple[list[str], Any]:
        """Run one statement; return column names and a lazy iterator of rows."""
        statements = statements_in(sql)
        if len(statements) != 1:
            raise QueryError("the query is empty" if not statements else "write one statement at a time")
        [statement] = statements
        bare = without_comments(statement).strip()
        if not _READING.match(bare):
            raise QueryError(_ONLY_READS)
        with self._guarded(sql):
            if bare[: len(_EXPLAIN)].lower() == _EXPLAIN:
                return self._explain(bare, parameters or {})
            text = self._bound(statement, parameters or {})
            name = self._declare(text, insured=True)
            cursor = self._connection.cursor()
            cursor.execute(f"FETCH FORWARD {FETCH_ROWS} FROM {name}")
            names = _names(cursor)
        if not names:
            raise QueryError("the query returns no columns; write what it selects")
        return names, self._rows(cursor, name)

    def columns(self, select: str, parameters: dict[str, Any] | None = None) -> list[str]:
        """Return the columns of a SELECT, as a subquery has them, without reading its rows."""
        with self._guarded():
            name = self._declare(self._bound(f"SELECT * FROM (\n{select}\n) AS picked LIMIT 0", parameters or {}))
            cursor = self._connection.cursor()
            cursor.execute(f"FETCH FORWARD 1 FROM {name}")
            self._connection.execute(f"CLOSE {name}")
            return _names(cursor)

    def require_reader(self) -> None:
        """Raise QueryError for a superuser, unless AS_SUPERUSER is set."""
        if os.environ.get(AS_SUPERUSER):
            return
        role, superuser = self._connection.execute("SELECT current_user, current_setting('is_superuser')").fetchone()
        if superuser == "on":
            raise QueryError(
                f"refused: {role} is a superuser, whose queries may read files and run programs of the server; connect as another role "
                f"(`recycledb db grant ROLE` prints what it needs), or set {AS_SUPERUSER}=1"
            )

    def _bound(self, sql: str, given: dict[str, Any]) -> str:
        """Return the statement with its parameters as quoted literals, and with PostgreSQL's own quantile."""
        sql = with_percentiles(sql)
        cursor = psycopg.ClientCursor(self._connection)
        return cursor.mogrify(with_percents(sql, given), given) if given else sql

    def _declare(self, text: str, *, insured: bool = False) -> str:
        self._cursors += 1
        name = f"recycledb_{self._cursors}"
        declare = f"DECLARE {name} NO SCROLL CURSOR FOR\n"
        if insured:
            self._alone(f"{declare}{text}".replace(name, f"{name}_check"))  # that it is a SELECT
            self._connection.execute(f"CLOSE {name}_check")
            self._insure(text)
        self._alone(f"{declare}{text}")
        return name

    def _alone(self, statement: str) -> Any:
        """Run one statement, of which a user wrote a part.

        Without parameters the driver sends text in a form in which several statements may follow each other, also a COMMIT; results in
        binary form are the way to the other one.
        """
        return self._connection.execute(statement, binary=True)

    def _insure(self, text: str) -> None:
        """Plan with and without nested loops, and choose; see the module's text."""
        costs = []
        for setting in ("on", "off"):
            self._connection.execute(f"SET LOCAL enable_nestloop = {setting}")
            [(plan,)] = self._alone(f"EXPLAIN (FORMAT JSON) {text}").fetchall()
            costs.append(plan[0]["Plan"]["Total Cost"] % DISABLED)
        if costs[1] > INSURANCE * costs[0]:
            self._connection.execute("SET LOCAL enable_nestloop = on")

    def _explain(self, bare: str, given: dict[str, Any]) -> tuple[list[str], Any]:
        """Run EXPLAIN of a statement that a cursor takes."""
        inner = _explained(bare)
        name = self._declare(self._bound(inner, given))
        self._connection.execute(f"CLOSE {name}")
        cursor = self._alone(self._bound(bare, given))
        return _names(cursor), iter([tuple(map(_text, row)) for row in cursor.fetchall()])

    def _rows(self, cursor: Any, name: str) -> Iterator[Row]:
        while rows := cursor.fetchall():
            yield from rows
            if len(rows) < FETCH_ROWS:
                break
            with self._guarded():
                cursor.execute(f"FETCH FORWARD {FETCH_ROWS} FROM {name}")

    @contextmanager
    def _guarded(self, sql: str = "") -> Iterator[None]:
        """Turn an error into a QueryError, and end only the statement by it, not the transaction."""
        self._connection.execute("SAVEPOINT statement")
        try:
            yield
        except psycopg.Error as error:
            text = " ".join(str(error).split("\nLINE ")[0].split())
            if isinstance(error, psycopg.errors.SyntaxError) and "?" in sql:
                text = "write parameters as :name, not ?, and give their values as --param name=…"
            with suppress(psycopg.Error):
                self._connection.execute("ROLLBACK TO SAVEPOINT statement")
            refused = isinstance(error, _REFUSALS)
            raise QueryError(f"refused: a query may only read the store ({text})" if refused else text) from error
        else:
            self._connection.execute("RELEASE SAVEPOINT statement")

    def interrupt(self) -> None:
        """Stop the running statement."""
        with suppress(psycopg.Error):
            self._connection.cancel_safe(timeout=5)

    def leave(self) -> None:
        """Never close the connection."""
        self.is_left = True


def _explained(bare: str) -> str:
    """Return the statement that an EXPLAIN explains."""
    rest = bare[len(_EXPLAIN) :].lstrip()
    if rest.startswith("(") and not rest[1:].lstrip().lower().startswith(("select", "with", "values", "(")):
        return rest[rest.index(")") + 1 :] if ")" in rest else rest
    for word in ("analyze", "verbose"):
        if rest.lower().startswith(word):
            rest = rest[len(word) :].lstrip()
    return rest


def _text(value: Any) -> Any:
    """Return a line of a plan, of which the driver leaves XML in bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _names(cursor: Any) -> list[str]:
    return [column[0] for column in described(cursor.description)]
