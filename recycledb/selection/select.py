"""Run a recipe, write what it picks, and record the selection.

Invariant: one read-only statement on one snapshot of the store returns the picks, their order and their texts, so the file and the
record agree; the same selection on the same rows gives the same bytes and the same row on every backend. Ranking and picking are
done by the recipe alone.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from recycledb import methods
from recycledb.errors import SelectionError
from recycledb.formats.pairs import PAIR_FORMATS
from recycledb.methods.judging import ANSWER
from recycledb.schema import ORIGIN, canonical_json, utc_now
from recycledb.selection import identities, marked, orderings
from recycledb.selection.evaluation import ALPACA_EVAL, kind_and_author, require_outputs
from recycledb.selection.output import HeldOut, Output, asked, deliver, require_writable, write_more
from recycledb.selection.picking import Picks, columns_of, picked_rows, places_in_cut
from recycledb.selection.recipes import PROMPT, Bound, Given, Parameter, Recipe, bind, shipped_as
from recycledb.selection.record import list_selections, record, selection_id_of, store_revision
from recycledb.selection.training import Written
from recycledb.store import Sandbox, Store, TimeLimit
from recycledb.store.duplicates import groups_of, is_searched, pairs_of, sample_ids, search_in_use
from recycledb.store.rows import SelectionRow

__all__ = ["Exported", "Selected", "export", "list_selections", "select", "selection_id_of"]

NEAR_DUPLICATES = "near_duplicates"  # a parameter that every recipe has: keep or drop
EVERYTHING = 1 << 62  # a top_count that cuts nothing


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
    near_duplicates: int = 0  # left out, with near_duplicates=drop
    unpaired: int = 0  # picks that a file of preference pairs leaves out: origins, unchanged answers
    contexts_left_out: int = 0  # rows whose system prompt and earlier turns the format cannot hold
    held_out: HeldOut | None = None  # the second file of a hold-out split
    warning: str | None = None
    marked_drop: int = 0  # variants that the recipe picked and marks left out

    def _repr_html_(self) -> str:
        from recycledb.selection.notebook import selected_html

        return selected_html(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


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
    with_extra: bool = False,
    holdout: str | None = None,
    seed: int = 0,
    timeout_s: float | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Selected:
    """Run `recipe` with the parameters `given`, write its picks to `output` and record the selection under `name`.

    The default name is RECIPE[-STUDENT][-TEACHER][-PROMPT]; if `output` is a folder, the file gets that name. A `top` that the recipe
    does not declare limits its ranking; with near_duplicates=drop, one of each group of near-duplicates is picked; unless marks=ignore,
    what is marked `drop` is left out (see `recycledb.selection.marked`). `llama_factory` is
    LLaMA-Factory's data folder, where the rows are written unless `output` is given; `card` is a dataset card to write; `with_extra`
    writes the samples' extra fields too; `holdout` is a share of the samples that go to a second file, drawn by `seed`.
    SelectionError if the recipe or its parameters are invalid, or if there are no scores; if there are scores but no picks, `note` says
    why. In a read-only store the selection is not recorded, and `not_recorded` says why. QueryError if its SQL, reading the rows
    included, takes longer than `timeout_s` seconds. `progress` is told what an ordering is doing, how much is done, and the total.
    """
    wanted = asked(
        output, format, with_extra=with_extra, holdout=holdout, seed=seed, llama_factory=llama_factory, card=card
    )
    given = dict(given or {})
    marks = marked.wish(recipe, given)
    bound, cut = _bound(store, recipe, dict(given))
    samples = count_samples(store, bound.said.get("dataset"))
    _require_scores(store, bound, samples)
    groups, warning = _near_duplicates(store, bound)
    left_out = marked.note(store, recipe, bound, marks)
    if groups is not None:
        bound, cut = _cut_later(recipe, bound, cut)
    else:
        bound, picks = marked.rank_further(recipe, bound, left_out, samples)
        cut = cut if picks is None else picks
    called = name or _name(recipe, bound, given)
    limit = TimeLimit(timeout_s)
    if recipe.order is not None:
        _put_in_order(store, recipe, bound, samples, left_out, limit, progress)
    running = Running(recipe, bound, called, samples, cut, groups or {}, warning=warning, left_out=left_out)
    return run(store, running, wanted.named(called), limit)


@dataclass(frozen=True)
class Running:
    """A recipe with everything that decides what it picks."""

    recipe: Recipe
    bound: Bound
    name: str
    samples: int
    cut: Any = None  # a `top` that limits the ranking
    groups: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, str] | None = None
    warning: str | None = None
    left_out: frozenset[str] = frozenset()  # variants that marks leave out


def run(store: Store, running: Running, output: Output, limit: TimeLimit) -> Selected:
    """Write and record what a recipe picks."""
    require_writable(output, running.name)
    recipe, bound = running.recipe, replace(running.bound, said={**running.bound.said, **output.said})
    with store.sandbox(as_if=bound.as_if, limit=limit) as sandbox:
        if shipped_as(recipe.sql) is None:
            sandbox.require_reader()
        revision = store_revision(sandbox)
        columns = columns_of(sandbox, recipe, bound)
        cut = places_in_cut(recipe, columns, running.cut, running.samples)
        picks = Picks(columns, cut, running.groups, running.only, running.left_out)
        done = deliver(store, output, picked_rows(sandbox, recipe, bound, picks, output))
    parameters = _parameters(bound)
    selected = Selected(
        selection=running.name,
        selection_id=selection_id_of(recipe.sql, parameters, picks.items),
        recipe=recipe.name,
        parameters=parameters,
        rows=len(picks.items),
        samples=running.samples,
        share=len(picks.items) / running.samples if running.samples else None,
        counts={kind: picks.kinds[kind] for kind in _ordered(picks.kinds)},
        means={column: _mean(found) for column, found in picks.numbers.items() if found},
        store_revision=revision,
        output_sha256=done.content_sha256,
        format=output.format,
        file=str(output.file) if output.file else None,
        file_sha256=done.file_sha256,
        note=None if picks.items else _why_nothing(recipe, bound, running.samples, len(picks.marked)),
        near_duplicates=picks.dropped,
        unpaired=done.unpaired,
        contexts_left_out=done.contexts_left_out,
        held_out=done.held_out,
        warning=running.warning,
        marked_drop=len(picks.marked),
    )
    beside = _beside(store, selected, output, done.rows)
    return replace(selected, not_recorded=_record(store, recipe, selected, picks), beside=beside)


def _put_in_order(
    store: Store,
    recipe: Recipe,
    bound: Bound,
    samples: int,
    left_out: frozenset[str],
    limit: TimeLimit,
    progress: Callable[[str, int, int], None],
) -> None:
    """Find or compute the ordering that the recipe picks from, and bind its id."""
    assert recipe.order is not None
    with store.sandbox(as_if=bound.as_if, limit=limit) as sandbox:
        pool = orderings.read_pool(sandbox, recipe.name, recipe.order, bound.values, left_out)
    key, row, items = orderings.find_or_compute(store, recipe.order, pool, bound.values, samples, progress)
    if row is not None:
        orderings.record(store, row, items)
    bound.values["ordering"] = bound.said["ordering"] = key


def _record(store: Store, recipe: Recipe, selected: Selected, picks: Picks) -> str | None:
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
    return record(store, row, picks.items)


def _bound(store: Store, recipe: Recipe, given: dict[str, Any]) -> tuple[Bound, Any]:
    """Return the recipe's parameters, and the `top` that limits its ranking if it declares none."""
    cut = given.pop("top", None) if "top" not in recipe.declares else None
    near = given.pop(NEAR_DUPLICATES, None) if NEAR_DUPLICATES not in recipe.declares else None
    if near not in (None, "keep", "drop"):
        raise SelectionError(f"{NEAR_DUPLICATES} is {near!r}; it must be keep or drop")
    bound = bind(store, recipe, given)
    if cut is not None:
        bound.said["top"] = str(cut)
    if near == "drop":
        bound.said[NEAR_DUPLICATES] = near
    return bound, cut


