"""Students side by side: how far their scores and their picks agree.

Invariant: every number is computed from the current variants of samples with an open place; a statistic that is missing
under a student counts as missing, never as a number. Correlations take the variants that have the metric under both.
This module refuses to draw: a `Comparison` holds what pictures need, and `reporting` draws them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from recycledb.errors import SelectionError
from recycledb.schema import SCORED_KINDS, Kind, Stat
from recycledb.selection import identities
from recycledb.selection.recipes import BEST, bind, get_recipe, parse_top
from recycledb.store import Sandbox, Store

METRICS = (
    *(f"{ratio}_{unit}" for unit in ("ppl", "loss") for ratio in ("ifd", "rifd")),
    *(f"{unit}_{stat}" for unit in ("ppl", "loss") for stat in Stat),
)
SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
NONE = "none"
LABELS = (*(kind.value for kind in SCORED_KINDS), NONE)
MAX_POINTS = 5_000  # a picture with more is slow and black
WORDS_CHARACTERS = 160

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Summary:
    """One student's distribution of the metric over one kind of variant."""

    student: str
    kind: str
    n: int  # variants with a value
    missing: int  # variants compared that lack one under this student
    mean: float | None
    median: float | None
    stddev: float | None
    quartile_1: float | None
    quartile_3: float | None
    below_1: int


@dataclass(frozen=True, slots=True)
class Correlation:
    """How alike two students order and value the variants of a kind ("all": of every kind compared)."""

    students: tuple[str, str]
    kind: str
    n: int
    spearman: float | None
    pearson: float | None
    kendall: float | None  # tau-b


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two students' top `share` of the variants of a kind have in common."""

    students: tuple[str, str]
    kind: str
    share: float  # asked for, of the variants that both have scored, 0 to 1
    k: int  # places in each top list; no more than the longer list has
    shared: int  # variants in both lists
    overlap: float | None  # shared / k; None where k is 0


@dataclass(frozen=True, slots=True)
class Confusion:
    """Which kind `selective` with keep = all picks for a sample under each of two students; "none" where it picks nothing."""

    students: tuple[str, str]
    labels: tuple[str, ...]  # the kinds and "none", the order of both axes
    counts: tuple[tuple[int, ...], ...]  # counts[i][j]: labels[i] under the first student, labels[j] under the second
    agreement: float | None  # share of samples on the diagonal


@dataclass(frozen=True, slots=True)
class Flow:
    """How many samples went from one node of the decision tree to the next under a student.

    Nodes, in order of depth: "samples"; "ifd(Q) > ifd(ori)", "otherwise" or "not scored"; the candidate
    ("reflect_both", "reflect_instruction", "reflect_response", "origin"); "kept", "ifd not below 1" or "rifd not below 1".
    """

    student: str
    source: str
    target: str
    count: int


