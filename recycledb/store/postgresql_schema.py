"""How the revisions become PostgreSQL: the rules by which Alembic creates their tables and views there.

Invariant: a revision says what a table or view is, and is written once for all backends; what follows from PostgreSQL alone is here. Texts
have the collation "C", so that they sort and compare as on the other backends, integers have 64 bits, and views call
`recycledb_exp`, since PostgreSQL's own raises where the others return 0 or infinity.
Tables of facts have no foreign keys: they halve the speed of loading, and `db check` looks for rows that reference nothing.
An upgrade waits only for seconds where another session reads or writes a table that it changes: whoever comes later waits behind it.
"""

import re
import threading
from typing import Any

import psycopg
from alembic.ddl.postgresql import PostgresqlImpl
from psycopg import errors as pg_errors
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    text,
)  # fmt: skip
from sqlalchemy.exc import DBAPIError

from recycledb.errors import SchemaError

# The tables that a sync fills. Their rows are content that is addressed by its hash.
FACTS = {
    "sample", "place", "closing", "variant", "attempt", "reply", "repeated_reply", "extraction", "rating", "loss", "readout", "embedding",
    "value", "derivation", "derivation_member", "ordering_item", "near_duplicate", "selection_item",
}  # fmt: skip
# The tables that are read from the last row that was read on; `rowid` is what SQLite and DuckDB call it.
NUMBERED = (
    "attempt", "reply", "repeated_reply", "variant", "extraction", "place", "closing", "value", "rating", "name", "selection_item", "mark",
)  # fmt: skip

# A number of a store's columns have capital letters; PostgreSQL folds unquoted names to lower case, also those of a query's columns.
FOLDED = {
    name.lower(): name
    for name in (
        f"{what}_{stat}" for what in ("ppl", "loss") for stat in ("Q_direct", "A_direct", "Q_condition", "A_condition")
    )
}

# For each transaction. Sorts and hashes of a whole store's rows spill to disk with the server's default of 4 MB; the statement of a
# process that was killed would run to its end (only servers on Linux can tell).
SETTINGS = """
    SET LOCAL jit = off;
    SET LOCAL cursor_tuple_fraction = 1;
    SELECT set_config('work_mem', '64MB', true) WHERE pg_size_bytes(current_setting('work_mem')) < 67108864;
    SELECT set_config('client_connection_check_interval', '5s', true) WHERE position('linux' IN version()) > 0
"""

_EXP = re.compile(r"\bexp\(")
_VIEW = re.compile(
    r"\s*(?:CREATE VIEW (?P<view>\w+)|DROP VIEW (?P<drop>\w+)|CREATE RULE \w+ AS ON \w+ TO (?P<target>\w+))"
)
_OURS = "c.relnamespace = current_schema()::regnamespace AND c.relkind = 'v'"
_VIEWS = f"SELECT c.relname, pg_get_viewdef(c.oid) FROM pg_class c WHERE {_OURS} ORDER BY c.oid"
_RULES = f"""
    SELECT r.rulename, c.relname, pg_get_ruledef(r.oid) FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
    WHERE {_OURS} AND r.rulename <> '_RETURN'
"""
# Views of users that read ours: those in other schemas, those of other roles, and materialized ones. Temporary ones are gone soon.
_FOREIGN = """
    SELECT DISTINCT c.oid::regclass::text, pg_get_userbyid(c.relowner), c.relkind = 'm', o.relname
    FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class c ON c.oid = r.ev_class JOIN pg_class o ON o.oid = d.refobjid
    WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND c.oid <> o.oid AND o.relkind = 'v'
    AND o.relnamespace = current_schema()::regnamespace AND c.relpersistence <> 't'
    AND NOT (c.relkind = 'v' AND c.relnamespace = o.relnamespace AND pg_has_role(c.relowner, 'USAGE')) ORDER BY 1, 4
"""
_BLOCKING = """
    SELECT a.pid, coalesce(nullif(a.application_name, ''), 'a client without a name'), a.usename
    FROM unnest(pg_blocking_pids(%s)) AS b(pid) JOIN pg_stat_activity a ON a.pid = b.pid ORDER BY a.backend_start
"""
LOCK_WAIT_S, LOOK_S = 5, 0.2


def array_type(kind: Any) -> str:
    """Return PostgreSQL's name of the array of a column's type."""
    if isinstance(kind, Boolean):
        return "boolean[]"
    if isinstance(kind, Double):
        return "double precision[]"
    if isinstance(kind, LargeBinary):
        return "bytea[]"
    return "bigint[]" if isinstance(kind, Integer) else "text[]"


