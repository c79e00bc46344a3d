"""Reading the columns: the numbers and properties of all samples, from the store into arrays.

Invariant: the numbers are those of the views `scores` and `measures` bit for bit, since SQL computes them from the same terms. Each table
is walked once, a batch of rows at a time; the view `scores` would look up each row of `loss` by its key, which takes three times as long.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, text

from recycledb.store import Store
from recycledb.store.fingerprint import fingerprint
from recycledb.view.columns import GROUPS, LABELS, Column, Flags, Numbers, Order, Snapshot, column_key, version

BATCH = 10_000  # rows that are Python objects at a time


def read(store: Store, tell: Callable[[str], None] = lambda _: None) -> Snapshot:
    """Read a snapshot of a store; `tell` gets what is being read."""
    began = time.monotonic()
    at = version(store)
    with store.read() as conn:
        return _Reading(conn, tell).snapshot(at, began)


class _Labelled:
    """Which rows have which label, as numbers of labels."""

    def __init__(self) -> None:
        self.numbers: dict[str | None, int] = {}
        self._parts: list[npt.NDArray[np.int32]] = []

    def add(self, labels: Sequence[str | None]) -> None:
        """Add rows' labels."""
        for label in dict.fromkeys(labels):
            self.numbers.setdefault(label, len(self.numbers))
        self._parts.append(np.fromiter(map(self.numbers.__getitem__, labels), np.int32, len(labels)))

    def rows(self) -> npt.NDArray[np.int32]:
        """Return the number of the label of each row."""
        return np.concatenate([np.empty(0, np.int32), *self._parts])


