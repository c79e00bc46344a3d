"""Agreement of two sides' values: distributions, correlations, the overlap of their top shares, the largest disagreements.

Invariant: a missing value counts as missing, never as a number; two sides are compared by the points that both have.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recycledb.selection.points import Floats, Ints, Table
from recycledb.selection.recipes import parse_top


@dataclass(frozen=True, slots=True)
class Summary:
    """One side's distribution of the metric over one kind of variant."""

    side: str
    kind: str
    n: int  # variants with a value
    missing: int  # variants compared that have none on this side
    mean: float | None
    median: float | None
    stddev: float | None
    quartile_1: float | None
    quartile_3: float | None
    below_1: int


@dataclass(frozen=True, slots=True)
class Correlation:
    """The correlations of two sides' values for the variants of a kind ("all": of every kind compared)."""

    sides: tuple[str, str]
    kind: str
    n: int
    spearman: float | None
    pearson: float | None
    kendall: float | None  # tau-b


@dataclass(frozen=True, slots=True)
class Overlap:
    """The overlap of two sides' top `share` of the variants of a kind."""

    sides: tuple[str, str]
    kind: str
    share: float  # as requested, of the variants that both have scored, 0 to 1
    k: int  # length of the top lists; at most that of the longer list
    shared: int  # variants in both lists
    overlap: float | None  # shared / k; None where k is 0
    chance: (
        float | None
    )  # what overlap is expected of rankings that have nothing to do with each other; None where k is 0


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A point whose values differ widely."""

    variant_ids: tuple[str, ...]
    sample_id: str
    kind: str
    values: tuple[float, ...]
    percentiles: tuple[float, ...]  # the share of points compared of its kind with a lower value, 0 to 1
    words: tuple[str, ...]  # the first words of each variant's text


def summary(side: str, kind: str, values: Floats) -> Summary:
    """Return the distribution of values; NaN means missing."""
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


def correlation(sides: tuple[str, str], kind: str, x: Floats, y: Floats) -> Correlation:
    """Return the three correlations of values that both sides have."""
    return Correlation(sides, kind, len(x), pearson(ranks(x), ranks(y)), pearson(x, y), kendall(x, y))


def pearson(x: Floats, y: Floats) -> float | None:
    """Return Pearson's correlation; None for fewer than two values, or where all are equal."""
    if len(x) < 2:
        return None
    dx, dy = x - x.mean(), y - y.mean()
    # Sums of products, not `dx @ dy`: the BLAS starts threads for it, which on a busy machine takes a hundred times as long.
    scale = np.sqrt((dx * dx).sum() * (dy * dy).sum())
    if not np.isfinite(scale) or np.ptp(x) == 0 or np.ptp(y) == 0 or scale == 0:
        return None
    return float(np.clip((dx * dy).sum() / scale, -1, 1))


def ranks(x: Floats) -> Floats:
    """Return the ranks from 1; equal values have the mean of their ranks."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((2 * ends - counts + 1) / 2)[inverse].astype(np.float64)


def kendall(x: Floats, y: Floats) -> float | None:
    """Return Kendall's tau-b in O(n log² n), by counting inversions (Knight 1966); None where it is not defined."""
    order = np.lexsort((y, x))
    a, b = (np.unique(values[order], return_inverse=True)[1].astype(np.int64) for values in (x, y))
    ties_x, ties_y, ties_both = (_ties(values) for values in (a, b, a * (len(b) + 1) + b))
    pairs = len(x) * (len(x) - 1) // 2
    free = (pairs - ties_x) * (pairs - ties_y)
    if free == 0:
        return None
    return float((pairs - ties_x - ties_y + ties_both - 2 * inversions(b)) / np.sqrt(float(free)))


def _ties(values: Ints) -> int:
    counts = np.unique(values, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def inversions(values: Ints) -> int:
    """Return the number of pairs in the wrong order, by a merge sort of all blocks of one width at once."""
    if len(values) < 2:
        return 0
    values = np.unique(values, return_inverse=True)[1].astype(np.int64)
    most, size = int(values.max()) + 1, 1 << (len(values) - 1).bit_length()
    values = np.concatenate([values, np.full(size - len(values), most)])  # at the end, in order
    count, width = 0, 1
    while width < size:
        block = np.arange(size // (2 * width))[:, None]
        halves = values.reshape(-1, 2, width) + block[:, :, None] * (most + 1)  # so that blocks follow each other
        left, right = halves[:, 0].ravel(), halves[:, 1].ravel()
        ends = np.repeat((block[:, 0] + 1) * width, width)
        count += int((ends - np.searchsorted(left, right, side="right")).sum())  # of the left half, what is greater
        values = np.sort(values.reshape(-1, 2 * width), axis=1).ravel()
        width *= 2
    return count


def overlaps(
    sides: tuple[str, str], kind: str, both: tuple[Floats, Floats], metric: str, shares: Sequence[float | str]
) -> list[Overlap]:
    """Return the overlap of two sides' top shares, ranked as recipes rank by the metric; a share may be a number ("500")."""
    n = len(both[0])
    places = [_positions(values, metric) for values in both]
    later = np.sort(np.maximum(*places))
    lengths = [int((each < n).sum()) for each in places]  # the lists end where IFD < 1 does
    longest = max(lengths)
    found = []
    for share in shares:
        count, percent = parse_top(share) if isinstance(share, str) else (None, share * 100)
        asked = int(percent * n / 100 + 1e-9) if percent is not None else count or 0
        k = min(asked, longest)
        shared = int(np.searchsorted(later, k, side="left"))
        first, second = (min(k, length) for length in lengths)
        overlap, chance = (shared / k, first * second / (n * k)) if k else (None, None)
        found.append(Overlap(sides, kind, min(asked, n) / n if n else 0.0, k, shared, overlap, chance))
    return found


def _positions(values: Floats, metric: str) -> Ints:
    """Return each value's rank from 0; values that a recipe would not pick come after all others."""
    lowest_first = metric.startswith("rifd")
    order = np.argsort(values if lowest_first else -values, kind="stable")
    taken = values[order] < 1 if metric.startswith("ifd") else np.ones(len(values), dtype=bool)
    places = np.full(len(values), len(values), dtype=np.int64)
    places[order[taken]] = np.arange(int(taken.sum()))
    return places


def find_disagreements(
    table: Table, groups: list[tuple[str, Ints]], wanted: int
) -> list[tuple[int, tuple[float, ...]]]:
    """Return the points whose percentiles within their kind differ most, with these percentiles."""
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


def disagreement(table: Table, i: int, percentiles: tuple[float, ...], words: dict[str, str]) -> Disagreement:
    values = tuple(float(value) for value in table.values[:, i])
    variants = table.variants_of(i)
    texts = tuple(words.get(variant, "") for variant in variants)
    return Disagreement(variants, table.samples[i], table.kind_names[table.kinds[i]], values, percentiles, texts)
