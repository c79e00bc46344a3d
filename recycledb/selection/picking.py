"""Run a recipe's statement and yield its picks as rows to write.

Invariant: the recipe alone ranks and picks; what is left out afterwards, near-duplicates and what is beyond a `top`, is left out in the
order of its ranks. One statement on one snapshot returns the picks, their order and their texts.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from recycledb.errors import QueryError, SelectionError
from recycledb.formats.contexts import CONTEXT
from recycledb.formats.pairs import PAIR, PAIR_FORMATS, Pair
from recycledb.formats.writers import EXTRA, GENERATOR, TEST_SET
from recycledb.selection.evaluation import ALPACA_EVAL
from recycledb.selection.output import Output
from recycledb.selection.recipes import Bound, Recipe, parse_top
from recycledb.store import Sandbox
from recycledb.store.statement import statements_in, without_comments

TEXTS = ("instruction", "input", "output")
LINEAGE = ("sample_id", "variant_id", "kind", "teacher")  # further columns of jsonl and parquet

# A sample's order is that of its first open position, datasets by name.
_PLACES = """
    SELECT sample_id, min(place) AS place FROM sample_order
    WHERE CAST(:sight AS VARCHAR) IS NULL OR dataset = :sight GROUP BY sample_id
"""


@dataclass
class Picks:
    """The picks, noted while the rows are written."""

    columns: list[str]
    cut: int | None
    groups: Mapping[str, str] = field(default_factory=dict)  # of near-duplicate samples, of which one is picked
    only: Mapping[str, str] | None = None  # the variants to pick and the reason for each; None: all
    left_out: frozenset[str] = frozenset()  # variants that marks leave out
    marked: set[str] = field(default_factory=set)  # those of them that the recipe picked
    first: dict[str, str] = field(default_factory=dict)  # by group: the sample that was picked
    dropped: int = 0
    items: list[tuple[str, float | None, str | None]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    numbers: dict[str, list[float]] = field(default_factory=dict)


def columns_of(sandbox: Sandbox, recipe: Recipe, bound: Bound) -> list[str]:
    """Return the recipe's columns; raise unless it is one SELECT that returns variant_id."""
    body = without_comments(_body(recipe))
    if not re.match(r"(?i)[\s(]*(with|select|values|from|table)\b", body):
        raise SelectionError(f"recipe {recipe.name} is not one SELECT (or WITH … SELECT) statement")
    try:
        columns = sandbox.columns(_body(recipe), bound.values)
    except QueryError as error:
        raise QueryError(f"recipe {recipe.name}: {error}") from error
    _require_different(sandbox, recipe, bound, columns)
    if "variant_id" not in columns:
        raise SelectionError(f"recipe {recipe.name} returns {', '.join(columns)}; it must return variant_id")
    return columns


def _require_different(sandbox: Sandbox, recipe: Recipe, bound: Bound, columns: list[str]) -> None:
    """Raise SelectionError if two columns have the same name, since a row of JSON would keep only one."""
    lower = {column.lower() for column in columns}
    if len(lower) == len(columns) and not any(
        (renamed := _RENAMED.fullmatch(column)) and renamed[1].lower() in lower for column in columns
    ):
        return
    raw, _ = sandbox.execute(
        _body(recipe), bound.values
    )  # duplicate columns are renamed in a subquery, but not in the statement itself
    several = [name for name, count in Counter(column.lower() for column in raw).items() if count > 1]
    if several:
        raise SelectionError(f"recipe {recipe.name} returns several columns called {several[0]}: rename them with AS")


# How databases rename a second column `a` of a subquery: SQLite a:1, DuckDB a_1; PostgreSQL does not.
_RENAMED = re.compile(r"(.+)[:_]\d+", re.DOTALL)


def _body(recipe: Recipe) -> str:
    """Return the statement without its semicolon, for use as a subquery."""
    statements = statements_in(recipe.sql if recipe.order is None else recipe.order.pick)
    return statements[0] if len(statements) == 1 else ""


def places_in_cut(recipe: Recipe, columns: list[str], cut: Any, samples: int) -> int | None:
    if cut is None:
        return None
    if "rank" not in columns:
        what = "has no parameter top and " if "top" not in recipe.declares else ""
        raise SelectionError(f"recipe {recipe.name} {what}returns no rank that --top could limit")
    count, percent = parse_top(cut)
    return count if percent is None else int(percent * samples / 100)


# Whose an answer is, for AlpacaEval.
_AUTHOR = """
    LEFT JOIN derivation d ON d.derivation_id = v.derivation_id
    LEFT JOIN augmentation a ON a.augmentation_id = d.augmentation_id AND a.method = 'answers'
"""

# The extra fields at a sample's first open position.
_EXTRA = """
    LEFT JOIN sample_order o ON o.place = p.place
    LEFT JOIN dataset_samples e ON e.dataset = o.dataset AND e.position = o.position
"""