@dataclass(frozen=True, slots=True)
class Point:
    """A variant with its value under each student, in their order; None where there is none."""

    variant_id: str
    sample_id: str
    kind: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A variant that the students place far apart."""

    variant_id: str
    sample_id: str
    kind: str
    values: tuple[float, ...]
    percentiles: tuple[float, ...]  # the share of compared variants of its kind with a lower value, 0 to 1
    words: str  # its text's first words


@dataclass(frozen=True)
class Comparison:
    """Everything known about how students agree; `as_dict` leaves the points and their texts out."""

    students: tuple[str, ...]
    metric: str
    kinds: tuple[str, ...]
    top: str  # as given: "5%" or "100"
    dataset: str | None
    teacher: str | None  # whose variants; None where there are none, "best" for the best per sample
    samples: int  # with an open place
    summaries: list[Summary]
    correlations: list[Correlation]
    top_overlaps: list[Overlap]  # at `top`, one a pair and kind
    overlap_curve: list[Overlap]  # as the share grows, kind by kind
    confusions: list[Confusion]  # one a pair
    flows: list[Flow]
    disagreements: list[Disagreement]  # widest first
    points: list[Point]  # for pictures only: variants in dataset order, evenly thinned to MAX_POINTS
    words: dict[str, str]  # for pictures only: the first words of the points' and the disagreements' texts

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        found = asdict(self)
        del found["points"], found["words"]
        return found


def compare(
    store: Store,
    students: Sequence[str],
    *,
    metric: str = "ifd_ppl",
    kind: str | None = None,
    top: str = "5%",
    dataset: str | None = None,
    teacher: str | None = None,
    disagreements: int = 10,
    pictures: bool = False,
) -> Comparison:
    """Put two or more students side by side by `metric` (see METRICS), over all scored kinds or one.

    The top share is taken as recipes rank: IFD below 1 from the highest, rIFD from the lowest, any other metric from the highest.
    With `pictures`, points and words are filled. SelectionError names an unknown metric, kind, student or teacher.
    """
    names = _checked(store, students, metric, kind)
    parse_top(top)
    dataset = None if dataset is None else identities.find_dataset(store, dataset)
    maker = BEST if teacher == BEST else _teacher(store, teacher, kind)
    kinds = tuple(each.value for each in SCORED_KINDS if kind is None or each == kind)
    picking = kind != Kind.ORIGIN or maker is not None
    with store.backend.sandbox(allow_external=False) as sandbox:
        samples = _samples(sandbox, dataset)
        table = _table(sandbox, names, metric, kinds, dataset, maker)
    picks = [_picks(store, name, metric, dataset, maker) for name in names] if picking else []
    pairs = list(combinations(range(len(names)), 2))
    groups = [(each, np.flatnonzero(table.kinds == i)) for i, each in enumerate(kinds)]
    wider = [*groups, ("all", np.arange(len(table.variants)))] if len(kinds) > 1 else groups
    disagreeing = _disagreements(table, groups, disagreements)
    chosen = _thinned(len(table.variants)) if pictures else []
    with store.backend.sandbox(allow_external=False) as sandbox:
        words = _words(sandbox, [table.variants[i] for i in {*chosen, *(i for i, _ in disagreeing)}])
    return Comparison(
        students=names,
        metric=metric,
        kinds=kinds,
        top=top,
        dataset=dataset,
        teacher=maker,
        samples=samples,
        summaries=[_summary(name, each, table.values[s, at]) for s, name in enumerate(names) for each, at in groups],
        correlations=[
            _correlation((names[a], names[b]), each, *table.both(a, b, at)) for a, b in pairs for each, at in wider
        ],
        top_overlaps=[
            overlap
            for a, b in pairs
            for each, at in groups
            for overlap in _overlaps((names[a], names[b]), each, table.both(a, b, at), metric, [top])
        ],
        overlap_curve=[
            overlap
            for a, b in pairs
            for each, at in groups
            for overlap in _overlaps((names[a], names[b]), each, table.both(a, b, at), metric, SHARES)
        ],
        confusions=[_confusion((names[a], names[b]), picks[a], picks[b]) for a, b in pairs] if picks else [],
        flows=[flow for name, found in zip(names, picks, strict=False) for flow in _flows(name, found, samples)],
        disagreements=[_disagreement(table, i, at, words) for i, at in disagreeing],
        points=[table.point(i, kinds) for i in chosen],
        words=words,
    )


def _checked(store: Store, students: Sequence[str], metric: str, kind: str | None) -> tuple[str, ...]:
    if metric not in METRICS:
        raise SelectionError(f"no metric {metric!r}; there are {', '.join(METRICS)}")
    if kind is not None and kind not in [each.value for each in SCORED_KINDS]:
        raise SelectionError(f"no scored kind {kind!r}; there are {', '.join(SCORED_KINDS)}")
    names = tuple(dict.fromkeys(identities.find_student(store, student).name for student in students))
    if len(names) < 2:
        there = ", ".join(student.name for student in identities.students(store)) or "none"
        raise SelectionError(f"name two or more different students to compare; there are: {there}")
    return names


def _teacher(store: Store, teacher: str | None, kind: str | None) -> str | None:
    if teacher is None and kind == Kind.ORIGIN:  # nobody's reflections are compared
        return None
    found = identities.find_teacher(store, teacher, offer_best=True)
    return found.name if found else None


# -- the table of values


@dataclass(frozen=True)
class _Table:
    """Every variant compared, in dataset order, with its value under each student: NaN where there is none."""

    variants: list[str]
    samples: list[str]
    kinds: Ints  # (n,): indexes into the kinds compared
    values: Floats  # (students, n)
    kind_names: tuple[str, ...]

    def both(self, a: int, b: int, at: Ints) -> tuple[Floats, Floats]:
        """Return the values under two students of those variants, among `at`, that both have scored."""
        x, y = self.values[a, at], self.values[b, at]
        there = ~(np.isnan(x) | np.isnan(y))
        return x[there], y[there]

    def point(self, i: int, kinds: tuple[str, ...]) -> Point:
        """Return a variant as a point."""
        values = tuple(None if np.isnan(value) else float(value) for value in self.values[:, i])
        return Point(self.variants[i], self.samples[i], kinds[self.kinds[i]], values)


_SIGHT = """
    WITH ordered AS (
        SELECT sample_id, row_number() OVER (ORDER BY dataset, position) AS place
        FROM dataset_samples WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset
    ),
    sight AS (SELECT sample_id, min(place) AS place FROM ordered GROUP BY sample_id)
