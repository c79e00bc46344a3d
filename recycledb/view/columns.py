"""The store's numbers and properties in memory, one array each, by sample: what lists are filtered and sorted by.

Invariant: a snapshot never changes; when the store has changed, another one takes its place. A number is NaN where the store has NULL or no
row. Memory: 8 bytes for each number of each sample, 1 for each property, about 200 for its id; 52,000 samples with 20 numbers take 20 MB.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from recycledb.errors import RecycledbError
from recycledb.store import Store

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Order = npt.NDArray[np.int64]

GROUPS = ("dataset", "kind", "teacher", "problem", "selection", "mark")
LABELS = 200  # at most of one group, the most frequent: reasons of failure quote replies
BINS = 24  # of a column's histogram
SHARE = 0.02  # of the time may be spent on reading the columns again
# Tables whose rows change what is read here; rows are only ever added.
_CHANGING = ("place", "closing", "variant", "extraction", "reply", "value", "rating", "name", "selection_item", "mark")


@dataclass(frozen=True)
class Column:
    """A number of each sample: a measure under a model, of the samples' variants of one kind."""

    key: str
    measure: str
    model: str
    kind: str  # "reflect_both", or "reflect_both by gpt" where several teachers are in use
    values: Numbers
    teacher: str | None = None  # of these variants; "" if none made them; None if it is not asked who did

    @cached_property
    def ascending(self) -> Order:
        """The samples that have a value, lowest first; equal ones in the datasets' order."""
        known = np.flatnonzero(~np.isnan(self.values))
        return known[np.argsort(self.values[known], kind="stable")]

    @cached_property
    def shape(self) -> tuple[float, float, list[int]]:
        """Its histogram: the ends, which leave out 1 % of outliers, and the counts of equal bins between them."""
        known = self.values[~np.isnan(self.values)]
        if not len(known):
            return 0.0, 1.0, []
        low, high = (float(end) for end in np.percentile(known, (0.5, 99.5)))
        counts, _ = np.histogram(known.clip(low, high), BINS, (low, high if high > low else low + 1.0))
        return low, high, [int(count) for count in counts]

    def below(self, value: float) -> float:
        """Return the share of the samples with a number whose number is lower."""
        known = np.count_nonzero(~np.isnan(self.values))
        return float(np.count_nonzero(self.values < value) / known) if known else 0.0

    @cached_property
    def descending(self) -> Order:
        """The samples that have a value, highest first; equal ones in the datasets' order."""
        known = np.flatnonzero(~np.isnan(self.values))
        return known[np.argsort(-self.values[known], kind="stable")]


@dataclass(frozen=True)
class Snapshot:
    """What was in the store at one moment. Samples are numbered in the order of their datasets."""

    ids: list[str]
    columns: dict[str, Column]
    flags: dict[str, dict[str, Flags]]
    version: tuple[int, ...]
    seconds: float  # that reading it took
    derived: dict[str, Column] = field(default_factory=dict)

    @cached_property
    def number_of(self) -> dict[str, int]:
        """The number of each sample."""
        return {sample: number for number, sample in enumerate(self.ids)}

    def column(self, key: str) -> Column | None:
        """Return a column: a stored one, `gain:KEY` (minus the origin's), or `gap:KEY|KEY` (how far two are apart); None if unknown."""
        found = self.columns.get(key) or self.derived.get(key)
        if found is None:
            found = self._difference(key)
            if found is not None:
                self.derived[key] = found
        return found

    def sources(self, key: str) -> tuple[Column, Column] | None:
        """Return the two stored columns that a `gain:` or `gap:` is the difference of; None if they are unknown."""
        if key.startswith("gain:"):
            one = self.columns.get(key.removeprefix("gain:"))
            origin = one and self.columns.get(column_key(one.measure, one.model, "origin"))
            return (one, origin) if one and origin else None
        names = key.removeprefix("gap:").split("|") if key.startswith("gap:") else []
        for split in range(1, len(names)):  # a name may contain the separator
            one, other = self.columns.get("|".join(names[:split])), self.columns.get("|".join(names[split:]))
            if one and other:
                return one, other
        return None

    def _difference(self, key: str) -> Column | None:
        found = self.sources(key)
        if found is None:
            return None
        one, other = found
        if key.startswith("gain:"):
            return Column(key, f"gain of {one.measure}", one.model, one.kind, one.values - other.values)
        title = f"{one.measure}/{one.model} – {other.measure}/{other.model}"
        return Column(key, "gap", title, one.kind, np.abs(one.values - other.values))


