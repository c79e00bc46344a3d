"""The SQL page: write a query beside the schema, run it, draw it, keep it as a recipe, a selection or a file.

    q=SQL        the query; opening the address shows it and runs nothing
    :NAME=VALUE  the value of a parameter
    limit=S      the time limit in seconds

Invariant: GET runs no SQL of the user; what a POST runs is read-only, except that a selection is recorded and a recipe file written when
their buttons are pressed.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from recycledb.errors import RecycledbError, SelectionError
from recycledb.selection.query import Running
from recycledb.selection.recipes import Parameter, Recipe, parse, shipped_as
from recycledb.selection.select import Selected, select
from recycledb.store import Store
from recycledb.view import queries, recipe_files
from recycledb.view.forms import Form, taking_form
from recycledb.view.shared import render, shared_by

HERE = "/sql"
FIRST = """\
SELECT kind, student, count(*) AS variants, avg(ifd_ppl) AS ifd
FROM scores
WHERE is_current = 1
GROUP BY kind, student
ORDER BY kind, student"""
LONGEST_ADDRESS = 30_000  # characters; servers and messengers cut longer ones
MOST_VALUES = 200  # names that a parameter's field offers

_running: dict[str, Running] = {}  # by the name that the page gave the run


@dataclass
class Outcome:
    """What came of a request; the parts that are there are shown."""

    error: str = ""
    said: list[str] = field(default_factory=list)
    link: tuple[str, str] | None = None  # address and text
    shown: queries.Shown | None = None
    plan: str = ""


@dataclass(frozen=True)
class Field:
    """The input of a parameter."""

    parameter: Parameter
    value: str
    choices: list[str]  # offered; the only ones for the type choice


# -- the page


def page(request: Request) -> Response:
    """Show the page with the query of the address; with `from` go on to the address that has the text of a recipe or selection."""
    asked = dict(request.query_params.items())
    if source := asked.get("from"):
        text, values = recipe_files.start(shared_by(request).workspace, source)
        given = {f":{name}": value for name, value in values.items() if name in parse("query", text).declares}
        address = f"{HERE}?{urlencode({'q': text, **given})}"
        if len(address) <= LONGEST_ADDRESS:
            return RedirectResponse(address, 303)
        asked = {"q": text, **given}
    return _page(request, asked, Outcome())


def _page(request: Request, form: Mapping[str, str], outcome: Outcome, status: int = 200) -> Response:
    workspace = shared_by(request).workspace
    text = form.get("q", FIRST)
    return render(
        request,
        "sql.html",
        here=HERE,
        status=status,
        text=text,
        fields=_fields(workspace.store, text, values_in(form)),
        limit=form.get("limit") or f"{queries.LIMIT_S:g}",
        form=form,
        outcome=outcome,
        rows=queries.ROWS,
        schema=schema(),
        backend=workspace.store.backend.name,
        recipes=recipe_files.shipped(),
        saved=recipe_files.names(recipe_files.folder_of(workspace)),
        selections=recipe_files.recorded(workspace.store),
    )


@cache
def schema() -> dict[str, dict[str, str]]:
    """Return the sentences for each view ("") and its columns, as docs/generate.py wrote them."""
    text = (files("recycledb.view") / "schema.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, str]] = json.loads(text)
    return found


def values_in(form: Mapping[str, str]) -> dict[str, str]:
    """Return the values of parameters in a form or an address."""
    return {name[1:]: value for name, value in form.items() if name.startswith(":")}


def _fields(store: Store, text: str, values: Mapping[str, str]) -> list[Field]:
    try:
        found = queries.parameters_of(text)
    except SelectionError:  # a text that is not finished; running it says what is wrong
        return []
    return [Field(each, values.get(each.name, ""), _choices(store, each)) for each in found]


def _choices(store: Store, parameter: Parameter) -> list[str]:
    column = {"small-student": "student", "teacher-or-best": "teacher"}.get(parameter.type, parameter.type)
    if column not in ("student", "teacher", "dataset"):
        return list(parameter.choices)
    rows = store.rows(f"SELECT {column} FROM {column}s ORDER BY {column} LIMIT {MOST_VALUES}")
    return [*(["best"] if parameter.type == "teacher-or-best" else []), *(row[0] for row in rows)]


def columns(request: Request) -> Response:
    """Return the names of views and columns, for completion."""
    names = {view: [column for column in described if column] for view, described in schema().items()}
    return JSONResponse(names, headers={"cache-control": "private, max-age=600"})


# -- what is sent


def act(request: Request, form: Form) -> Response:
    """Do what the pressed button says; answer with the whole page, or to a script (`part`) with the part that changes."""
    action = form.get("action", "run")
    if action.startswith("download-"):
        return _download(request, form, action.removeprefix("download-"))
    outcome, status = Outcome(), 200
    try:
        outcome = _ACTIONS.get(action, _run)(request, form)
    except RecycledbError as error:
        outcome.error, status = plain(str(error)), 400
        outcome.said = ["Nothing was written."] if isinstance(error, recipe_files.RecipeExistsError) else []
    return _answer(request, form, outcome, status)


def _answer(request: Request, form: Form, outcome: Outcome, status: int) -> Response:
    if form.get(
        "part"
    ):  # the script shows whatever comes; browsers complain of another status than 200 in their console
        return render(request, "sql_outcome.html", outcome=outcome, form=form, rows=queries.ROWS)
    return _page(request, form, outcome, status)


def plain(message: str) -> str:
    """Return an error's message without the hints for the command line."""
    for hint in (
        " (--timeout)",
        "; --allow-external lets it ATTACH other databases",
        "; --allow-external lets it read other files",
    ):
        message = message.replace(hint, "")
    return message


