"""The store's numbers and properties in memory, one array each, by sample: what lists are filtered and sorted by.

Invariant: a snapshot never changes; when the store has changed, another one takes its place. A number is NaN where the store has NULL or no
row. Memory: 8 bytes for each number of each sample, 1 for each property, about 200 for its id; 52,000 samples with 20 numbers take 20 MB.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

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
    def known(self) -> Flags:
        """Which samples have a value."""
        return ~np.isnan(self.values)

    @cached_property
    def ascending(self) -> Order:
        """The samples that have a value, lowest first; equal ones in the datasets' order."""
        known = np.flatnonzero(self.known)
        return known[np.argsort(self.values[known], kind="stable")]

    @cached_property
    def shape(self) -> tuple[float, float, list[int]]:
        """Its histogram: the ends, which leave out 1 % of outliers, and the counts of equal bins between them."""
        known = self.values[self.known]
        if not len(known):
            return 0.0, 1.0, []
        low, high = (float(end) for end in np.percentile(known, (0.5, 99.5)))
        counts, _ = np.histogram(known.clip(low, high), BINS, (low, high if high > low else low + 1.0))
        return low, high, [int(count) for count in counts]

    def below(self, value: float) -> float:
        """Return the share of the samples with a number whose number is lower."""
        known = np.count_nonzero(self.known)
        return float(np.count_nonzero(self.values < value) / known) if known else 0.0

    def ranks(self, among: Flags) -> Numbers:
        """Return the ranks, from 1, of those samples that all have a number, in the samples' order; equal numbers have their mean rank.

        In linear time: nothing is sorted again.
        """
        order = self.ascending[among[self.ascending]]
        values = self.values[order]
        begins = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.empty(0, np.int64)
        counts = np.diff(begins, append=len(values))
        ranks = np.empty(len(self.values))
        ranks[order] = np.repeat(begins + (counts + 1) / 2, counts)
        return ranks[among]

    @cached_property
    def descending(self) -> Order:
        """The samples that have a value, highest first; equal ones in the datasets' order."""
        known = np.flatnonzero(self.known)
        return known[np.argsort(-self.values[known], kind="stable")]


@dataclass(frozen=True)
class Snapshot:
    """What was in the store at one moment. Samples are numbered in the order of their datasets."""

    ids: list[str]
    columns: dict[str, Column]
    flags: dict[str, dict[str, Flags]]
    version: tuple[int, ...]
    seconds: float  # that reading it took
    state: str | None = None  # the store's fingerprint; None if it was not read from the store
    derived: dict[str, Column] = field(default_factory=dict)
    kept: dict[str, Any] = field(
        default_factory=dict
    )  # what a page keeps as long as nothing has changed, by its own keys

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


def labelled(snapshot: Snapshot, group: str, label: str, samples: Collection[str]) -> Snapshot:
    """Return a snapshot in which these samples, and no others, have a label."""
    flags = np.zeros(len(snapshot.ids), bool)
    flags[[number for each in samples if (number := snapshot.number_of.get(each)) is not None]] = True
    return replace(snapshot, flags={**snapshot.flags, group: {**snapshot.flags[group], label: flags}}, kept={})


def version(store: Store) -> tuple[int, ...]:
    """Return numbers that differ when rows were added to what a snapshot is read from; only `loss` is counted, it has no row numbers."""
    newest = ", ".join(f"(SELECT coalesce(max(rowid), 0) FROM {table})" for table in _CHANGING)
    sql = f"SELECT {newest}, (SELECT count(*) FROM loss)"
    return tuple(int(number) for number in store.rows(sql)[0])
