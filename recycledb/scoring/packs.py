"""Token sequences to packs: what the model computes together, and which tokens it need not compute twice.

Invariant: a pack is a list of `Work`, and what the model returns for a work does not depend on its pack (up to
rounding). Sequences are laid end to end without padding (or padded, where the kernel needs it); a sequence that shares
a prefix with the one before it reuses those tokens. This module does not use torch: it is index arithmetic.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recycledb.scoring.spans import Ids

Index = npt.NDArray[np.int64]

# A shared prefix shorter than this costs more in extra attention calls than computing its tokens again.
SHARED_MINIMUM = 16


@dataclass(frozen=True, slots=True)
class Work:
    """A token sequence, and what is wanted of it; `pair_id` is the hash of the sequence and of `start`.

    Without `choices` and `pooling`, the sum of the losses of the tokens from index `start` on. With `choices`, the log-probabilities of
    these tokens after the whole sequence. With `pooling`, the vector that its tokens' hidden states are combined into.
    """

    pair_id: str
    ids: Ids
    start: int
    choices: tuple[int, ...] = ()
    pooling: str = ""

    @property
    def n_tokens(self) -> int:
        """Return the number of target tokens; 0 if none of the sequence's tokens is a target."""
        return 0 if self.choices or self.pooling else len(self.ids) - self.start

    @property
    def key(self) -> str:
        """What it computes: equal keys mean equal work. (A sum of losses is known by its `pair_id` alone.)"""
        return f"{self.pair_id}/{self.pooling}{','.join(map(str, self.choices))}"


@dataclass(frozen=True, slots=True)
class Block:
    """The tokens of one sequence after its shared prefix: rows `begin` to `end` of the pack.

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
    """Sequences packed end to end: T rows of tokens with their positions."""

    ids: Index  # (T,)
    positions: Index  # (T,)
    blocks: tuple[Block, ...]
    paths: tuple[Index, ...]  # of each work, the row of every position


class Batch(NamedTuple):
    """A pack: works that are computed together, and how many tokens the model processes for them (without padding)."""

    works: list[Work]
    tokens: int


def by_length(works: Iterable[Work], budget: int) -> Iterator[Batch]:
    """Yield packs of sequences of similar length whose padded size is at most `budget` tokens, the longest first.

    A single sequence longer than the budget is a pack by itself. The longest come first so that running out of memory
    shows early.
    """
    batch: list[Work] = []
    for work in sorted(works, key=lambda work: (-len(work.ids), work.key)):
        if batch and len(batch[0].ids) * (len(batch) + 1) > budget:
            yield Batch(batch, sum(len(work.ids) for work in batch))
            batch = []
        batch.append(work)
    if batch:
        yield Batch(batch, sum(len(work.ids) for work in batch))


def by_beginning(works: Iterable[Work], budget: int) -> Iterator[Batch]:
    """Yield packs of sequences sorted by their tokens, so that shared prefixes are adjacent, of at most `budget` new tokens."""
    batch: list[Work] = []
    size = 0
    for work in sorted(works, key=lambda work: (work.ids.astype(">i4").tobytes(), work.start, work.key)):
        new = len(work.ids) - (shared_length(batch[-1].ids, work.ids) if batch else 0)
        if batch and size + new > budget:
            yield Batch(batch, size)
            batch, size, new = [], 0, len(work.ids)
        batch.append(work)
        size += new
    if batch:
        yield Batch(batch, size)


def shared_length(left: Ids, right: Ids) -> int:
    """Return the length of the common prefix of two sequences, or 0 where it is too short to be worth sharing."""
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    shared = int(different[0]) if len(different) else length
    return shared if shared >= SHARED_MINIMUM else 0


def lay_out(works: Sequence[Work], *, share: bool = True) -> Layout:
    """Pack sequences end to end; with `share`, each reuses the prefix that it has in common with the one before it."""
    ids: list[Ids] = []
    positions: list[Index] = []
    blocks: list[Block] = []
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
        paths.append(path)
        total += new
    return Layout(np.concatenate(ids).astype(np.int64), np.concatenate(positions), tuple(blocks), tuple(paths))


def _ranges(path: Index) -> tuple[tuple[int, int], ...]:
    """Return the runs of consecutive rows in `path`."""
    breaks = np.flatnonzero(np.diff(path) != 1) + 1
    begins = np.concatenate([[0], breaks])
    ends = np.concatenate([breaks, [len(path)]])
    return tuple((int(path[begin]), int(path[end - 1]) + 1) for begin, end in zip(begins, ends, strict=True))


def pad(works: Sequence[Work]) -> tuple[Index, list[Index]]:
    """Lay sequences side by side, padded on the right with token 0.

    Returns ids (B, T), and for each work the row of every position in the flattened (B * T) hidden states.
    """
    width = max(len(work.ids) for work in works)
    ids = np.zeros((len(works), width), np.int64)
    for row, work in zip(ids, works, strict=True):
        row[: len(work.ids)] = work.ids
    return ids, [i * width + np.arange(len(work.ids)) for i, work in enumerate(works)]
