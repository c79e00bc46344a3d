"""The list of samples: filters, search, sort, and pages by key."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, text
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from recycledb.store import Store
from recycledb.view.columns import Column, Order, Snapshot
from recycledb.view.shared import render, shared_by, snapshot_for
from recycledb.view.state import PAGE_ROWS, State, following, matching, ordered

HERE = "/samples"
PREVIEW = 300  # characters of a text in the list
SHOWN = 4  # numbers beside each sample, unless the address says which


@dataclass(frozen=True)
class Line:
    """A sample in the list."""

    sample_id: str
    question: str
    answer: str
    numbers: list[float]
    kinds: list[str]


def samples(request: Request) -> Response:
    """The page, or with `rows` in the address only the rows that follow."""
    found = snapshot_for(request, HERE)
    if isinstance(found, Response):
        return found
    state = State.parse(request.query_params.multi_items())
    order = ordered(found, state, matching(found, state))
    number = found.number_of.get(state.after)
    page = following(order, number)
    shown = [column for key in state.show or default_numbers(found) if (column := found.column(key)) is not None]
    lines = read_lines(shared_by(request).workspace.store, found, page, shown)
    more = state.with_(after=lines[-1].sample_id).query() if lines and int(page[-1]) != int(order[-1]) else None
    values: dict[str, Any] = {"lines": lines, "shown": shown, "more": more, "state": state}
    if "rows" in request.query_params:
        return render(request, "samples_rows.html", **values)
    return render(request, "samples.html", here=HERE, snapshot=found, matches=len(order), rows=PAGE_ROWS, **values)


def default_numbers(snapshot: Snapshot) -> list[str]:
    """Return the numbers that are shown unless the address names others: IFD of origins, and how much a rewrite gains."""
    origins = [key for key, each in snapshot.columns.items() if each.measure == "ifd" and each.kind == "origin"]
    others = [key for key, each in snapshot.columns.items() if each.measure == "ifd" and each.kind != "origin"]
    return (
        [*origins, *(f"gain:{key}" for key in others if key.partition("@")[0] == origins[0].partition("@")[0])][:SHOWN]
        if origins
        else []
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