class StoreImpl(PostgresqlImpl):
    """Alembic's operations, by the rules above."""

    __dialect__ = "postgresql"
    _kept: dict[str, list[str]] | None = None
    _blockers: "Blockers | None" = None

    def start_migrations(self) -> None:
        """Wait only briefly for what others have locked."""
        super().start_migrations()
        assert self.connection is not None
        self._exec(text(f"SET LOCAL lock_timeout = '{LOCK_WAIT_S}s'"))
        self._blockers = Blockers(self.connection)

    def _exec(self, construct: Any, *arguments: Any, **options: Any) -> Any:
        """Run a statement; where it waits in vain, say for whom."""
        try:
            return super()._exec(construct, *arguments, **options)
        except DBAPIError as error:
            if isinstance(error.orig, pg_errors.LockNotAvailable) and self._blockers is not None:
                raise SchemaError(self._blockers.told()) from error
            raise

    def create_table(self, table: Table, **options: Any) -> None:
        """Create a table; those of NUMBERED get a column `rowid`, with an index."""
        for column in table.columns:
            _adapt(column)
        if table.name in FACTS:
            for constraint in [each for each in table.constraints if isinstance(each, ForeignKeyConstraint)]:
                table.constraints.remove(constraint)
        if table.name in NUMBERED:
            table.append_column(Column("rowid", BigInteger(), Identity(always=True), nullable=False))
        super().create_table(table, **options)
        if table.name in NUMBERED:
            self.create_index(Index(f"ix_{table.name}_rowid", table.c.rowid))

    def add_column(self, table_name: str, column: Column[Any], **options: Any) -> None:
        """Add a column."""
        _adapt(column)
        super().add_column(table_name, column, **options)

    def execute(self, sql: Any, execution_options: dict[str, Any] | None = None) -> None:
        """Run a statement; those about views are collected for `finish`."""
        found = _VIEW.match(sql) if isinstance(sql, str) else None
        if found is None:
            super().execute(sql, execution_options)
            return
        views = self._views()
        if found["drop"]:
            del views[found["drop"]]
        elif found["view"]:
            views[found["view"]] = [_EXP.sub("recycledb_exp(", sql)]
        else:
            views[found["target"]].append(sql)

    def finish(self) -> None:
        """Create the views, each after those that it reads.

        They are written once more as the server prints them, which it does not print the same again: else a view that an upgrade keeps
        would differ from one of a new store, and `db check` would report it.
        """
        waiting = dict(self._views())
        while waiting:
            for name, [view, *rules] in list(waiting.items()):
                if not any(other != name and re.search(rf"\b{other}\b", view) for other in waiting):
                    del waiting[name]
                    for sql in (view, *rules):
                        self._exec(text(sql.replace(":", "\\:")))
        for name, sql in _rows(self._exec(text(_VIEWS))) if self._kept else ():
            self._exec(text(f"CREATE OR REPLACE VIEW {name} AS {sql}".replace(":", "\\:")))

    def end(self) -> None:
        """Release what an upgrade needed, however it ended."""
        if self._blockers is not None:
            self._blockers.close()

    def _views(self) -> dict[str, list[str]]:
        """Return the views as they are to be after the upgrade, and drop those that there are before anything else is changed.

        PostgreSQL drops no view and changes no column that another view reads, so views are created anew when all else is done.
        """
        if self._kept is None:
            self._require_no_foreign_views()
            self._kept = {}
            found = _rows(self._exec(text(_VIEWS)))
            for name, sql in found:
                self._kept[name] = [f"CREATE VIEW {name} AS {sql}"]
            for _, table, rule in _rows(self._exec(text(_RULES))):
                self._kept[table].append(rule)
            if found:
                self._exec(text(f"DROP VIEW {', '.join(name for name, _ in found)}"))
        return self._kept

    def _require_no_foreign_views(self) -> None:
        """Raise SchemaError where a view that cannot be created again here reads one that is dropped."""
        found = _rows(self._exec(text(_FOREIGN)))
        if not found:
            return
        (name, owner, materialized, ours), more = found[0], len({row[0] for row in found}) - 1
        kind = "MATERIALIZED VIEW" if materialized else "VIEW"
        raise SchemaError(
            f"nothing was upgraded: {kind.lower()} {name} of role {owner}{f' and {more} more' if more else ''} reads {ours}, which the "
            f"upgrade creates anew: keep what `SELECT pg_get_viewdef('{name}');` prints, `DROP {kind} {name};`, run "
            "`recycledb db upgrade`, then create the view again"
        )


class Blockers:
    """Who makes an upgrade wait: asked of the server again and again, since after the wait it is no longer known."""

    def __init__(self, conn: Connection) -> None:
        self._of = int(conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
        _, arguments = conn.dialect.create_connect_args(conn.engine.url)
        self._arguments: dict[str, Any] = {**arguments, "connect_timeout": LOCK_WAIT_S}
        self._found: list[tuple[int, str, str]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="blockers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._done.set()
        self._thread.join()

    def told(self) -> str:
        """Return what to do, at the end of a wait."""
        if not self._found:
            return "nothing was upgraded: another session holds a lock on the store; run `recycledb db upgrade` again when it has ended"
        pid, program, role = self._found[0]
        more = f" and {len(self._found) - 1} more" if len(self._found) > 1 else ""
        return (
            f"nothing was upgraded: process {pid} of the server ({program}, role {role}){more} uses the store and has not ended within "
            f"{LOCK_WAIT_S} s; wait for it or end it (`SELECT pg_terminate_backend({pid});`), then run `recycledb db upgrade` again"
        )

    def _watch(self) -> None:
        try:
            with psycopg.connect(**self._arguments, autocommit=True, prepare_threshold=None) as connection:
                while not self._done.wait(LOOK_S):
                    if found := connection.execute(_BLOCKING, [self._of]).fetchall():
                        self._found = found
        except psycopg.Error:  # there is no further connection: the message then names nobody
            return


def _rows(result: Any) -> list[Any]:
    return list(result.fetchall())


def _adapt(column: Column[Any]) -> None:
    if isinstance(column.type, String):
        column.type = String(collation="C")
    elif isinstance(column.type, Integer):
        column.type = BigInteger()


def described(columns: Any) -> Any:
    """Return a cursor's description with the documented names of the columns."""
    if columns is None or not any(column.name in FOLDED for column in columns):
        return columns
    return [(FOLDED.get(column.name, column.name), *tuple(column)[1:]) for column in columns]
