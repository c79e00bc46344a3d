"""How the revisions become PostgreSQL: the rules by which Alembic creates their tables and views there.

Invariant: a revision says what a table or view is, and is written once for all backends; what follows from PostgreSQL alone is here. Texts
have the collation "C", so that they sort and compare as on the other backends, integers have 64 bits, and views call
`recycledb_exp`, since PostgreSQL's own raises where the others return 0 or infinity.
Tables of facts have no foreign keys: they halve the speed of loading, and `db check` looks for rows that reference nothing.
"""

import re
from typing import Any

from alembic.ddl.postgresql import PostgresqlImpl
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
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
        """Create the views, each after those that it reads."""
        waiting = dict(self._views())
        while waiting:
            for name, [view, *rules] in list(waiting.items()):
                if not any(other != name and re.search(rf"\b{other}\b", view) for other in waiting):
                    del waiting[name]
                    for sql in (view, *rules):
                        self._exec(text(sql.replace(":", "\\:")))

    def _views(self) -> dict[str, list[str]]:
        """Return the views as they are to be after the upgrade, and drop those that there are before anything else is changed.

        PostgreSQL drops no view and changes no column that another view reads, so views are created anew when all else is done.
        """
        if self._kept is None:
            self._kept = {}
            found = _rows(self._exec(text(_VIEWS)))
            for name, sql in found:
                self._kept[name] = [f"CREATE VIEW {name} AS {sql}"]
            for _, table, rule in _rows(self._exec(text(_RULES))):
                self._kept[table].append(rule)
            if found:
                self._exec(text(f"DROP VIEW {', '.join(name for name, _ in found)}"))
        return self._kept


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
