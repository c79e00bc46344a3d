"""Measures side by side: rank correlations and overlaps of every two of them, over the same variants.

Whatever measures are compared, two baselines stand beside them, since most rankings hardly beat them (arXiv:2410.09335): the length of the
answer, and a random order (by the hash of the variant's id).

Invariant: two measures are compared by the variants that have a value of both; a missing value never counts as a number. Higher is better,
except for `rifd`; an IFD of 1 or more is never among the top, as in the recipes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from recycledb.errors import SelectionError
from recycledb.schema import ORIGIN
from recycledb.selection import identities
from recycledb.selection.agreement import Overlap, Summary, kendall, overlaps, pearson, ranks, summary
from recycledb.selection.points import Floats
from recycledb.store import Store, TimeLimit
from recycledb.suggestions import closest

RANDOM = "random/0"
POINTS = 2_000  # of a scatter plot


@dataclass(frozen=True, slots=True)
class Pair:
    """Two measures over the variants that have both: correlations, and the overlap of their tops beside that of two random lists."""

    measures: tuple[str, str]
    n: int
    spearman: float | None
    pearson: float | None
    kendall: float | None  # tau-b
    k: int  # the length of the top lists
    shared: int
    overlap: float | None  # shared / k
    chance: float | None  # the overlap to be expected of two random lists of these lengths


@dataclass(frozen=True)
class Matrix:
    """The comparison of several measures over one kind of variant; the baselines come last."""

    kind: str
    top: str
    dataset: str | None
    measures: tuple[str, ...]
    baselines: tuple[str, ...]
    summaries: list[Summary]
    pairs: list[Pair]
    points: dict[str, list[tuple[float, float, str]]] = field(default_factory=dict)  # for plots, by "a × b"

    def spearman(self, one: str, other: str) -> float | None:
        """Return the rank correlation of two measures."""
        if one == other:
            return 1.0
        return next((pair.spearman for pair in self.pairs if set(pair.measures) == {one, other}), None)

    def _repr_html_(self) -> str:
        from recycledb.selection.notebook import matrix_html

        return matrix_html(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        found = asdict(self)
        del found["points"]
        return found


def compare_measures(
    store: Store,
    names: Sequence[str],
    *,
    kind: str = ORIGIN,
    top: str = "5%",
    dataset: str | None = None,
    pictures: bool = False,
    timeout_s: float | None = None,
) -> Matrix:
    """Compare measures given as NAME/MODEL ("ifd/7b"); `top` is the share or number whose overlap is counted.

    SelectionError for an unknown measure, kind or dataset. With `pictures`, points for scatter plots are filled in.
    """
    identities.require_kind(kind)
    if dataset is not None:
        identities.find_dataset(store, dataset)
    with store.sandbox(limit=TimeLimit(timeout_s)) as sandbox:
        known = [
            f"{row[0]}/{row[1]}"
            for row in sandbox.execute("SELECT DISTINCT measure, model FROM measures ORDER BY 1, 2")[1]
        ]
        wanted = tuple(dict.fromkeys(_known(name, known) for name in names))
        if len(wanted) < 2:
            raise SelectionError(f"give at least two measures; there are {', '.join(known) or 'none'}")
        lengths = _lengths(wanted, known)
        sql = """
            SELECT m.measure || '/' || m.model, m.variant_id, m.value FROM measures m
            WHERE m.kind = :kind AND m.is_current = 1 AND m.value IS NOT NULL AND m.sample_id IN (
                SELECT sample_id FROM dataset_samples WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset
            )
        """
        values: dict[str, dict[str, float]] = {name: {} for name in (*wanted, *lengths)}
        for name, variant, value in sandbox.execute(sql, {"kind": kind, "dataset": dataset})[1]:
            if name in values:
                values[name][variant] = float(value)
    every = sorted({variant for found in values.values() for variant in found})
    values[RANDOM] = {variant: _draw(variant) for variant in every}
    return _matrix(values, every, kind, top, dataset, (*lengths, RANDOM), pictures)


def _known(name: str, known: Sequence[str]) -> str:
    if name in known:
        return name
    near = closest(name, known)
    hint = f"did you mean {near}?" if near is not None else f"there are {', '.join(known) or 'none'}"
    raise SelectionError(f"no measure {name!r} (give NAME/MODEL): {hint}")


def _lengths(wanted: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the length of the answer under a student of these measures, else under any; none if it is compared anyway."""
    if any(name.startswith("length/") for name in wanted):
        return ()
    models = [name.partition("/")[2] for name in wanted]
    there = [f"length/{model}" for model in models if f"length/{model}" in known]
    return tuple((there or [name for name in known if name.startswith("length/")])[:1])


def _draw(variant: str) -> float:
    return int.from_bytes(hashlib.sha256(f"0{variant}".encode()).digest()[:6]) / 2**48


def _matrix(
    values: Mapping[str, Mapping[str, float]],
    variants: Sequence[str],
    kind: str,
    top: str,
    dataset: str | None,
    baselines: tuple[str, ...],
    pictures: bool,
) -> Matrix:
    columns = {
        name: np.array([found.get(variant, np.nan) for variant in variants], np.float64)
        for name, found in values.items()
    }
    pairs, points = [], {}
    for one, other in combinations(columns, 2):
        both = ~(np.isnan(columns[one]) | np.isnan(columns[other]))
        x, y = columns[one][both], columns[other][both]
        pairs.append(_pair((one, other), x, y, top))
        if pictures:
            names = np.array(variants)[both]
            step = max(1, len(x) // POINTS)
            points[f"{one} × {other}"] = [
                (float(a), float(b), str(name)) for a, b, name in zip(x[::step], y[::step], names[::step], strict=True)
            ]
    return Matrix(
        kind=kind,
        top=top,
        dataset=dataset,
        measures=tuple(columns),
        baselines=baselines,
        summaries=[summary(name, kind, column) for name, column in columns.items()],
        pairs=pairs,
        points=points,
    )


def _pair(names: tuple[str, str], x: Floats, y: Floats, top: str) -> Pair:
    usable = np.ones(len(x), bool)
    for name, each in zip(names, (x, y), strict=True):
        usable &= each < 1 if name.startswith("ifd/") else True
    better = tuple(-each if name.startswith("rifd/") else each for name, each in zip(names, (x, y), strict=True))
    [overlap] = (
        overlaps(names, "", (better[0][usable], better[1][usable]), "value", [top])
        if usable.any()
        else [Overlap(names, "", 0.0, 0, 0, None, None)]
    )
    return Pair(
        names, len(x), pearson(ranks(x), ranks(y)), pearson(x, y), kendall(x, y),
        overlap.k, overlap.shared, overlap.overlap, overlap.chance,
    )  # fmt: skip
