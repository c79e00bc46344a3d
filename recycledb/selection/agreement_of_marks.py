"""How far two people's marks agree: raw agreement, Cohen's kappa, and what they disagree about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recycledb.store.marks import MARKS, Target


@dataclass(frozen=True)
class Agreement:
    """Two people's current marks of what both have marked."""

    a: str
    b: str
    counts: dict[tuple[str, str], int]  # by a's and b's mark
    disagreements: Sequence[tuple[Target, str, str]]

    @property
    def both(self) -> int:
        """How much both have marked."""
        return sum(self.counts.values())

    @property
    def raw(self) -> float | None:
        """The share of it with the same mark; None if there is nothing."""
        return sum(self.counts[mark, mark] for mark in MARKS) / self.both if self.both else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: the agreement beyond chance. None where chance alone would agree on all: both gave everything one mark."""
        if self.raw is None:
            return None
        rows = [sum(self.counts[mark, other] for other in MARKS) for mark in MARKS]
        columns = [sum(self.counts[other, mark] for other in MARKS) for mark in MARKS]
        by_chance = sum(a * b for a, b in zip(rows, columns, strict=True)) / self.both**2
        return (self.raw - by_chance) / (1 - by_chance) if by_chance < 1 else None


def agreement(a: str, b: str, marks: Mapping[str, Mapping[Target, str]]) -> Agreement:
    """Compare two people; `marks` are everybody's current ones, in the order in which disagreements are listed."""
    ours, theirs = marks.get(a, {}), marks.get(b, {})
    counts = {(x, y): 0 for x in MARKS for y in MARKS}
    different = []
    for target, mark in ours.items():
        other = theirs.get(target)
        if other is not None:
            counts[mark, other] += 1
            if mark != other:
                different.append((target, mark, other))
    return Agreement(a, b, counts, different)