def _run(request: Request, form: Form) -> Outcome:
    store, limit = shared_by(request).workspace.store, queries.read_limit(form.get("limit", ""))
    with _named(form.get("run", "")) as running:
        shown = queries.run(
            store,
            form.get("q", ""),
            values_in(form),
            limit,
            running=running,
            across=form.get("x", ""),
            up=form.get("y", ""),
        )
    return Outcome(shown=shown)


@contextmanager
def _named(name: str) -> Iterator[Running]:
    running = Running()
    if name:
        _running[name] = running
    try:
        yield running
    finally:
        _running.pop(name, None)


def cancel(request: Request, form: Form) -> Response:
    """Stop a query that this page runs."""
    running = _running.get(form.get("run", ""))
    if running is not None:
        running.stop()
    return JSONResponse({"stopped": running is not None})


def _explain(request: Request, form: Form) -> Outcome:
    store, limit = shared_by(request).workspace.store, queries.read_limit(form.get("limit", ""))
    return Outcome(plan=queries.plan(store, form.get("q", ""), values_in(form), limit))


def _save(request: Request, form: Form) -> Outcome:
    text = form.get("q", "")
    parse("query", text)  # what is saved can be read again
    folder = recipe_files.folder_of(shared_by(request).workspace)
    shown = recipe_files.save(folder, form.get("recipe", "").strip(), text, replace="replace" in form)
    return Outcome(said=[f"Saved as {shown}.", f"On the command line: recycledb select --sql {shown}"])


def _record(request: Request, form: Form) -> Outcome:
    name = form.get("selection", "").strip()
    limit = queries.read_limit(form.get("limit", ""))
    return recorded(request, form.get("q", ""), values_in(form), name, limit)


def recorded(request: Request, text: str, given: Mapping[str, str], name: str, limit_s: float) -> Outcome:
    """Record what a recipe picks as a selection of that name, as `recycledb select` does."""
    if not name:
        raise SelectionError("give the selection a name")
    shared = shared_by(request)
    store = shared.workspace.store
    before = store.find_name("selection", name)
    recipe = parse(shipped_as(text) or name, text)
    values = {key: value for key, value in given.items() if value != ""}
    found = select(store, recipe, _declared(recipe, values), name=name, timeout_s=limit_s)
    sql = "SELECT v.sample_id FROM selection_item i JOIN variant v ON v.variant_id = i.variant_id WHERE i.selection_id = :id"
    shared.columns.label("selection", name, {row[0] for row in store.rows(sql, id=found.selection_id)})
    return _told(found, before)


def _declared(recipe: Recipe, values: Mapping[str, str]) -> dict[str, str | int | float | None]:
    return {key: value for key, value in values.items() if key in recipe.declares}


def _told(found: Selected, before: str | None) -> Outcome:
    if found.not_recorded:
        raise SelectionError(f"the selection was not recorded: {found.not_recorded}")
    share = f", {found.share:.1%} of the samples" if found.share is not None else ""
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in found.counts.items())
    said = [f"Recorded {found.selection}: {found.rows:,} variants{share}{f' ({kinds})' if kinds else ''}."]
    if before is not None and before != found.selection_id:
        said.append(
            f"The name meant another selection until now; that one is still recorded, as {found.selection}@{before[:8]}."
        )
    said += [each for each in (found.note, found.warning) if each]
    link = (f"/samples?{urlencode({'has': f'selection:{found.selection}'})}", "Its samples") if found.rows else None
    return Outcome(said=said, link=link)


_ACTIONS = {"run": _run, "explain": _explain, "save": _save, "record": _record}


def _download(request: Request, form: Form, format: str) -> Response:
    folder = Path(tempfile.mkdtemp(prefix="recycledb-view-"))
    try:
        path = folder / f"query{queries.FILES.get(format, '')}"
        limit = queries.read_limit(form.get("limit", ""))
        store = shared_by(request).workspace.store
        with _named(form.get("run", "")) as running:
            queries.write_file(store, form.get("q", ""), values_in(form), limit, format, path, running)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, RecycledbError):
            return _answer(request, form, Outcome(error=plain(str(error))), 400)
        raise
    name = f"{shared_by(request).title.partition('.')[0]}-query{path.suffix}"
    return FileResponse(
        path, filename=name, media_type="application/octet-stream",
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )  # fmt: skip


def fields(request: Request, form: Form) -> Response:
    """Return the inputs of a query's parameters."""
    found = _fields(shared_by(request).workspace.store, form.get("q", ""), values_in(form))
    values: dict[str, Any] = {"fields": found}
    return render(request, "sql_fields.html", **values)


routes = [
    Route(HERE, page),
    Route(HERE, taking_form(act), methods=["POST"]),
    Route(f"{HERE}/fields", taking_form(fields), methods=["POST"]),
    Route(f"{HERE}/cancel", taking_form(cancel), methods=["POST"]),
    Route(f"{HERE}/names", columns),
]