def _near_duplicates(store: Store, bound: Bound) -> tuple[dict[str, str] | None, str | None]:
    """Return the groups of near-duplicates if they are to be dropped, and a warning if they are not those of the present samples."""
    if bound.said.get(NEAR_DUPLICATES) != "drop":
        return None, None
    search = search_in_use(store)
    if search is None:
        raise SelectionError(
            "near-duplicates have not been searched for in this store: run `recycledb duplicates`, then select again"
        )
    bound.said["duplicate_search_id"] = search
    sights = dict.fromkeys([bound.said.get("dataset"), None])
    fresh = any(is_searched(store, search, sample_ids(store, dataset)) for dataset in sights)
    warning = "samples were added or removed since near-duplicates were searched for: run `recycledb duplicates` again"
    return groups_of(pairs_of(store, search)), None if fresh else warning


def _cut_later(recipe: Recipe, bound: Bound, cut: Any) -> tuple[Bound, Any]:
    """Return parameters with which the recipe ranks everything, and the `top` that applies after near-duplicates are dropped."""
    values = dict(bound.values)
    tops = [parameter for parameter in recipe.parameters if parameter.type == "top"]
    # A further one, such as the size of a pool, is not about what is picked.
    for parameter in [each for each in tops if each.name == "top"] or tops:
        if bound.said[parameter.name] is not None:
            cut = bound.said[parameter.name]
            values |= {f"{parameter.name}_count": EVERYTHING, f"{parameter.name}_percent": None}
    return replace(bound, values=values), cut


