"""Whether a store is sound, as far as that can be told without knowing what its rows are for.

Looked at are the file by its own database, the schema against a new one, each row against its digest, and references. Content addresses
and what rows say of each other are for those who make them: they hand in a rule for each table, and statements that count what is wrong.

Invariant: nothing is written, rows are read in a stream, and an error of the database while a damaged file is read is a finding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Boolean, Connection, Double, Integer, Table

from recycledb.errors import RecycledbError
from recycledb.schema import Texts, sample_id, variant_id
from recycledb.store import Store, migrate
from recycledb.store.backend import Backend
from recycledb.store.digest import COLUMN, digests_of
from recycledb.store.tables import metadata

REPORTED = 20  # of each table
BATCH_ROWS = 2_000

RowOf = dict[str, Any]


class Rule(NamedTuple):
    """What must hold of each row of a table: its id, recomputed, and whatever `wrong` finds in it."""

    key: str | None = None
    address: Callable[[RowOf], str] | None = None
    wrong: Callable[[RowOf], Iterable[str]] | None = None


class Relation(NamedTuple):
    """Something that no row may do: in words that follow a number of rows, and SQL that gives this number."""

    says: str
    sql: str


@dataclass
class Walked:
    """What was looked at in a table: rows, ids computed anew, digests compared, and rows that carry none."""

    table: str
    rows: int = 0
    ids: int = 0
    digests: int = 0
    without_digest: int = 0


@dataclass
class Checked:
    """What a check has looked at, and what it found."""

    tables: list[Walked] = field(default_factory=list)
    schema_objects: int = 0
    references: int = 0
    relations: int = 0
    findings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # odd, but sound

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"sound": not self.findings, **asdict(self)}

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Take whatever reading raises as a finding."""
        try:
            yield
        except RecycledbError as error:
            self.findings.append(f"{what}: {error}")
        except (
            Exception
        ) as error:  # from a damaged file a driver reads anything: whatever it stumbles over is the finding
            first = (str(getattr(error, "orig", None) or error).splitlines() or [""])[0]
            self.findings.append(f"{what} cannot be read: {first or type(error).__name__}")


def _same_texts(row: RowOf) -> Texts:
    return Texts(row["instruction"], row["input"], row["output"])


def _variant_address(row: RowOf) -> str:
    return variant_id(
        row["sample_id"], row["kind"], _same_texts(row), row["parent_id"], row["text_id"] or row["derivation_id"]
    )


RULES: Mapping[str, Rule] = {
    "sample": Rule("sample_id", lambda row: sample_id(_same_texts(row))),
    "variant": Rule("variant_id", _variant_address),
}


def check(store: Store, rules: Mapping[str, Rule] = RULES, relations: Sequence[Relation] = ()) -> Checked:
    """Look at everything and return what was found."""
    checked = Checked()
    with checked.reading("the file"):
        checked.findings += store.backend.damage()
    with (
        checked.reading("the store"),
        store.read(),
    ):  # one that stays open: DuckDB reads its catalogue with each first connection
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
            checked.findings.append(f"{name} is not as revision {migrate.HEAD} makes it")
    own = sorted(set(found) - set(expected))
    if own:
        checked.remarks.append(f"not of recycledb, and not looked at: {', '.join(own)}")


_NEW_SCHEMA: dict[type, dict[str, str]] = {}  # by backend; making one takes a tenth of a second and more


def _new_schema(backend: Backend) -> dict[str, str]:
    """Return the schema of a new store of this kind."""
    kind = type(backend)
    if kind not in _NEW_SCHEMA:
        new = backend.in_memory()
        try:
            migrate.migrate(new)
            with new.connect() as conn:
                _NEW_SCHEMA[kind] = backend.schema(conn)
        finally:
            new.dispose()
    return _NEW_SCHEMA[kind]


# -- rows