"""


def _samples(sandbox: Sandbox, dataset: str | None) -> int:
    return int(next(iter(sandbox.execute(f"{_SIGHT} SELECT count(*) FROM sight", {"dataset": dataset})[1]))[0])


def _table(
    sandbox: Sandbox,
    names: tuple[str, ...],
    metric: str,
    kinds: tuple[str, ...],
    dataset: str | None,
    teacher: str | None,
) -> _Table:
    sql = f"""
        {_SIGHT}
        SELECT s.variant_id, s.sample_id, s.kind, p.place, s.{metric}
        FROM scores s JOIN sight p ON p.sample_id = s.sample_id
        WHERE s.student = :student AND s.is_current = 1 AND s.kind IN ({", ".join(f"'{kind}'" for kind in kinds)})
        AND (s.kind = 'origin' OR :teacher = 'best' OR s.teacher = :teacher)
    """
    facts: dict[str, tuple[int, int, str, str]] = {}
    found: list[dict[str, float | None]] = []
    order = {kind: i for i, kind in enumerate(kinds)}
    for name in names:
        values: dict[str, float | None] = {}
        for variant, sample, kind, place, value in sandbox.execute(
            sql, {"student": name, "dataset": dataset, "teacher": teacher}
        )[1]:
            values[variant] = value
            if variant not in facts:
                facts[variant] = (place, order[kind], variant, sample)
        found.append(values)
    rows = sorted(facts.values())
    return _Table(
        variants=[row[2] for row in rows],
        samples=[row[3] for row in rows],
        kinds=np.array([row[1] for row in rows], dtype=np.int64),
        values=np.array([[values.get(row[2]) for row in rows] for values in found], dtype=np.float64).reshape(
            len(names), len(rows)
        ),
        kind_names=kinds,
    )


def _thinned(n: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, MAX_POINTS))}) if n else []


def _words(sandbox: Sandbox, variants: list[str]) -> dict[str, str]:
    """Return the first words of variants' texts: instruction, then what follows it."""
    words: dict[str, str] = {}
    for start in range(0, len(variants), 500):
        part = {f"v{i}": variant for i, variant in enumerate(variants[start : start + 500])}
        sql = f"""
            SELECT variant_id, substr(instruction, 1, {WORDS_CHARACTERS}), substr(output, 1, {WORDS_CHARACTERS})
            FROM variant WHERE variant_id IN ({", ".join(f":{name}" for name in part)})
        """
        for variant, instruction, output in sandbox.execute(sql, part)[1]:
            words[variant] = " ".join(f"{instruction} → {output}".split())[:WORDS_CHARACTERS]
    return words