def _name(recipe: Recipe, bound: Bound, given: Given) -> str:
    prompt = bound.said.get(PROMPT)
    parts = (recipe.name, bound.said.get("student"), given.get("teacher"), str(prompt)[:8] if prompt else None)
    return "-".join(str(part) for part in parts if part)


def _beside(store: Store, selected: Selected, output: Output, rows: int) -> tuple[str, ...]:
    if output.file is None or selected.file_sha256 is None:
        return ()
    written = Written(
        name=selected.selection,
        file=output.file,
        format=selected.format,
        rows=rows,
        counts=selected.counts,
        sha256=selected.file_sha256,
        recipe=selected.recipe,
        parameters=selected.parameters,
        held_out=_held_out(output, selected.held_out),
    )
    return write_more(store, output, written, selected.parameters.get("student"))


def _held_out(output: Output, held_out: HeldOut | None) -> Path | None:
    """Return the second file of a hold-out split, if it has rows."""
    return output.held_out_file if held_out is not None and held_out.rows else None


def _mean(values: list[float]) -> float:
    try:
        return math.fsum(values) / len(values)
    except OverflowError:  # the sum overflows, the mean does not
        return math.fsum(value / len(values) for value in values)


def _parameters(bound: Bound) -> dict[str, Any]:
    """Return the parameters to be recorded: the names as given, and the ids that they mean now."""
    ids = {"student_id": bound.student_id, "teacher_id": bound.teacher_id}
    return {**bound.said, **{name: identity for name, identity in ids.items() if identity}}


def _ordered(kinds: Counter[str]) -> list[str]:
    order = list(methods.kinds())
    return sorted(kinds, key=lambda kind: (order.index(kind) if kind in order else len(order), kind))


def count_samples(store: Store, dataset: str | None) -> int:
    """Return how many samples have an open position (in `dataset`)."""
    sql = """
        SELECT count(DISTINCT sample_id) FROM dataset_samples
        WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset
    """
    return int(store.rows(sql, dataset=dataset)[0][0])


# -- exporting

