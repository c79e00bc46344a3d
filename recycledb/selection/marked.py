"""What recipes do about marks: leave out what people marked `drop`, and say so.

Invariant: in a store without marks, nothing here changes what is selected or recorded. A mark only ever leaves something out; `keep` picks
nothing that the recipe does not pick.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from recycledb.errors import SelectionError
from recycledb.selection.recipes import Bound, Recipe, parse_top, shipped_as
from recycledb.store import SQLRow, Store, marks
from recycledb.suggestions import did_you_mean
from recycledb.terminal import shortened

PARAMETER = "marks"  # a parameter that every recipe has: respect or ignore
RESPECT, IGNORE = "respect", "ignore"
NOTE = 80  # characters of a note in an explanation


def wish(recipe: Recipe, given: dict[str, Any]) -> str:
    """Take the parameter from those given and return what it asks for; a recipe's own parameter of that name is left alone."""
    if PARAMETER in recipe.declares:
        return IGNORE
    found = given.pop(PARAMETER, None)
    return RESPECT if found is None else known(str(found))


def known(word: str) -> str:
    """Return a value of the parameter; SelectionError if it is none."""
    if word not in (RESPECT, IGNORE):
        hint = did_you_mean(word, (RESPECT, IGNORE))
        raise SelectionError(f"{PARAMETER} is {word!r}{hint}; it must be {RESPECT} or {IGNORE}")
    return word


def note(store: Store, recipe: Recipe, bound: Bound, word: str) -> frozenset[str]:
    """Return the variants to leave out; what was asked is noted in the parameters where the store has any mark."""
    if PARAMETER in recipe.declares or not marks.is_marked(store):
        return frozenset()
    bound.said[PARAMETER] = word
    return marks.left_out(store) if word == RESPECT else frozenset()


def rank_further(recipe: Recipe, bound: Bound, left_out: frozenset[str], samples: int) -> tuple[Bound, int | None]:
    """Return parameters with which a shipped recipe ranks as many more as are left out, and the number of picks then.

    So `--top 500` gives 500. What `top` means in a user's recipe is not known: that one gives fewer. An ordering's pool lacks them already.
    """
    top = bound.said.get("top") if "top" in recipe.declares else None
    if not left_out or top is None or recipe.order is not None or shipped_as(recipe.sql) is None:
        return bound, None
    count, percent = parse_top(top)
    picks = count if count is not None else _share(float(percent or 0), samples)
    if not picks:
        return bound, None
    values = {**bound.values, "top_count": picks + len(left_out), "top_percent": None}
    return replace(bound, values=values), picks


def _share(percent: float, samples: int) -> int:
    """Return the highest rank that the recipes' condition `rank * 100 <= percent * samples` holds for."""
    rank = int(percent * samples / 100)
    while (rank + 1) * 100 <= percent * samples:
        rank += 1
    while rank * 100 > percent * samples:
        rank -= 1
    return rank


# -- explanations


def lines(store: Store, sample: str, parameters: Mapping[str, Any], picked: str | None, at: str | None) -> list[str]:
    """Return what marks had to do with a selection of the moment `at` (None: one of now) and this sample."""
    rows = marks.of_sample(store, sample)
    if not rows:
        return []
    kinds = dict(map(tuple, store.rows("SELECT variant_id, kind FROM variant WHERE sample_id = :s", s=sample)))
    respected = at is None or parameters.get(PARAMETER) == RESPECT
    then = marks.in_force(rows, at) if respected else {}
    found = []
    for target, row in then.items():
        said = _said(row, kinds)
        if row.mark == marks.DROP and not (picked and target.variant_id is None):
            said = f"left out: {said}"
        found.append(said)
    for target, row in marks.in_force(rows).items():
        if then.get(target) is not row and at is not None:
            why = "marks = ignore" if parameters.get(PARAMETER) == IGNORE else "later"
            found.append(f"{why}: {_said(row, kinds)}")
    return found


def _said(row: SQLRow, kinds: Mapping[str, str]) -> str:
    what = f"{kinds.get(row.variant_id, 'variant')} " if row.variant_id else ""
    words = f': "{shortened(row.note, NOTE)}"' if row.note else ""
    return f"{what}marked {row.mark} by {row.marked_by} on {row.created_at[:10]}{words}"
