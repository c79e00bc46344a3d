"""The review queue: a list gone through by keyboard, one mark for each item, and how far two people agree.

Invariant: a queue is a list of samples or variants that stays the same while it is gone through, also if the marks given change what its
query would return; it is read again when the page is opened without a place in it. What has been decided is in the store alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, overload
from urllib.parse import urlencode

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from recycledb.errors import QueryError, RecycledbError
from recycledb.inspection import history
from recycledb.schema import context_messages
from recycledb.selection.agreement_of_marks import agreement
from recycledb.selection.identities import find_selection, selections
from recycledb.selection.query import query
from recycledb.store import Store
from recycledb.store.marks import Target, current, of_sample
from recycledb.terminal import shortened
from recycledb.view.columns import Order, Snapshot
from recycledb.view.sample import mark_of, show_variants
from recycledb.view.shared import Shared, render, shared_by, snapshot_for
from recycledb.view.state import State
from recycledb.view.walk import order_of

HERE = "/review"
MOST_ITEMS = 200_000
TIMEOUT_S = 20.0
MOST_QUEUES = 8  # kept at a time
MOST_LISTED = 200  # disagreements


class ReviewError(RecycledbError):
    """A queue that cannot be gone through."""


class Listed(Sequence[Target]):
    """The samples of a list, made when they are asked for: half a million of them cost nothing until then."""

    def __init__(self, snapshot: Snapshot, numbers: Order) -> None:
        self._snapshot, self._numbers = snapshot, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> Target: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Target]: ...
    def __getitem__(self, at: int | slice) -> Target | Sequence[Target]:
        """Return the item at a place, or a part of the list."""
        if isinstance(at, slice):
            return Listed(self._snapshot, self._numbers[at])
        return Target(self._snapshot.ids[int(self._numbers[at])])

    @cached_property
    def places(self) -> Order:
        """The place of each sample of the store, -1 where it is not in the list."""
        found = np.full(len(self._snapshot.ids), -1, np.int64)
        found[self._numbers] = np.arange(len(self._numbers))
        return found

    def place_of(self, target: Target) -> int | None:
        """Return the place of an item."""
        number = None if target.variant_id else self._snapshot.number_of.get(target.sample_id)
        return None if number is None or self.places[number] < 0 else int(self.places[number])


@dataclass(frozen=True)
class Queue:
    """What is to be reviewed, in order."""

    items: Sequence[Target]
    title: str
    query: str  # of its address

    @cached_property
    def _places(self) -> dict[Target, int]:
        return {item: at for at, item in enumerate(self.items)}

    def place_of(self, target: Target) -> int | None:
        """Return the place of an item, from 0; None if it is not in the queue."""
        return self.items.place_of(target) if isinstance(self.items, Listed) else self._places.get(target)

    def address(self, at: int | None = None) -> str:
        """Return the address of an item, or of the place where the person stopped."""
        return f"{HERE}?{self.query}" + ("" if at is None else f"&at={at}")


def review(request: Request) -> Response:
    """The page: the item at a place, or where the person stopped; without a queue, what there is to choose from."""
    shared = shared_by(request)
    at = _place(request)
    queue = find_queue(request, fresh=at is None)
    if isinstance(queue, Response):
        return queue
    if queue is None:
        marks = everybodys(shared.workspace.store)
        names = [each.name for each in selections(shared.workspace.store)]
        return render(
            request, "review_start.html", here=HERE, names=names[-50:], people=people(marks), person=shared.person
        )
    mine = {Target(*row[:2]): row.mark for row in current(shared.workspace.store, shared.person)}
    at = resume(queue, mine) if at is None else min(at, len(queue.items) - 1)
    return render(
        request,
        "review.html",
        here=HERE,
        queue=queue,
        total=len(queue.items),
        done=sum(queue.place_of(each) is not None for each in mine),
        person=shared.person,
        **item_values(shared, queue, at),
    )


def item(request: Request) -> Response:
    """One item of a queue, for the page's script."""
    queue = find_queue(request, fresh=False)
    if isinstance(queue, Response):
        return queue
    at = _place(request)
    if queue is None or at is None or at >= len(queue.items):
        raise ReviewError("there is no such item in the queue")
    return render(request, "review_item.html", here=HERE, queue=queue, **item_values(shared_by(request), queue, at))


