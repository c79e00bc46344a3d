"""The address bar of the list of samples: which samples, in which order, from where on.

    has=GROUP:LABEL     with this property; several labels of one group: with any of them (groups: columns.GROUPS)
    lacks=GROUP:LABEL   without it
    range=KEY:LOW..HIGH with this number in the range; either end may be left out
    q=WORDS             with these words in any text
    sort=KEY, sort=-KEY by a number, lowest or highest first; default: the datasets' order
    show=KEY            numbers to show beside each sample
    after=SAMPLE_ID     the samples after this one

A form sends a range as range_key, low and high, and an order as sort_by and direction; the page goes on to the address above.

Invariant: parsing what `State.query` returns gives the same state, and one state is always the same text: it can be sent to a colleague.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import urlencode

import numpy as np

from recycledb.errors import RecycledbError
from recycledb.suggestions import did_you_mean
from recycledb.view.columns import GROUPS, Flags, Order, Snapshot

PAGE_ROWS = 50


class StateError(RecycledbError):
    """An address that cannot be understood."""


@dataclass(frozen=True)
class Range:
    """The numbers of a column from `low` to `high`, both included."""

    key: str
    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read KEY:LOW..HIGH; a key may contain colons and dots."""
        key, colon, ends = text.rpartition(":")
        low, dots, high = ends.partition("..")
        if not (colon and dots):
            raise StateError(f"range={text}: write range=KEY:LOW..HIGH, as in range=ifd/7b@origin:0.3..0.9")
        try:
            found = cls(key, float(low) if low else -math.inf, float(high) if high else math.inf)
        except ValueError:
            raise StateError(f"range={text}: {low!r} and {high!r} must be numbers") from None
        if math.isnan(found.low) or math.isnan(found.high):
            raise StateError(f"range={text}: {low!r} and {high!r} must be numbers")
        return found

    def __str__(self) -> str:
        low = "" if self.low == -math.inf else shortest(self.low)
        high = "" if self.high == math.inf else shortest(self.high)
        return f"{self.key}:{low}..{high}"


def shortest(value: float) -> str:
    """Return the shortest text of exactly this number."""
    text = f"{value:.12g}"
    return text if float(text) == value else repr(value)


@dataclass(frozen=True)
class State:
    """What an address asks for; see above."""

    has: tuple[tuple[str, str], ...] = ()
    lacks: tuple[tuple[str, str], ...] = ()
    ranges: tuple[Range, ...] = ()
    words: str = ""
    sort: str = ""
    show: tuple[str, ...] = ()
    after: str = ""

    @classmethod
    def parse(cls, parameters: Iterable[tuple[str, str]]) -> Self:
        """Read an address's parameters; others than these are ignored. StateError for one that makes no sense."""
        given: dict[str, list[str]] = {}
        for name, value in parameters:
            given.setdefault(name, []).append(value)
        fields = zip(*(given.get(name, []) for name in ("range_key", "low", "high")), strict=False)
        ranges = [
            *given.get("range", []),
            *(f"{key}:{low}..{high}" for key, low, high in fields if key and (low or high)),
        ]
        sort = given.get("sort", [""])[-1]
        if by := given.get("sort_by", [""])[-1]:
            sort = "-" * (given.get("direction") == ["down"]) + by
        return cls(
            _labels("has", given.get("has", [])),
            _labels("lacks", given.get("lacks", [])),
            tuple(Range.parse(each) for each in dict.fromkeys(ranges) if each),
            " ".join(given.get("q", [""])[-1].split()),
            sort,
            tuple(dict.fromkeys(each for each in given.get("show", []) if each)),
            given.get("after", [""])[-1],
        )

    def query(self) -> str:
        """Return the address's parameters."""
        pairs = [("has", f"{group}:{label}") for group, label in sorted(self.has)]
        pairs += [("lacks", f"{group}:{label}") for group, label in sorted(self.lacks)]
        pairs += [("range", str(each)) for each in self.ranges]
        pairs += [("q", self.words), ("sort", self.sort), *(("show", key) for key in self.show), ("after", self.after)]
        return urlencode([(name, value) for name, value in pairs if value])

    def with_(self, **changes: object) -> Self:
        """Return a copy with changes, from the first row on."""
        return replace(self, **{"after": "", **changes})  # type: ignore[arg-type]  # the fields' own types

    def toggled(self, group: str, label: str) -> Self:
        """Return a copy with the next condition on a property: none, has, lacks."""
        pair = (group, label)
        if pair in self.has:
            return self.with_(has=tuple(each for each in self.has if each != pair), lacks=(*self.lacks, pair))
        if pair in self.lacks:
            return self.with_(lacks=tuple(each for each in self.lacks if each != pair))
        return self.with_(has=(*self.has, pair))


def _labels(name: str, texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    found = []
    for text in texts:
        group, colon, label = text.partition(":")
        if not text:
            continue
        if not colon or group not in GROUPS:
            raise StateError(
                f"{name}={text}: write {name}=GROUP:LABEL; the groups are {', '.join(GROUPS)}{did_you_mean(group, GROUPS)}"
            )
        found.append((group, label))
    return tuple(sorted(set(found)))


def matching(snapshot: Snapshot, state: State, with_words: Flags | None = None) -> Flags:
    """Return which samples fulfil the conditions; `with_words` are those that have the words."""
    found = np.ones(len(snapshot.ids), bool) if with_words is None else with_words.copy()
    wanted: dict[str, Flags] = {}
    for group, label in state.has:
        flags = _flags(snapshot.flags, group, label)
        wanted[group] = wanted[group] | flags if group in wanted else flags
    for flags in wanted.values():
        found &= flags
    for group, label in state.lacks:
        found &= ~_flags(snapshot.flags, group, label)
    for each in state.ranges:
        column = snapshot.column(each.key)
        if column is None:
            raise StateError(_unknown(each.key, snapshot))
        found &= (column.values >= each.low) & (column.values <= each.high)  # NaN fulfils neither
    return found


def ordered(snapshot: Snapshot, state: State, found: Flags) -> Order:
    """Return the numbers of the samples found, in the state's order; sorted by a number, only those that have it."""
    if not state.sort:
        return np.flatnonzero(found)
    column = snapshot.column(state.sort.removeprefix("-"))
    if column is None:
        raise StateError(_unknown(state.sort.removeprefix("-"), snapshot))
    order = column.descending if state.sort.startswith("-") else column.ascending
    return order[found[order]]


def following(order: Order, number: int | None, rows: int = PAGE_ROWS) -> Order:
    """Return the samples after that one; the first ones for None or a sample that is not in the order any more."""
    if number is None:
        return order[:rows]
    at = np.flatnonzero(order == number)
    start = int(at[0]) + 1 if len(at) else 0
    return order[start : start + rows]


def _flags(flags: Mapping[str, Mapping[str, Flags]], group: str, label: str) -> Flags:
    found = flags[group].get(label)
    if found is None:
        known = list(flags[group])
        hint = did_you_mean(label, known) or f"; there are: {', '.join(known[:8]) or 'none'}"
        raise StateError(f"no {group} {label!r}{hint}")
    return found


def _unknown(key: str, snapshot: Snapshot) -> str:
    known = list(snapshot.columns)
    return f"no number {key!r}{did_you_mean(key, known) or '; there are: ' + (', '.join(known[:8]) or 'none yet')}"
