"""Facility location: the greedy maximum of Σ_j max_{i in S} exp(-|a_i - a_j| / D), without a matrix of similarities in memory.

With s_ij = exp(-|a_i - a_j| / D) and best_j the largest similarity of j to a variant that is taken (0 before the first), the gain of i is
g_i = Σ_j w_j · max(s_ij - best_j, 0), where w_j counts equal vectors. The greedy order takes the variant with the largest gain, again and
again. Only pairs with s_ij > best_j count, and there are fewer of them with each step: after k steps about n/k for each j.

Invariants, after every step and up to rounding in float64:

    gains[i] = g_i for every variant that is not taken
    near[j], where it is not None, has every i with s_ij > best_j, and s_ij

So a step changes the gains only by the columns j that the new variant represents better than before; of these, columns with a list need
no product of vectors at all, and the others (long lists, early steps) one row of products each. What comes out does not depend on which
lists are kept, nor on the size of blocks. Memory: at most `_LISTED` pairs in lists (12 bytes each), and blocks of `_BLOCK` numbers.

Distances are computed from products of vectors, and small ones, where that loses digits, from differences. Equal vectors are one with a
weight: its copies have no gain once it is taken, so they come last.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from recycledb.methods.definition import Placed, Pool

TIE: Final = 1e-9  # gains whose relative difference is smaller are equal
_BLOCK: Final = 4_000_000  # numbers in a block of products: 32 MB
_LISTED: Final = 16_000_000
_AHEAD: Final = 32  # rows of products computed at once: as fast as one, since the vectors are read once
_SMALL: Final = 1e-4  # squared distances below this, relative to the largest square, are computed from differences


def facility(pool: Pool, options: Mapping[str, Any]) -> Iterator[Placed]:
    """Yield the pool in the order of the greedy facility location; of equal gains the first in the pool."""
    import numpy as np

    vectors = np.asarray(pool.vectors, np.float64) + 0.0  # no negative zeros, so that equal vectors have equal bytes
    copies: dict[bytes, list[int]] = {}
    for place, vector in enumerate(vectors):
        copies.setdefault(vector.tobytes(), []).append(place)
    firsts = [places[0] for places in copies.values()]
    left = set(range(len(vectors)))
    weights = np.array([float(len(places)) for places in copies.values()])
    for chosen, gain in Greedy(vectors[firsts], weights).order():
        left.remove(firsts[chosen])
        yield Placed(firsts[chosen], gain)
    yield from (Placed(place, 0.0) for place in sorted(left))


class Greedy:
    """The greedy choice among different vectors (n, D) with weights; `listed` and `block` bound its memory."""

    def __init__(self, vectors: Any, weights: Any, *, listed: int = _LISTED, block: int = _BLOCK) -> None:
        import numpy as np

        self.vectors, self.weights, self.n = vectors, weights, len(vectors)
        self.squares = np.einsum("ij,ij->i", vectors, vectors)
        self.best = np.zeros(self.n)
        self.gains = np.zeros(self.n)
        self.near: list[tuple[Any, Any] | None] = [None] * self.n
        self.longest = listed // max(self.n, 1)  # entries of a list that is kept
        self.block = block
        self.rows: dict[int, tuple[Any, Any]] = {}  # of variants that may be next: columns, similarities

    def order(self) -> Iterator[tuple[int, float]]:
        """Yield variants with their gains until none has a gain."""
        import numpy as np

        self._sum_all()
        for number in range(self.n):
            top = float(self.gains.max())
            if top <= 0.0:
                return
            chosen = int(np.argmax(self.gains >= top - TIE * top))
            yield chosen, top
            columns, similarities = self._row(chosen)
            self.gains[chosen] = -np.inf
            if number == 0:  # the sums are of another magnitude now: start again, so that their rounding does not stay
                self.gains[np.isfinite(self.gains)] = 0.0
            self._represent(columns, similarities, first=number == 0)

    def _sum_all(self) -> None:
        """Set the gains before anything is taken: sums of all similarities. Each pair is computed once."""
        import numpy as np

        for rows in self._blocks(np.arange(self.n), self.n):
            start, end = rows[0], rows[-1] + 1
            similar = self._similarity(np.maximum(self._squared(rows, start), 0.0))
            self.gains[start:end] += similar @ self.weights[start:]
            self.gains[end:] += self.weights[start:end] @ similar[:, end - start :]

    def _row(self, chosen: int) -> tuple[Any, Any]:
        """Return the columns that a variant represents better than they are, and its similarities to them.

        Gains only fall, so the variants with the largest ones now are the likeliest to be next: their rows are computed together.
        """
        import numpy as np

        if chosen not in self.rows:
            ahead = min(_AHEAD, self.n)
            likely = np.union1d(np.argpartition(-self.gains, ahead - 1)[:ahead], [chosen])
            of, columns, similarities = self._pairs(likely, self._reach(self.best)[None, :])
            ends = np.searchsorted(of, np.arange(len(likely) + 1))
            self.rows = {
                int(row): (columns[start:end], similarities[start:end])
                for row, start, end in zip(likely, ends, ends[1:], strict=False)
            }
        columns, similarities = self.rows.pop(chosen)
        better = similarities > self.best[columns]  # others may represent them better by now
        return columns[better], similarities[better]

    def _represent(self, columns: Any, similarities: Any, first: bool) -> None:
        """Set `best` of some columns to larger similarities, and with it gains and lists."""
        import numpy as np

        listed = np.array([self.near[column] is not None for column in columns], bool)
        for some in self._blocks(np.flatnonzero(~listed), self.n):
            those = columns[some]
            new = similarities[some]
            found = self._pairs(those, self._reach(new if first else self.best[those])[:, None])
            self._lower(those, found, new, first)
        for some in self._blocks(np.flatnonzero(listed), self.longest):
            lists = [near for near in (self.near[column] for column in columns[some]) if near is not None]
            of = np.repeat(np.arange(len(some)), [len(rows) for rows, _ in lists])
            rows, values = (np.concatenate([each[i] for each in lists]) for i in (0, 1))
            self._lower(columns[some], (of, rows, values), similarities[some], first)

    def _lower(self, columns: Any, pairs: tuple[Any, Any, Any], new: Any, first: bool) -> None:
        """Set `best` of columns to `new`; `pairs` has, by column, all that counted so far, or for the `first` all that will count."""
        import numpy as np

        of, rows, values = pairs
        fall = -np.maximum(values - new[of], 0.0)
        if not first:
            fall += np.maximum(values - self.best[columns][of], 0.0)
        self.gains -= np.bincount(rows, weights=fall * self.weights[columns][of], minlength=self.n)
        self.best[columns] = new
        still = np.flatnonzero(values > new[of])
        of, rows, values = of[still], rows[still], values[still]
        ends = np.searchsorted(of, np.arange(len(columns) + 1)).tolist()
        for column, start, end in zip(columns.tolist(), ends, ends[1:], strict=False):
            if end - start <= self.longest:
                self.near[column] = rows[start:end].astype(np.int32), values[start:end].copy()

    def _pairs(self, rows: Any, reach: Any) -> tuple[Any, Any, Any]:
        """Return the pairs of some rows and any columns within squared distances: index in `rows`, column, similarity; row by row."""
        import numpy as np

        squared = self._squared(rows)
        inside = squared < reach
        within = np.flatnonzero(inside)
        of = np.repeat(np.arange(len(rows)), np.count_nonzero(inside, axis=1))
        columns, found = within - of * self.n, squared.ravel()[within]
        small = np.flatnonzero(found < _SMALL * self.squares.max())
        for some in self._blocks(small, self.vectors.shape[1]):
            apart = self.vectors[rows[of[some]]] - self.vectors[columns[some]]
            found[some] = np.einsum("ij,ij->i", apart, apart)
        return of, columns, self._similarity(found)

    def _squared(self, rows: Any, start: int = 0) -> Any:
        """Return the squared distances of some rows to all from `start` on; rounding may leave small ones below 0."""
        found = self.vectors[rows] @ self.vectors[start:].T
        found *= -2.0
        found += self.squares[rows][:, None]
        found += self.squares[None, start:]
        return found

    def _similarity(self, squared: Any) -> Any:
        """Return similarities, in place, of squared distances."""
        import numpy as np

        np.sqrt(squared, out=squared)
        squared *= -1.0 / self.vectors.shape[1]
        return np.exp(squared, out=squared)

    def _reach(self, similarities: Any) -> Any:
        """Return the squared distances of similarities, a little more where rounding could hide a pair."""
        import numpy as np

        with np.errstate(divide="ignore"):
            return (np.log(similarities) * self.vectors.shape[1]) ** 2 * (1 + 1e-9) + 1e-9 * self.squares.max()

    def _blocks(self, numbers: Any, width: int) -> Iterator[Any]:
        size = max(self.block // max(width, 1), 1)
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]
