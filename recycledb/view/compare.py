"""The page that compares two numbers of the samples: students, measures or teachers, as a scatter plot with a region to take out.

    x=KEY, y=KEY                the two columns (`columns.py`)
    xlow=, xhigh=, ylow=, yhigh=   the region; a bound that is left out is open
    has, lacks, range, q        which samples, as in the list of samples (`state.py`)
    pick=x|y|origin             which variants the SQL and the selection have

Invariant: the samples of the region are computed from the numbers, never from what is drawn.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from recycledb.errors import RecycledbError, SelectionError
from recycledb.reporting.charts import BOTTOM, CHART_SIZE, LEFT, RIGHT
from recycledb.reporting.density import TOP, outlined
from recycledb.reporting.scatter import Scatter, agreement, scatter
from recycledb.selection.agreement import pearson
from recycledb.view import sql
from recycledb.view.columns import Column, Flags, Snapshot
from recycledb.view.forms import Form, taking_form
from recycledb.view.region import PICKS, Region, region_sql
from recycledb.view.samples import column_groups, conditions, read_lines
from recycledb.view.shared import render, shared_by, snapshot_for
from recycledb.view.state import Range, State, StateError, shortest
from recycledb.view.walk import find

HERE = "/compare"
BOUNDS = ("xlow", "xhigh", "ylow", "yhigh")
MOST_PICTURES = 32  # kept at a time
LISTED = 10  # samples of the region on the page
RECORD_S = 120.0  # for the query of a selection


def compare(request: Request) -> Response:
    """Show the page."""
    return _page(request, request.query_params.multi_items(), sql.Outcome())


def record(request: Request, form: Form) -> Response:
    """Record the variants of a region as a selection; the form has the address of the page."""
    pairs = parse_qsl(form.get("address", ""), keep_blank_values=True)
    snapshot = snapshot_for(request, HERE)
    if isinstance(snapshot, Response):
        return snapshot
    try:
        text, count = _query(request, snapshot, pairs, form.get("pick", ""))
        outcome = sql.recorded(request, text, {}, form.get("selection", "").strip(), RECORD_S)
        outcome.said.append(f"The region has {count:,} samples.")
    except RecycledbError as error:
        outcome = sql.Outcome(error=sql.plain(str(error)))
    pairs = [pair for pair in pairs if pair[0] != "pick"] + [("pick", form.get("pick", ""))]
    return _page(request, pairs, outcome, 400 if outcome.error else 200)


def _query(request: Request, snapshot: Snapshot, pairs: list[tuple[str, str]], pick: str) -> tuple[str, int]:
    asked, state = dict(pairs), State.parse(pairs)
    x, y = chosen(snapshot, asked)
    region = region_of(asked, x.key, y.key)
    found, _ = find(shared_by(request), snapshot, state)
    members = region.members(snapshot, found)
    if pick not in PICKS:
        raise SelectionError(f"pick is {pick!r}: one of {', '.join(PICKS)}")
    return region_sql(snapshot, state, region, members, pick), len(members)


def chosen(snapshot: Snapshot, asked: Mapping[str, str]) -> tuple[Column, Column]:
    """Return the two columns that an address names; by default two students' IFD, else IFD and what a rewrite gains."""
    keys = (asked.get("x") or "", asked.get("y") or "")
    defaults = default_pair(snapshot)
    found = []
    for key in (given or default for given, default in zip(keys, defaults, strict=True)):
        column = snapshot.column(key)
        if column is None:
            raise StateError(f"no number {key!r}; choose two of the lists on this page: {HERE}")
        found.append(column)
    return found[0], found[1]


def default_pair(snapshot: Snapshot) -> tuple[str, str]:
    """Return the columns to begin with; StateError if there are no two."""
    ifd = [key for key, each in snapshot.columns.items() if each.measure == "ifd"]
    origins = [key for key in ifd if snapshot.columns[key].kind == "origin"]
    gains = [f"gain:{key}" for key in ifd if key not in origins and snapshot.column(f"gain:{key}")]
    keys = list(dict.fromkeys([*origins[:2], *gains, *snapshot.columns]))
    if len(keys) < 2:
        raise StateError("there are no two numbers to compare yet: `recycledb sync` scores the samples")
    return keys[0], keys[1]


def region_of(asked: Mapping[str, str], x: str, y: str) -> Region:
    """Return the region of an address."""
    ends = []
    for name, absent in zip(BOUNDS, (-math.inf, math.inf, -math.inf, math.inf), strict=True):
        text = asked.get(name, "").strip().replace(",", ".")
        try:
            ends.append(float(text) if text else absent)
        except ValueError:
            ends.append(math.nan)
        if math.isnan(ends[-1]):
            raise StateError(f"{name} is {text!r}, which is not a number")
    return Region(Range(x, ends[0], ends[1]), Range(y, ends[2], ends[3]))


