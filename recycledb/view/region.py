"""The samples in a rectangle of a scatter plot: as numbers of samples, as an address, and as SQL on the documented views.

Invariant: all three mean the same samples. Bounds are included, a sample without one of the two numbers is in no region, and the numbers in
the SQL are exactly those of the columns (`columns.py`): of several variants of a kind, that with the smallest id counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recycledb.errors import SelectionError
from recycledb.view.columns import Column, Flags, Order, Snapshot
from recycledb.view.state import Range, State

MOST_IDS = 5_000  # that are written into a query
PICKS = (
    "x",
    "y",
    "origin",
)  # which variants a selection has: those whose numbers are compared, or the samples as they came
_SCORES = {"ifd": "ifd_ppl", "rifd": "rifd_ppl", "ppl": "ppl_A_condition"}  # columns of the view `scores`
# The samples with one of the labels {} of a group, by the views.
_LABELLED = {
    "dataset": "SELECT sample_id FROM dataset_samples WHERE dataset IN ({0})",
    "kind": "SELECT sample_id FROM current_variants WHERE kind IN ({0})",
    "teacher": "SELECT sample_id FROM variants WHERE is_current = 1 AND teacher IN ({0})",
    "mark": "SELECT sample_id FROM marks WHERE is_current = 1 AND mark IN ({0})",
    "selection": "SELECT v.sample_id FROM selection_items i JOIN variants v ON v.variant_id = i.variant_id WHERE i.selection IN ({0})",
}


@dataclass(frozen=True)
class Region:
    """A rectangle: a range of each of two columns."""

    x: Range
    y: Range

    @property
    def is_bounded(self) -> bool:
        """Whether there is any bound."""
        return any(math.isfinite(end) for end in self.ends)

    @property
    def ends(self) -> tuple[float, float, float, float]:
        """The lowest and the highest x, then y."""
        return self.x.low, self.x.high, self.y.low, self.y.high

    def members(self, snapshot: Snapshot, found: Flags) -> Order:
        """Return the numbers of those samples of `found` that are in the region."""
        for each in (self.x, self.y):
            column = snapshot.column(each.key)
            assert column is not None  # the page has looked it up
            found = found & (column.values >= each.low) & (column.values <= each.high)
        return np.flatnonzero(found)

    def narrowed(self, state: State) -> State:
        """Return a state of the list of samples with exactly these samples."""
        return state.with_(ranges=tuple(dict.fromkeys((*state.ranges, self.x, self.y))))


def region_sql(snapshot: Snapshot, state: State, region: Region, members: Order, pick: str = "x") -> str:
    """Return a query for the samples of a region that fulfil a state's conditions, with one variant each; `members` are these samples.

    Conditions on what the views do not have (words, marks) are written as the samples' ids; SelectionError if these are too many.
    """
    writing = _Writing(snapshot)
    x, y = (writing.named(each.key, name) for each, name in ((region.x, "x"), (region.y, "y")))
    conditions = [*_bounds("x", region.x), *_bounds("y", region.y)]
    for i, each in enumerate(state.ranges):
        writing.named(each.key, f"r{i}")
        inner = " AND ".join(_bounds(f"r{i}", each)) or "TRUE"
        conditions.append(f"x.sample_id IN (SELECT sample_id FROM r{i} WHERE {inner})")
    conditions += _labels(snapshot, state, members)
    if pick == "origin":
        join, variant = "\nJOIN variants o ON o.sample_id = x.sample_id AND o.kind = 'origin'", "o.variant_id"
    else:
        join, variant = "", f"{pick}.variant_id"
    where = f"\nWHERE {f'{chr(10)}    AND '.join(conditions)}" if conditions else ""
    about = " ".join(f"x: {region.x.key}, y: {region.y.key}".split())
    return (
        f"-- @description Samples in a region of two numbers. {about}\nWITH {f',{chr(10)}'.join(writing.parts)}\n"
        f"SELECT {variant}, x.sample_id, x.value AS x, y.value AS y\nFROM {x}\nJOIN {y} ON y.sample_id = x.sample_id{join}{where}\n"
    )


def _labels(snapshot: Snapshot, state: State, members: Order) -> list[str]:
    groups: dict[str, list[str]] = {}
    for group, label in state.has:
        groups.setdefault(group, []).append(label)
    wanted = [(group, labels, "IN") for group, labels in groups.items()]
    wanted += [(group, [label], "NOT IN") for group, label in state.lacks]
    found = [f"x.sample_id {word} ({_labelled(group, labels)})" for group, labels, word in wanted]
    if state.words:
        if len(members) > MOST_IDS:
            raise SelectionError(
                f"words are not in SQL's views, and {len(members):,} ids are too many to write: make the region smaller"
            )
        ids = (snapshot.ids[number] for number in members)
        found.append(f"x.sample_id IN ({', '.join(map(_text, ids)) or 'NULL'})")
    return found


def _labelled(group: str, labels: Sequence[str]) -> str:
    """Return a query for the samples with one of these labels, by the views."""
    return _problems(labels) if group == "problem" else _LABELLED[group].format(", ".join(map(_text, labels)))


def _problems(labels: Sequence[str]) -> str:
    """Return a query for the samples with one of these problems: the beginning of a reason up to its colon, or a reply's status."""
    reasons, statuses = [], []
    for label in labels:
        step, _, reason = label.partition(": ")
        begins = f"substr(e.reason, 1, {len(reason) + 1}) = {_text(reason + ':')}"
        reasons.append(f"t.step = {_text(step)} AND (e.reason = {_text(reason)} OR {begins})")
        if reason in ("failed", "error"):
            statuses.append(f"t.step = {_text(step)} AND t.status = {_text(reason)}")
    unusable = (
        "SELECT v.sample_id FROM extractions e JOIN teacher_texts t ON t.text_id = e.text_id "
        "JOIN variants v ON v.variant_id = t.variant_id "
        f"WHERE e.is_current = 1 AND e.variant_id IS NULL AND ({' OR '.join(reasons)})"
    )
    failed = "SELECT v.sample_id FROM teacher_texts t JOIN variants v ON v.variant_id = t.variant_id WHERE "
    return f"{unusable} UNION ALL {failed}{' OR '.join(statuses)}" if statuses else unusable


