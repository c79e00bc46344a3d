"""Run a recipe, write what it picks, and record the selection.

Invariant: one read-only statement on one snapshot of the store returns the picks, their order and their texts, so the file and the
record agree; the same selection on the same rows gives the same bytes and the same row on every backend. Ranking and picking are
done by the recipe alone.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from recycledb import methods
from recycledb.errors import QueryError, ReadOnlyError, SelectionError
from recycledb.formats import write
from recycledb.schema import ORIGIN, canonical_json, content_id, utc_now
from recycledb.selection import identities
from recycledb.selection.recipes import PROMPT, Bound, Given, Parameter, Recipe, bind, parse_top
from recycledb.selection.training import Written, data_file, write_beside
from recycledb.store import Sandbox, Store, TimeLimit
from recycledb.store.rows import SelectionItemRow, SelectionRow
from recycledb.store.statement import statements_in, without_comments
from recycledb.suggestions import did_you_mean

TEXTS = ("instruction", "input", "output")
LINEAGE = ("sample_id", "variant_id", "kind", "teacher")  # further columns of jsonl and parquet

# What `store_revision` counts: the append-only tables that determine what a recipe can read.
REVISION_TABLES = {
    **{table: table for table in ("sample", "place", "closing", "variant", "extraction", "loss")},
    "name": "name WHERE kind <> 'selection'",
}

# A sample's order is that of its first open position, datasets by name.
_PLACES = """
    SELECT sample_id, min(place) AS place FROM sample_order
    WHERE CAST(:sight AS VARCHAR) IS NULL OR dataset = :sight GROUP BY sample_id
"""


@dataclass(frozen=True)
class Selected:
    """The result of a selection: the fields of its record, and a summary."""

    selection: str
    selection_id: str
    recipe: str
    parameters: dict[str, Any]
    rows: int
    samples: int  # with an open position (in the dataset)
    share: float | None  # rows / samples
    counts: dict[str, int]  # by kind
    means: dict[str, float]  # of the recipe's other numbers: ifd, rifd
    store_revision: str
    output_sha256: str  # of the rows in their format, before compression
    format: str
    file: str | None
    file_sha256: str | None  # of the file; differs from output_sha256 if it is compressed
    note: str | None  # why nothing was picked
    not_recorded: str | None = None  # why it was not recorded: the store is read-only
    beside: tuple[str, ...] = ()  # further files written: LLaMA-Factory's, a card

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


@dataclass
class _Picks:
    """The picks, noted while the rows are written."""

    columns: list[str]
    cut: int | None
    items: list[tuple[str, float | None, str | None]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    numbers: dict[str, list[float]] = field(default_factory=dict)


def select(
    store: Store,
    recipe: Recipe,
    given: Given | None = None,
    *,
    name: str | None = None,
    output: Path | None = None,
    format: str = "alpaca",
    llama_factory: Path | None = None,
    card: Path | None = None,
    timeout_s: float | None = None,
) -> Selected:
    """Run `recipe` with the parameters `given`, write its picks to `output` and record the selection under `name`.

    The default name is RECIPE[-STUDENT][-TEACHER][-PROMPT]; if `output` is a folder, the file gets that name. A `top` that the recipe
    does not declare limits its ranking. `llama_factory` is LLaMA-Factory's data folder, where the rows are written unless `output` is
    given; `card` is a dataset card to write. SelectionError if the recipe or its parameters are invalid, or if there are no scores; if
    there are scores but no picks, `note` says why. In a read-only store the selection is not recorded, and `not_recorded` says why.
    QueryError if its SQL, reading the rows included, takes longer than `timeout_s` seconds.
    """
    limit = TimeLimit(timeout_s)
    bound, cut = _bound(store, recipe, dict(given or {}), format)
    called = name or _name(recipe, bound, given or {})
    output = output or llama_factory
    if output is None and card is not None:
        raise SelectionError("a card describes a file: give -o FILE too")
    if output is not None and output.is_dir():
        output = data_file(output, called, format)
    samples = count_samples(store, bound.said.get("dataset"))
    _require_scores(store, bound, samples)
    with store.sandbox(as_if=bound.as_if, limit=limit) as sandbox:
        revision = store_revision(sandbox)
        columns = _columns(sandbox, recipe, bound)
        picks = _Picks(columns, _places_in_cut(recipe, columns, cut, samples))
        sha256, file_sha256 = _written(partial(_rows, sandbox, recipe, bound), picks, output, format)
    parameters = _parameters(bound)
    selected = Selected(
        selection=called,
        selection_id=selection_id_of(recipe.sql, parameters, picks.items),
        recipe=recipe.name,
        parameters=parameters,
        rows=len(picks.items),
        samples=samples,
        share=len(picks.items) / samples if samples else None,
        counts={kind: picks.kinds[kind] for kind in _ordered(picks.kinds)},
        means={column: _mean(found) for column, found in picks.numbers.items() if found},
        store_revision=revision,
        output_sha256=sha256,
        format=format,
        file=str(output) if output else None,
        file_sha256=file_sha256,
        note=None if picks.items else _why_nothing(recipe, bound, samples),
    )
    return replace(
        selected,
        not_recorded=_record(store, recipe, selected, picks),
        beside=_beside(store, selected, llama_factory, card),
    )


def _bound(store: Store, recipe: Recipe, given: dict[str, Any], format: str) -> tuple[Bound, Any]:
    """Return the recipe's parameters, and the `top` that limits its ranking if it declares none."""
    cut = given.pop("top", None) if "top" not in recipe.declares else None
    bound = bind(store, recipe, given)
    if cut is not None:
        bound.said["top"] = str(cut)
    if format != "alpaca":
        bound.said["format"] = format
    return bound, cut