_EXPORT = """
SELECT variant_id FROM variants
WHERE kind = :kind AND is_current = 1 AND (kind = 'origin' OR teacher = :teacher OR derivation_id IS NOT NULL)
AND (:author = '' OR derivation_id IN (
    SELECT d.derivation_id FROM derivation d JOIN augmentation a ON a.augmentation_id = d.augmentation_id
    WHERE a.method = 'answers' AND a.name = :author
))
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
    unpaired: int = 0  # rewrites that a file of preference pairs leaves out: their answer is the sample's own
    held_out: HeldOut | None = None  # the second file of a hold-out split
    contexts_left_out: int = 0  # rows whose system prompt and earlier turns the format cannot hold
    marked_drop: int = 0  # variants that marks left out

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
    with_extra: bool = False,
    holdout: str | None = None,
    seed: int = 0,
    marks: str = marked.RESPECT,
    timeout_s: float | None = None,
) -> Exported:
    """Write every current variant of one kind, in dataset order; nothing is recorded. SelectionError if there is none.

    What people marked `drop` is left out, unless `marks` is "ignore". With `prompt`, these prompts count as current. `llama_factory`,
    `card`, `with_extra`, `holdout` and `seed` as in `select`; `student` is the student that LLaMA-Factory's training file is for.
    QueryError if reading takes longer than `timeout_s` seconds.
    """
    wanted = asked(
        output, format, with_extra=with_extra, holdout=holdout, seed=seed, llama_factory=llama_factory, card=card
    )
    limit, name = TimeLimit(timeout_s), output.name.split(".")[0]
    require_writable(wanted, name)
    if format in PAIR_FORMATS and kind == ORIGIN:
        raise SelectionError(f"--format {format} writes rewrites beside the origin: give --kind, such as reflect_both")
    named, (kind, author) = kind, kind_and_author(store, kind)
    learner = identities.find_student(store, student).name if student is not None else None
    recipe, bound = _everything(
        store, {"kind": kind, "author": author, "teacher": teacher, "dataset": dataset, PROMPT: prompt}
    )
    left_out = marked.note(store, recipe, bound, marked.known(marks))
    with store.sandbox(as_if=bound.as_if, limit=limit) as sandbox:
        _require_rows(sandbox, bound, left_out)
        if format == ALPACA_EVAL:
            require_outputs(store, sandbox, kind, author, dataset)
        picks = Picks(["variant_id"], None, left_out=left_out)
        done = deliver(store, wanted, picked_rows(sandbox, recipe, bound, picks, wanted))
    sha256 = str(done.file_sha256)
    maker = None if kind == ORIGIN else bound.said["teacher"]
    noted = {name: bound.said[name] for name in bound.said if name == marked.PARAMETER}
    written = Written(
        name=name,
        file=output,
        format=format,
        rows=done.rows,
        counts={named: done.rows},
        sha256=sha256,
        recipe=f"every {named}",
        parameters={"teacher": maker, "dataset": dataset, **noted},
        held_out=_held_out(wanted, done.held_out),
    )
    beside = write_more(store, wanted, written, learner)
    lacking = (done.unpaired, done.held_out, done.contexts_left_out, len(picks.marked))
    return Exported(named, maker, dataset, done.rows, format, str(output), sha256, beside, *lacking)


def _everything(store: Store, given: Given) -> tuple[Recipe, Bound]:
    """Return the recipe that picks all variants of one kind, and its parameters."""
    declared = (
        Parameter("kind", "text"),
        Parameter("author", "text"),
        Parameter("teacher", "teacher", default="none" if given["kind"] == ANSWER else None),
        Parameter("dataset", "dataset", default="none"),
    )
    recipe = Recipe("export", "", _EXPORT, declared)
    return recipe, bind(store, recipe, given)


def _require_rows(sandbox: Sandbox, bound: Bound, left_out: frozenset[str]) -> None:
    """Raise SelectionError if there is nothing to write, before anything is written."""
    found = [row[0] for row in sandbox.execute(_EXPORT if left_out else f"{_EXPORT} LIMIT 1", bound.values)[1]]
    if any(variant not in left_out for variant in found):
        return
    of = f" of {bound.said['teacher']}" if bound.said["teacher"] else ""
    where = f" in dataset {bound.said['dataset']}" if bound.said["dataset"] else ""
    author = f"/{bound.said['author']}" if bound.said["author"] else ""
    what = f"{bound.said['kind']}{author}{of}{where}"
    if found:
        raise SelectionError(f"all {len(found)} current {what} are marked drop; --marks ignore exports them")
    raise SelectionError(f"there is no current {what} to export")


# -- what is missing


def _require_scores(store: Store, bound: Bound, samples: int) -> None:
    """Raise SelectionError if there is nothing to select from, before anything is written."""
    said = bound.said
    if not samples:
        where = f"dataset {said['dataset']}" if said.get("dataset") else "the store"
        raise SelectionError(f"{where} has no samples; add some: `recycledb add FILE`")
    facts = ("loss", "readout", "embedding")
    some = " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE student_id = :student)" for table in facts)
    if bound.student_id and not store.rows(f"SELECT 1 WHERE {some}", student=bound.student_id):
        name = identities.name_of(store, bound.student_id)
        raise SelectionError(f"no scores under {name}; run `recycledb sync --student {name}`")


def _why_nothing(recipe: Recipe, bound: Bound, samples: int, marked_drop: int) -> str:
    said = bound.said
    if marked_drop:
        return f"nothing was picked: all {marked_drop} variants that {recipe.name} picked are marked drop (--marks ignore picks them)"
    if "teacher" in recipe.declares and not said.get("teacher") and said.get("kind") != "origin":
        return "nothing was picked: no teacher has made a variant yet (run `recycledb sync`)"
    top = f" (top {said['top']} of {samples} samples)" if said.get("top") else ""
    return f"nothing was picked: no variant meets the conditions of {recipe.name}{top}"