def _bounds(name: str, found: Range) -> list[str]:
    low = [f"{name}.value >= {_number(found.low)}"] if found.low != -math.inf else []
    return low + ([f"{name}.value <= {_number(found.high)}"] if found.high != math.inf else [])


def _number(value: float) -> str:
    """Return a number for SQL: as it is where both databases read it exactly, else converted from text."""
    if math.isinf(value):
        return f"CAST('{'-' if value < 0 else ''}1e999' AS DOUBLE PRECISION)"
    short = f"{value:.12g}"
    return short if float(short) == value else f"CAST('{value!r}' AS DOUBLE PRECISION)"


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class _Writing:
    """The common table expressions of columns: sample_id, variant_id and value, at most one row for each sample."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.parts: list[str] = []

    def named(self, key: str, name: str) -> str:
        """Write a column under a name, and return the name."""
        sources = self._sources(key)
        if len(sources) == 1:
            self.parts.append(f"{name} AS (\n{_stored(sources[0])}\n)")
            return name
        one, other = (f"{name}_{i}" for i in (1, 2))
        self.parts += [f"{each} AS (\n{_stored(column)}\n)" for each, column in zip((one, other), sources, strict=True)]
        value = f"{one}.value - {other}.value"
        value = f"abs({value})" if key.startswith("gap:") else value
        self.parts.append(
            f"{name} AS (\n    SELECT {one}.sample_id, {one}.variant_id, {value} AS value\n"
            f"    FROM {one} JOIN {other} ON {other}.sample_id = {one}.sample_id\n)"
        )
        return name

    def _sources(self, key: str) -> list[Column]:
        stored = self.snapshot.columns
        if key in stored:
            return [stored[key]]
        found = self.snapshot.sources(key)
        if found is None:
            raise SelectionError(f"no number {key!r}")
        return list(found)


def _stored(column: Column) -> str:
    conditions = [f"s.kind = {_text(column.kind.removesuffix(f' by {column.teacher}'))}", "s.is_current = 1"]
    if column.measure in _SCORES or column.measure == "length":
        value, source = f"s.{_SCORES.get(column.measure)}", "scores s"
        conditions.insert(0, f"s.student = {_text(column.model)}")
        maker = "s.teacher"
        if column.measure == "length":
            value = "l.n_tokens"
            source += (
                " JOIN losses l ON l.variant_id = s.variant_id AND l.student_id = s.student_id AND l.stat = 'A_direct'"
            )
    else:
        value, maker = "s.value", "v.teacher"
        source = "measures s JOIN variants v ON v.variant_id = s.variant_id AND v.is_current = 1"
        conditions.insert(0, f"s.measure = {_text(column.measure)} AND s.model = {_text(column.model)}")
    if column.teacher is not None:
        conditions.append(f"{maker} = {_text(column.teacher)}" if column.teacher else f"coalesce({maker}, '') = ''")
    return (
        f"    SELECT sample_id, variant_id, value FROM (\n        SELECT s.sample_id, s.variant_id, {value} AS value,\n"
        f"            row_number() OVER (PARTITION BY s.sample_id ORDER BY s.variant_id, {value}) AS nth\n        FROM {source}\n"
        f"        WHERE {' AND '.join(conditions)} AND {value} IS NOT NULL\n    ) AS numbered WHERE nth = 1"
    )
