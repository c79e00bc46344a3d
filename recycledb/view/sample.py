"""The page of one sample: its variants side by side, replies, scores, decisions, selections, cost, ancestry, marks."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from recycledb import methods
from recycledb.errors import StoreError
from recycledb.inspection import find_sample, history
from recycledb.methods.ifd import spelled
from recycledb.reporting.charts import spark
from recycledb.reporting.trees import decision_tree
from recycledb.schema import ORIGIN, context_messages
from recycledb.selection.explain import decisions, explain_recorded
from recycledb.store import Store
from recycledb.store.marks import Target, in_force, of_sample
from recycledb.terminal import shortened
from recycledb.view.columns import Column, Snapshot
from recycledb.view.diff import SAME, Part, diff
from recycledb.view.shared import render, shared_by, snapshot_for
from recycledb.view.state import State
from recycledb.view.walk import order_of, step

PARTS = ("instruction", "input", "output")
MOST_TEXT = 60_000  # characters of a text on the page; the rest is one link away
PREVIEW = 90


@dataclass(frozen=True)
class Shown:
    """A variant as the page shows it: its texts as parts that differ from the origin's or not."""

    variant_id: str
    kind: str
    teacher: str | None
    is_current: bool
    texts: dict[str, list[Part]]
    cut: dict[str, int]  # by part: how many characters a text has that is not shown whole
    marks: list[Any] = field(default_factory=list)  # in force, by anybody
    own: str = ""  # the mark of the person at the page


@dataclass(frozen=True)
class Cell:
    """A number of the sample within the population's."""

    value: float
    percent: float
    chart: Markup


def one(request: Request) -> Response:
    """The page; a prefix of any id of the sample leads to it."""
    shared = shared_by(request)
    given = request.path_params["sample"]
    state = State.parse(request.query_params.multi_items())
    query = state.with_().query()
    more = f"?{query}" if query else ""
    try:
        sample = find_sample(shared.workspace.store, given)
    except StoreError as error:
        raise HTTPException(404, str(error)) from error
    if sample != given:
        return RedirectResponse(f"/samples/{sample}{more}", status_code=303)
    snapshot = snapshot_for(request, "/samples")
    if isinstance(snapshot, Response):
        return snapshot
    with shared.workspace.store.together():
        values = page_values(shared.workspace.store, shared.person, sample)
    return render(
        request,
        "sample.html",
        here="/samples",
        scores=score_table(snapshot, sample),
        step=step(snapshot, order_of(shared, snapshot, state), sample),
        query=query,
        back=request.url.path + more,
        **values,
    )


def page_values(store: Store, person: str, sample: str) -> dict[str, Any]:
    """Return what the page shows to a person that is read from the store."""
    found, marks = history(store, sample), of_sample(store, sample)
    kinds = {row["variant_id"]: row["kind"] for row in found["variants"]}
    return {
        "sample": sample,
        "found": found,
        "context": context_messages(found["context"]),
        "shown": show_variants(found["variants"], marks, person),
        "old": [row for row in found["variants"] if not row["is_current"]],
        "marks": marks,
        "person": person,
        "own": mark_of(marks, Target(sample), person),
        "replies": [reply(row, kinds) for row in found["teacher_texts"]],
        "cost": cost(found["teacher_texts"]),
        "trees": [
            (
                each,
                Markup(decision_tree(each)),
                [spelled(line) for line in each.decision.steps],
                spelled(each.decision.verdict),
            )
            for each in decisions(found["scores"])
        ],
        "selections": [
            {**each, "head": spelled(each["text"].split("\n")[0]), "steps": [spelled(line) for line in each["steps"]]}
            for each in explain_recorded(store, sample)
        ],
        "tree": descent(found["variants"]),
        "others": previews(store, found),
        "kinds": kinds,
    }


def mark_of(rows: Sequence[Any], target: Target, person: str) -> str:
    """Return the mark that a person has given something, "" for none."""
    mine = [row for row in rows if row.marked_by == person]
    found = in_force(mine).get(target)
    return str(found.mark) if found is not None else ""


def show_variants(rows: Sequence[Mapping[str, Any]], marks: Sequence[Any], person: str) -> list[Shown]:
    """Return the current variants, the origin first, each with its difference from the origin."""
    order = list(methods.kinds())
    current = [row for row in rows if row["is_current"] or row["kind"] == ORIGIN]
    current.sort(
        key=lambda row: (row["kind"] != ORIGIN, _rank(row["kind"], order), row["teacher"] or "", row["variant_id"])
    )
    if not current:
        return []
    origin, deciding = current[0], in_force(marks)
    own = in_force([mark for mark in marks if mark.marked_by == person])
    shown = []
    for row in current:
        texts, cut = {}, {}
        for part in PARTS:
            before, after = origin[part][:MOST_TEXT], row[part][:MOST_TEXT]
            texts[part] = diff(before, after) if row is not origin else [(SAME, after)] if after else []
            if len(row[part]) > MOST_TEXT:
                cut[part] = len(row[part])
        about = [mark for key, mark in deciding.items() if key.variant_id == row["variant_id"]]
        mine = next((mark.mark for key, mark in own.items() if key.variant_id == row["variant_id"]), "")
        shown.append(
            Shown(row["variant_id"], row["kind"], row["teacher"], bool(row["is_current"]), texts, cut, about, mine)
        )
    return shown


