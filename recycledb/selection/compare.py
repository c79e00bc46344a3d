"""Sides put side by side: how far their scores and their picks agree.

A side is a student looking at what one teacher made by one set of prompts. Students are compared variant by variant; teachers
and prompts, who made different texts, by what they made of the same sample, kind by kind.

Invariant: every number is computed from the current variants of samples with an open place; a statistic that is missing
on a side counts as missing, never as a number. Correlations take what has the metric on both sides.
This module refuses to draw: a `Comparison` holds what pictures need, and `reporting` draws them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt

from recycledb.errors import SelectionError
from recycledb.schema import SCORED_KINDS, Kind, Stat
from recycledb.selection import identities
from recycledb.selection.recipes import BEST, bind, get_recipe, parse_top
from recycledb.selection.select import count_samples
from recycledb.store import Meaning, Sandbox, Store, TimeLimit

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
_Key = tuple[
    int, int, str
]  # of a point: its place in the datasets, its kind's number, and what tells it from others there


@dataclass(frozen=True, slots=True)
class Side:
    """A student, and whose reflections by which prompts it looks at."""

    label: str  # what tells it from the other sides
    student: str
    teacher: str | None  # None where there are none, "best" for the best per sample
    prompt: str  # as given: "current", or the ids of older ones
    as_if: tuple[Meaning, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """One side's distribution of the metric over one kind of variant."""

    side: str
    kind: str
    n: int  # variants with a value
    missing: int  # variants compared that lack one on this side
    mean: float | None
    median: float | None
    stddev: float | None
    quartile_1: float | None
    quartile_3: float | None
    below_1: int


@dataclass(frozen=True, slots=True)
class Correlation:
    """How alike two sides order and value the variants of a kind ("all": of every kind compared)."""

    sides: tuple[str, str]
    kind: str
    n: int
    spearman: float | None
    pearson: float | None
    kendall: float | None  # tau-b


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two sides' top `share` of the variants of a kind have in common."""

    sides: tuple[str, str]
    kind: str
    share: float  # asked for, of the variants that both have scored, 0 to 1
    k: int  # places in each top list; no more than the longer list has
    shared: int  # variants in both lists
    overlap: float | None  # shared / k; None where k is 0


@dataclass(frozen=True, slots=True)
class Confusion:
    """Which kind `selective` with keep = all picks for a sample on each of two sides; "none" where it picks nothing."""

    sides: tuple[str, str]
    labels: tuple[str, ...]  # the kinds and "none", the order of both axes
    counts: tuple[tuple[int, ...], ...]  # counts[i][j]: labels[i] on the first side, labels[j] on the second
    agreement: float | None  # share of samples on the diagonal


@dataclass(frozen=True, slots=True)
class Flow:
    """How many samples went from one node of the decision tree to the next on a side.

    Nodes, in order of depth: "samples"; "ifd(Q) > ifd(ori)", "otherwise" or "not scored"; the candidate
    ("reflect_both", "reflect_instruction", "reflect_response", "origin"); "kept", "ifd not below 1" or "rifd not below 1".
    """

    side: str
    source: str
    target: str
    count: int


