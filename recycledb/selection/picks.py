"""What the recipe `selective` picks on each side of a comparison: the kind for each sample, and the path through its decision tree."""

from collections import Counter
from dataclasses import dataclass

from recycledb.methods.reflection import SPLITS, Kind

NONE = "none"
LABELS = (*(kind.value for kind in SPLITS), NONE)


# The nodes of the decision tree, from the first column to the last, each from top to bottom.
NODES = (
    *("samples", "ifd(Q) > ifd(ori)", "otherwise", "not scored"),
    *(kind.value for kind in SPLITS),
    *("kept", "ifd not below 1", "rifd not below 1"),
)


@dataclass(frozen=True, slots=True)
class Pick:
    """A row of `selective` with keep = candidates."""

    sample_id: str
    kind: str
    verdict: str


@dataclass(frozen=True, slots=True)
class Confusion:
    """The kinds that `selective` with keep = all picks for the samples on two sides; "none" if it picks nothing."""

    sides: tuple[str, str]
    labels: tuple[str, ...]  # the kinds and "none", in the order of both axes
    counts: tuple[tuple[int, ...], ...]  # counts[i][j]: labels[i] on the first side, labels[j] on the second
    agreement: float | None  # share of samples on the diagonal


@dataclass(frozen=True, slots=True)
class Flow:
    """The number of samples that go from one node of the decision tree to the next on a side.

    Nodes, in order of depth: "samples"; "ifd(Q) > ifd(ori)", "otherwise" or "not scored"; the candidate
    ("reflect_both", "reflect_instruction", "reflect_response", "origin"); "kept", "ifd not below 1" or "rifd not below 1".
    """

    side: str
    source: str
    target: str
    count: int


def confusion(sides: tuple[str, str], first: list[Pick], second: list[Pick]) -> Confusion:
    """Return how often each pair of kinds was picked for the same sample on two sides."""
    a, b = (
        {pick.sample_id: pick.kind if pick.verdict == "kept" else NONE for pick in picks} for picks in (first, second)
    )
    counts = Counter((a.get(sample, NONE), b.get(sample, NONE)) for sample in a.keys() | b.keys())
    total, same = sum(counts.values()), sum(count for (x, y), count in counts.items() if x == y)
    table = tuple(tuple(counts[row, column] for column in LABELS) for row in LABELS)
    return Confusion(sides, LABELS, table, same / total if total else None)


def flows(side: str, picks: list[Pick], samples: int) -> list[Flow]:
    """Return one side's flows from all samples through the tree; `samples` includes those without scores."""
    edges: Counter[tuple[str, str]] = Counter()
    for (kind, verdict), count in Counter((pick.kind, pick.verdict) for pick in picks).items():
        harder = kind in (Kind.REFLECT_BOTH, Kind.REFLECT_INSTRUCTION)
        branch = "ifd(Q) > ifd(ori)" if harder else "otherwise"
        edges.update({("samples", branch): count, (branch, kind): count, (kind, verdict): count})
    if samples > len(picks):
        edges["samples", "not scored"] += samples - len(picks)
    return [Flow(side, source, target, count) for (source, target), count in sorted(edges.items())]
