"""What the SQL page does with a query: its parameters, its rows as cells, its plan, its chart, its files.

Invariant: every statement runs in the store's sandbox with a time limit. A query's parameters are those of a recipe with the same text, so
that what is tried here can be saved and selected unchanged.
"""

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from recycledb.errors import QueryError
from recycledb.formats.values import flat
from recycledb.formats.writers import TEXT_FIELDS, write_hashed
from recycledb.reporting.density import Numbers, axis_over, bars, density
from recycledb.selection.output import Output, deliver
from recycledb.selection.picking import Picks, columns_of, picked_rows
from recycledb.selection.query import Result, Running, query, write_result
from recycledb.selection.recipes import Bound, Parameter, Recipe, bind, parse
from recycledb.store import Store, TimeLimit
from recycledb.store.statement import without_comments

ROWS = 1_000  # shown
CHART_ROWS = 200_000  # drawn
CELL = 400  # characters of a cell
LIMIT_S = 10.0
LONGEST_S = 3_600.0
FILES = {"alpaca": ".json", "csv": ".csv", "parquet": ".parquet"}
_LINKED = re.compile(r"(sample|variant|parent|other|group|ori|q|a|qa)_id|asked_about")
_ID = re.compile(r"[0-9a-f]{32}")
_TYPES_WITH_VALUE = (
    "student",
    "small-student",
    "teacher",
    "teacher-or-best",
    "dataset",
)  # `bind` finds the only one there is


@dataclass(frozen=True)
class Cell:
    """A value as the page shows it."""

    text: str
    kind: str = ""  # n for a number, null for NULL
    link: str = ""
    rest: int = 0  # characters that are not shown


@dataclass(frozen=True)
class Shown:
    """The result of a query on the page."""

    columns: list[str]
    rows: list[list[Cell]]
    is_cut: bool  # there are more rows
    seconds: float
    numeric: list[str]  # columns that can be drawn
    chart: Markup | None = None
    drawn: str = ""  # of what, and how many rows


def read_limit(text: str) -> float:
    """Return a time limit in seconds; QueryError if it is none."""
    try:
        seconds = float(text or LIMIT_S)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_S:
        raise QueryError(f"the time limit is {text!r}: give a number of seconds above 0 and at most {LONGEST_S:g}")
    return seconds


def parameters_of(sql: str) -> tuple[Parameter, ...]:
    """Return the parameters of a query; none for a text that is not a recipe, which running it will say."""
    return parse("query", sql).parameters


def bound_to(store: Store, recipe: Recipe, given: Mapping[str, str], *, explained: bool = False) -> Bound:
    """Return the values of a query's parameters; with `explained`, NULL for those without one."""
    given = {name: value for name, value in given.items() if value != "" and name in recipe.declares}
    missing = [
        each.name
        for each in recipe.parameters
        if each.default is None and each.name not in given and each.type not in _TYPES_WITH_VALUE
    ]
    if missing and not explained:
        raise QueryError(f"give a value for :{missing[0]}")
    if missing:
        known = tuple(each for each in recipe.parameters if each.name not in missing)
        bound = bind(store, Recipe(recipe.name, "", recipe.sql, known), given)
        bound.values.update({name: None for each in missing for name in (each, f"{each}_count", f"{each}_percent")})
        return bound
    return bind(store, recipe, given)


@contextmanager
def opened(
    store: Store, sql: str, given: Mapping[str, str], limit_s: float, running: Running | None = None
) -> Iterator[Result]:
    """Run a query with the parameters given, as text, and open its result."""
    recipe = runnable(sql)
    bound = bound_to(store, recipe, given)
    with query(store, sql, bound.values, timeout_s=limit_s, as_if=bound.as_if, running=running) as result:
        yield result


def runnable(sql: str) -> Recipe:
    """Return a query as a recipe; QueryError if it cannot be run as a query."""
    if not without_comments(sql).strip(" \t\r\n;"):
        raise QueryError("the query is empty")
    recipe = parse("query", sql)
    if recipe.order is not None:
        raise QueryError(
            "this recipe puts a pool in order and picks from it, and an order is stored: record it as a selection to see what it picks"
        )
    return recipe


def run(
    store: Store,
    sql: str,
    given: Mapping[str, str],
    limit_s: float,
    *,
    running: Running | None = None,
    across: str = "",
    up: str = "",
) -> Shown:
    """Return the first rows of a query, and the chart of one or two of its columns of numbers if they are named."""
    began = time.monotonic()
    with opened(store, sql, given, limit_s, running) as result:
        columns = result.columns
        rows = list(islice(result.rows, CHART_ROWS if across in columns else ROWS + 1))
    numeric = [name for i, name in enumerate(columns) if _is_numeric(row[i] for row in rows[:ROWS])]
    chart, drawn = _chart(columns, rows, across, up if up in numeric else "") if across in numeric else (None, "")
    return Shown(
        columns,
        [[cell_of(name, value) for name, value in zip(columns, row, strict=True)] for row in rows[:ROWS]],
        len(rows) > ROWS,
        time.monotonic() - began,
        numeric,
        chart,
        drawn,
    )


