"""The points of a comparison: variants, or one kind of a sample, with the metric's value on each side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """All points compared, in dataset order, with their values on each side: NaN if missing."""

    variants: list[list[str | None]]  # [side][point]: the variant, None if missing
    samples: list[str]
    kinds: Ints  # (n,): indexes into kind_names
    values: Floats  # (sides, n)
    kind_names: tuple[str, ...]

    def of_kind(self, kind: str) -> Ints:
        """Return the points of a kind."""
        return (
            np.flatnonzero(self.kinds == self.kind_names.index(kind))
            if kind in self.kind_names
            else np.empty(0, np.int64)
        )

    def both(self, a: int, b: int, at: Ints) -> tuple[Floats, Floats]:
        """Return the values on two sides of those points among `at` that both have."""
        x, y = self.values[a, at], self.values[b, at]
        there = ~(np.isnan(x) | np.isnan(y))
        return x[there], y[there]

    def variants_of(self, i: int) -> tuple[str, ...]:
        """Return the different variants of a point, in the order of the sides."""
        return tuple(dict.fromkeys(variant for side in self.variants if (variant := side[i]) is not None))


def make_table(found: Sequence[Sequence[tuple[Any, ...]]], kinds: tuple[str, ...], same_texts: bool) -> Table:
    """Match the rows of the sides (see `sides.look`). If they have the same texts, a point is a variant; else it is a kind of a
    sample, with each side's variant of the smallest id, as in the recipes.
    """
    rows = [row for side in found for row in side]
    ranks = {variant: i for i, variant in enumerate(sorted({row[0] for row in rows}))}
    order = {kind: i for i, kind in enumerate(kinds)}
    variant = np.array([ranks[row[0]] for row in rows], dtype=np.int64)
    kind = np.array([order[row[2]] for row in rows], dtype=np.int64)
    place = np.array([row[3] for row in rows], dtype=np.int64)
    key = [place, kind, variant] if same_texts else [place, kind]
    at = np.lexsort((variant, kind, place))  # in dataset order
    starts = np.ones(len(rows), dtype=bool)  # whether a row begins a point
    starts[1:] = np.any([column[at][1:] != column[at][:-1] for column in key], axis=0)
    point = np.cumsum(starts) - 1
    side = np.repeat(np.arange(len(found)), [len(each) for each in found])[at]
    which = np.full((len(found), int(starts.sum())), -1, dtype=np.int64)  # each side's row of each point
    which[side[::-1], point[::-1]] = at[
        ::-1
    ]  # of a side's rows of one point the first is the last to be written, and stays
    values = np.array([*(row[4] for row in rows), None], dtype=np.float64)  # -1 is the None, which is NaN
    firsts = at[starts]
    return Table(
        variants=[[rows[i][0] if i >= 0 else None for i in each] for each in which.tolist()],
        samples=[rows[i][1] for i in firsts.tolist()],
        kinds=kind[firsts],
        values=values[which],
        kind_names=kinds,
    )
