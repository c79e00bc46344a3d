"""Merge: copy every row that this store lacks from another store, from any backend to any other.

Invariant: rows are copied parents first, in whole transactions, so a reader of the target never sees a row without the rows that it
references, and a merge that was stopped is completed by running it again. The source is read in one snapshot, even while it is written.
The target's rows and names do not change, and each dataset ends in the state that it has in one of the two stores, never in a mixture.
Workers are not copied: they are processes of their machine. Their attempts without a reply count as lost here, until a later merge
copies the replies. Equal replies that both stores paid for become one reply and two payments here.

Missing rows are found by their keys alone. Each database concatenates the keys of an eighth of a table into one string: if the two
strings are equal, nothing is missing; otherwise the keys are compared one by one.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, groupby, islice, pairwise, zip_longest
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from sqlalchemy import Boolean, Connection

from recycledb.errors import SchemaError, StoreError
from recycledb.schema import ORIGIN
from recycledb.store import Store, teachers
from recycledb.store.backend import Row
from recycledb.store.digest import with_digests
from recycledb.store.pending import ATTEMPTS
from recycledb.store.rows import RepeatedReplyRow
from recycledb.store.streaming import stream
from recycledb.store.tables import metadata

# Rows in one transaction. SQLite: other writers wait for that long. DuckDB: no other process can have the file open, and a commit is
# expensive.
BATCH_ROWS = {"sqlite": 10_000, "duckdb": 25_000, "postgresql": 10_000}
KEYS = 1_000  # in one IN list

TABLES = (
    "prompt", "teacher", "student", "measure", "augmentation", "derivation", "sample", "variant", "dataset", "place", "closing",
    "dataset_import", "attempt", "reply", "repeated_reply", "batch", "batch_event", "derivation_member", "extraction", "rating", "loss",
    "readout", "embedding", "value", "ordering", "ordering_item",
    "duplicate_search", "duplicate_pool", "near_duplicate", "teacher_measure", "mark", "selection", "selection_item", "name",
)  # fmt: skip

Tell = Callable[[str, int], None]  # a table's name and how many of its rows are new so far


class NameClash(NamedTuple):
    """A name that stands for one id here and another in the source; it does not change here."""

    kind: str
    name: str
    here: str
    there: str


@dataclass
class Merged:
    """The result of a merge: new rows by table, and the names that stand for different ids in the two stores."""

    rows: dict[str, int] = field(default_factory=dict)
    clashes: list[NameClash] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"rows": self.rows, "name_clashes": [clash._asdict() for clash in self.clashes]}


def open_source(url: str) -> Store:
    """Open the store to merge from; a SchemaError names the store to upgrade and the command."""
    try:
        return Store.open(url)
    except SchemaError as error:
        command = f"`recycledb --store {url} db upgrade`"
        raise SchemaError(f"the source: {error}".replace("`recycledb db upgrade`", command)) from error


def merge(target: Store, source: Store, tell: Tell = lambda table, new: None) -> Merged:
    """Copy every row of `source` that `target` lacks.

    Raises StoreError, with nothing merged, if both are the same file or a dataset has diverged between them.
    """
    if target.backend.identity == source.backend.identity:
        raise StoreError(f"{target.backend.label} cannot be merged into itself; name another store as the source")
    with _snapshot(source, target.backend.folder) as conn:
        work = _Merge(target, conn, tell)
        work.check_datasets()
        for table in ("prompt", "teacher", "student", "measure", "augmentation", "derivation", "sample"):
            work.copy(table)
        work.copy("variant", "kind", (ORIGIN,))
        work.copy_datasets()
        for steps, kinds in _generations(conn):
            work.copy("attempt", "step", steps)
            work.copy("reply", "step", steps)
            work.copy("variant", "kind", kinds)
        work.copy("derivation_member")
        work.copy_repeated()
        work.copy_batches()
        for table in ("teacher_measure", "extraction", "rating", "mark"):
            work.copy(table)
        for table, owner in (
            ("loss", "student"),
            ("readout", "student"),
            ("embedding", "student"),
            ("value", "measure"),
        ):
            work.copy_owned(table, owner)
        work.copy_lists("ordering", "ordering_item")
        work.copy_duplicates()
        work.copy_lists("selection", "selection_item")
        work.copy_names()
    return work.result


# By kind: which variants steps were asked about, which they made, and what variants were made from.
_ASKED_ABOUT = """
    SELECT DISTINCT a.step, v.kind FROM attempt a JOIN variant v ON v.variant_id = a.variant_id
    UNION
    SELECT DISTINCT r.step, v.kind FROM reply r JOIN variant v ON v.variant_id = r.variant_id
    UNION
    SELECT DISTINCT a.step, w.kind FROM attempt a JOIN variant v ON v.variant_id = a.variant_id
    JOIN variant w ON w.sample_id = v.sample_id AND instr(a.others, w.variant_id) > 0 WHERE a.others IS NOT NULL