def _place(request: Request) -> int | None:
    text = request.query_params.get("at", "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        raise ReviewError(f"at={text}: write the place in the queue as a number from 0")
    return int(text)


# -- queues


def find_queue(request: Request, *, fresh: bool) -> Queue | Response | None:
    """Return the queue that an address names, as it was unless `fresh`; None if it names none."""
    shared = shared_by(request)
    given = request.query_params
    state = State.parse(given.multi_items()).with_()
    if sql := given.get("sql", "").strip():
        name = urlencode({"sql": sql})
    elif selection := given.get("selection"):
        name = urlencode({"selection": selection})
    elif state.query() or "all" in given:
        name = state.query() or "all=1"
    else:
        return None
    kept: dict[str, Queue] = shared.kept.setdefault("queues", {})
    if not fresh and name in kept:
        return kept[name]
    if sql:
        queue = Queue(from_sql(shared.workspace.store, sql), "a query", name)
    elif "selection" in given and name.startswith("selection="):
        queue = from_selection(shared.workspace.store, given["selection"], name)
    else:
        snapshot = snapshot_for(request, HERE)
        if isinstance(snapshot, Response):
            return snapshot
        items = Listed(snapshot, order_of(shared, snapshot, state))
        queue = Queue(items, "a list of samples" if state.query() else "all samples", name)
    if not queue.items:
        raise ReviewError("there is nothing to review: the list is empty")
    kept[name] = queue
    for old in list(kept)[:-MOST_QUEUES]:
        kept.pop(old, None)
    return queue


def from_sql(store: Store, sql: str) -> list[Target]:
    """Return what a query of the user's returns as variant_id (or, where that is NULL, as sample_id), each once, in its order."""
    with query(store, sql, timeout_s=TIMEOUT_S) as result:
        wanted = [name for name in ("variant_id", "sample_id") if name in result.columns]
        if not wanted:
            raise QueryError(f"the query returns {', '.join(result.columns)}; it must return sample_id or variant_id")
        at = {name: result.columns.index(name) for name in wanted}
        found: dict[tuple[str | None, str | None], None] = {}
        for row in result.rows:
            variant, sample = (row[at[name]] if name in at else None for name in ("variant_id", "sample_id"))
            found[variant, None if variant else sample] = None
            if len(found) > MOST_ITEMS:
                raise ReviewError(f"the query returns more than {MOST_ITEMS:,} items: add LIMIT")
    return _known(store, found)


def _known(store: Store, found: Iterable[tuple[Any, Any]]) -> list[Target]:
    """Return ids as targets; ReviewError for one that the store does not have."""
    pairs = list(found)
    owner: dict[Any, str] = {}
    for table, key, ids in (
        ("variant", "variant_id", [variant for variant, _ in pairs if variant]),
        ("sample", "sample_id", [sample for variant, sample in pairs if sample and not variant]),
    ):
        for start in range(0, len(ids), 500):
            named = {f"i{n}": each for n, each in enumerate(ids[start : start + 500])}
            marks = ", ".join(f":{name}" for name in named)
            owner.update(
                map(tuple, store.rows(f"SELECT {key}, sample_id FROM {table} WHERE {key} IN ({marks})", **named))
            )
    targets = []
    for variant, sample in pairs:
        if (variant or sample) is None:
            continue
        if (variant or sample) not in owner:
            raise ReviewError(
                f"the store has no sample or variant {str(variant or sample)[:40]!r}, which the query returns"
            )
        targets.append(Target(owner[variant or sample], variant or None))
    return targets


def from_selection(store: Store, name: str, address: str) -> Queue:
    """Return the picks of a recorded selection."""
    found = find_selection(store, name)
    rows = store.rows(
        "SELECT v.sample_id, v.variant_id FROM selection_item i JOIN variant v ON v.variant_id = i.variant_id "
        "WHERE i.selection_id = :id ORDER BY i.position",
        id=found.identity,
    )
    return Queue([Target(*row) for row in rows], f"selection {found.name}", address)


def resume(queue: Queue, mine: Mapping[Target, str]) -> int:
    """Return the first place without a mark of the person after the one marked last, else before it."""
    places = [at for target in mine if (at := queue.place_of(target)) is not None]  # `mine` is in order of time
    start = places[-1] + 1 if places else 0
    for at in chain(range(start, len(queue.items)), range(start)):
        if queue.items[at] not in mine:
            return at
    return max(places, default=0)


def item_values(shared: Shared, queue: Queue, at: int) -> dict[str, Any]:
    """Return what an item's template needs."""
    store, target = shared.workspace.store, queue.items[at]
    with store.together():
        found, marks = history(store, target.sample_id), of_sample(store, target.sample_id)
    shown = show_variants(found["variants"], marks, shared.person)
    if target.variant_id is not None:  # a variant is reviewed beside its origin
        wanted = [row for row in found["variants"] if row["variant_id"] == target.variant_id]
        origin = [row for row in found["variants"] if row["kind"] == "origin"]
        both = [{**row, "is_current": 1} for row in {row["variant_id"]: row for row in origin + wanted}.values()]
        shown = show_variants(both, marks, shared.person)
    scores = [row for row in found["scores"] if row["is_current"]]
    return {
        "at": at,
        "target": target,
        "shown": shown,
        "seen": " ".join(each.variant_id for each in shown),
        "own": mark_of(marks, target, shared.person),
        "context": context_messages(found["context"]),
        "scores": {each.variant_id: [row for row in scores if row["variant_id"] == each.variant_id] for each in shown},
        "item_count": len(queue.items),
    }


# -- people


def everybodys(store: Store) -> dict[str, dict[Target, str]]:
    """Return the current marks of each person, oldest first."""
    found: dict[str, dict[Target, str]] = {}
    for row in current(store):
        found.setdefault(row.marked_by, {})[Target(row.sample_id, row.variant_id)] = row.mark
    return found


def people(marks: Mapping[str, Mapping[Target, str]]) -> list[tuple[str, int]]:
    """Return who has marked how much, most first."""
    counts = [(name, len(each)) for name, each in marks.items() if each]
    return sorted(counts, key=lambda each: (-each[1], each[0]))


def agreements(request: Request) -> Response:
    """How far two people agree, about a queue or about everything, and what they disagree about."""
    shared = shared_by(request)
    queue = find_queue(request, fresh=False)
    if isinstance(queue, Response):
        return queue
    marks = everybodys(shared.workspace.store)
    if queue is not None:
        marks = {
            name: {key: mark for key, mark in each.items() if queue.place_of(key) is not None}
            for name, each in marks.items()
        }
    known = people(marks)
    names = [name for name, _ in known]
    a = request.query_params.get("a") or (names[0] if names else "")
    b = request.query_params.get("b") or next((name for name in names if name != a), "")
    found = agreement(a, b, marks)
    listed = found.disagreements[:MOST_LISTED]
    return render(
        request,
        "agreement.html",
        here=HERE,
        found=found,
        listed=[
            (target, mine, theirs, words)
            for (target, mine, theirs), words in zip(listed, _words(shared, listed), strict=True)
        ],
        known=known,
        queue=queue,
    )


def _words(shared: Shared, listed: Sequence[tuple[Target, str, str]]) -> list[str]:
    """Return the first words of each sample."""
    named = {f"s{n}": target.sample_id for n, (target, _, _) in enumerate(listed)}
    if not named:
        return []
    marks = ", ".join(f":{name}" for name in named)
    sql = f"SELECT sample_id, substr(instruction, 1, 300) AS words FROM sample WHERE sample_id IN ({marks})"
    found = {row.sample_id: shortened(row.words, 90) for row in shared.workspace.store.rows(sql, **named)}
    return [found[target.sample_id] or target.sample_id[:12] for target, _, _ in listed]


routes = [Route(HERE, review), Route(f"{HERE}/item", item), Route(f"{HERE}/agreement", agreements)]
