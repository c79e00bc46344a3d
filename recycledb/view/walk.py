"""Walking through a list of samples: what comes before and after one, in the order of the list that the address names."""

from dataclasses import dataclass

import numpy as np

from recycledb.view.columns import Order, Snapshot
from recycledb.view.state import State, matching, ordered


@dataclass(frozen=True)
class Step:
    """A sample's place in a list, from 1; None where it is not in the list."""

    place: int | None
    total: int
    before: str | None
    after: str | None


def order_of(snapshot: Snapshot, state: State) -> Order:
    """Return the samples of the list that a state describes, in its order."""
    return ordered(snapshot, state, matching(snapshot, state))


def step(snapshot: Snapshot, order: Order, sample: str) -> Step:
    """Return where a sample is in a list, and its neighbours."""
    number = snapshot.number_of.get(sample)
    at = np.flatnonzero(order == number) if number is not None else np.empty(0, np.int64)
    if not len(at):
        return Step(None, len(order), None, snapshot.ids[int(order[0])] if len(order) else None)
    here = int(at[0])
    before = snapshot.ids[int(order[here - 1])] if here else None
    after = snapshot.ids[int(order[here + 1])] if here + 1 < len(order) else None
    return Step(here + 1, len(order), before, after)