"""
_MADE_BY = "SELECT DISTINCT v.kind, r.step FROM variant v JOIN reply r ON r.text_id = v.text_id"
_MADE_FROM = """
    SELECT DISTINCT v.kind, p.kind FROM variant v JOIN variant p ON p.variant_id = v.parent_id
    UNION
    SELECT DISTINCT v.kind, m.kind FROM variant v JOIN derivation_member d ON d.derivation_id = v.derivation_id
    JOIN variant m ON m.variant_id = d.variant_id
"""


def _generations(source: Connection) -> Iterator[tuple[list[str], list[str]]]:
    """Yield steps and kinds in an order in which each depends only on earlier ones, as found in the rows themselves.

    So a store is merged completely even if methods that it used are not installed here.
    """
    needs: dict[tuple[str, str], set[tuple[str, str]]] = {
        **{
            ("step", step): set()
            for (step,) in _stream(source, "SELECT step FROM attempt UNION SELECT step FROM reply")
        },
        **{("kind", kind): set() for (kind,) in _stream(source, "SELECT DISTINCT kind FROM variant")},
    }
    for sql, what, needed in ((_ASKED_ABOUT, "step", "kind"), (_MADE_BY, "kind", "step"), (_MADE_FROM, "kind", "kind")):
        for name, other in _stream(source, sql):
            needs[what, name].add((needed, other))
    done = {("kind", ORIGIN)}
    waiting = sorted(set(needs) - done)
    while waiting:
        steps = [each for each in waiting if each[0] == "step" and needs[each] <= done]
        kinds = [each for each in waiting if each[0] == "kind" and needs[each] <= done.union(steps)]
        found = [
            *steps,
            *kinds,
        ] or waiting  # a cycle means that the source is damaged; merge it as it is
        yield [name for what, name in found if what == "step"], [name for what, name in found if what == "kind"]
        done.update(found)
        waiting = [each for each in waiting if each not in done]


@contextmanager
def _snapshot(source: Store, folder: Path | None) -> Iterator[Connection]:
    """Open a connection that sees a snapshot of the source, without blocking its writers.

    In WAL mode and in DuckDB a transaction does that. With a rollback journal a reader would keep writers from committing, so the file
    is first copied into `folder`.
    """
    if getattr(source.backend, "journal", "wal") == "wal":
        with source.read() as conn:
            conn.exec_driver_sql(
                "SELECT version_num FROM alembic_version"
            ).fetchall()  # the first read starts the snapshot
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
    """A running merge."""

    target: Store
    source: Connection
    tell: Tell
    result: Merged = field(default_factory=lambda: Merged(rows=dict.fromkeys(TABLES, 0)))
    missing: dict[str, list[str] | None] = field(default_factory=dict)

    def copy(self, table: str, column: str = "", values: Sequence[str] = ()) -> None:
        """Copy a table's missing rows; with `column`, only those in which it has one of these values."""
        if column and not values:
            return
        key = _columns(table, key=True)
        if table not in self.missing:
            self.missing[table] = self._missing_ids(table, key, _Where())
        where = _Where().and_in(column, values) if column else _Where()
        self._copy_rows(table, key[0], self.missing[table], where)

    def copy_repeated(self) -> None:
        """Copy the payments for replies that the target has from other attempts; the replies must be copied first.

        Found by attempt: a reply of the source whose id belongs to another attempt in the target becomes a repeated reply here.
        """
        missing = self._missing_ids(ATTEMPTS, ["attempt_id"], _Where()) or []
        for start in range(0, len(missing), KEYS):
            where = _Where().and_in("attempt_id", missing[start : start + KEYS])
            rows = [*self._select("repeated_reply", where)]
            found = _execute(
                self.source, *where.sql(f"SELECT {', '.join(RepeatedReplyRow._fields)} FROM reply")
            ).fetchall()
            rows.extend(with_digests(metadata.tables["repeated_reply"], found))
            with self.target.write() as conn:
                self._insert(conn, "repeated_reply", rows)

    def copy_owned(self, table: str, owner: str) -> None:
        """Copy the missing rows of a table owner by owner; the rows of an owner new to the target are copied as one stream."""
        column = f"{owner}_id"
        key = [name for name in _columns(table, key=True) if name != column]
        key.sort(key=lambda name: name != "variant_id")  # rows are looked up by it
        for (each,) in list(self._read(f"SELECT {column} FROM {owner} ORDER BY {column}")):
            where = _Where().and_in(column, (each,))
            self._copy_rows(table, key[0], self._missing_ids(table, key, where), where)

    def copy_batches(self) -> None:
        """Copy submitted batches and their events, all in one transaction, after their attempts.

        A batch without an event is a claim of one of the source's processes, like a worker. A submitted batch can be collected by
        either store, and its replies have the same ids in both.
        """
        handed_over = _Where().and_("batch_id IN (SELECT batch_id FROM batch_event)")
        with self.target.write() as conn:
            self._write(conn, "batch", self._select("batch", handed_over))
            self._write(conn, "batch_event", self._select("batch_event", _Where()))

    def copy_duplicates(self) -> None:
        """Copy the searches for near-duplicates; a set of samples that is in neither store has not been searched here either."""
        self.copy("duplicate_search")
        for table in ("duplicate_pool", "near_duplicate"):
            self.copy_owned(table, "duplicate_search")

    def copy_lists(self, table: str, items: str) -> None:
        """Copy missing selections or orderings, each with its items in one transaction."""
        key = f"{table}_id"
        with self.target.read() as conn:
            present = {row[0] for row in _stream(conn, f"SELECT {key} FROM {table}")}
        for (each,) in list(self._read(f"SELECT {key} FROM {table} ORDER BY {key}")):
            if each not in present:
                where = _Where().and_in(key, (each,))
                with self.target.write() as conn:
                    for part in (table, items):
                        self._write(conn, part, self._select(part, where))

    def copy_names(self) -> None:
        """Copy the names that the target does not have; record those that stand for another id there."""
        current = "SELECT kind, name, id FROM current_names"
        there = {(kind, name): key for kind, name, key in self._read(current)}
        rows = list(self._select("name", _Where()))
        with self.target.write() as conn:
            here = {(kind, name): key for kind, name, key in _stream(conn, current)}
            same = teachers.identities(conn)
            renamed = teachers.named_here(here, there, same)
            names = {("teacher", name) for name in renamed}
            self._write(conn, "name", (row for row in rows if row[:2] not in here and row[:2] not in names))
            for name, key in renamed.items():
                self.target.ensure_name(conn, "teacher", name, key)
        self.result.clashes = [NameClash(*each) for each in teachers.clashing(here, there, same)]

    # -- datasets

    def check_datasets(self) -> None:
        """Raise StoreError if a dataset has diverged between the two stores."""
        with self.target.read() as conn:
            for dataset in self._datasets():
                _newer_positions(self.source, conn, dataset)

    def copy_datasets(self) -> None:
        """Copy missing rows of `place` and `closing`, each dataset in one transaction, as `add` does."""
        for dataset in self._datasets():
            where = _Where().and_in("dataset", (dataset,))
            with self.target.write() as conn:
                newer = _newer_positions(self.source, conn, dataset)  # again, now under the write lock
                self._write(conn, "dataset", self._select("dataset", where))
                for table in ("place", "closing"):
                    rows = self._select(table, where)
                    self._write(conn, table, rows if newer is None else (row for row in rows if row[1] in newer))
                self._write(conn, "dataset_import", self._select("dataset_import", where))

    def _datasets(self) -> list[str]:
        return [row[0] for row in self._read("SELECT dataset FROM dataset ORDER BY dataset")]

    # -- rows

    def _missing_ids(self, table: str, key: Sequence[str], where: "_Where") -> list[str] | None:
        """Return the values of `key`'s first column in rows that the target lacks; None if it has no rows."""
        missing: set[str] = set()
        with self.target.read() as conn:
            if not _execute(conn, *where.sql(f"SELECT 1 FROM {table}", "LIMIT 1")).fetchall():
                return None
            for part in _eighths(key[0], where):
                theirs, ours = _joined_keys(self.source, table, key, part), _joined_keys(conn, table, key, part)
                if theirs != ours:
                    keys = set(theirs.split(",")).difference(ours.split(","))
                    missing.update(row.partition("|")[0] for row in keys)
        return sorted(missing - {""})  # an eighth without rows gives ''

    def _copy_rows(self, table: str, column: str, ids: list[str] | None, where: "_Where") -> None:
        if ids is None:
            batches = self._batches(table, where)
        else:
            parts = (ids[i : i + KEYS] for i in range(0, len(ids), KEYS))
            batches = _lists(
                (row for part in parts for row in self._select(table, where.and_in(column, part))), self.size
            )
        for batch in batches:  # read before the write lock is taken
            with self.target.write() as conn:
                self._insert(conn, table, batch)

    def _write(self, conn: Connection, table: str, rows: Iterator[Row]) -> None:
        for batch in _lists(rows, self.size):
            self._insert(conn, table, batch)

    def _insert(self, conn: Connection, table: str, batch: list[Row]) -> None:
        self.result.rows[table] += self.target.backend.insert(conn, table, _columns(table), batch)
        self.tell(table, self.result.rows[table])

    @property
    def size(self) -> int:
        return BATCH_ROWS[self.target.backend.name]

    def _select(self, table: str, where: "_Where") -> Iterator[Row]:
        return chain.from_iterable(self._batches(table, where))

    def _batches(self, table: str, where: "_Where") -> Iterator[list[Row]]:
        """Yield rows in lists, as the driver returns them: a generator that handles each row takes as long as reading it."""
        flags = [i for i, column in enumerate(metadata.tables[table].columns) if isinstance(column.type, Boolean)]
        for batch in stream(self.source, *where.sql(f"SELECT {', '.join(_columns(table))} FROM {table}"), self.size):
            yield _with_truth_values(batch, flags) if flags and self.source.dialect.name == "sqlite" else batch

    def _read(self, sql: str) -> Iterator[Row]:
        return _stream(self.source, sql)