def _name(recipe: Recipe, bound: Bound, given: Given) -> str:
    prompt = bound.said.get(PROMPT)
    parts = (recipe.name, bound.said.get("student"), given.get("teacher"), str(prompt)[:8] if prompt else None)
    return "-".join(str(part) for part in parts if part)


def _beside(store: Store, selected: Selected, llama_factory: Path | None, card: Path | None) -> tuple[str, ...]:
    if selected.file is None or selected.file_sha256 is None:
        return ()
    written = Written(
        name=selected.selection,
        file=Path(selected.file),
        format=selected.format,
        rows=selected.rows,
        counts=selected.counts,
        sha256=selected.file_sha256,
        recipe=selected.recipe,
        parameters=selected.parameters,
    )
    return write_beside(store, written, llama_factory, card, selected.parameters.get("student"))


def _mean(values: list[float]) -> float:
    try:
        return math.fsum(values) / len(values)
    except OverflowError:  # the sum overflows, the mean does not
        return math.fsum(value / len(values) for value in values)


def selection_id_of(sql: str, parameters: dict[str, Any], picks: list[tuple[str, float | None, str | None]]) -> str:
    """Return the content address of a selection: its recipe, its parameters, and each pick's variant, rank and reason."""
    return content_id("selection", sql, parameters, picks)


def _parameters(bound: Bound) -> dict[str, Any]:
    """Return the parameters to be recorded: the names as given, and the ids that they mean now."""
    ids = {"student_id": bound.student_id, "teacher_id": bound.teacher_id}
    return {**bound.said, **{name: identity for name, identity in ids.items() if identity}}


def _ordered(kinds: Counter[str]) -> list[str]:
    order = list(methods.kinds())
    return sorted(kinds, key=lambda kind: (order.index(kind) if kind in order else len(order), kind))


def store_revision(sandbox: Sandbox) -> str:
    """Return the row counts of the append-only tables: rows never change, so equal counts in one store mean equal content."""
    sql = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM {rows}" for table, rows in REVISION_TABLES.items())
    counts = dict(sandbox.execute(sql)[1])
    return " ".join(f"{table}:{counts[table]}" for table in REVISION_TABLES)


def count_samples(store: Store, dataset: str | None) -> int:
    """Return how many samples have an open position (in `dataset`)."""
    sql = """
        SELECT count(DISTINCT sample_id) FROM dataset_samples
        WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset
    """
    return int(store.rows(sql, dataset=dataset)[0][0])


# -- running


def _written(
    rows: Callable[[_Picks], Iterator[dict[str, Any]]], picks: _Picks, output: Path | None, format: str
) -> tuple[str, str | None]:
    """Write the rows; return the hash of their bytes and that of the file, which differ if the file is compressed."""
    if output is None:
        return write(Path(os.devnull), rows(picks), format), None
    sha256 = write(output, rows(picks), format)
    if output.suffix.lower() not in (".gz", ".zst"):
        return sha256, sha256
    return write(Path(os.devnull), rows(_Picks(picks.columns, picks.cut)), format), sha256


def _columns(sandbox: Sandbox, recipe: Recipe, bound: Bound) -> list[str]:
    """Return the recipe's columns; raise unless it is one SELECT that returns variant_id."""
    body = without_comments(_body(recipe))
    if not re.match(r"(?i)[\s(]*(with|select|values|from|table)\b", body):
        raise SelectionError(f"recipe {recipe.name} is not one SELECT (or WITH … SELECT) statement")
    try:
        columns, rows = sandbox.execute(f"SELECT * FROM (\n{_body(recipe)}\n) AS picked LIMIT 0", bound.values)
        list(rows)
    except QueryError as error:
        raise QueryError(f"recipe {recipe.name}: {error}") from error
    _require_different(sandbox, recipe, bound, columns)
    if "variant_id" not in columns:
        raise SelectionError(f"recipe {recipe.name} returns {', '.join(columns)}; it must return variant_id")
    return columns


