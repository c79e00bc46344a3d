"""Check a store's integrity, as far as that needs no knowledge of what its rows mean.

Checked are the file (by the database's own check), the schema (against that of a new store), each row's digest, and foreign keys.
Content addresses and relations between rows are the business of the modules that write them: those pass a rule for each table, and
statements that count invalid rows.

Invariant: nothing is written, rows are streamed, and a database error while a damaged file is read is a finding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Boolean, Connection, Double, Integer, LargeBinary, Table

from recycledb.errors import RecycledbError
from recycledb.schema import Texts, sample_id, variant_id
from recycledb.store import Store, migrate
from recycledb.store.backend import Backend
from recycledb.store.digest import COLUMN, digests_of
from recycledb.store.streaming import stream
from recycledb.store.tables import metadata

REPORTED = 20  # of each table
BATCH_ROWS = 2_000

RowOf = dict[str, Any]


class Rule(NamedTuple):
    """Checks for each row of a table: `address` recomputes the id in column `key`, and `wrong` yields further findings."""

    key: str | None = None
    address: Callable[[RowOf], str] | None = None
    wrong: Callable[[RowOf], Iterable[str]] | None = None


class Relation(NamedTuple):
    """A constraint: SQL that counts the rows that violate it, and the words that follow this count in a finding."""

    says: str
    sql: str


@dataclass
class Walked:
    """What was checked in a table: rows, ids recomputed, digests compared, and rows without a digest."""

    table: str
    rows: int = 0
    ids: int = 0
    digests: int = 0
    without_digest: int = 0


@dataclass
class Checked:
    """What was checked, and the findings."""

    tables: list[Walked] = field(default_factory=list)
    schema_objects: int = 0
    references: int = 0
    relations: int = 0
    findings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # unusual, but not wrong

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"sound": not self.findings, **asdict(self)}

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Turn any error raised while reading `what` into a finding."""
        try:
            yield
        except RecycledbError as error:
            self.findings.append(f"{what}: {error}")
        except Exception as error:  # a driver may raise anything while it reads a damaged file
            first = (str(getattr(error, "orig", None) or error).splitlines() or [""])[0]
            self.findings.append(f"{what} cannot be read: {first or type(error).__name__}")


def _same_texts(row: RowOf) -> Texts:
    return Texts(row["instruction"], row["input"], row["output"], row.get("context"))


def _variant_address(row: RowOf) -> str:
    return variant_id(
        row["sample_id"], row["kind"], _same_texts(row), row["parent_id"], row["text_id"] or row["derivation_id"]
    )


RULES: Mapping[str, Rule] = {
    "sample": Rule("sample_id", lambda row: sample_id(_same_texts(row))),
    "variant": Rule("variant_id", _variant_address),
}


def check(store: Store, rules: Mapping[str, Rule] = RULES, relations: Sequence[Relation] = ()) -> Checked:
    """Check everything and return the findings."""
    checked = Checked()
    with checked.reading("the file"):
        checked.findings += store.backend.damage()
    with (
        checked.reading("the store"),
        store.read(),
    ):  # kept open: DuckDB reads its catalogue again for each first connection
        _check_all(store, checked, rules, relations)
    return checked


def _check_all(store: Store, checked: Checked, rules: Mapping[str, Rule], relations: Sequence[Relation]) -> None:
    with checked.reading("the schema"):
        _check_schema(store, checked)
    for table in metadata.sorted_tables:
        walked = Walked(table.name)
        checked.tables.append(walked)
        with checked.reading(table.name), store.read() as conn:
            _walk(conn, table, rules.get(table.name, Rule()), walked, checked.findings)
    references = list(_references())
    checked.references, checked.relations = len(references), len(relations)
    _count(store, [*references, *relations], checked)


# -- the schema


def _check_schema(store: Store, checked: Checked) -> None:
    """Compare tables, indexes and views with those of a new store, made in memory."""
    expected = _new_schema(store.backend)
    with store.read() as conn:
        found = store.backend.schema(conn)
        migrate.require_newest(store.backend, conn)
    checked.schema_objects = len(expected)
    for name, text in expected.items():
        if name not in found:
            checked.findings.append(f"{name} is missing")
        elif found[name] != text:
            checked.findings.append(f"{name} differs from schema revision {migrate.HEAD}")
    own = sorted(set(found) - set(expected))
    if own:
        checked.remarks.append(f"not part of recycledb and not checked: {', '.join(own)}")


_NEW_SCHEMA: dict[type, dict[str, str]] = {}  # by backend; creating one takes 0.1 s or more