@dataclass(frozen=True, slots=True)
class Point:
    """A variant, or the sides' variants of one kind of a sample, with the value on each side; None where there is none."""

    variant_ids: tuple[str, ...]  # each once, in the order of the sides
    sample_id: str
    kind: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A point whose values are far apart."""

    variant_ids: tuple[str, ...]
    sample_id: str
    kind: str
    values: tuple[float, ...]
    percentiles: tuple[float, ...]  # the share of points compared of its kind with a lower value, 0 to 1
    words: tuple[str, ...]  # the first words of each variant's text


@dataclass(frozen=True)
class Comparison:
    """Everything known about how sides agree; `as_dict` leaves the points and their texts out."""

    sides: tuple[Side, ...]
    students: tuple[str, ...]
    metric: str
    kinds: tuple[str, ...]
    top: str  # as given: "5%" or "100"
    dataset: str | None
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

    @property
    def labels(self) -> tuple[str, ...]:
        """What the sides are called."""
        return tuple(side.label for side in self.sides)

    @property
    def subject(self) -> str:
        """What the sides are: students, teachers, prompts, or sides where they differ in more than one."""
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

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        found = asdict(self)
        del found["points"], found["words"]
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
    """Put two or more sides side by side by `metric` (see METRICS), over all scored kinds or one.

    The sides are every combination of the students, teachers and prompts named; where none is named, the only one there is, and
    the prompts in use. A prompt is named as in `identities.find_prompts`. Teachers and prompts are not compared by origins.
    The top share is taken as recipes rank: IFD below 1 from the highest, rIFD from the lowest, any other metric from the highest.
    With `pictures`, points and words are filled. SelectionError names an unknown metric, kind, student, teacher or prompt;
    QueryError says that the SQL took longer than `timeout_s` seconds.
    """
    limit = TimeLimit(timeout_s)
    _check(metric, kind, top)
    sides = _sides(store, students, teachers, prompts, kind)
    dataset = None if dataset is None else identities.find_dataset(store, dataset)
    same_texts = len({(side.teacher, side.prompt) for side in sides}) == 1
    one_student = len({side.student for side in sides}) == 1
    kinds = tuple(
        each.value for each in SCORED_KINDS if kind in (None, each) and not (one_student and each is Kind.ORIGIN)
    )
    picking = kind != Kind.ORIGIN or all(side.teacher is not None for side in sides)
    samples = count_samples(store, dataset)
    found = [_looked_at(store, side, metric, kinds, dataset, limit, picking=picking) for side in sides]
    table = _table([points for points, _ in found], kinds, same_texts)
    picks = [picks for _, picks in found] if picking else []
    names = tuple(side.label for side in sides)
    pairs = [(names[a], names[b], a, b) for a, b in combinations(range(len(names)), 2)]
    groups = [(each, np.flatnonzero(table.kinds == i)) for i, each in enumerate(kinds)]
    wider = [*groups, ("all", np.arange(len(table.samples)))] if len(kinds) > 1 else groups
    disagreeing = _disagreements(table, groups, disagreements)
    chosen = _thinned(len(table.samples)) if pictures else []
    with store.sandbox(limit=limit) as sandbox:
        shown = [variant for i in {*chosen, *(i for i, _ in disagreeing)} for variant in table.variants_of(i)]
        words = _words(sandbox, shown)
    return Comparison(
        sides=sides,
        students=tuple(dict.fromkeys(side.student for side in sides)),
        metric=metric,
        kinds=kinds,
        top=top,
        dataset=dataset,
        samples=samples,
        summaries=[_summary(name, each, table.values[s, at]) for s, name in enumerate(names) for each, at in groups],
        correlations=[_correlation((x, y), each, *table.both(a, b, at)) for x, y, a, b in pairs for each, at in wider],
        top_overlaps=[
            overlap
            for x, y, a, b in pairs
            for each, at in groups
            for overlap in _overlaps((x, y), each, table.both(a, b, at), metric, [top])
        ],
        overlap_curve=[
            overlap
            for x, y, a, b in pairs
            for each, at in groups
            for overlap in _overlaps((x, y), each, table.both(a, b, at), metric, SHARES)
        ],
        confusions=[_confusion((x, y), picks[a], picks[b]) for x, y, a, b in pairs] if picks else [],
        flows=[flow for name, taken in zip(names, picks, strict=False) for flow in _flows(name, taken, samples)],
        disagreements=[_disagreement(table, i, at, words) for i, at in disagreeing],
        points=[table.point(i) for i in chosen],
        words=words,
    )


def _check(metric: str, kind: str | None, top: str) -> None:
    if metric not in METRICS:
        raise SelectionError(f"no metric {metric!r}; there are {', '.join(METRICS)}")
    if kind is not None and kind not in [each.value for each in SCORED_KINDS]:
        raise SelectionError(f"no scored kind {kind!r}; there are {', '.join(SCORED_KINDS)}")
    parse_top(top)


def _sides(
    store: Store, students: Sequence[str], teachers: Sequence[str], prompts: Sequence[str], kind: str | None
) -> tuple[Side, ...]:
    """Return every combination of what is named; SelectionError where that is not two or more that can be compared."""
    whose = list(dict.fromkeys(identities.find_student(store, student) for student in students))
    made = list(dict.fromkeys(identities.find_teacher(store, each) for each in teachers if each != BEST))
    using = {
        "+".join(each.identity[:8] for each in found) or identities.CURRENT: found for found in _prompts(store, prompts)
    }
    if max(len(whose), len(made), len(using)) < 2:
        there = ", ".join(student.name for student in identities.students(store)) or "none"
        raise SelectionError(
            f"name two or more different students to compare; there are: {there} "
            "(or one, and several times --teacher or --prompt)"
        )
    if BEST in teachers and len(teachers) > 1:
        raise SelectionError("best is a choice among teachers; name the teachers to compare without it")
    if (len(made) > 1 or len(using) > 1) and kind == Kind.ORIGIN and len(whose) < 2:
        raise SelectionError("an origin is no teacher's: compare another kind")
    whose = whose or [identities.find_student(store, None)]
    makers: list[identities.Identity | None] = list(made)
    if not made and BEST not in teachers and not (kind == Kind.ORIGIN and not teachers):
        makers = [identities.find_teacher(store, None, offer_best=True)]
    elif not made:
        makers = [None]
    sides = []
    for student, maker, (wording, meanings) in product(whose, makers, using.items()):
        teacher = BEST if BEST in teachers else maker.name if maker else None
        parts = [(student.name, len(whose)), (teacher, len(makers)), (wording, len(using))]
        label = " · ".join(str(part) for part, several in parts if several > 1)
        as_if = (*meanings, *identities.not_in_use(store, maker))
        sides.append(Side(label, student.name, teacher, wording, as_if))
    return tuple(sides)


def _prompts(store: Store, prompts: Sequence[str]) -> list[tuple[Meaning, ...]]:
    """Return what the prompts named mean; those in use are named `current`, whichever way they were given."""
    in_use = {row[0] for row in store.rows("SELECT prompt_id FROM prompts WHERE is_current = 1")}
    found = [identities.find_prompts(store, each) for each in prompts]
    return [tuple(each for each in meanings if each.identity not in in_use) for meanings in found] or [()]


# -- the table of values


@dataclass(frozen=True, slots=True)
class _Pick:
    """What `selective` with keep = candidates says of a sample."""

    sample_id: str
    kind: str
    verdict: str


@dataclass(frozen=True)
class _Table:
    """Every point compared, in dataset order, with its value on each side: NaN where there is none."""

    variants: list[list[str | None]]  # by side, then point: the variant there, None where there is none
    samples: list[str]
    kinds: Ints  # (n,): indexes into kind_names
    values: Floats  # (sides, n)
    kind_names: tuple[str, ...]

    def both(self, a: int, b: int, at: Ints) -> tuple[Floats, Floats]:
        """Return the values on two sides of those points, among `at`, that both have."""
        x, y = self.values[a, at], self.values[b, at]
        there = ~(np.isnan(x) | np.isnan(y))
        return x[there], y[there]

    def variants_of(self, i: int) -> tuple[str, ...]:
        """Return the different variants of a point, in the order of the sides."""
        return tuple(dict.fromkeys(variant for side in self.variants if (variant := side[i]) is not None))

    def point(self, i: int) -> Point:
        """Return one point."""
        values = tuple(None if np.isnan(value) else float(value) for value in self.values[:, i])
        return Point(self.variants_of(i), self.samples[i], self.kind_names[self.kinds[i]], values)


def _looked_at(
    store: Store,
    side: Side,
    metric: str,
    kinds: tuple[str, ...],
    dataset: str | None,
    limit: TimeLimit,
    *,
    picking: bool,
) -> tuple[list[tuple[Any, ...]], list[_Pick]]:
    """Return (variant, sample, kind, place in the datasets, value) of what a side looks at, and each sample's candidate there.

    One statement, so that the scores are computed once: the recipe `selective` decides on the very rows that are returned, by
    ratios of the metric's unit.
    """
    recipe = get_recipe("selective")
    unit = "loss" if "loss" in metric else "ppl"
    given = {"student": side.student, "metric": unit, "keep": "candidates", "dataset": dataset, "teacher": side.teacher}
    ratios = [f"{ratio}_{each}" for each in ("ppl", "loss") for ratio in ("ifd", "rifd")]
    columns = dict.fromkeys(
        ["sample_id", "variant_id", "parent_id", "kind", "teacher", "student", "is_current", *ratios, metric]
    )
    values = {**bind(store, recipe, given).values, "teacher": side.teacher}
    picked = recipe.sql if picking else "SELECT sample_id, kind, NULL AS verdict FROM scores WHERE 1 = 0"
    with store.sandbox(as_if=side.as_if, limit=limit) as sandbox:
        sql = f"""
            WITH scores AS MATERIALIZED (
                SELECT {", ".join(columns)} FROM {sandbox.views}.scores WHERE student = :student AND is_current = 1
            ),
            in_sight AS (
                SELECT sample_id, min(place) AS place FROM sample_order
                WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset GROUP BY sample_id
            ),
            picked AS (\n{picked}\n)
            SELECT s.variant_id, s.sample_id, s.kind, p.place, s.{metric}, NULL
            FROM scores s JOIN in_sight p ON p.sample_id = s.sample_id
            WHERE s.kind IN ({", ".join(f"'{kind}'" for kind in kinds)})
            AND (s.kind = 'origin' OR :teacher = 'best' OR s.teacher = :teacher)
            UNION ALL SELECT NULL, sample_id, kind, NULL, NULL, verdict FROM picked
        """
        points: list[tuple[Any, ...]] = []
        picks: list[_Pick] = []
        for row in sandbox.execute(sql, values)[1]:
            if row[0] is not None:
                points.append(row)
            else:
                picks.append(_Pick(row[1], row[2], row[5]))
    return points, picks


def _table(found: Sequence[Sequence[tuple[Any, ...]]], kinds: tuple[str, ...], same_texts: bool) -> _Table:
    """Put the sides' rows (see `_looked_at`) side by side. Where they look at the same texts a point is a variant; else it is a
    sample's variant of a kind, the one with the smallest id where a teacher made several, as in the recipes.
    """
    order = {kind: i for i, kind in enumerate(kinds)}
    samples: dict[_Key, str] = {}
    columns: list[dict[_Key, tuple[str, float | None]]] = []
    for rows in found:
        column: dict[_Key, tuple[str, float | None]] = {}
        for variant, sample, kind, place, value, _ in rows:
            key = (place, order[kind], variant if same_texts else "")
            if key not in column or variant < column[key][0]:
                column[key] = (variant, value)
            samples[key] = sample
        columns.append(column)
    keys = sorted(samples)
    nothing = (None, None)
    return _Table(
        variants=[[column.get(key, nothing)[0] for key in keys] for column in columns],
        samples=[samples[key] for key in keys],
        kinds=np.array([key[1] for key in keys], dtype=np.int64),
        values=np.array(
            [[column.get(key, nothing)[1] for key in keys] for column in columns], dtype=np.float64
        ).reshape(len(columns), len(keys)),
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


def _summary(side: str, kind: str, values: Floats) -> Summary:
    there = values[~np.isnan(values)]
    if not len(there):
        return Summary(side, kind, 0, len(values), None, None, None, None, None, 0)
    lower, median, upper = (float(found) for found in np.quantile(there, [0.25, 0.5, 0.75]))
    return Summary(
        side=side,
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


def _correlation(sides: tuple[str, str], kind: str, x: Floats, y: Floats) -> Correlation:
    return Correlation(sides, kind, len(x), pearson(ranks(x), ranks(y)), pearson(x, y), kendall(x, y))


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
    sides: tuple[str, str], kind: str, both: tuple[Floats, Floats], metric: str, shares: Sequence[float | str]
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
        found.append(Overlap(sides, kind, min(asked, n) / n if n else 0.0, k, shared, shared / k if k else None))
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
    """Return the points that are placed farthest apart, with their percentiles within their kind."""
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
    variants = table.variants_of(i)
    texts = tuple(words.get(variant, "") for variant in variants)
    return Disagreement(variants, table.samples[i], table.kind_names[table.kinds[i]], values, percentiles, texts)


# -- what `selective` would pick


def _confusion(sides: tuple[str, str], first: list[_Pick], second: list[_Pick]) -> Confusion:
    a, b = (
        {pick.sample_id: pick.kind if pick.verdict == "kept" else NONE for pick in picks} for picks in (first, second)
    )
    counts = Counter((a.get(sample, NONE), b.get(sample, NONE)) for sample in a.keys() | b.keys())
    total, same = sum(counts.values()), sum(count for (x, y), count in counts.items() if x == y)
    table = tuple(tuple(counts[row, column] for column in LABELS) for row in LABELS)
    return Confusion(sides, LABELS, table, same / total if total else None)


def _flows(side: str, picks: list[_Pick], samples: int) -> list[Flow]:
    edges: Counter[tuple[str, str]] = Counter()
    for pick in picks:
        harder = pick.kind in (Kind.REFLECT_BOTH, Kind.REFLECT_INSTRUCTION)
        branch = "ifd(Q) > ifd(ori)" if harder else "otherwise"
        edges.update([("samples", branch), (branch, pick.kind), (pick.kind, pick.verdict)])
    if samples > len(picks):
        edges["samples", "not scored"] += samples - len(picks)
    return [Flow(side, source, target, count) for (source, target), count in sorted(edges.items())]