def _require_different(sandbox: Sandbox, recipe: Recipe, bound: Bound, columns: list[str]) -> None:
    """Raise SelectionError if two columns have the same name, since a row of JSON would keep only one."""
    lower = {column.lower() for column in columns}
    if not any((renamed := _RENAMED.fullmatch(column)) and renamed[1].lower() in lower for column in columns):
        return
    raw, _ = sandbox.execute(
        _body(recipe), bound.values
    )  # duplicate columns are renamed in a subquery, but not in the statement itself
    several = [name for name, count in Counter(column.lower() for column in raw).items() if count > 1]
    if several:
        raise SelectionError(f"recipe {recipe.name} returns several columns called {several[0]}: rename them with AS")


# How databases rename a second column `a` of a subquery: SQLite a:1, DuckDB a_1.
_RENAMED = re.compile(r"(.+)[:_]\d+", re.DOTALL)


def _body(recipe: Recipe) -> str:
    """Return the statement without its semicolon, for use as a subquery."""
    statements = statements_in(recipe.sql)
    return statements[0] if len(statements) == 1 else ""


def _places_in_cut(recipe: Recipe, columns: list[str], cut: Any, samples: int) -> int | None:
    if cut is None:
        return None
    if "rank" not in columns:
        raise SelectionError(f"recipe {recipe.name} has no parameter top and returns no rank that --top could limit")
    count, percent = parse_top(cut)
    return count if percent is None else int(percent * samples / 100)


def _rows(sandbox: Sandbox, recipe: Recipe, bound: Bound, picks: _Picks) -> Iterator[dict[str, Any]]:
    """Yield the picks as rows to write, by rank, else in dataset order; note them in `picks`."""
    teachers = dict(sandbox.execute("SELECT teacher_id, teacher FROM teachers")[1])
    rank = "picked.rank NULLS LAST, " if "rank" in picks.columns else ""
    other = [column for column in picks.columns if column not in (*LINEAGE, "rank", "reason", *TEXTS)]
    taken = ["variant_id", *(column for column in picks.columns if column in ("rank", "reason")), *other]
    sql = f"""
        SELECT {", ".join(f"picked.{_quoted(column)}" for column in taken)},
            v.sample_id, v.kind, v.teacher_id, v.instruction, v.input, v.output
        FROM (\n{_body(recipe)}\n) AS picked
        LEFT JOIN variant v ON v.variant_id = picked.variant_id
        LEFT JOIN ({_PLACES}) AS p ON p.sample_id = v.sample_id
        ORDER BY {rank}p.place NULLS LAST, v.variant_id
    """
    values = {**bound.values, "sight": bound.said.get("dataset")}
    _, rows = sandbox.execute(sql, values)
    seen: set[str] = set()
    for row in rows:
        pick = dict(zip(taken, row, strict=False))
        sample, kind, teacher, *texts = row[len(taken) :]
        if sample is None:
            raise SelectionError(
                f"recipe {recipe.name} picked {pick['variant_id']!r}, which is not a variant in this store"
            )
        if pick["variant_id"] in seen:  # for example through two positions of one sample: it is one pick
            continue
        if picks.cut is not None and len(seen) >= picks.cut:
            return
        seen.add(pick["variant_id"])
        _note(picks, recipe, pick, kind, other)
        lineage = dict(zip(LINEAGE, (sample, pick["variant_id"], kind, teachers.get(teacher)), strict=True))
        yield dict(zip(TEXTS, texts, strict=True)) | lineage | {key: pick[key] for key in taken[1:]}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _note(picks: _Picks, recipe: Recipe, pick: dict[str, Any], kind: str, other: list[str]) -> None:
    reason = pick.get("reason")
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


# -- exporting