def _walk(conn: Connection, table: Table, rule: Rule, walked: Walked, findings: list[str]) -> None:
    columns = [column.name for column in table.columns]
    looks = _looks(table, rule, walked)
    cursor: Any = conn.exec_driver_sql(f"SELECT {', '.join(columns)} FROM {table.name}").cursor
    wrong = 0
    while rows := cursor.fetchmany(BATCH_ROWS):
        for row in rows:
            walked.rows += 1
            for what in looks(row):
                wrong += 1
                if wrong <= REPORTED:
                    findings.append(f"{table.name} {_key(table, row)} {what}")
    if wrong > REPORTED:
        findings.append(f"{table.name}: {wrong - REPORTED} more findings like these")


def _looks(table: Table, rule: Rule, walked: Walked) -> Callable[[Sequence[Any]], Iterator[str]]:
    """Return what looks at one row of a table and says what is wrong with it."""
    columns = [column.name for column in table.columns]
    digested = COLUMN in columns
    digest = digests_of(table)
    fitting = [(column.name, column.nullable, _classes(column.type)) for column in table.columns]

    def looks(row: Sequence[Any]) -> Iterator[str]:
        if digested and row[-1] is not None:
            walked.digests += 1
            if _differs(digest, row):
                yield "was changed since it was written: its digest is another"
                return
        else:
            walked.without_digest += digested
            unfit = [
                name
                for (name, null, classes), value in zip(fitting, row, strict=True)
                if not _fits(value, null, classes)
            ]
            if unfit:
                yield f"holds in {', '.join(unfit)} what cannot stand there"
                return
        if rule.address is None and rule.wrong is None:
            return
        named = dict(zip(columns, row, strict=True))
        if rule.address is not None and rule.key is not None:
            walked.ids += 1
            if _address(rule.address, named) != named[rule.key]:
                yield "does not hold the content that its id is the address of"
        if rule.wrong is not None:
            yield from rule.wrong(named)

    return looks


def _differs(digest: Callable[[Sequence[Any]], int], row: Sequence[Any]) -> bool:
    try:
        return bool(digest(row[:-1]) != row[-1])
    except (RecycledbError, TypeError, ValueError):  # what stands there is of another type than it was
        return True


def _address(address: Callable[[RowOf], str], row: RowOf) -> str | None:
    try:
        return address(row)
    except (TypeError, ValueError, KeyError, AttributeError):  # content that nothing could have the address of
        return None


def _classes(kind: object) -> tuple[type, ...]:
    if isinstance(kind, Boolean):
        return (bool,)
    if isinstance(kind, Double):
        return (float,)
    return (int,) if isinstance(kind, Integer) else (str,)


def _fits(value: Any, nullable: bool | None, classes: tuple[type, ...]) -> bool:
    if value is None:
        return bool(nullable)
    if classes == (bool,):
        return value in (0, 1)
    return isinstance(value, classes)


def _key(table: Table, row: Sequence[Any]) -> str:
    return " ".join(str(value)[:40] for column, value in zip(table.columns, row, strict=True) if column.primary_key)


# -- rows and other rows


def _references() -> Iterator[Relation]:
    """Yield each foreign key: SQLite enforces them when rows are written, DuckDB's tables have none."""
    for table in metadata.sorted_tables:
        for column in table.columns:
            for key in column.foreign_keys:
                other, name = key.target_fullname.split(".")
                yield Relation(
                    f"of {table.name} name a {column.name} that {other} does not have",
                    f"SELECT count(*) FROM {table.name} t WHERE t.{column.name} IS NOT NULL "
                    f"AND NOT EXISTS (SELECT 1 FROM {other} o WHERE o.{name} = t.{column.name})",
                )


def _count(store: Store, relations: Sequence[Relation], checked: Checked) -> None:
    """Count on one connection, and on a new one after an error: it has ended the transaction."""
    waiting = iter(relations)
    relation = next(waiting, None)
    while relation is not None:
        with checked.reading("what rows say of each other"), store.read() as conn:
            while relation is not None:
                asked, relation = relation, next(waiting, None)
                count = conn.exec_driver_sql(asked.sql).scalar()
                if count:
                    checked.findings.append(f"{count} rows {asked.says}")
