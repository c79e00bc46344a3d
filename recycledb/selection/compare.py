"""Compare students, teachers or prompts: agreement of scores and of picks.

A side is a student's scores of what one teacher made with one set of prompts. Students are compared by variant; teachers and
prompts, which make different texts, by sample and kind.

Invariant: every number is computed from the current variants of samples with an open position; a statistic that is missing
on a side counts as missing, never as a number. Correlations use the points that have the metric on both sides.
Plots are made by `reporting` from the `Comparison`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from recycledb.errors import SelectionError
from recycledb.methods import scored_kinds
from recycledb.methods.ifd import METRICS
from recycledb.methods.reflection import SPLITS, Kind
from recycledb.selection import identities, picks
from recycledb.selection.agreement import (
    Correlation,
    Disagreement,
    Overlap,
    Summary,
    correlation,
    disagreement,
    find_disagreements,
    overlaps,
    summary,
)
from recycledb.selection.picks import Confusion, Flow, Pick
from recycledb.selection.points import Ints, Table, make_table
from recycledb.selection.recipes import parse_top
from recycledb.selection.select import count_samples
from recycledb.selection.sides import Side, find_sides, look
from recycledb.store import Sandbox, Store, TimeLimit
from recycledb.suggestions import did_you_mean
from recycledb.terminal import shortened

SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
WORDS_CHARACTERS = 160


@dataclass(frozen=True)
class Comparison:
    """All results of a comparison; `as_dict` leaves out the points and texts."""

    sides: tuple[Side, ...]
    students: tuple[str, ...]
    metric: str
    kinds: tuple[str, ...]
    top: str  # as given: "5%" or "100"
    dataset: str | None
    samples: int  # with an open position
    summaries: list[Summary]
    correlations: list[Correlation]
    top_overlaps: list[Overlap]  # at `top`, one for each pair and kind
    overlap_curve: list[Overlap]  # by kind and growing share
    confusions: list[Confusion]  # one for each pair
    flows: list[Flow]
    disagreements: list[Disagreement]  # largest first
    words: dict[str, str]  # the first words of the texts of disagreements
    table: Table | None = field(default=None, compare=False, repr=False)  # for plots only: every point with its values

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the sides."""
        return tuple(side.label for side in self.sides)

    @property
    def without_values(self) -> list[str]:
        """The sides that have no value at all of the metric."""
        there = {each.side for each in self.summaries if each.n}
        return [label for label in self.labels if label not in there]

    @property
    def subject(self) -> str:
        """What the sides differ in: students, teachers, prompts, or "sides" if in more than one of these."""
        differing = [
            word
            for word, values in (
                ("students", {side.student for side in self.sides}),
                ("teachers", {side.teacher for side in self.sides}),
                ("prompts", {side.prompt for side in self.sides}),
            )
            if len(values) > 1
        ]
        return differing[0] if len(differing) == 1 else "sides"

    def _repr_html_(self) -> str:
        from recycledb.selection.notebook import comparison_html

        return comparison_html(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        found = asdict(replace(self, table=None))
        del found["table"], found["words"]
        for side in found["sides"]:
            del side["as_if"]
        return found


def compare(
    store: Store,
    students: Sequence[str] = (),
    *,
    teachers: Sequence[str] = (),
    prompts: Sequence[str] = (),
    metric: str = "ifd_ppl",
    kind: str | None = None,
    top: str = "5%",
    dataset: str | None = None,
    disagreements: int = 10,
    pictures: bool = False,
    timeout_s: float | None = None,
) -> Comparison:
    """Compare two or more sides by `metric` (see METRICS), over all scored kinds or one.

    The sides are all combinations of the students, teachers and prompts given; by default the only student, the only teacher, and
    the prompts in use. A prompt is given as in `identities.find_prompts`. Origins are left out when only teachers or prompts differ.
    Top shares are ranked as in recipes: IFD below 1 from the highest, rIFD from the lowest, any other metric from the highest.
    With `pictures`, the table of all points is filled in. SelectionError for an unknown metric, kind, student, teacher or prompt;
    QueryError if the SQL takes longer than `timeout_s` seconds.
    """
    limit = TimeLimit(timeout_s)
    _check(metric, kind, top)
    sides = find_sides(store, students, teachers, prompts, kind)
    dataset = None if dataset is None else identities.find_dataset(store, dataset)
    kinds = _kinds(sides, kind)
    samples = count_samples(store, dataset)
    table, picked = _looked_at(store, sides, metric, kind, kinds, dataset, limit)
    groups = _groups(table, kinds, kind)
    wider = [*groups, ("all", np.arange(len(table.samples)))] if len(kinds) > 1 else groups
    disagreeing = find_disagreements(table, groups, disagreements)
    with store.sandbox(limit=limit) as sandbox:
        words = _words(sandbox, [variant for i, _ in disagreeing for variant in table.variants_of(i)])
    names = [side.label for side in sides]
    pairs = _Pairs(table, names, metric)
    return Comparison(
        sides=sides,
        students=tuple(dict.fromkeys(side.student for side in sides)),
        metric=metric,
        kinds=tuple(each for each, _ in groups),
        top=top,
        dataset=dataset,
        samples=samples,
        summaries=[summary(name, each, table.values[s, at]) for s, name in enumerate(names) for each, at in groups],
        correlations=pairs.correlations(wider),
        top_overlaps=pairs.overlaps(groups, [top]),
        overlap_curve=pairs.overlaps(groups, SHARES),
        confusions=[picks.confusion((names[a], names[b]), picked[a], picked[b]) for a, b in pairs.sides]
        if picked
        else [],
        flows=[flow for name, taken in zip(names, picked, strict=False) for flow in picks.flows(name, taken, samples)],
        disagreements=[disagreement(table, i, at, words) for i, at in disagreeing],
        words=words,
        table=table if pictures else None,
    )


def _check(metric: str, kind: str | None, top: str) -> None:
    if metric not in METRICS:
        raise SelectionError(f"no metric {metric!r}{did_you_mean(metric, METRICS)}; there are {', '.join(METRICS)}")
    if kind is not None and kind not in scored_kinds():
        raise SelectionError(
            f"no scored kind {kind!r}{did_you_mean(kind, scored_kinds())}; there are {', '.join(scored_kinds())}"
        )
    parse_top(top)


def _groups(table: Table, kinds: tuple[str, ...], kind: str | None) -> list[tuple[str, Ints]]:
    """Return the places of each kind's points, without kinds of methods that were not used: these have no variants, and no line."""
    groups = ((each, np.flatnonzero(table.kinds == i)) for i, each in enumerate(kinds))
    return [(each, at) for each, at in groups if len(at) or each in SPLITS or each == kind]


def _kinds(sides: Sequence[Side], kind: str | None) -> tuple[str, ...]:
    """Return the kinds to compare: without origins if there is one student, since they are the same on every side."""
    one_student = len({side.student for side in sides}) == 1
    return tuple(each for each in scored_kinds() if kind in (None, each) and not (one_student and each == Kind.ORIGIN))


def _looked_at(
    store: Store,
    sides: Sequence[Side],
    metric: str,
    kind: str | None,
    kinds: tuple[str, ...],
    dataset: str | None,
    limit: TimeLimit,
) -> tuple[Table, list[list[Pick]]]:
    """Return the points of all sides, and each side's picks; no picks if only origins are compared and a side has no teacher."""
    picking = kind != Kind.ORIGIN or all(side.teacher is not None for side in sides)
    seen = [look(store, side, metric, kinds, dataset, limit, picking=picking) for side in sides]
    same_texts = len({(side.teacher, side.prompt) for side in sides}) == 1
    return make_table([each.points for each in seen], kinds, same_texts), [each.picks for each in seen if picking]


class _Pairs:
    """All pairs of sides, compared by the points that both have."""

    def __init__(self, table: Table, names: Sequence[str], metric: str) -> None:
        self.table, self.names, self.metric = table, names, metric
        self.sides = list(combinations(range(len(names)), 2))

    def correlations(self, groups: Sequence[tuple[str, Ints]]) -> list[Correlation]:
        """Return the correlations of each pair in each group of points."""
        return [
            correlation((self.names[a], self.names[b]), kind, *self.table.both(a, b, at))
            for a, b in self.sides
            for kind, at in groups
        ]

    def overlaps(self, groups: Sequence[tuple[str, Ints]], shares: Sequence[float | str]) -> list[Overlap]:
        """Return the overlap of the top shares of each pair in each group of points."""
        return [
            overlap
            for a, b in self.sides
            for kind, at in groups
            for overlap in overlaps(
                (self.names[a], self.names[b]), kind, self.table.both(a, b, at), self.metric, shares
            )
        ]


def first_words(store: Store, variants: Sequence[str]) -> dict[str, str]:
    """Return the first words of variants' texts: instruction → output."""
    with store.sandbox() as sandbox:
        return _words(sandbox, variants)


def _words(sandbox: Sandbox, variants: Sequence[str]) -> dict[str, str]:
    words: dict[str, str] = {}
    for start in range(0, len(variants), 500):
        part = {f"v{i}": variant for i, variant in enumerate(variants[start : start + 500])}
        sql = f"""
            SELECT variant_id, substr(instruction, 1, {WORDS_CHARACTERS + 1}), substr(output, 1, {WORDS_CHARACTERS + 1})
            FROM variant WHERE variant_id IN ({", ".join(f":{name}" for name in part)})
        """
        for variant, instruction, output in sandbox.execute(sql, part)[1]:
            words[variant] = shortened(f"{instruction} → {output}", WORDS_CHARACTERS)
    return words
