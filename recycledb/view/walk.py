"""Lists of samples as an address names them: which samples, in which order, and what comes before and after one."""

from dataclasses import dataclass

import numpy as np

from recycledb.view.columns import Flags, Order, Snapshot
from recycledb.view.shared import Shared
from recycledb.view.state import State, matching, ordered


@dataclass(frozen=True)
class Step:
    """A sample's place in a list, from 1; None where it is not in the list."""

    place: int | None
    total: int
    before: str | None
    after: str | None


def find(shared: Shared, snapshot: Snapshot, state: State) -> tuple[Flags, str]:
    """Return which samples an address asks for, and what the user should know about it, if anything."""
    complete = shared.index.update(0.5 if state.words else 0.0)  # begun by the first list, ready when it is asked
    if not state.words:
        return matching(snapshot, state), ""
    if shared.index.error is not None:
        return matching(snapshot, state), shared.index.error
    found = matching(snapshot, state, shared.index.samples_with(state.words, snapshot))
    return found, "" if complete else f"The search index is being built: {shared.index.indexed:,} texts so far."


def order_of(shared: Shared, snapshot: Snapshot, state: State) -> Order:
    """Return the samples of the list that a state describes, in its order."""
    return ordered(snapshot, state, find(shared, snapshot, state)[0])


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