# -- statistics


def _summary(student: str, kind: str, values: Floats) -> Summary:
    there = values[~np.isnan(values)]
    if not len(there):
        return Summary(student, kind, 0, len(values), None, None, None, None, None, 0)
    lower, median, upper = (float(found) for found in np.quantile(there, [0.25, 0.5, 0.75]))
    return Summary(
        student=student,
        kind=kind,
        n=len(there),
        missing=len(values) - len(there),
        mean=float(there.mean()),
        median=median,
        stddev=float(there.std(ddof=1)) if len(there) > 1 else None,
        quartile_1=lower,
        quartile_3=upper,
        below_1=int((there < 1).sum()),
    )


def _correlation(students: tuple[str, str], kind: str, x: Floats, y: Floats) -> Correlation:
    return Correlation(students, kind, len(x), pearson(ranks(x), ranks(y)), pearson(x, y), kendall(x, y))


def pearson(x: Floats, y: Floats) -> float | None:
    """Return Pearson's correlation; None for fewer than two values, or where all are equal."""
    if len(x) < 2:
        return None
    dx, dy = x - x.mean(), y - y.mean()
    scale = np.sqrt((dx @ dx) * (dy @ dy))
    if not np.isfinite(scale) or np.ptp(x) == 0 or np.ptp(y) == 0 or scale == 0:
        return None
    return float(np.clip((dx @ dy) / scale, -1, 1))


def ranks(x: Floats) -> Floats:
    """Return the ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((2 * ends - counts + 1) / 2)[inverse].astype(np.float64)


def kendall(x: Floats, y: Floats) -> float | None:
    """Return Kendall's tau-b in O(n log² n), by counting inversions (Knight 1966); None where it is not defined."""
    n = len(x)
    if n < 2:
        return None
    a, b = _dense(x), _dense(y)
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    pairs = n * (n - 1) // 2
    ties_x, ties_y, ties_both = _ties(a), _ties(b), _ties(a * (int(b.max()) + 1) + b)
    free = (pairs - ties_x) * (pairs - ties_y)
    if free == 0:
        return None
    return float((pairs - ties_x - ties_y + ties_both - 2 * inversions(b)) / np.sqrt(float(free)))


