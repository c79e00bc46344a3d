"""Token sequences to batches: what the model computes together, and which tokens it need not compute twice.

Invariant: a batch is a list of `Work`, and what the model returns for a work does not depend on the batch it is in
(up to rounding). Packed batches lay sequences end to end without padding; a sequence that begins like another one in
the batch borrows those tokens instead of repeating them. This module refuses to know torch: it is index arithmetic.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recycledb.scoring.spans import Ids

Index = npt.NDArray[np.int64]

# A shared beginning shorter than this costs more in extra attention calls than its tokens cost to compute again.
SHARED_MINIMUM = 16


@dataclass(frozen=True, slots=True)
class Work:
    """A token sequence to be scored from index `start` on; `pair_id` is its address."""

    pair_id: str
    ids: Ids
    start: int

    @property
    def n_tokens(self) -> int:
        """Return the number of target tokens."""
        return len(self.ids) - self.start


@dataclass(frozen=True, slots=True)
class Block:
    """The tokens of one sequence that no earlier one has: rows `begin` to `end` of the pack.

    `keys` are the ranges of rows that the last of them sees, in order of position; the last range is the block itself.
    """

    begin: int
    end: int
    keys: tuple[tuple[int, int], ...]

    @property
    def n_keys(self) -> int:
        """Return how many rows the block's last token sees."""
        return sum(end - begin for begin, end in self.keys)


@dataclass(frozen=True, slots=True)
class Layout:
    """A packed batch: T rows of tokens with their positions, and for each target token the row that predicts it."""

    ids: Index  # (T,)
    positions: Index  # (T,)
    blocks: tuple[Block, ...]
    rows: Index  # (N,) the row whose hidden state predicts the target
    targets: Index  # (N,) the target's token id
    counts: tuple[int, ...]  # how many of the N belong to each work; sums to N
    paths: tuple[Index, ...]  # of each work, the row of every position


class Batch(NamedTuple):
    """Works that are computed together, and how many tokens the model has to go through for them (without padding)."""

    works: list[Work]
    tokens: int


def by_length(works: Iterable[Work], budget: int) -> Iterator[Batch]:
    """Yield batches of similar length whose padded size stays under `budget` tokens, the longest first.

    A single sequence longer than the budget is a batch of its own. The longest come first so that memory that does not
    suffice shows at once.
    """
    batch: list[Work] = []
    for work in sorted(works, key=lambda work: (-len(work.ids), work.pair_id)):
        if batch and len(batch[0].ids) * (len(batch) + 1) > budget:
            yield Batch(batch, sum(len(work.ids) for work in batch))
            batch = []
        batch.append(work)
    if batch:
        yield Batch(batch, sum(len(work.ids) for work in batch))


def by_beginning(works: Iterable[Work], budget: int) -> Iterator[Batch]:
    """Yield packs of sequences sorted by their tokens, so that equal beginnings meet, each under `budget` new tokens."""
    batch: list[Work] = []
    size = 0
    for work in sorted(works, key=lambda work: (work.ids.astype(">i4").tobytes(), work.start)):
        new = len(work.ids) - (shared_length(batch[-1].ids, work.ids) if batch else 0)
        if batch and size + new > budget:
            yield Batch(batch, size)
            batch, size, new = [], 0, len(work.ids)
        batch.append(work)
        size += new
    if batch:
        yield Batch(batch, size)


def shared_length(left: Ids, right: Ids) -> int:
    """Return how many tokens two sequences begin with in common, or 0 where these are too few to be worth sharing."""
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    shared = int(different[0]) if len(different) else length
    return shared if shared >= SHARED_MINIMUM else 0


def lay_out(works: Sequence[Work], *, share: bool = True) -> Layout:
    """Pack sequences end to end; each borrows the beginning that it shares with the one before it, unless it is not to `share`."""
    ids: list[Ids] = []
    positions: list[Index] = []
    blocks: list[Block] = []
    rows: list[Index] = []
    paths: list[Index] = []
    path: Index = np.empty(0, np.int64)
    total = 0
    for previous, work in zip([None, *works], works, strict=False):
        shared = shared_length(previous.ids, work.ids) if share and previous is not None else 0
        new = len(work.ids) - shared
        path = np.concatenate([path[:shared], np.arange(total, total + new)])
        if new:
            ids.append(work.ids[shared:])
            positions.append(np.arange(shared, len(work.ids)))
            blocks.append(Block(total, total + new, _ranges(path)))
        rows.append(path[work.start - 1 : -1])
        paths.append(path)
        total += new
    targets = np.concatenate([work.ids[work.start :] for work in works])
    return Layout(
        np.concatenate(ids).astype(np.int64),
        np.concatenate(positions),
        tuple(blocks),
        np.concatenate(rows),
        targets.astype(np.int64),
        tuple(work.n_tokens for work in works),
        tuple(paths),
    )


def _ranges(path: Index) -> tuple[tuple[int, int], ...]:
    """Return the runs of consecutive rows in `path`."""
    breaks = np.flatnonzero(np.diff(path) != 1) + 1
    begins = np.concatenate([[0], breaks])
    ends = np.concatenate([breaks, [len(path)]])
    return tuple((int(path[begin]), int(path[end - 1]) + 1) for begin, end in zip(begins, ends, strict=True))


def pad(works: Sequence[Work]) -> tuple[Index, Index, Index]:
    """Lay sequences side by side, padded on the right with token 0.

    Returns ids (B, T), the rows of the flattened (B * T) hidden states that predict a target (N,), and the targets (N,).
    """
    width = max(len(work.ids) for work in works)
    ids = np.zeros((len(works), width), np.int64)
    for row, work in zip(ids, works, strict=True):
        row[: len(work.ids)] = work.ids
    rows = [i * width + np.arange(work.start - 1, len(work.ids) - 1) for i, work in enumerate(works)]
    return ids, np.concatenate(rows), np.concatenate([work.ids[work.start :] for work in works]).astype(np.int64)