def cell_of(column: str, value: Any) -> Cell:
    """Return a value as the page shows it."""
    if value is None:
        return Cell("NULL", "null")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(f"{value:.6g}" if isinstance(value, float) else str(value), "n")
    text = str(flat(value))
    link = f"/samples/{text}" if _LINKED.fullmatch(column) and _ID.fullmatch(text) else ""
    return Cell(text[:CELL], "", link, max(0, len(text) - CELL))


def _is_numeric(values: Iterator[Any]) -> bool:
    kinds = {isinstance(value, int | float) for value in values if value is not None}
    return kinds == {True}


def _chart(columns: Sequence[str], rows: Sequence[Any], across: str, up: str) -> tuple[Markup, str]:
    first = _numbers(columns.index(across), rows)
    so_many = f"the first {CHART_ROWS:,} rows" if len(rows) == CHART_ROWS else f"{len(rows):,} rows"
    if not up:
        label = f"{across} of {so_many}"
        return Markup(bars(axis_over(across, first), first, label)), label
    second = _numbers(columns.index(up), rows)
    at = next((i for i, name in enumerate(columns) if name in ("sample_id", "variant_id")), None)
    names = [str(row[at]) if at is not None else "" for row in rows]
    label = f"{across} and {up} of {so_many}"
    return Markup(
        density(axis_over(across, first), axis_over(up, second), (first, second), names.__getitem__, label)
    ), label


def _numbers(at: int, rows: Sequence[Any]) -> Numbers:
    return np.array([row[at] if isinstance(row[at], int | float) else np.nan for row in rows], np.float64)


def plan(store: Store, sql: str, given: Mapping[str, str], limit_s: float) -> str:
    """Return how the database would run a query, as text."""
    recipe = runnable(sql)
    bound = bound_to(store, recipe, given, explained=True)
    is_plan = re.match(r"(?i)\s*explain\b", without_comments(sql))
    word = "" if is_plan else "EXPLAIN QUERY PLAN " if store.backend.name == "sqlite" else "EXPLAIN "
    with query(store, word + sql, bound.values, timeout_s=limit_s, as_if=bound.as_if) as result:
        rows = list(result.rows)
    if result.columns != ["id", "parent", "notused", "detail"]:
        return "\n".join("  ".join(str(value) for value in row) for row in rows)
    depth: dict[int, int] = {0: 0}
    lines = []
    for number, parent, _, detail in rows:
        depth[number] = depth.get(parent, 0) + 1
        lines.append("  " * depth.get(parent, 0) + str(detail))
    return "\n".join(lines)


# -- files


def write_file(
    store: Store, sql: str, given: Mapping[str, str], limit_s: float, format: str, path: Path, running: Running
) -> int:
    """Write a query's rows to a file; return their number. Alpaca has the texts of the variants that the query picks."""
    if format not in FILES:
        raise QueryError(f"unknown format {format!r}: one of {', '.join(FILES)}")
    if format == "alpaca":
        return _write_alpaca(store, sql, given, limit_s, path, running)
    with opened(store, sql, given, limit_s, running) as result:
        return write_result(result, format, path, sys.stdout)  # which is not used where there is a file


def _write_alpaca(
    store: Store, sql: str, given: Mapping[str, str], limit_s: float, path: Path, running: Running
) -> int:
    recipe = runnable(sql)
    bound = bound_to(store, recipe, given)
    with query(store, sql, bound.values, timeout_s=limit_s, as_if=bound.as_if, running=running) as result:
        columns = result.columns
        if "variant_id" not in columns and set(TEXT_FIELDS) <= set(columns):
            rows = [dict(zip(columns, row, strict=True)) for row in result.rows]
            write_hashed(path, rows, "alpaca")
            return len(rows)
    if "variant_id" not in columns:
        raise QueryError(
            f"the query returns {', '.join(columns)}; an Alpaca file needs variant_id, or instruction, input and output"
        )
    with (
        store.sandbox(as_if=bound.as_if, limit=TimeLimit(limit_s)) as sandbox,
        running.statement(sandbox.interrupt),
    ):
        picks, output = Picks(columns_of(sandbox, recipe, bound), None), Output(path, "alpaca")
        return deliver(store, output, picked_rows(sandbox, recipe, bound, picks, output)).rows
