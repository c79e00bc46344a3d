"""The differences between two recorded selections.

Invariant: it compares what was recorded; no recipe is run.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recycledb.selection.identities import Identity, find_selection
from recycledb.store import Store


@dataclass(frozen=True, slots=True)
class Taken:
    """A pick: its sample, variant, kind and reason."""

    sample_id: str
    variant_id: str
    kind: str
    reason: str | None


@dataclass(frozen=True)
class Diff:
    """How two selections' picks differ."""

    a: str
    b: str
    rows_a: int
    rows_b: int
    same: int  # samples of which both picked the same variant
    changed: dict[str, int]  # samples of which they picked different ones: "kind in a → kind in b"
    only_a: int  # samples that only a picked
    only_a_kinds: dict[str, int]
    only_a_reasons: dict[str, int]
    only_b: int
    only_b_kinds: dict[str, int]
    only_b_reasons: dict[str, int]
    samples_a: list[str]  # ids of samples that only a picked, in its order
    samples_b: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def diff(store: Store, a: str, b: str) -> Diff:
    """Compare the picks of two selections, by their names or ids; SelectionError if there is no such selection."""
    first, second = find_selection(store, a), find_selection(store, b)
    picks_a, picks_b = _taken(store, first), _taken(store, second)
    samples_a, samples_b = _by_sample(picks_a), _by_sample(picks_b)
    both = samples_a.keys() & samples_b.keys()
    same = {sample for sample in both if _variants(samples_a[sample]) == _variants(samples_b[sample])}
    changed = Counter(f"{_kinds(samples_a[key])} → {_kinds(samples_b[key])}" for key in both - same)
    only_a = [pick for pick in picks_a if pick.sample_id not in samples_b]
    only_b = [pick for pick in picks_b if pick.sample_id not in samples_a]
    return Diff(
        a=first.name,
        b=second.name,
        rows_a=len(picks_a),
        rows_b=len(picks_b),
        same=len(same),
        changed=_counted(changed),
        only_a=len({pick.sample_id for pick in only_a}),
        only_a_kinds=_counted(Counter(pick.kind for pick in only_a)),
        only_a_reasons=_counted(Counter(pick.reason or "none given" for pick in only_a)),
        only_b=len({pick.sample_id for pick in only_b}),
        only_b_kinds=_counted(Counter(pick.kind for pick in only_b)),
        only_b_reasons=_counted(Counter(pick.reason or "none given" for pick in only_b)),
        samples_a=list(dict.fromkeys(pick.sample_id for pick in only_a)),
        samples_b=list(dict.fromkeys(pick.sample_id for pick in only_b)),
    )


def _taken(store: Store, selection: Identity) -> list[Taken]:
    rows = store.rows(
        """
        SELECT v.sample_id, i.variant_id, v.kind, i.reason
        FROM selection_item i JOIN variant v ON v.variant_id = i.variant_id
        WHERE i.selection_id = :selection ORDER BY i.position
        """,
        selection=selection.identity,
    )
    return [Taken(*row) for row in rows]


def _by_sample(picks: Sequence[Taken]) -> dict[str, list[Taken]]:
    found: dict[str, list[Taken]] = {}
    for pick in picks:
        found.setdefault(pick.sample_id, []).append(pick)
    return found


def _variants(picks: Sequence[Taken]) -> set[str]:
    return {pick.variant_id for pick in picks}


def _kinds(picks: Sequence[Taken]) -> str:
    return ", ".join(sorted({pick.kind for pick in picks}))


def _counted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
