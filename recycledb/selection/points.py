"""The points of a comparison: variants, or one kind of a sample, with the metric's value on each side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# A point's key: (place in dataset order, index of its kind, variant id, or "" if points are matched by sample).
_Key = tuple[int, int, str]


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
    return Table(
        variants=[[column.get(key, nothing)[0] for key in keys] for column in columns],
        samples=[samples[key] for key in keys],
        kinds=np.array([key[1] for key in keys], dtype=np.int64),
        values=np.array(
            [[column.get(key, nothing)[1] for key in keys] for column in columns], dtype=np.float64
        ).reshape(len(columns), len(keys)),
        kind_names=kinds,
    )