def _new_schema(backend: Backend) -> dict[str, str]:
    """Return the schema of a new store in this backend."""
    kind = type(backend)
    if kind not in _NEW_SCHEMA:
        with backend.scratch() as conn:
            migrate.migrate(conn)
            _NEW_SCHEMA[kind] = backend.schema(conn)
    return _NEW_SCHEMA[kind]


# -- rows


def _walk(conn: Connection, table: Table, rule: Rule, walked: Walked, findings: list[str]) -> None:
    columns = [column.name for column in table.columns]
    looks = _looks(table, rule, walked)
    wrong = 0
    for rows in stream(conn, f"SELECT {', '.join(columns)} FROM {table.name}", (), BATCH_ROWS):
        for row in rows:
            walked.rows += 1
            for what in looks(row):
                wrong += 1
                if wrong <= REPORTED:
                    findings.append(f"{table.name} {_key(table, row)} {what}")
    if wrong > REPORTED:
        findings.append(f"{table.name}: {wrong - REPORTED} more findings like these")


def _looks(table: Table, rule: Rule, walked: Walked) -> Callable[[Sequence[Any]], Iterator[str]]:
    """Return the function that checks one row of a table and yields its findings."""
    columns = [column.name for column in table.columns]
    digested = COLUMN in columns
    digest = digests_of(table)
    fitting = [(column.name, column.nullable, _classes(column.type)) for column in table.columns]

    def looks(row: Sequence[Any]) -> Iterator[str]:
        if digested and row[-1] is not None:
            walked.digests += 1
            if _differs(digest, row):
                yield "was changed after it was written: its digest does not match"
                return
        else:
            walked.without_digest += digested
            unfit = [
                name
                for (name, null, classes), value in zip(fitting, row, strict=True)
                if not _fits(value, null, classes)
            ]
            if unfit:
                yield f"has a value of the wrong type in {', '.join(unfit)}"
                return
        if rule.address is None and rule.wrong is None:
            return
        named = dict(zip(columns, row, strict=True))
        if rule.address is not None and rule.key is not None:
            walked.ids += 1
            if _address(rule.address, named) != named[rule.key]:
                yield "has an id that does not match its content"
        if rule.wrong is not None:
            yield from rule.wrong(named)

    return looks


def _differs(digest: Callable[[Sequence[Any]], int], row: Sequence[Any]) -> bool:
    try:
        return bool(digest(row[:-1]) != row[-1])
    except (RecycledbError, TypeError, ValueError):  # a value's type has changed
        return True


def _address(address: Callable[[RowOf], str], row: RowOf) -> str | None:
    try:
        return address(row)
    except (TypeError, ValueError, KeyError, AttributeError):  # content that has no id
        return None


def _classes(kind: object) -> tuple[type, ...]:
    if isinstance(kind, Boolean):
        return (bool,)
    if isinstance(kind, Double):
        return (float,)
    if isinstance(kind, LargeBinary):
        return (bytes,)
    return (int,) if isinstance(kind, Integer) else (str,)


def _fits(value: Any, nullable: bool | None, classes: tuple[type, ...]) -> bool:
    if value is None:
        return bool(nullable)
    if classes == (bool,):
        return value in (0, 1)
    return isinstance(value, classes)


def _key(table: Table, row: Sequence[Any]) -> str:
    return " ".join(str(value)[:40] for column, value in zip(table.columns, row, strict=True) if column.primary_key)


# -- relations between rows


def _references() -> Iterator[Relation]:
    """Yield each foreign key: SQLite enforces them on insert, DuckDB's tables are created without them."""
    for table in metadata.sorted_tables:
        for column in table.columns:
            for key in column.foreign_keys:
                other, name = key.target_fullname.split(".")
                yield Relation(
                    f"of {table.name} have a {column.name} that is not in {other}",
                    f"SELECT count(*) FROM {table.name} t WHERE t.{column.name} IS NOT NULL "
                    f"AND NOT EXISTS (SELECT 1 FROM {other} o WHERE o.{name} = t.{column.name})",
                )


def _count(store: Store, relations: Sequence[Relation], checked: Checked) -> None:
    """Count on one connection, and on a new one after an error, which ends the transaction."""
    waiting = iter(relations)
    relation = next(waiting, None)
    while relation is not None:
        with checked.reading("relations between rows"), store.read() as conn:
            while relation is not None:
                this, relation = relation, next(waiting, None)
                count = conn.exec_driver_sql(this.sql).scalar()
                if count:
                    checked.findings.append(f"{count} rows {this.says}")