class _Reading:
    """A snapshot being read."""

    def __init__(self, conn: Connection, tell: Callable[[str], None]) -> None:
        self.conn, self.tell = conn, tell
        self.ids: list[str] = []
        self.number_of: dict[str, int] = {}
        self.flags: dict[str, dict[str, Flags]] = {group: {} for group in GROUPS}
        self.columns: dict[str, Column] = {}
        # The current variants, in the order in which they were read: id, number of the sample, label.
        self.variants: list[str] = []
        self.variant_number: dict[str, int] = {}
        self.sample_of: Order = np.empty(0, np.int64)
        self.label_of: npt.NDArray[np.int32] = np.empty(0, np.int32)
        self.labels: list[
            tuple[str, str | None]
        ] = []  # with the teacher, "" for none, None if it is not asked who it was

    def batches(self, sql: str, **parameters: Any) -> Iterator[list[Sequence[Any]]]:
        """Yield the rows of a SELECT as columns, a batch at a time."""
        for rows in self.conn.execute(text(sql), parameters).partitions(BATCH):
            yield list(zip(*rows, strict=True))

    def snapshot(self, at: tuple[int, ...], began: float) -> Snapshot:
        """Read everything."""
        self.samples()
        self.current_variants()
        self.problems()
        self.mark("selection", _SELECTED)
        self.mark("mark", "SELECT mark, sample_id FROM marks WHERE is_current = 1")
        self.tell("scores")
        for student, name in list(self.conn.execute(text(_STUDENTS))):
            self.scores(student, name)
        self.tell("measures")
        if any(list(self.conn.execute(text(f"SELECT 1 FROM {table} LIMIT 1"))) for table in ("value", "rating")):
            self.measures()  # preparing this statement alone takes a third of a second
        found = Snapshot(self.ids, self.columns, self.flags, at, time.monotonic() - began, fingerprint(self.conn))
        found.__dict__["number_of"] = self.number_of  # a cached property
        return found

    def samples(self) -> None:
        """Read the samples in the datasets' order, then those that are in no dataset, and who is in which dataset."""
        self.tell("samples")
        places, ids = _Labelled(), list[str]()
        for datasets, samples in self.batches(
            "SELECT dataset, sample_id FROM dataset_samples ORDER BY dataset, position"
        ):
            places.add(datasets)
            ids += samples
        first = dict.fromkeys(ids)
        for (samples,) in self.batches("SELECT sample_id FROM sample ORDER BY sample_id"):
            first |= dict.fromkeys(samples)
        self.ids = list(first)
        self.number_of = {sample: number for number, sample in enumerate(self.ids)}
        self.flags["dataset"] = self.flagged(places, self.numbers_of(ids))

    def numbers_of(self, samples: Sequence[str]) -> Order:
        """Return the numbers of samples; -1 for one that was added after the samples were read."""
        return np.fromiter(map(self.number_of.get, samples, repeat(-1)), np.int64, len(samples))

    def flagged(self, labels: _Labelled, samples: Order) -> dict[str, Flags]:
        """Return which samples have which label, the most frequent labels first; rows without a label do not count."""
        rows = labels.rows()
        counts = np.bincount(rows, minlength=len(labels.numbers))
        names = sorted((str(name), number) for name, number in labels.numbers.items() if name is not None)
        found = {}
        for name, number in sorted(names, key=lambda each: -counts[each[1]])[:LABELS]:
            flags = np.zeros(len(self.ids), bool)
            flags[samples[(rows == number) & (samples >= 0)]] = True
            found[name] = flags
        return found

    def problems(self) -> None:
        """Read why samples lack a variant: what a step's replies could not be used for, and questions without a reply."""
        self.tell("problems")
        labels, samples = _Labelled(), [np.empty(0, np.int64)]
        for steps, reasons, ids in self.batches(_PROBLEMS):
            words = [f"{step}: {reason.partition(':')[0]}" for step, reason in zip(steps, reasons, strict=True)]
            labels.add(words)  # what follows the colon quotes the reply
            samples.append(self.numbers_of(ids))
        self.flags["problem"] = self.flagged(labels, np.concatenate(samples))

    def mark(self, group: str, sql: str) -> None:
        """Read which samples have which label of a group: rows of (label, sample_id)."""
        self.tell(f"{group}s")
        labels, samples = _Labelled(), [np.empty(0, np.int64)]
        for names, ids in self.batches(sql):
            labels.add(names)
            samples.append(self.numbers_of(ids))
        self.flags[group] = self.flagged(labels, np.concatenate(samples))

    def current_variants(self) -> None:
        """Read the current variants: of which sample, of which kind, by which teacher."""
        self.tell("variants")
        names: dict[str, str] = dict(map(tuple, self.conn.execute(text("SELECT teacher_id, teacher FROM teachers"))))
        kinds, teachers, samples = _Labelled(), _Labelled(), [np.empty(0, np.int64)]
        for ids, of, kind, teacher in self.batches(
            "SELECT variant_id, sample_id, kind, teacher_id FROM current_variants"
        ):
            self.variants += ids
            samples.append(self.numbers_of(of))
            kinds.add(kind)
            teachers.add([None if each is None else names[each] for each in teacher])
        self.variant_number = {variant: number for number, variant in enumerate(self.variants)}
        self.sample_of = np.concatenate(samples)
        self.flags["kind"] = self.flagged(kinds, self.sample_of)
        self.flags["teacher"] = self.flagged(teachers, self.sample_of)
        self._label(kinds, teachers, several=len(self.flags["teacher"]) > 1)

    def _label(self, kinds: _Labelled, teachers: _Labelled, *, several: bool) -> None:
        """Give each variant the label of its columns: its kind, and by whom it is if several teachers are in use."""
        rows = kinds.rows().astype(np.int64) * len(teachers.numbers or "-")
        if several:
            rows += teachers.rows()
        used, self.label_of = (each.astype(np.int32) for each in np.unique(rows, return_inverse=True))
        kind_names, teacher_names = list(kinds.numbers), list(teachers.numbers)
        for number in used.tolist():
            kind, teacher = divmod(number, len(teacher_names) or 1)
            name = (teacher_names[teacher] or "") if several else None
            self.labels.append((f"{kind_names[kind]} by {name}" if name else str(kind_names[kind]), name))

    def scores(self, student: str, name: str) -> None:
        """Read the ratios under a student."""
        values = np.full((len(RATIOS), len(self.variants)), np.nan)
        scored = np.zeros(len(self.variants), bool)
        for ids, *numbers in self.batches(_SCORES, student=student):
            at, known = self._current(ids)
            scored[at] = True
            for row, column in zip(values, numbers, strict=True):
                row[at] = np.array(column, np.float64)[known]
        for number in self._by_label():
            at = np.flatnonzero(scored & (self.label_of == number) & (self.sample_of >= 0))
            for measure, row in zip(RATIOS, values, strict=True):
                if len(at):
                    self.add(measure, name, number, at, row[at])

    def measures(self) -> None:
        """Read configured measures and ratings."""
        keys, variants, values = _Labelled(), [np.empty(0, np.int64)], [np.empty(0)]
        names: dict[str, tuple[str, str]] = {}
        for ids, models, measures, numbers in self.batches(_MEASURES):
            at, known = self._current(ids)
            pairs = list(zip(measures, models, strict=True))
            names |= {repr(pair): pair for pair in dict.fromkeys(pairs)}
            keys.add([repr(pair) for pair, there in zip(pairs, known.tolist(), strict=True) if there])
            variants.append(at)
            values.append(np.array(numbers, np.float64)[known])
        rows, everyone, everything = keys.rows(), np.concatenate(variants), np.concatenate(values)
        for pair in sorted(keys.numbers, key=str):
            of_pair = np.flatnonzero((rows == keys.numbers[pair]) & (self.sample_of[everyone] >= 0))
            for number in self._by_label():
                there = of_pair[self.label_of[everyone[of_pair]] == number]
                if len(there):
                    self.add(*names[str(pair)], number, everyone[there], everything[there])

    def _by_label(self) -> list[int]:
        """Return the numbers of the labels: origins, then the kinds of variants."""
        return sorted(range(len(self.labels)), key=lambda i: (self.labels[i][0] != "origin", self.labels[i][0]))

    def _current(self, variants: Sequence[str]) -> tuple[Order, Flags]:
        """Return the numbers of those variants that are current, and which of them these are."""
        numbers = np.fromiter(map(self.variant_number.get, variants, repeat(-1)), np.int64, len(variants))
        known = numbers >= 0
        return numbers[known], known

    def add(self, measure: str, model: str, label: int, variants: Order, values: Numbers) -> None:
        """Add a column: the number of each sample's variant; of several that have one, of that with the smallest id."""
        known = ~np.isnan(values)
        variants, values = variants[known], values[known]
        samples = self.sample_of[variants]
        if len(samples) and np.bincount(samples).max() > 1:
            order = sorted(range(len(samples)), key=lambda i: (self.variants[variants[i]], values[i]))
            samples, first = np.unique(samples[order], return_index=True)
            values = values[order][first]
        column = np.full(len(self.ids), np.nan)
        column[samples] = values
        name, teacher = self.labels[label]
        key = column_key(measure, model, name)
        self.columns[key] = Column(key, measure, model, name, column, teacher)