def _lists(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while batch := list(islice(rows, size)):
        yield batch


def _with_truth_values(rows: list[Row], flags: Sequence[int]) -> list[Row]:
    """Turn SQLite's 0 and 1 into booleans, in adjacent columns."""
    first, end = flags[0], flags[-1] + 1
    return [(*row[:first], *map(bool, row[first:end]), *row[end:]) for row in rows]


@dataclass(frozen=True)
class _Where:
    """Conditions, and the values that they bind."""

    conditions: tuple[str, ...] = ()
    values: Row = ()

    def and_in(self, column: str, values: Sequence[str]) -> "_Where":
        marks = ", ".join("?" * len(values))
        return self.and_(f"{column} IN ({marks})", *(str(value) for value in values))

    def and_(self, condition: str, *values: Any) -> "_Where":
        return _Where((*self.conditions, condition), (*self.values, *values))

    def sql(self, select: str, tail: str = "") -> tuple[str, Row]:
        where = f"WHERE {' AND '.join(self.conditions)}" if self.conditions else ""
        return f"{select} {where} {tail}", self.values


def _columns(table: str, *, key: bool = False) -> list[str]:
    """Return a table's columns, or those of its primary key, in their order."""
    return [column.name for column in metadata.tables[table].columns if column.primary_key or not key]


def _eighths(column: str, where: _Where) -> Iterator[_Where]:
    """Yield conditions that divide the ids, which are hexadecimal hashes, by their first digit; together they cover every id."""
    digits = "02468ace"
    yield where.and_(f"{column} < ?", digits[1])
    for first, end in pairwise(digits[1:]):
        yield where.and_(f"{column} >= ?", first).and_(f"{column} < ?", end)
    yield where.and_(f"{column} >= ?", digits[-1])


def _joined_keys(conn: Connection, table: str, key: Sequence[str], where: _Where) -> str:
    """Return the keys of these rows, joined by commas; the columns of a key are joined by bars.

    Databases keep the subquery's order in the aggregate. If one did not, the strings would differ, and the comparison of single keys
    would still be correct.
    """
    value = " || '|' || ".join(f"CAST({column} AS VARCHAR)" for column in key)
    inner, values = where.sql(f"SELECT {value} AS k FROM {table}", f"ORDER BY {', '.join(key)}")
    aggregate = "string_agg" if conn.dialect.name == "postgresql" else "group_concat"
    found = _execute(conn, f"SELECT {aggregate}(k, ',') FROM ({inner}) AS joined", values).fetchall()
    return found[0][0] or ""


def _execute(conn: Connection, sql: str, values: Row = ()) -> Any:
    """Run a statement; return the driver's own cursor, whose rows are plain tuples."""
    return conn.exec_driver_sql(sql, values).cursor


def _stream(conn: Connection, sql: str, values: Row = ()) -> Iterator[Row]:
    for batch in stream(conn, sql, values):
        yield from batch


# -- a dataset's history: at each position, its samples in order, and whether each has ended

_History = list[tuple[str, bool]]
_HISTORIES = """
    SELECT p.position, p.sample_id, c.turn IS NOT NULL
    FROM place p LEFT JOIN closing c ON c.dataset = p.dataset AND c.position = p.position AND c.turn = p.turn
    WHERE p.dataset = ? ORDER BY p.position, p.turn
"""


def _newer_positions(source: Connection, target: Connection, dataset: str) -> set[int] | None:
    """Return the positions at which the source's history continues the target's; None if the target has no history.

    Raises StoreError unless the dataset, with those copied, has the state that it has in one of the two stores: a mixture of two states
    is a dataset that nobody added. If the histories of a position differ but end in the same sample, nothing is copied.
    """
    newer: set[int] = set()
    if not _execute(target, "SELECT 1 FROM place WHERE dataset = ? LIMIT 1", (dataset,)).fetchall():
        return None
    if _same_rows(source, target, dataset):
        return newer
    ahead: dict[str, str] = {}  # by store: the first position at which it alone has the later sample
    for position, here, there in _both_histories(source, target, dataset):
        if here != there and _goes_on(there, here):
            newer.add(position)
        if _open(here) == _open(there):
            continue
        if position in newer:
            ahead.setdefault(
                "source", f"position {position} is newer in the source ({_shown(here)} here, {_shown(there)} there)"
            )
        elif _goes_on(here, there):
            ahead.setdefault(
                "target", f"position {position} is newer here ({_shown(here)} here, {_shown(there)} there)"
            )
        else:
            _refuse(dataset, f"position {position} has {_shown(here)} here, {_shown(there)} there")
    if len(ahead) == 2:
        _refuse(dataset, " but ".join(ahead.values()))
    return newer


def _same_rows(source: Connection, target: Connection, dataset: str) -> bool:
    both = (_stream(conn, _HISTORIES, (dataset,)) for conn in (source, target))
    return all(theirs == ours for theirs, ours in zip_longest(*both))


def _both_histories(source: Connection, target: Connection, dataset: str) -> Iterator[tuple[int, _History, _History]]:
    """Yield each position with its history in the target and in the source, reading both in parallel."""
    sides = [_of_side(side, _stream(conn, _HISTORIES, (dataset,))) for side, conn in enumerate((target, source))]
    for position, rows in groupby(heapq.merge(*sides, key=itemgetter(0)), key=itemgetter(0)):
        histories: tuple[_History, _History] = ([], [])
        for _, side, sample, ended in rows:
            histories[side].append((sample, bool(ended)))
        yield position, *histories


def _of_side(side: int, rows: Iterator[Row]) -> Iterator[tuple[int, int, str, int]]:
    for position, sample, ended in rows:
        yield position, side, sample, ended


def _goes_on(later: _History, earlier: _History) -> bool:
    """Return whether `later` starts with the samples of `earlier`, and what has ended there has ended here too."""
    return len(later) >= len(earlier) and all(
        a[0] == b[0] and (a[1] or not b[1]) for a, b in zip(later, earlier, strict=False)
    )


def _open(history: _History) -> str | None:
    return history[-1][0] if history and not history[-1][1] else None


def _shown(history: _History) -> str:
    return f"sample {sample[:8]}" if (sample := _open(history)) else "nothing"


def _refuse(dataset: str, why: str) -> None:
    raise StoreError(
        f"nothing was merged: dataset {dataset!r} has diverged between the two stores ({why}); `recycledb add` the same "
        f"file as --dataset {dataset} to both, or `recycledb dataset remove` it from both (choose the store with --store), then merge again"
    )