_EXPORT = """
SELECT variant_id FROM variants
WHERE kind = :kind AND is_current = 1 AND (kind = 'origin' OR teacher = :teacher OR derivation_id IS NOT NULL)
AND sample_id IN (
    SELECT sample_id FROM dataset_samples WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset
)
"""


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    kind: str
    teacher: str | None
    dataset: str | None
    rows: int
    format: str
    file: str
    sha256: str
    beside: tuple[str, ...] = ()  # further files written: LLaMA-Factory's, a card

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def export(
    store: Store,
    output: Path,
    *,
    kind: str = "origin",
    teacher: str | None = None,
    prompt: str | None = None,
    dataset: str | None = None,
    format: str = "alpaca",
    student: str | None = None,
    llama_factory: Path | None = None,
    card: Path | None = None,
    timeout_s: float | None = None,
) -> Exported:
    """Write every current variant of one kind, in dataset order; nothing is recorded. SelectionError if there is none.

    With `prompt`, these prompts count as current. `llama_factory` and `card` as in `select`; `student` is the student that
    LLaMA-Factory's training file is for. QueryError if reading takes longer than `timeout_s` seconds.
    """
    limit = TimeLimit(timeout_s)
    if kind not in methods.kinds():
        raise SelectionError(
            f"no kind {kind!r}{did_you_mean(kind, methods.kinds())}; there are {', '.join(methods.kinds())}"
        )
    declared = (
        Parameter("kind", "text"),
        Parameter("teacher", "teacher"),
        Parameter("dataset", "dataset", default="none"),
    )
    recipe = Recipe("export", "", _EXPORT, declared)
    learner = identities.find_student(store, student).name if student is not None else None
    bound = bind(store, recipe, {"kind": kind, "teacher": teacher, "dataset": dataset, PROMPT: prompt})
    with store.sandbox(as_if=bound.as_if, limit=limit) as sandbox:
        if not list(sandbox.execute(f"{_EXPORT} LIMIT 1", bound.values)[1]):
            of = f" of {bound.said['teacher']}" if bound.said["teacher"] else ""
            where = f" in dataset {dataset}" if dataset else ""
            raise SelectionError(f"there is no current {kind}{of}{where} to export")
        picks = _Picks(["variant_id"], None)
        sha256 = write(output, _rows(sandbox, recipe, bound, picks), format)
    maker = None if kind == ORIGIN else bound.said["teacher"]
    written = Written(
        name=output.name.split(".")[0],
        file=output,
        format=format,
        rows=len(picks.items),
        counts={kind: len(picks.items)},
        sha256=sha256,
        recipe=f"every {kind}",
        parameters={"teacher": maker, "dataset": dataset},
    )
    beside = write_beside(store, written, llama_factory, card, learner)
    return Exported(kind, maker, dataset, len(picks.items), format, str(output), sha256, beside)


# -- recording


def _record(store: Store, recipe: Recipe, selected: Selected, picks: _Picks) -> str | None:
    """Record a selection; return why it cannot be, where the store may only be read."""
    row = SelectionRow(
        selection_id=selected.selection_id,
        name=selected.selection,
        recipe=recipe.name,
        sql=recipe.sql,
        parameters=canonical_json(selected.parameters),
        store_revision=selected.store_revision,
        rows=selected.rows,
        counts=json.dumps(selected.counts),
        output_sha256=selected.output_sha256,
        created_at=utc_now(),
    )
    items = (
        SelectionItemRow(selected.selection_id, position, variant, rank, reason)
        for position, (variant, rank, reason) in enumerate(picks.items)
    )
    try:
        with store.write() as conn:
            if store.insert(conn, [row]):
                store.insert(conn, items)
            store.ensure_name(conn, "selection", selected.selection, selected.selection_id)
    except ReadOnlyError as error:
        return str(error)
    return None


def list_selections(store: Store) -> list[dict[str, Any]]:
    """Return the recorded selections, oldest first."""
    rows = store.rows("""
        SELECT selection, recipe, rows, counts, parameters, created_at, output_sha256, store_revision, selection_id
        FROM selections ORDER BY created_at, selection_id
    """)
    found: list[dict[str, Any]] = [dict(row._mapping) for row in rows]
    return [{**row, "counts": json.loads(row["counts"]), "parameters": json.loads(row["parameters"])} for row in found]


def _require_scores(store: Store, bound: Bound, samples: int) -> None:
    """Raise SelectionError if there is nothing to select from, before anything is written."""
    said = bound.said
    if not samples:
        where = f"dataset {said['dataset']}" if said.get("dataset") else "the store"
        raise SelectionError(f"{where} has no samples; add some: `recycledb add FILE`")
    sql = "SELECT 1 FROM loss WHERE student_id = :student LIMIT 1"
    if bound.student_id and not store.rows(sql, student=bound.student_id):
        raise SelectionError(f"no scores under {said['student']}; run `recycledb sync --student {said['student']}`")


def _why_nothing(recipe: Recipe, bound: Bound, samples: int) -> str:
    said = bound.said
    if "teacher" in recipe.declares and not said.get("teacher") and said.get("kind") != "origin":
        return "nothing was picked: no teacher has made a variant yet (run `recycledb sync`)"
    top = f" (top {said['top']} of {samples} samples)" if said.get("top") else ""
    return f"nothing was picked: no variant meets the conditions of {recipe.name}{top}"
