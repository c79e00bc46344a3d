"""The sides of a comparison: a student's scores of what one teacher made with one set of prompts.

Invariant: a side has the current variants of samples with an open position. By default it has the only student, the only teacher, and
the prompts in use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from recycledb.errors import SelectionError
from recycledb.methods.reflection import Kind
from recycledb.selection import identities
from recycledb.selection.picks import Pick
from recycledb.selection.recipes import BEST, bind, get_recipe
from recycledb.store import Meaning, Store, TimeLimit


@dataclass(frozen=True, slots=True)
class Side:
    """A student, and the teacher and prompts of the reflections that it scored."""

    label: str  # distinguishes it from the other sides
    student: str
    teacher: str | None  # None if there is none, "best" for the best per sample
    prompt: str  # as given: "current", or the ids of older ones
    as_if: tuple[Meaning, ...]


def find_sides(
    store: Store, students: Sequence[str], teachers: Sequence[str], prompts: Sequence[str], kind: str | None
) -> tuple[Side, ...]:
    """Return all combinations of what is named; SelectionError unless these are two or more that can be compared."""
    whose = list(dict.fromkeys(identities.find_student(store, student) for student in students))
    made = list(dict.fromkeys(identities.find_teacher(store, each) for each in teachers if each != BEST))
    using = {
        "+".join(each.identity[:8] for each in found) or identities.CURRENT: found for found in _prompts(store, prompts)
    }
    if max(len(whose), len(made), len(using)) < 2:
        there = ", ".join(student.name for student in identities.students(store)) or "none"
        raise SelectionError(
            f"name two or more different students to compare; there are: {there} "
            "(or give one, and --teacher or --prompt several times)"
        )
    if BEST in teachers and len(teachers) > 1:
        raise SelectionError("--teacher best chooses among all teachers; to compare teachers, leave it out")
    if (len(made) > 1 or len(using) > 1) and kind == Kind.ORIGIN and len(whose) < 2:
        raise SelectionError("origins have no teacher: compare another --kind")
    whose = whose or [identities.find_student(store, None)]
    makers: list[identities.Identity | None] = list(made)
    if not made and BEST not in teachers and not (kind == Kind.ORIGIN and not teachers):
        makers = [identities.find_teacher(store, None, offer_best=True)]
    elif not made:
        makers = [None]
    sides = []
    for student, maker, (wording, meanings) in product(whose, makers, using.items()):
        teacher = BEST if BEST in teachers else maker.name if maker else None
        parts = [(student.name, len(whose)), (teacher, len(makers)), (wording, len(using))]
        label = " · ".join(str(part) for part, several in parts if several > 1)
        as_if = (*meanings, *identities.not_in_use(store, maker))
        sides.append(Side(label, student.name, teacher, wording, as_if))
    return tuple(sides)


def _prompts(store: Store, prompts: Sequence[str]) -> list[tuple[Meaning, ...]]:
    """Return the overrides for the prompts named; prompts in use need none and are labelled `current`."""
    in_use = {row[0] for row in store.rows("SELECT prompt_id FROM prompts WHERE is_current = 1")}
    found = [identities.find_prompts(store, each) for each in prompts]
    return [tuple(each for each in meanings if each.identity not in in_use) for meanings in found] or [()]


@dataclass(frozen=True, slots=True)
class Seen:
    """A side's points, and what `selective` would pick from them."""

    points: list[tuple[Any, ...]]  # (variant, sample, kind, place in dataset order, value, None)
    picks: list[Pick]


def look(
    store: Store,
    side: Side,
    metric: str,
    kinds: tuple[str, ...],
    dataset: str | None,
    limit: TimeLimit,
    *,
    picking: bool,
) -> Seen:
    """Return a side's points; with `picking` also what the recipe `selective` decides, by ratios in the metric's unit."""
    recipe = get_recipe("selective")
    unit = "loss" if "loss" in metric else "ppl"
    given = {"student": side.student, "metric": unit, "keep": "candidates", "dataset": dataset, "teacher": side.teacher}
    values = {**bind(store, recipe, given).values, "teacher": side.teacher}
    with store.sandbox(as_if=side.as_if, limit=limit) as sandbox:
        rows = list(sandbox.execute(_look_sql(metric, kinds, recipe.sql if picking else None), values)[1])
    picks = [Pick(sample, kind, verdict) for variant, sample, kind, _, _, verdict in rows if variant is None]
    return Seen([row for row in rows if row[0] is not None], picks)