RATIOS = ("ifd", "rifd", "ppl", "length")  # the numbers of _SCORES
_STUDENTS = "SELECT student_id, student FROM students ORDER BY student"
# As the views `scores` and `losses` have them: means beyond these bounds are no numbers.
_MEAN = "CASE WHEN stat = '{}' AND loss_sum / nullif(n_tokens, 0) BETWEEN -1.0 AND 700.0 THEN loss_sum / nullif(n_tokens, 0) END"
_SCORES = f"""
    SELECT variant_id, exp(ac) / exp(ad), exp(qc) / exp(qd), exp(ac), n_tokens
    FROM (
        SELECT variant_id, max({_MEAN.format("Q_direct")}) AS qd, max({_MEAN.format("A_direct")}) AS ad,
            max({_MEAN.format("Q_condition")}) AS qc, max({_MEAN.format("A_condition")}) AS ac,
            max(CASE WHEN stat = 'A_direct' THEN n_tokens END) AS n_tokens
        FROM loss WHERE student_id = :student GROUP BY variant_id
    ) AS means
"""
_MEASURES = """
    SELECT variant_id, model, measure, value
    FROM measures WHERE is_current = 1 AND value IS NOT NULL AND measure NOT IN ('ifd', 'rifd', 'ppl', 'length')
"""
_PROBLEMS = """
    SELECT r.step, e.reason, v.sample_id
    FROM extractions e JOIN reply r ON r.text_id = e.text_id JOIN variant v ON v.variant_id = r.variant_id
    WHERE e.is_current = 1 AND e.variant_id IS NULL AND e.reason IS NOT NULL
    UNION ALL
    SELECT r.step, r.status, v.sample_id
    FROM reply r JOIN variant v ON v.variant_id = r.variant_id WHERE r.status IN ('failed', 'error')
"""
_SELECTED = """
    SELECT i.selection, v.sample_id FROM selection_items i JOIN variant v ON v.variant_id = i.variant_id
"""