def column_key(measure: str, model: str, kind: str) -> str:
    """Return the key of a column."""
    return f"{measure}/{model}@{kind}"


class Columns:
    """The newest snapshot of a store, read by a thread of its own."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.error: str | None = None
        self.progress = "beginning"
        self._snapshot: Snapshot | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._next = 0.0  # when the store is to be looked at again
        self._labels: list[tuple[str, str, Collection[str]]] = []  # that a snapshot being read may lack

    def get(self, wait_s: float = 0.0) -> Snapshot | None:
        """Return the newest snapshot, None while the first is being read; read another if that is due and the store has changed.

        Waits up to `wait_s` seconds for the first one, and never for another.
        """
        with self._lock:
            if self._thread is None and time.monotonic() >= self._next:
                self._thread = threading.Thread(target=self._work, name="columns", daemon=True)
                self._thread.start()
            thread = self._thread
        if thread is not None and self._snapshot is None:
            thread.join(wait_s)
        return self._snapshot

    def label(self, group: str, label: str, samples: Collection[str]) -> None:
        """Say which samples have a label that this process has just stored, so that lists need not wait for the next snapshot."""
        with self._lock:
            if self._thread is not None:
                self._labels.append((group, label, samples))
            if self._snapshot is not None:
                self._snapshot = _labelled(self._snapshot, group, label, samples)

    def _work(self) -> None:
        began = time.monotonic()
        last = self._snapshot
        try:
            if last is None or version(self.store) != last.version:  # not in a request: statistics are counted
                found = read(self.store, self._tell)
                with self._lock:
                    for each in self._labels:
                        found = _labelled(found, *each)
                    self._snapshot = found
            self.error = None
        except RecycledbError as error:
            self.error = str(error)
        finally:
            with self._lock:
                ended = time.monotonic()
                self._next, self._thread = ended + (ended - began) / SHARE, None
                self._labels = []

    def _tell(self, text: str) -> None:
        self.progress = text


def _labelled(snapshot: Snapshot, group: str, label: str, samples: Collection[str]) -> Snapshot:
    """Return a snapshot in which these samples, and no others, have a label."""
    flags = np.zeros(len(snapshot.ids), bool)
    flags[[number for each in samples if (number := snapshot.number_of.get(each)) is not None]] = True
    return replace(snapshot, flags={**snapshot.flags, group: {**snapshot.flags[group], label: flags}})


def version(store: Store) -> tuple[int, ...]:
    """Return numbers that differ when rows were added to what a snapshot is read from; only `loss` is counted, it has no row numbers."""
    newest = ", ".join(f"(SELECT coalesce(max(rowid), 0) FROM {table})" for table in _CHANGING)
    sql = f"SELECT {newest}, (SELECT count(*) FROM loss)"
    return tuple(int(number) for number in store.rows(sql)[0])


def read(store: Store, tell: Callable[[str], None] = lambda _: None) -> Snapshot:
    """Read a snapshot of a store; `tell` gets what is being read."""
    began = time.monotonic()
    at = version(store)
    with store.read() as conn:
        return _Reading(conn, tell).snapshot(at, began)


class _Reading:
    """A snapshot being read."""

    def __init__(self, conn: Connection, tell: Callable[[str], None]) -> None:
        self.conn, self.tell = conn, tell
        tell("samples")
        self.ids = [
            row[0]
            for row in self.rows(
                "SELECT s.sample_id FROM sample s LEFT JOIN (SELECT sample_id, min(place) AS place FROM sample_order GROUP BY sample_id) o "
                "ON o.sample_id = s.sample_id ORDER BY o.place IS NULL, o.place, s.sample_id"
            )
        ]
        self.number_of = {sample: number for number, sample in enumerate(self.ids)}
        self.flags: dict[str, dict[str, Flags]] = {group: {} for group in GROUPS}
        self.columns: dict[str, Column] = {}

    def rows(self, sql: str) -> Iterator[Any]:
        """Yield the rows of a statement."""
        return iter(self.conn.exec_driver_sql(sql))

    def snapshot(self, at: tuple[int, ...], began: float) -> Snapshot:
        """Read everything."""
        self.mark("dataset", "SELECT dataset, sample_id FROM dataset_samples")
        self.mark("kind", "SELECT kind, sample_id FROM current_variants")
        self.mark("teacher", "SELECT teacher, sample_id FROM variants WHERE teacher IS NOT NULL AND is_current = 1")
        self.mark("problem", _PROBLEMS)
        self.mark(
            "selection",
            "SELECT i.selection, v.sample_id FROM selection_items i JOIN variant v ON v.variant_id = i.variant_id",
        )
        self.mark("mark", "SELECT mark, sample_id FROM marks WHERE is_current = 1")
        several = len(self.flags["teacher"]) > 1
        self.numbers(_SCORES, ("ifd", "rifd", "ppl", "length"), several)
        if any(True for table in ("value", "rating") for _ in self.rows(f"SELECT 1 FROM {table} LIMIT 1")):
            self.numbers(_MEASURES, (), several)  # preparing this statement alone takes a third of a second
        return Snapshot(self.ids, self.columns, self.flags, at, time.monotonic() - began)

    def mark(self, group: str, sql: str) -> None:
        """Read which samples have which label of a group: rows of (label, sample_id)."""
        self.tell(f"{group}s")
        found: dict[str, list[int]] = {}
        for label, sample in self.rows(sql):
            if (number := self.number_of.get(sample)) is not None:
                found.setdefault(str(label), []).append(number)
        for label in sorted(found, key=lambda each: -len(found[each]))[:LABELS]:
            flags = np.zeros(len(self.ids), bool)
            flags[found[label]] = True
            self.flags[group][label] = flags

    def numbers(self, sql: str, measures: tuple[str, ...], several: bool) -> None:
        """Read numbers: rows of (sample_id, kind, teacher, model, number…), one number for each of `measures`, or (measure, number)."""
        self.tell("scores" if measures else "measures")
        found: dict[tuple[str, str, str], Numbers] = {}
        makers: dict[str, str | None] = {}
        for sample, kind, teacher, model, *rest in self.rows(sql):
            number = self.number_of.get(sample)
            if number is None:
                continue
            label = f"{kind} by {teacher}" if several and teacher else kind
            makers[label] = (teacher or "") if several else None
            for measure, value in zip(measures, rest, strict=True) if measures else (rest,):
                values = found.get((measure, model, label))
                if values is None:
                    values = found[measure, model, label] = np.full(len(self.ids), np.nan)
                if value is not None and np.isnan(values[number]):  # of several variants the one with the smallest id
                    values[number] = value
        for (measure, model, label), values in found.items():
            key = column_key(measure, model, label)
            self.columns[key] = Column(key, measure, model, label, values, makers[label])


# Why samples lack a variant: what a step's replies could not be used for, and questions without a reply.
_PROBLEMS = """
    SELECT DISTINCT r.step || ': ' || CASE WHEN instr(e.reason, ':') > 0 THEN substr(e.reason, 1, instr(e.reason, ':') - 1)
        ELSE e.reason END, v.sample_id
    FROM extractions e JOIN reply r ON r.text_id = e.text_id JOIN variant v ON v.variant_id = r.variant_id
    WHERE e.is_current = 1 AND e.variant_id IS NULL AND e.reason IS NOT NULL
    UNION ALL
    SELECT DISTINCT t.step || ': ' || t.status, v.sample_id
    FROM teacher_texts t JOIN variant v ON v.variant_id = t.variant_id WHERE t.status IN ('failed', 'error')
"""
_SCORES = """
    SELECT s.sample_id, s.kind, s.teacher, s.student, s.ifd_ppl, s.rifd_ppl, s.ppl_A_condition, l.n_tokens
    FROM scores s LEFT JOIN loss l ON l.student_id = s.student_id AND l.variant_id = s.variant_id AND l.stat = 'A_direct'
    WHERE s.is_current = 1 ORDER BY s.variant_id
"""
_MEASURES = """
    SELECT v.sample_id, v.kind, v.teacher, m.model, m.measure, m.value
    FROM measures m JOIN variants v ON v.variant_id = m.variant_id
    WHERE m.is_current = 1 AND v.is_current = 1 AND m.measure NOT IN ('ifd', 'rifd', 'ppl', 'length') ORDER BY m.variant_id, m.value
"""