def _look_sql(metric: str, kinds: tuple[str, ...], recipe: str | None) -> str:
    """Return one statement for the points and what `recipe` picks, so that the scores are computed once for both."""
    picked = f"""
        UNION ALL SELECT NULL, sample_id, kind, NULL, NULL, verdict FROM (\n{recipe}\n) AS picked
    """
    return f"""
        WITH {scores_once(metric)},
        first_places AS (
            SELECT sample_id, min(place) AS place FROM sample_order
            WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset GROUP BY sample_id
        )
        SELECT s.variant_id, s.sample_id, s.kind, p.place, s.{metric}, NULL
        FROM scored s JOIN first_places p ON p.sample_id = s.sample_id
        WHERE s.kind IN ({", ".join(f"'{kind}'" for kind in kinds)})
        AND (s.kind = 'origin' OR :teacher = 'best' OR s.teacher = :teacher)
        {picked if recipe else ""}
    """


RATIOS = ("ifd_ppl", "rifd_ppl", "ifd_loss", "rifd_loss")
PREFIXES = {"q": Kind.REFLECT_INSTRUCTION, "a": Kind.REFLECT_RESPONSE}


def scores_once(metric: str) -> str:
    """Return CTEs: `scored`, a student's current scores, and `sample_scores`, from these instead of from the tables.

    The latter has the columns and rows of the view of its name for this student, so that any recipe on it reads the same; a test
    compares the two. It is put together by one pass for each kind: a join with all of `scored` for each costs SQLite an index each time.
    """
    columns = dict.fromkeys(["variant_id", "sample_id", "kind", "parent_id", "teacher", *RATIOS, metric])
    shown = [
        f"{table}.{prefix}_{column}"
        for prefix, table in (("ori", "o"), ("q", "f"), ("a", "f"), ("qa", "b"))
        for column in ("id", *RATIOS)
    ]
    both = ", ".join(f"{ratio} AS qa_{ratio}" for ratio in RATIOS)
    origin = ", ".join(f"s.{ratio} AS ori_{ratio}" for ratio in RATIOS)
    return f"""
        scored AS MATERIALIZED (
            SELECT {", ".join(columns)} FROM scores WHERE student = :student AND is_current = 1
        ),
        made AS (
            SELECT *, row_number() OVER (PARTITION BY sample_id, teacher, kind ORDER BY variant_id) AS nth
            FROM scored WHERE kind IN ('{Kind.REFLECT_INSTRUCTION}', '{Kind.REFLECT_RESPONSE}')
        ),
        first_made AS MATERIALIZED (
            SELECT sample_id, teacher, {_of_kind("q")}, {_of_kind("a")} FROM made WHERE nth = 1 GROUP BY sample_id, teacher
        ),
        made_both AS (
            SELECT *, row_number() OVER (PARTITION BY parent_id ORDER BY variant_id) AS nth
            FROM scored WHERE kind = '{Kind.REFLECT_BOTH}'
        ),
        first_both AS MATERIALIZED (SELECT parent_id, variant_id AS qa_id, {both} FROM made_both WHERE nth = 1),
        origin AS (
            SELECT v.sample_id, s.variant_id AS ori_id, {origin}
            FROM variant v LEFT JOIN scored s ON s.kind = '{Kind.ORIGIN}' AND s.variant_id = v.variant_id WHERE v.kind = '{Kind.ORIGIN}'
        ),
        maker AS MATERIALIZED (
            SELECT teacher FROM teachers WHERE teacher_id IN (SELECT id FROM current_names WHERE kind = 'teacher')
        ),
        sample_scores AS (
            SELECT o.sample_id, m.teacher, :student AS student, {", ".join(shown)}
            FROM origin o
            LEFT JOIN maker m ON 1 = 1
            LEFT JOIN first_made f ON f.sample_id = o.sample_id AND f.teacher = m.teacher
            LEFT JOIN first_both b ON b.parent_id = f.q_id
        )"""


def _of_kind(prefix: str) -> str:
    """Return the columns of a group's one row of a kind."""
    return ", ".join(
        f"max(CASE kind WHEN '{PREFIXES[prefix]}' THEN {column} END) AS {prefix}_{name}"
        for name, column in (("id", "variant_id"), *((ratio, ratio) for ratio in RATIOS))
    )
