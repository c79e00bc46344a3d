"""Orderings of a pool: facility location, DEITA's filter, round-robin towards a query set, random, Pareto layers.

    facility      the greedy maximum of Σ_j max_{i in S} exp(-|a_i - a_j| / D) over the pool (D: the vectors' dimension): each next variant
                  is the one that stands for most of what is not yet represented (Superfiltering.D, arXiv:2402.00530). Gains that are
                  equal within 1e-9 are ties, and the first in the pool wins; two variants that represent only each other have equal
                  gains by construction, so published sets may hold the other one of such a pair.
    filter        the pool's order, highest `score` first if it has this column, without variants whose cosine similarity to an earlier,
                  kept one is above `threshold` (DEITA, arXiv:2312.15685). Compared with kept variants only, whatever the block size.
    round_robin   every query in turn takes its next-nearest variant; one that was taken before costs the query its turn (RDS+,
                  arXiv:2503.01807).
    random        by the SHA-256 of seed and variant id: the order of two variants does not depend on the others
    pareto        in layers: first the variants that no other beats in one column without losing in another (columns of the pool query
                  except `variant_id` and `rank`; higher is better), then those of the rest. Equal variants share a layer; within a layer,
                  higher in the first column first.

All take vectors in blocks: an n × n matrix is never in memory.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from recycledb.methods.definition import Method, Ordering, Placed, Pool
from recycledb.schema import canonical_json

TIE: Final = 1e-9  # gains whose relative difference is smaller are equal
_BLOCK: Final = 256  # rows of similarities at once: 20 MB for a pool of 10,000


class _Similarities:
    """exp(-|a - b| / D) of the rows of (n, D) vectors, in float64: gains are small differences of many numbers near 1."""

    def __init__(self, vectors: Any) -> None:
        import numpy as np

        self.vectors = np.asarray(vectors, np.float64)
        self.squares = np.einsum("ij,ij->i", self.vectors, self.vectors)

    def distances(self, rows: Any) -> Any:
        """Return the squared distances of some rows to all: (r, n); 0 to themselves."""
        import numpy as np

        found = self.vectors[rows] @ self.vectors.T
        found *= -2.0
        found += self.squares[rows][:, None]
        found += self.squares[None, :]
        found[np.arange(len(rows)), rows] = 0.0
        return np.maximum(found, 0.0, out=found)

    def of(self, distances: Any) -> Any:
        """Return similarities, in place, of squared distances."""
        import numpy as np

        np.sqrt(distances, out=distances)
        distances *= -1.0 / self.vectors.shape[1]
        return np.exp(distances, out=distances)

    def least(self, similarities: Any) -> Any:
        """Return the squared distances that belong to similarities, a little more where rounding could hide one."""
        import numpy as np

        with np.errstate(divide="ignore"):
            return (np.log(similarities) * self.vectors.shape[1]) ** 2 + 1e-9


def facility(pool: Pool, options: Mapping[str, Any]) -> Iterator[Placed]:
    """Yield the pool in the order of the greedy facility location.

    Gains are kept exact for all variants: after each choice only the variants that are now better represented change them, and of the
    others' gains only those of their neighbours. Lazy evaluation was measured to need far more similarities (docs/experiments.md).
    """
    import numpy as np

    similar = _Similarities(pool.vectors)
    n = len(pool.ids)
    best, free = np.zeros(n), np.ones(n, bool)
    gains = np.zeros(n)
    for rows in _blocks(np.arange(n)):
        gains[rows] = similar.of(similar.distances(rows)).sum(1)
    for number in range(n):
        top = gains[free].max()
        chosen = int(np.flatnonzero(free & (gains >= top - TIE * abs(top)))[0])
        yield Placed(chosen, float(max(top, 0.0)))
        free[chosen] = False
        row = similar.of(similar.distances(np.array([chosen])))[0]
        better = np.flatnonzero(row > best)
        if number == 0:  # the sums are of another magnitude now: start again, so that their rounding does not stay
            best = row
            for rows in _blocks(np.flatnonzero(free)):
                gains[rows] = np.maximum(similar.of(similar.distances(rows)) - best, 0.0).sum(1)
            continue
        for columns in _blocks(better):
            gains -= _lost(similar, columns, best, row, n)
        best[better] = row[better]


def _lost(similar: _Similarities, columns: Any, best: Any, row: Any, n: int) -> Any:
    """Return how much each variant's gain falls when the variants `columns` get the similarity `row` in place of `best`.

    Only variants nearer to one of them than its representative so far had a gain by it, usually few: the others are left out before the
    square root and the exponential.
    """
    import numpy as np

    found = similar.distances(columns)  # symmetric: row j has what each variant adds for j
    near = np.flatnonzero((found < similar.least(best[columns])[:, None]).ravel())
    of, by = np.divmod(near, n)
    similarities = similar.of(found.ravel()[near])
    before = np.maximum(similarities - best[columns][of], 0.0)
    after = np.maximum(similarities - row[columns][of], 0.0)
    return np.bincount(by, weights=before - after, minlength=n)


def _blocks(rows: Any) -> Iterator[Any]:
    for start in range(0, len(rows), _BLOCK):
        yield rows[start : start + _BLOCK]


def distinct(pool: Pool, options: Mapping[str, Any]) -> Iterator[Placed]:
    """Yield the pool by its score without variants that are too similar to an earlier one (DEITA's filter)."""
    import numpy as np

    vectors = np.asarray(pool.vectors, np.float32)
    scores = pool.columns.get("score")
    order: Sequence[int] = range(len(pool.ids))
    if scores is not None:
        known = [index for index in order if scores[index] is not None]
        order = sorted(known, key=lambda index: -scores[index])  # stable: equal scores keep the pool's order
    kept = np.empty_like(vectors)
    number = 0
    for index in order:
        nearest = float((kept[:number] @ vectors[index]).max()) if number else None
        if nearest is None or nearest <= options["threshold"]:
            kept[number] = vectors[index]
            number += 1
            yield Placed(index, None if scores is None else float(scores[index]))


def round_robin(pool: Pool, options: Mapping[str, Any]) -> Iterator[Placed]:
    """Yield the nearest variants of each query in turn; the gain is the similarity to the query that took it."""
    import numpy as np

    vectors, queries = np.asarray(pool.vectors, np.float32), np.asarray(pool.queries, np.float32)
    similar = queries @ vectors.T  # (m, n): query sets are small
    nearest = np.argsort(-similar, axis=1, kind="stable")
    taken = np.zeros(len(pool.ids), bool)
    for turn in range(len(pool.ids)):
        for query in range(len(queries)):
            index = int(nearest[query, turn])
            if not taken[index]:
                taken[index] = True
                yield Placed(index, float(similar[query, index]), f"near query {query + 1}")


def shuffled(pool: Pool, options: Mapping[str, Any]) -> Iterator[Placed]:
    """Yield the pool in an order that depends on the seed and each variant's id."""

    def key(index: int) -> bytes:
        return hashlib.sha256(canonical_json([options["seed"], pool.ids[index]]).encode()).digest()

    yield from (Placed(index) for index in sorted(range(len(pool.ids)), key=key))


def pareto(pool: Pool, options: Mapping[str, Any]) -> Iterator[Placed]:
    """Yield the pool in Pareto layers; the gain is the number of the layer, from 1. Variants that lack a value are left out."""
    columns = [values for name, values in pool.columns.items() if name != "rank"]
    points = [tuple(values[index] for values in columns) for index in range(len(pool.ids))]
    known = (index for index, point in enumerate(points) if None not in point)
    layers = _Layers()
    found = [
        (layers.of(points[index]), index) for index in sorted(known, key=lambda index: [-v for v in points[index]])
    ]
    for layer, index in sorted(found, key=lambda each: each[0]):
        yield Placed(index, float(layer + 1), f"layer {layer + 1}")


class _Layers:
    """Pareto layers of points that come in descending order: no point is beaten by a later one.

    A point that a member of a layer beats is also beaten by a member of every layer before, so its layer is found by binary search.
    """

    def __init__(self) -> None:
        self.layers: list[list[tuple[float, ...]]] = []
        self.layer_of: dict[tuple[float, ...], int] = {}  # equal points share a layer

    def of(self, point: tuple[float, ...]) -> int:
        """Return the layer of a point, from 0."""
        if point not in self.layer_of:
            low, high = 0, len(self.layers)
            while low < high:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if self._is_beaten(point, middle) else (low, middle)
            if low == len(self.layers):
                self.layers.append([])
            self.layers[low].append(point)
            self.layer_of[point] = low
        return self.layer_of[point]

    def _is_beaten(self, point: tuple[float, ...], layer: int) -> bool:
        members = self.layers[layer]
        if len(point) == 2:  # the last member has the largest second coordinate of its layer
            return members[-1][1] >= point[1]
        return any(all(a >= b for a, b in zip(member, point, strict=True)) for member in members)


ORDERS = Method(
    name="orders",
    orderings=(
        Ordering(
            "facility", "those that stand for most of the rest first (facility location)", facility, 1, vectors=True
        ),
        Ordering(
            "filter",
            "without what is too similar to an earlier one (DEITA)",
            distinct,
            1,
            {"threshold": 0.9},
            vectors=True,
        ),
        Ordering(
            "round_robin",
            "the nearest to each query of a dataset in turn (RDS+)",
            round_robin,
            1,
            vectors=True,
            queries=True,
        ),
        Ordering("random", "by a hash of seed and variant", shuffled, 1, {"seed": 0}),
        Ordering("pareto", "those that none beats in all columns first", pareto, 1),
    ),
)