def _page(request: Request, pairs: list[tuple[str, str]], outcome: sql.Outcome, status: int = 200) -> Response:
    snapshot = snapshot_for(request, HERE)
    if isinstance(snapshot, Response):
        return snapshot
    shared, asked = shared_by(request), dict(pairs)
    state = replace(State.parse(pairs), sort="", show=(), after="")
    x, y = chosen(snapshot, asked)
    region = region_of(asked, x.key, y.key)
    found, note = find(shared, snapshot, state)
    bounds = {name: asked.get(name, "").strip() for name in BOUNDS}
    own = [("x", x.key), ("y", y.key)]
    address = urlencode([*own, *((name, value) for name, value in bounds.items() if value)])
    rest = state.query()
    values: dict[str, Any] = {
        "x": x, "y": y, "state": state, "rest": rest, "bounds": bounds, "outcome": outcome, "note": note,
        "groups": column_groups(snapshot),
        "conditions": [(words, f"{urlencode(own)}&{without}") for words, without in conditions(state)],
        "swapped": f"{urlencode([('x', y.key), ('y', x.key)])}&{rest}",
        "address": f"{address}&{rest}" if rest else address,
        **_picture(snapshot, state, x, y, found, region),
        **_taken(request, snapshot, state, region, found, asked),
    }  # fmt: skip
    return render(request, "compare.html", here=HERE, status=status, **values)


def _picture(snapshot: Snapshot, state: State, x: Column, y: Column, found: Flags, region: Region) -> dict[str, Any]:
    """Return the picture, where its axes are, and how the numbers agree."""
    drawn, said = _drawn(snapshot, state, x, y, found)
    svg = outlined(drawn.svg, drawn.x, drawn.y, region.ends) if region.is_bounded else drawn.svg
    box = {
        "left": LEFT, "right": CHART_SIZE[0] - RIGHT, "top": TOP, "floor": CHART_SIZE[1] - BOTTOM,
        "xlow": drawn.x.low, "xhigh": drawn.x.high, "ylow": drawn.y.low, "yhigh": drawn.y.high,
    }  # fmt: skip
    # `scatter` and `agreement` escape every text.
    return {
        "picture": Markup(svg),
        "agreement": Markup(said),
        "box": {name: shortest(float(value)) for name, value in box.items()},
    }


def _drawn(snapshot: Snapshot, state: State, x: Column, y: Column, found: Flags) -> tuple[Scatter, str]:
    """Return the picture without a region, and how the numbers agree; kept, since one picture is looked at with many regions."""
    pictures: dict[tuple[str, ...], tuple[Scatter, str]] = snapshot.kept.setdefault("pictures", {})
    name = (x.key, y.key, state.query())
    if name in pictures:
        return pictures[name]
    both = found & x.known & y.known
    numbers, first, second = np.flatnonzero(both), x.values[both], y.values[both]
    same = x.measure == y.measure and not x.key.startswith("g") and not y.key.startswith("g")
    drawn = scatter((x.key, y.key), (first, second), lambda i: snapshot.ids[numbers[i]], "samples", diagonal=same)
    both_ranks = pearson(x.ranks(both), y.ranks(both))
    total = int(np.count_nonzero(found))
    result = drawn, agreement(len(numbers), total, "samples", both_ranks, pearson(first, second))
    if not state.words:  # whose samples change while the index is being built
        pictures[name] = result
        for old in list(pictures)[:-MOST_PICTURES]:
            pictures.pop(old, None)
    return result


def _taken(
    request: Request, snapshot: Snapshot, state: State, region: Region, found: Flags, asked: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the page shows of the region: its samples, their list, their SQL."""
    if not region.is_bounded:
        return {"members": None}
    x, y = (snapshot.column(each.key) for each in (region.x, region.y))
    assert x is not None and y is not None
    members = region.members(snapshot, found)
    pick = asked.get("pick") if asked.get("pick") in PICKS else "x"
    text, no_sql = "", ""
    try:
        text = region_sql(snapshot, state, region, members, str(pick))
    except SelectionError as error:
        no_sql = str(error)
    address = f"{sql.HERE}?{urlencode({'q': text})}"
    store = shared_by(request).workspace.store
    narrowed = region.narrowed(state)
    return {
        "members": len(members),
        "lines": read_lines(store, snapshot, members[:LISTED], [x, y]),
        "list_address": f"/samples?{narrowed.query()}",
        "sql": text,
        "no_sql": no_sql,
        "sql_address": address if text and len(address) <= sql.LONGEST_ADDRESS else "",
        "pick": pick,
        "listed": LISTED,
    }


routes = [Route(HERE, compare), Route(HERE, taking_form(record), methods=["POST"])]