def _dense(values: Floats) -> Ints:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _ties(values: Ints) -> int:
    counts = np.unique(values, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def inversions(values: Ints) -> int:
    """Return how many pairs stand in the wrong order: a merge sort from below, all blocks of a level at once."""
    n = len(values)
    size = 1 << max(1, (n - 1).bit_length())
    ceiling = int(values.max()) + 1  # what the array is filled up with stands in the right order
    filled = np.full(size, ceiling, dtype=np.int64)
    filled[:n] = values
    total, width = 0, 1
    while width < size:
        block = filled.reshape(-1, 2 * width)
        offset = (np.arange(len(block), dtype=np.int64) * (ceiling + 1))[:, None]
        left, right = (block[:, :width] + offset).ravel(), (block[:, width:] + offset).ravel()
        not_greater = np.searchsorted(left, right, side="right") - np.repeat(np.arange(len(block)) * width, width)
        total += int((width - not_greater).sum())
        filled = np.sort(block, axis=1).ravel()
        width *= 2
    return total


def _overlaps(
    students: tuple[str, str], kind: str, both: tuple[Floats, Floats], metric: str, shares: Sequence[float | str]
) -> list[Overlap]:
    n = len(both[0])
    places = [_positions(values, metric) for values in both]
    later = np.sort(np.maximum(*places))
    longest = max(int((each < n).sum()) for each in places)
    found = []
    for share in shares:
        count, percent = parse_top(share) if isinstance(share, str) else (None, share * 100)
        asked = int(percent * n / 100 + 1e-9) if percent is not None else count or 0
        k = min(asked, longest)
        shared = int(np.searchsorted(later, k, side="left"))
        found.append(Overlap(students, kind, min(asked, n) / n if n else 0.0, k, shared, shared / k if k else None))
    return found


def _positions(values: Floats, metric: str) -> Ints:
    """Return each value's place in the ranking, from 0; a value that a recipe would not take stands behind all."""
    lowest_first = metric.startswith("rifd")
    order = np.argsort(values if lowest_first else -values, kind="stable")
    taken = values[order] < 1 if metric.startswith("ifd") else np.ones(len(values), dtype=bool)
    places = np.full(len(values), len(values), dtype=np.int64)
    places[order[taken]] = np.arange(int(taken.sum()))
    return places


def _disagreements(table: _Table, groups: list[tuple[str, Ints]], wanted: int) -> list[tuple[int, tuple[float, ...]]]:
    """Return the variants that the students place farthest apart, with their percentiles within their kind."""
    found: list[tuple[float, int, tuple[float, ...]]] = []
    for _, at in groups:
        there = at[~np.isnan(table.values[:, at]).any(axis=0)]
        if len(there) < 2:
            continue
        percentiles = np.array([(ranks(values) - 1) / (len(there) - 1) for values in table.values[:, there]])
        spread = np.ptp(percentiles, axis=0)
        for i in np.argsort(-spread, kind="stable")[:wanted]:
            found.append((-float(spread[i]), int(there[i]), tuple(float(each) for each in percentiles[:, i])))
    return [(i, percentiles) for _, i, percentiles in sorted(found)[:wanted]]


def _disagreement(table: _Table, i: int, percentiles: tuple[float, ...], words: dict[str, str]) -> Disagreement:
    values = tuple(float(value) for value in table.values[:, i])
    variant = table.variants[i]
    return Disagreement(
        variant, table.samples[i], table.kind_names[table.kinds[i]], values, percentiles, words.get(variant, "")
    )


# -- what `selective` would pick


@dataclass(frozen=True)
class _Pick:
    sample_id: str
    kind: str
    verdict: str


def _picks(store: Store, student: str, metric: str, dataset: str | None, teacher: str | None) -> list[_Pick]:
    """Return each sample's candidate under a student: the recipe decides, by ratios of the metric's unit."""
    recipe = get_recipe("selective")
    unit = "loss" if "loss" in metric else "ppl"
    given = {"student": student, "metric": unit, "keep": "candidates", "dataset": dataset, "teacher": teacher}
    bound = bind(store, recipe, given)
    with store.backend.sandbox(allow_external=False) as sandbox:
        columns, rows = sandbox.execute(recipe.sql, bound.values)
        at = [columns.index(name) for name in ("sample_id", "kind", "verdict")]
        return [_Pick(*(row[i] for i in at)) for row in rows]


def _confusion(students: tuple[str, str], first: list[_Pick], second: list[_Pick]) -> Confusion:
    a, b = (
        {pick.sample_id: pick.kind if pick.verdict == "kept" else NONE for pick in picks} for picks in (first, second)
    )
    counts = Counter((a.get(sample, NONE), b.get(sample, NONE)) for sample in a.keys() | b.keys())
    total, same = sum(counts.values()), sum(count for (x, y), count in counts.items() if x == y)
    table = tuple(tuple(counts[row, column] for column in LABELS) for row in LABELS)
    return Confusion(students, LABELS, table, same / total if total else None)


def _flows(student: str, picks: list[_Pick], samples: int) -> list[Flow]:
    edges: Counter[tuple[str, str]] = Counter()
    for pick in picks:
        harder = pick.kind in (Kind.REFLECT_BOTH, Kind.REFLECT_INSTRUCTION)
        branch = "ifd(Q) > ifd(ori)" if harder else "otherwise"
        edges.update([("samples", branch), (branch, pick.kind), (pick.kind, pick.verdict)])
    if samples > len(picks):
        edges["samples", "not scored"] += samples - len(picks)
    return [Flow(student, source, target, count) for (source, target), count in sorted(edges.items())]
