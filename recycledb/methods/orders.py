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

All take vectors in blocks: an n × n matrix is never in memory. `recycledb.methods.facility` has the first.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from recycledb.methods.definition import Method, Ordering, Placed, Pool
from recycledb.methods.facility import facility
from recycledb.schema import canonical_json

TIE: Final = 1e-9  # cosines whose difference is smaller are equal: rounding decides nothing
_BLOCK: Final = 256  # variants compared at once


def distinct(pool: Pool, options: Mapping[str, Any]) -> Iterator[Placed]:
    """Yield the pool by its score without variants that are too similar to an earlier one that was kept (DEITA's filter).

    A block is compared with all that were kept before it by one product, and its own members, one after the other, with those of them
    that are kept.
    """
    import numpy as np

    scores = pool.columns.get("score")
    order: Sequence[int] = range(len(pool.ids))
    if scores is not None:
        known = [index for index in order if scores[index] is not None]
        order = sorted(known, key=lambda index: -scores[index])  # stable: equal scores keep the pool's order
    most = options["threshold"] + TIE
    vectors, number = _unit(pool.vectors), 0
    kept = np.empty_like(vectors)
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        rows = vectors[block]
        dropped = np.zeros(len(block), bool)
        for some in range(0, number, 16 * _BLOCK):
            dropped |= (rows @ kept[some : min(some + 16 * _BLOCK, number)].T > most).any(axis=1)
        among = rows @ rows.T > most
        for place, index in enumerate(block):
            if not dropped[place]:
                dropped |= among[place]
                kept[number] = rows[place]
                number += 1
                yield Placed(index, None if scores is None else float(scores[index]))


def _unit(vectors: Any) -> Any:
    """Return vectors of length 1 in float64, so that equal ones have a cosine of 1; one without a direction is left as it is."""
    import numpy as np

    found = np.array(vectors, np.float64)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.divide(found, lengths, out=found, where=lengths > 0)


def round_robin(pool: Pool, options: Mapping[str, Any]) -> Iterator[Placed]:
    """Yield the nearest variants of each query in turn; the gain is the similarity to the query that took it.

    Memory: 12 bytes for each query and variant, and a block of similarities.
    """
    import numpy as np

    vectors, queries = _unit(pool.vectors), _unit(pool.queries)
    similar = np.empty((len(queries), len(vectors)), np.float64)
    nearest = np.empty(similar.shape, np.int32)
    for start in range(0, len(queries), _BLOCK):
        rows = slice(start, start + _BLOCK)
        # Rounded, so that equal vectors are ties, which the pool's order decides.
        similar[rows] = np.round(queries[rows] @ vectors.T, 12)
        nearest[rows] = np.argsort(-similar[rows], axis=1, kind="stable")
    taken = np.zeros(len(pool.ids), bool)
    for turn in range(len(pool.ids)):
        column = nearest[:, turn]
        for query in np.flatnonzero(~taken[column]).tolist():
            index = int(column[query])
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
        self.layers: list[Any] = []  # arrays (members, columns), with room for more below the members
        self.sizes: list[int] = []
        self.layer_of: dict[tuple[float, ...], int] = {}  # equal points share a layer

    def of(self, point: tuple[float, ...]) -> int:
        """Return the layer of a point, from 0."""
        if point not in self.layer_of:
            low, high = 0, len(self.layers)
            while low < high:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if self._is_beaten(point, middle) else (low, middle)
            self._add(point, low)
            self.layer_of[point] = low
        return self.layer_of[point]

    def _add(self, point: tuple[float, ...], layer: int) -> None:
        import numpy as np

        if layer == len(self.layers):
            self.layers.append(np.empty((8, len(point))))
            self.sizes.append(0)
        if self.sizes[layer] == len(self.layers[layer]):
            self.layers[layer] = np.concatenate([self.layers[layer], np.empty_like(self.layers[layer])])
        self.layers[layer][self.sizes[layer]] = point
        self.sizes[layer] += 1

    def _is_beaten(self, point: tuple[float, ...], layer: int) -> bool:
        members = self.layers[layer][: self.sizes[layer]]
        if len(point) == 2:  # the last member has the largest second coordinate of its layer
            return bool(members[-1][1] >= point[1])
        return bool((members >= point).all(axis=1).any())


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