def picked_rows(
    sandbox: Sandbox, recipe: Recipe, bound: Bound, picks: Picks, output: Output
) -> Iterator[dict[str, Any]]:
    """Yield the picks as rows to write, by rank, else in dataset order; note them in `picks`."""
    teachers = dict(sandbox.execute("SELECT teacher_id, teacher FROM teachers")[1])
    rank = "picked.rank NULLS LAST, " if "rank" in picks.columns else ""
    other = [column for column in picks.columns if column not in (*LINEAGE, "rank", "reason", *TEXTS)]
    pairs, outputs = output.format in PAIR_FORMATS, output.format == ALPACA_EVAL
    taken = ["variant_id", *(column for column in picks.columns if column in ("rank", "reason")), *other]
    sql = f"""
        SELECT {", ".join(f"picked.{_quoted(column)}" for column in taken)},
            v.sample_id, v.kind, v.teacher_id, v.instruction, v.input, v.output,
            {"e.extra" if output.with_extra or outputs else "NULL"}, {"s.output" if pairs else "NULL"}, s.context,
            {"a.name, e.dataset" if outputs else "NULL, NULL"}
        FROM (\n{_body(recipe)}\n) AS picked
        LEFT JOIN variant v ON v.variant_id = picked.variant_id
        LEFT JOIN ({_PLACES}) AS p ON p.sample_id = v.sample_id
        LEFT JOIN sample s ON s.sample_id = v.sample_id
        {_EXTRA if output.with_extra or outputs else ""}
        {_AUTHOR if outputs else ""}
        ORDER BY {rank}p.place NULLS LAST, v.variant_id
    """
    values = {**bound.values, "sight": bound.said.get("dataset")}
    _, rows = sandbox.execute(sql, values)
    seen: set[str] = set()
    for row in rows:
        pick = dict(zip(taken, row, strict=False))
        sample, kind, teacher, *texts, extra, rejected, context, author, test_set = row[len(taken) :]
        if sample is None:
            raise SelectionError(
                f"recipe {recipe.name} picked {pick['variant_id']!r}, which is not a variant in this store"
            )
        if pick["variant_id"] in seen:  # for example through two positions of one sample: it is one pick
            continue
        if picks.only is not None and pick["variant_id"] not in picks.only:
            continue
        if pick["variant_id"] in picks.left_out:
            picks.marked.add(pick["variant_id"])
            continue
        if picks.cut is not None and len(seen) >= picks.cut:
            return
        if picks.groups and not _is_first(picks, sample):
            continue
        seen.add(pick["variant_id"])
        _note(picks, recipe, pick, kind, other)
        lineage = dict(zip(LINEAGE, (sample, pick["variant_id"], kind, teachers.get(teacher)), strict=True))
        more = {EXTRA: json.loads(extra or "{}")} if output.with_extra else {}
        more |= {PAIR: Pair(rejected, context)} if pairs else {}
        more |= {CONTEXT: context} if context is not None else {}
        more |= _evaluated(author or lineage["teacher"] or kind, extra, test_set) if outputs else {}
        yield dict(zip(TEXTS, texts, strict=True)) | lineage | {key: pick[key] for key in taken[1:]} | more


def _evaluated(generator: str, extra: str | None, dataset: str | None) -> dict[str, Any]:
    """Return the model and the test set of an output: the set that its own source row names, else the dataset."""
    named = json.loads(extra or "{}").get("dataset")
    return {GENERATOR: generator, TEST_SET: named if isinstance(named, str) and named else dataset}


def _is_first(picks: Picks, sample: str) -> bool:
    """Return whether no other sample of its group of near-duplicates has been picked before."""
    group = picks.groups.get(sample)
    first = group is None or picks.first.setdefault(group, sample) == sample
    picks.dropped += not first
    return first


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _note(picks: Picks, recipe: Recipe, pick: dict[str, Any], kind: str, other: list[str]) -> None:
    reason = pick.get("reason") if picks.only is None else picks.only[pick["variant_id"]]
    picks.items.append((pick["variant_id"], _rank(recipe, pick), None if reason is None else str(reason)))
    picks.kinds[kind] += 1
    for column in other:
        value = pick[column]
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            picks.numbers.setdefault(column, []).append(float(value))


def _rank(recipe: Recipe, pick: dict[str, Any]) -> float | None:
    """Return a pick's rank: a finite number or NULL, since only these have the same order on every backend and exist in JSON."""
    rank = pick.get("rank")
    if rank is None:
        return None
    if not isinstance(rank, int | float | Decimal) or not math.isfinite(rank):
        what = "not a number" if isinstance(rank, str | bytes) else "not a finite number"
        raise SelectionError(
            f"recipe {recipe.name} ranks by {rank!r:.60}, which is {what} (variant {pick['variant_id'][:12]}): return a number, "
            "or NULL, which sorts last"
        )
    return float(rank)