def _rank(kind: str, order: Sequence[str]) -> int:
    return order.index(kind) if kind in order else len(order)


def whole(request: Request) -> Response:
    """One text of a variant, whole, as plain text."""
    sample, variant, part = (request.path_params[name] for name in ("sample", "variant", "part"))
    rows = shared_by(request).workspace.store.rows(
        "SELECT instruction, input, output FROM variant WHERE variant_id = :v AND sample_id = :s", v=variant, s=sample
    )
    if not rows or part not in PARTS:
        raise HTTPException(404, "no such text")
    return PlainTextResponse(getattr(rows[0], part).encode("utf-8", "replace"))


# -- replies and what they cost


def reply(row: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Return a reply with its text in two parts: the critique before the first marker of its step, and the rest."""
    text = row["text"] or ""
    step = methods.steps().get(row["step"])
    places = [found.start() for marker in (step.markers if step else ()) if (found := _place(marker, text))]
    at = min(places, default=0)
    about, gave = kinds.get(row["variant_id"], "variant"), kinds.get(row["gave"])
    return {**row, "critique": text[:at][:MOST_TEXT], "rest": text[at:][:MOST_TEXT], "about": about, "kind": gave}


def _place(marker: str, text: str) -> re.Match[str] | None:
    return re.search(re.escape(marker), text, re.IGNORECASE)


def cost(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums over all replies."""
    known = [row["cost_usd"] for row in rows if row["cost_usd"] is not None]
    return {
        "requests": len(rows),
        "prompt": sum(row["prompt_tokens"] or 0 for row in rows),
        "completion": sum(row["completion_tokens"] or 0 for row in rows),
        "usd": sum(known) if known else None,
        "unknown": len(rows) - len(known),
    }


# -- scores


def score_table(snapshot: Snapshot, sample: str) -> dict[str, Any]:
    """Return the sample's numbers: a row for each measure and model, a column for each kind."""
    number = snapshot.number_of.get(sample)
    if number is None:
        return {"kinds": [], "rows": []}
    kinds: dict[str, None] = {}
    rows: dict[tuple[str, str], dict[str, Cell]] = {}
    for column in snapshot.columns.values():
        value = float(column.values[number])
        if not math.isnan(value):
            kinds[column.kind] = None
            rows.setdefault((column.measure, column.model), {})[column.kind] = cell(column, value)
    order = list(methods.kinds())
    names = sorted(kinds, key=lambda kind: (_rank(kind.partition(" by ")[0], order), kind))
    return {"kinds": names, "rows": [(spelled(measure), model, cells) for (measure, model), cells in rows.items()]}


def cell(column: Column, value: float) -> Cell:
    """Return a number with its place among all samples'."""
    low, high, counts = column.shape
    percent = 100 * column.below(value)
    said = f"{value:.3g} is higher than {percent:.0f} % of the samples"
    at = (value - low) / (high - low) if high > low else 0.5
    return Cell(value, percent, Markup(spark(counts, at, column.kind.partition(" by ")[0], said)))


# -- ancestors and descendants


def descent(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the sample's variants as a tree: each with its depth, below what it was made from."""
    children: dict[str | None, list[Mapping[str, Any]]] = {}
    own = {row["variant_id"] for row in rows}
    for row in rows:
        children.setdefault(row["parent_id"] if row["parent_id"] in own else None, []).append(row)
    found: list[tuple[int, Mapping[str, Any]]] = []
    waiting = [(0, row) for row in reversed(children.get(None, []))]
    while waiting:
        depth, row = waiting.pop()
        found.append((depth, row))
        waiting += [(depth + 1, child) for child in reversed(children.get(row["variant_id"], []))]
    return found


def previews(store: Store, found: Mapping[str, Any]) -> dict[str, str]:
    """Return the first words of the other samples that the page links to."""
    ids = {each["sample_id"] for each in found["near_duplicates"]}
    ids |= {member["sample_id"] for each in found["derivations"] for member in each["members"]}
    ids |= {each["sample_id"] for each in found["derivations"] if each["sample_id"]}
    named = {f"s{i}": sample for i, sample in enumerate(sorted(ids - {found["sample_id"]})[:200])}
    if not named:
        return {}
    marks = ", ".join(f":{name}" for name in named)
    sql = f"SELECT sample_id, substr(instruction, 1, 300) AS words FROM sample WHERE sample_id IN ({marks})"
    return {row.sample_id: shortened(row.words, PREVIEW) for row in store.rows(sql, **named)}


routes = [
    Route("/samples/{sample}", one),
    Route("/samples/{sample}/text/{variant}/{part}", whole),
]
