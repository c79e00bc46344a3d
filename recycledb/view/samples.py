"""The list of samples: filters, search, sort, and pages by key."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sqlalchemy import bindparam, text
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from recycledb.store import Store
from recycledb.view.columns import Column, Flags, Order, Snapshot
from recycledb.view.shared import render, shared_by, snapshot_for
from recycledb.view.state import Range, State, following, ordered
from recycledb.view.walk import find

HERE = "/samples"
PREVIEW = 300  # characters of a text in the list
SHOWN = 4  # numbers beside each sample, unless the address says which
FORM_FIELDS = ("range_key", "sort_by", "direction")  # what only the form sends


@dataclass(frozen=True)
class Line:
    """A sample in the list."""

    sample_id: str
    question: str
    answer: str
    numbers: list[float]
    kinds: list[str]


@dataclass(frozen=True)
class Facet:
    """A property that samples may have: how many of those found have it, what the address says of it, and the next address."""

    label: str
    count: int
    state: str  # "", "has" or "lacks"
    next: str


def samples(request: Request) -> Response:
    """The page, or with `rows` in the address only the rows that follow."""
    snapshot = snapshot_for(request, HERE)
    if isinstance(snapshot, Response):
        return snapshot
    state = State.parse(request.query_params.multi_items())
    if any(name in request.query_params for name in FORM_FIELDS):
        return RedirectResponse(f"{HERE}?{state.query()}", 303)
    shared = shared_by(request)
    found, note = find(shared, snapshot, state)
    order = ordered(snapshot, state, found)
    page = following(order, snapshot.number_of.get(state.after))
    keys = state.show or default_numbers(snapshot, state)
    shown = [column for key in keys if (column := snapshot.column(key)) is not None]
    lines = read_lines(shared.workspace.store, snapshot, page, shown)
    more = replace(state, after=lines[-1].sample_id).query() if lines and page[-1] != order[-1] else ""
    values: dict[str, Any] = {
        "lines": lines,
        "shown": shown,
        "more": more,
        "state": state,
        "here_query": state.with_().query(),
    }
    if "rows" in request.query_params:
        return render(request, "samples_rows.html", **values)
    total, unsorted = len(snapshot.ids), np.count_nonzero(found) - len(order)
    return render(
        request, "samples.html", here=HERE, matches=len(order), total=total, unsorted=unsorted, note=note,
        facets=facets(snapshot, state, found), groups=column_groups(snapshot), conditions=conditions(state), **values,
    )  # fmt: skip


def default_numbers(snapshot: Snapshot, state: State) -> list[str]:
    """Return the numbers to show unless the address names some: those it uses, then IFD of origins and what a rewrite gains."""
    used = [*([state.sort.removeprefix("-")] if state.sort else []), *(each.key for each in state.ranges)]
    origins = [key for key, each in snapshot.columns.items() if each.measure == "ifd" and each.kind == "origin"]
    models = {snapshot.columns[key].model for key in origins[:1]}
    gains = [
        f"gain:{key}"
        for key, each in snapshot.columns.items()
        if each.measure == "ifd" and each.model in models and each.kind != "origin"
    ]
    return list(dict.fromkeys([*used, *origins, *gains]))[: max(SHOWN, len(used))]


def facets(snapshot: Snapshot, state: State, found: Flags) -> dict[str, list[Facet]]:
    """Return the properties by group, the most frequent among the samples found first."""
    result = {}
    for group, labels in snapshot.flags.items():
        each = [
            Facet(
                label,
                int(np.count_nonzero(flags & found)),
                "has" if (group, label) in state.has else "lacks" if (group, label) in state.lacks else "",
                state.toggled(group, label).query(),
            )
            for label, flags in labels.items()
        ]
        if each:
            result[group] = sorted(each, key=lambda facet: (not facet.state, -facet.count))
    return result


def column_groups(snapshot: Snapshot) -> dict[str, list[str]]:
    """Return the keys of all numbers, by measure and model, with gains and gaps for those of IFD."""
    groups: dict[str, list[str]] = {}
    for key, column in snapshot.columns.items():
        groups.setdefault(f"{column.measure}/{column.model}", []).append(key)
        if column.measure == "ifd" and column.kind != "origin" and snapshot.column(f"gain:{key}"):
            groups.setdefault(f"gain in ifd/{column.model}", []).append(f"gain:{key}")
    models = list(dict.fromkeys(each.model for each in snapshot.columns.values() if each.measure == "ifd"))
    for one, other in itertools.pairwise(models):
        for key, column in snapshot.columns.items():
            twin = f"ifd/{other}@{column.kind}"
            if column.measure == "ifd" and column.model == one and twin in snapshot.columns:
                groups.setdefault(f"disagreement of {one} and {other}", []).append(f"gap:{key}|{twin}")
    return groups


def conditions(state: State) -> list[tuple[str, str]]:
    """Return what the address asks for in words, each with the address without it."""
    found = [(f"“{state.words}”", state.with_(words="").query())] if state.words else []
    for name, pairs in (("has", state.has), ("lacks", state.lacks)):
        for pair in pairs:
            rest = tuple(each for each in pairs if each != pair)
            found.append(
                (f"{'' if name == 'has' else 'not '}{pair[0]}: {pair[1]}", state.with_(**{name: rest}).query())
            )
    for each in state.ranges:
        rest_ranges = tuple(other for other in state.ranges if other != each)
        found.append((range_text(each), state.with_(ranges=rest_ranges).query()))
    return found


def range_text(found: Range) -> str:
    """Return a range in words."""
    low, high = (f"{end:.6g}" if abs(end) != float("inf") else "" for end in (found.low, found.high))
    return (
        f"{low} ≤ {found.key} ≤ {high}" if low and high else f"{found.key} ≥ {low}" if low else f"{found.key} ≤ {high}"
    )


def read_lines(store: Store, snapshot: Snapshot, page: Order, shown: Sequence[Column]) -> list[Line]:
    """Read the texts of some samples, in their order."""
    ids = [snapshot.ids[number] for number in page]
    sql = text(
        f"SELECT sample_id, substr(instruction, 1, {PREVIEW}) AS instruction, substr(input, 1, {PREVIEW}) AS input, "
        f"substr(output, 1, {PREVIEW}) AS output FROM sample WHERE sample_id IN :ids"
    ).bindparams(bindparam("ids", expanding=True))
    with store.read() as conn:
        rows = {row.sample_id: row for row in conn.execute(sql, {"ids": ids})}
    kinds = snapshot.flags["kind"]
    return [
        Line(
            sample,
            " · ".join(part for part in (rows[sample].instruction, rows[sample].input) if part),
            rows[sample].output,
            [float(column.values[number]) for column in shown],
            [kind for kind, flags in kinds.items() if kind != "origin" and flags[number]],
        )
        for sample, number in zip(ids, page, strict=True)
    ]


routes = [Route(HERE, samples)]
