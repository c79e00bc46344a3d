"""The sides of a comparison: a student looking at what one teacher made by one set of prompts, and what it sees there.

Invariant: a side sees the current variants of samples with an open place; where a student, teacher or prompt is not named, the only
one there is, and the prompts in use.
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
    """A student, and whose reflections by which prompts it looks at."""

    label: str  # what tells it from the other sides
    student: str
    teacher: str | None  # None where there are none, "best" for the best per sample
    prompt: str  # as given: "current", or the ids of older ones
    as_if: tuple[Meaning, ...]


def find_sides(
    store: Store, students: Sequence[str], teachers: Sequence[str], prompts: Sequence[str], kind: str | None
) -> tuple[Side, ...]:
    """Return every combination of what is named; SelectionError where that is not two or more that can be compared."""
    whose = list(dict.fromkeys(identities.find_student(store, student) for student in students))
    made = list(dict.fromkeys(identities.find_teacher(store, each) for each in teachers if each != BEST))
    using = {
        "+".join(each.identity[:8] for each in found) or identities.CURRENT: found for found in _prompts(store, prompts)
    }
    if max(len(whose), len(made), len(using)) < 2:
        there = ", ".join(student.name for student in identities.students(store)) or "none"
        raise SelectionError(
            f"name two or more different students to compare; there are: {there} "
            "(or one, and several times --teacher or --prompt)"
        )
    if BEST in teachers and len(teachers) > 1:
        raise SelectionError("best is a choice among teachers; name the teachers to compare without it")
    if (len(made) > 1 or len(using) > 1) and kind == Kind.ORIGIN and len(whose) < 2:
        raise SelectionError("an origin is no teacher's: compare another kind")
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
    """Return what the prompts named mean; those in use are named `current`, whichever way they were given."""
    in_use = {row[0] for row in store.rows("SELECT prompt_id FROM prompts WHERE is_current = 1")}
    found = [identities.find_prompts(store, each) for each in prompts]
    return [tuple(each for each in meanings if each.identity not in in_use) for meanings in found] or [()]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a side looks at, and what `selective` would pick there."""

    points: list[tuple[Any, ...]]  # (variant, sample, kind, place in the datasets, value)
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
    """Return what a side sees; with `picking` also what the recipe `selective` decides there, by ratios of the metric's unit."""
    recipe = get_recipe("selective")
    unit = "loss" if "loss" in metric else "ppl"
    given = {"student": side.student, "metric": unit, "keep": "candidates", "dataset": dataset, "teacher": side.teacher}
    bound = {**bind(store, recipe, given).values, "teacher": side.teacher}
    values = {"student": side.student, "teacher": side.teacher, "dataset": dataset}
    with store.sandbox(as_if=side.as_if, limit=limit) as sandbox:
        points = list(sandbox.execute(_points_sql(metric, kinds), values)[1])
        sql = f"SELECT sample_id, kind, verdict FROM (\n{recipe.sql}\n) AS picked"
        return Seen(points, [Pick(*row) for row in sandbox.execute(sql, bound)[1]] if picking else [])


def _points_sql(metric: str, kinds: tuple[str, ...]) -> str:
    return f"""
        WITH ordered_places AS (
            SELECT sample_id, row_number() OVER (ORDER BY dataset, position) AS place
            FROM dataset_samples WHERE CAST(:dataset AS VARCHAR) IS NULL OR dataset = :dataset
        ),
        first_places AS (SELECT sample_id, min(place) AS place FROM ordered_places GROUP BY sample_id)
        SELECT s.variant_id, s.sample_id, s.kind, p.place, s.{metric}
        FROM scores s JOIN first_places p ON p.sample_id = s.sample_id
        WHERE s.student = :student AND s.is_current = 1 AND s.kind IN ({", ".join(f"'{kind}'" for kind in kinds)})
        AND (s.kind = 'origin' OR :teacher = 'best' OR s.teacher = :teacher)
    """
