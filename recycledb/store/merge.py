"""Merge: bring every row of another store in that this one lacks, from any backend to any other.

Invariant: rows travel parents first, each transaction whole, so a reader of the target never meets a row without what it
points at, and a merge that was stopped is completed by running it again. The source is seen as it stood at one moment, whoever
is writing it. What the target has keeps its value and its meaning: no row is changed, no name moves, and a dataset ends in a state that
one of the two stores had, never in a mixture of both.
Workers do not travel: they are processes of their machine. An attempt of theirs without a reply thereby counts as lost here.

Which rows are missing is asked of the keys alone. Both databases join the keys of a sixteenth of a table into one string;
where the two strings are equal nothing is missing, and only where they differ are keys compared one by one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from sqlalchemy import Boolean, Connection

from recycledb.errors import SchemaError, StoreError
from recycledb.schema import Kind, Step
from recycledb.store import Store
from recycledb.store.backend import Row
from recycledb.store.tables import metadata

BATCH_ROWS = 10_000  # of one transaction: a second writer of the target waits this long at most
BATCH_KEYS = 1_000  # of one IN list

Tell = Callable[[str, int], None]  # a table's name and how many of its rows are new so far


class NameClash(NamedTuple):
    """A name that means one id here and another in the source; it keeps its meaning here."""

    kind: str
    name: str
    here: str
    there: str


@dataclass
class Merged:
    """What a merge brought: new rows by table, and the names that the two stores use differently."""

    rows: dict[str, int] = field(default_factory=dict)
    clashes: list[NameClash] = field(default_factory=list)


def open_source(url: str) -> Store:
    """Open the store to merge from; SchemaError says which one to upgrade, and how."""
    try:
        return Store.open(url)
    except SchemaError as error:
        command = f"`recycledb --store {url} db upgrade`"
        raise SchemaError(f"the source: {error}".replace("`recycledb db upgrade`", command)) from error


def merge(target: Store, source: Store, tell: Tell = lambda table, new: None) -> Merged:
    """Bring every row of `source` into `target` that it lacks.

    StoreError, and nothing merged, where both are one file or a dataset has gone different ways in the two.
    """
    if target.backend.path.resolve() == source.backend.path.resolve():
        raise StoreError(f"{target.backend.path} cannot be merged into itself; name another store as the source")
    with _snapshot(source, target.backend.path.parent) as conn:
        work = _Merge(target, conn, tell)
        work.check_datasets()
        for table in ("prompt", "teacher", "student", "sample"):
            work.copy(table)
        work.copy("variant", "kind", (Kind.ORIGIN,))
        work.copy_datasets()
        for step, kinds in _MAKES.items():
            work.copy("attempt", "step", (step,))
            work.copy("reply", "step", (step,))
            work.copy("variant", "kind", kinds)
        work.copy("extraction")
        work.copy_losses()
        work.copy_selections()
        work.copy_names()
    return work.result


# In this order a step reads nothing but what is there already: compressed, then reflect_instruction, then reflect_both.
_MAKES = {
    Step.COMPRESS: (Kind.COMPRESSED,),
    Step.REFLECT_INSTRUCTION: (Kind.REFLECT_INSTRUCTION,),
    Step.REFLECT_RESPONSE: (Kind.REFLECT_RESPONSE, Kind.REFLECT_BOTH),
}


@contextmanager
def _snapshot(source: Store, folder: Path) -> Iterator[Connection]:
    """Open a connection that sees the source as it stands now until the end, without holding up those who write it.

    In WAL mode and in DuckDB a transaction does that. With a rollback journal a reader would keep writers from committing,
    so there the file is first copied into `folder`.
    """
    if getattr(source.backend, "journal", "wal") == "wal":
        with source.read() as conn:
            conn.exec_driver_sql("SELECT version_num FROM alembic_version").fetchall()  # the first read fixes the moment
            yield conn
        return
    from recycledb.store.sqlite import SQLite

    with TemporaryDirectory(dir=folder, prefix=".merge-") as directory:
        copy = Path(directory, "source.db")
        source.backend.backup(copy)
        with Store(SQLite(copy)) as store, store.read() as conn:
            yield conn


@dataclass
class _Merge:
    """One merge under way."""

    target: Store
    source: Connection
    tell: Tell
    result: Merged = field(default_factory=Merged)
    missing: dict[str, list[str] | None] = field(default_factory=dict)

    def copy(self, table: str, column: str = "", values: Sequence[str] = ()) -> None:
        """Copy a table's missing rows, or those of them in which `column` has one of these values."""
        key = _columns(table, key=True)
        if table not in self.missing:
            self.missing[table] = self._missing_ids(table, key, _Where())
        where = _Where().and_in(column, values) if column else _Where()
        self._copy_rows(table, key[0], self.missing[table], where)

    def copy_losses(self) -> None:
        """Copy missing statistics, student by student: a student new to the target comes as one stream."""
        self.result.rows.setdefault("loss", 0)
        _, variant, stat = _columns("loss", key=True)
        for (student,) in self._read("SELECT student_id FROM student ORDER BY student_id"):
            where = _Where().and_in("student_id", (student,))
            self._copy_rows("loss", variant, self._missing_ids("loss", [variant, stat], where), where)

    def copy_selections(self) -> None:
        """Copy missing selections, each with its items in one transaction."""
        with self.target.read() as conn:
            present = {row[0] for row in _rows(conn, "SELECT selection_id FROM selection")}
        self.result.rows.update(selection=0, selection_item=0)
        for (selection,) in list(self._read("SELECT selection_id FROM selection ORDER BY selection_id")):
            if selection not in present:
                where = _Where().and_in("selection_id", (selection,))
                with self.target.write() as conn:
                    for table in ("selection", "selection_item"):
                        self._write(conn, table, self._select(table, where))

    def copy_names(self) -> None:
        """Copy the names that the target does not know at all; note those that mean something else there."""
        current = "SELECT kind, name, id FROM current_names"
        there = {(kind, name): key for kind, name, key in self._read(current)}
        rows = list(self._select("name", _Where()))
        with self.target.write() as conn:
            here = {(kind, name): key for kind, name, key in _rows(conn, current)}
            self._write(conn, "name", (row for row in rows if row[:2] not in here))
        self.result.clashes = [
            NameClash(*name, here[name], key) for name, key in sorted(there.items()) if here.get(name, key) != key
        ]

    # -- datasets

    def check_datasets(self) -> None:
        """Raise StoreError where a dataset has gone different ways in the two stores."""
        with self.target.read() as conn:
            for dataset in self._datasets():
                _newer_positions(self.source, conn, dataset)

    def copy_datasets(self) -> None:
        """Copy missing places and closings, each dataset in one transaction, as `add` would."""
        self.result.rows.update(dataset=0, place=0, closing=0, dataset_import=0)
        for dataset in self._datasets():
            where = _Where().and_in("dataset", (dataset,))
            with self.target.write() as conn:
                newer = _newer_positions(self.source, conn, dataset)  # again, now that nobody else can write
                self._write(conn, "dataset", self._select("dataset", where))
                for table in ("place", "closing"):
                    self._write(conn, table, (row for row in self._select(table, where) if row[1] in newer))
                self._write(conn, "dataset_import", self._select("dataset_import", where))

    def _datasets(self) -> list[str]:
        return [row[0] for row in self._read("SELECT dataset FROM dataset ORDER BY dataset")]

    # -- rows

    def _missing_ids(self, table: str, key: Sequence[str], where: "_Where") -> list[str] | None:
        """Return the values of `key`'s first column in rows that the target lacks; None where it has no row at all."""
        with self.target.read() as conn:
            if not _rows(conn, *where.sql(f"SELECT 1 FROM {table}", "LIMIT 1")).fetchone():
                return None
            missing: set[str] = set()
            for part in _sixteenths(key[0], where):
                theirs, ours = _joined_keys(self.source, table, key, part), _joined_keys(conn, table, key, part)
                if theirs != ours:
                    missing.update(_ids(theirs.difference(ours)))
        return sorted(missing)

    def _copy_rows(self, table: str, column: str, ids: list[str] | None, where: "_Where") -> None:
        self.result.rows.setdefault(table, 0)
        if ids is None:
            self._write_batches(table, self._select(table, where))
            return
        parts = (ids[i : i + BATCH_KEYS] for i in range(0, len(ids), BATCH_KEYS))
        rows = chain.from_iterable(self._select(table, where.and_in(column, part)) for part in parts)
        self._write_batches(table, rows)

    def _write_batches(self, table: str, rows: Iterator[Row]) -> None:
        for _, batch in groupby(enumerate(rows), lambda numbered: numbered[0] // BATCH_ROWS):
            chunk = [row for _, row in batch]  # read before the target is locked
            with self.target.write() as conn:
                self._write(conn, table, chunk)

    def _write(self, conn: Connection, table: str, rows: Iterable[Row]) -> None:
        self.result.rows[table] = self.result.rows.get(table, 0) + self.target.insert(conn, table, rows)
        self.tell(table, self.result.rows[table])

    def _select(self, table: str, where: "_Where") -> Iterator[Row]:
        columns = _columns(table)
        rows = self._read(*where.sql(f"SELECT {', '.join(columns)} FROM {table}"))
        flags = [isinstance(column.type, Boolean) for column in metadata.tables[table].columns]
        if any(flags) and self.source.dialect.name == "sqlite":  # which has no truth values: they come as 0 and 1
            return (tuple(bool(v) if flag else v for v, flag in zip(row, flags, strict=True)) for row in rows)
        return rows

    def _read(self, sql: str, parameters: Row = ()) -> Iterator[Row]:
        cursor = _rows(self.source, sql, parameters)
        while batch := cursor.fetchmany(BATCH_ROWS):
            yield from batch
