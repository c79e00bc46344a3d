"""Recipes: `.sql` files that return `variant_id`, with declared and checked parameters.

A recipe's comments declare it:

    -- @description One line.
    -- @param NAME TYPE = DEFAULT: help

The SQL uses a parameter as `:NAME`; values are bound, never formatted into the SQL. TYPE is one of

    text, number        a text, a number
    choice(a, b, …)     one of these words
    student             a student of the store; without a default, the only one there is
    small-student       likewise, but of those with the template `none`
    teacher             a teacher of the store; without a default, the only one there is
    teacher-or-best     likewise, or the word `best`
    dataset             a dataset of the store
    top                 a number (500) or a share (5%); the SQL sees :NAME_count and :NAME_percent, of which one is NULL

and the default `none` is NULL. A user's file need not declare its parameters: `:student`, `:teacher`, `:dataset` and
`:top_count` or `:top_percent` have those types; any other value is a number if it looks like one (20, -3, 0.5, 1e-3), else text.
1e10 and 007, which may be digits of an id, are text unless declared `number`; a declared `text` is never converted.

A recipe that picks from an ordering of a pool has two statements (see `recycledb.selection.orderings`).

Columns: `variant_id`; `rank`, which orders the output rows ascending (without it they are in dataset order); `reason`, why the
variant was picked; any other number is averaged for the summary.

Invariant: the text that runs is the text that `recipes show` prints and that a selection records.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from recycledb.errors import SelectionError
from recycledb.selection import identities
from recycledb.selection.orderings import OrderCall, parse_order
from recycledb.store import Meaning, Store
from recycledb.store.statement import parameters_in
from recycledb.suggestions import did_you_mean

Given = Mapping[str, str | int | float | None]
TYPES = ("text", "number", "student", "small-student", "teacher", "teacher-or-best", "dataset", "top")
BEST = "best"
PROMPT = "prompt"

_DESCRIPTION = re.compile(r"^--\s*@description\s+(.+?)\s*$", re.MULTILINE)
_PARAMETER = re.compile(
    r"^--\s*@param\s+(?P<name>\w+)\s+(?P<type>[\w-]+)(?:\((?P<choices>[^)]*)\))?\s*(?:=\s*(?P<default>[^:]+?))?\s*:\s*(?P<help>.*?)\s*$",
    re.MULTILINE,
)
# What counts as a number without a declaration: no leading zero; an exponent only if signed or after a decimal point.
_PLAIN_NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d*|(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|\d+[eE][+-]\d+)", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_INT64 = range(-(1 << 63), 1 << 63)
_SHARE = re.compile(r"(?P<percent>\d+(?:\.\d*)?|\.\d+)\s*%")


@dataclass(frozen=True)
class Parameter:
    """A declared parameter of a recipe."""

    name: str
    type: str
    choices: tuple[str, ...] = ()
    default: str | None = None  # "none" is NULL; None is no default
    help: str = ""


@dataclass(frozen=True)
class Recipe:
    """A recipe as read: `sql` is the whole text, comments included."""

    name: str
    description: str
    sql: str
    parameters: tuple[Parameter, ...]
    order: OrderCall | None = None

    @property
    def declares(self) -> frozenset[str]:
        """The names of the parameters."""
        return frozenset(parameter.name for parameter in self.parameters)


@dataclass(frozen=True)
class Bound:
    """A recipe's parameters with their values: as given by the user (`said`), and as bound in the SQL (`values`)."""

    said: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    student_id: str | None = None
    teacher_id: str | None = None
    as_if: tuple[Meaning, ...] = ()  # overrides of current names: prompts, a teacher


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    folder = files("recycledb.selection") / "recipes"
    return sorted(entry.name.removesuffix(".sql") for entry in folder.iterdir() if entry.name.endswith(".sql"))


def iter_recipes() -> list[Recipe]:
    """Return the shipped recipes, by name."""
    return [get_recipe(name) for name in recipe_names()]


def get_recipe(name: str) -> Recipe:
    """Return a shipped recipe; SelectionError if there is none of that name."""
    if name not in recipe_names():
        hint = f"; for a file give --sql {name}" if name.endswith(".sql") else ""
        raise SelectionError(
            f"no recipe {name!r}{did_you_mean(name, recipe_names())}; there are {', '.join(recipe_names())}{hint}"
        )
    return parse(name, (files("recycledb.selection") / "recipes" / f"{name}.sql").read_text(encoding="utf-8"))


# SHA-256 of the recipe texts of earlier releases, which decide as the present ones do: recorded selections have these texts.
_EARLIER = {
    "4942889342fe6e00e78727daa5db74f0bfc0749c4964660ede297a27d6468a9c": "selective",
    "e2ff40fdc356843370f6cb80353f10a4d1007b616d04b50d740baddb75923f99": "selective",
    "b619c37e0f4962d207a132dc4523ba05e77e075329b3d9b30810db260162332f": "selective",
    "0f878c26cfc4937812e0c900fd79f5197d407ac4482929fcdf3a186458cef80b": "cherry",
    "ab579d3d8be794dc9f26794c354855eab47dcead422f4d78d918b56b61a7a725": "superfilter",
    "7323cc2d6daa7ba2ffa6aae1b850ba39ade2bb53b42963366b48bf4bd8f4f4d8": "recycled",
}


def shipped_as(sql: str) -> str | None:
    """Return the name of the shipped recipe with this text, in this release or an earlier one; else None.

    By text and not by name, since a user's file may have the name of a shipped recipe.
    """
    text = sql.rstrip()  # `recipes show NAME > FILE` may change trailing white space
    shipped = {recipe.sql.rstrip(): recipe.name for recipe in iter_recipes()}
    return shipped.get(text) or _EARLIER.get(hashlib.sha256(text.encode()).hexdigest())


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a file, named after the file."""
    try:
        return parse(path.stem, path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise SelectionError(f"{path} cannot be read as a recipe: {error}") from error


def parse(name: str, sql: str) -> Recipe:
    """Return the recipe with this text; an undeclared parameter gets its type from its name."""
    found = _DESCRIPTION.search(sql)
    declared = [_declared(name, match) for match in _PARAMETER.finditer(sql)]
    lines = sum(1 for line in sql.splitlines() if re.match(r"--\s*@param\b", line))
    if lines != len(declared):
        raise SelectionError(f"recipe {name}: declare parameters as `-- @param NAME TYPE = DEFAULT: help`")
    known = {parameter.name for parameter in declared} | {
        f"{parameter.name}_{part}" for parameter in declared if parameter.type == "top" for part in ("count", "percent")
    }
    order = parse_order(name, sql)
    known |= {"ordering"} if order is not None else set()
    suggested = dict.fromkeys(_suggested(used) for used in parameters_in(sql) if used not in known)
    return Recipe(name, found[1] if found else "", sql, (*declared, *suggested), order)


def _declared(recipe: str, match: re.Match[str]) -> Parameter:
    choices = tuple(word.strip() for word in (match["choices"] or "").split(",") if word.strip())
    if match["type"] not in TYPES and not (match["type"] == "choice" and choices):
        raise SelectionError(
            f"recipe {recipe}: parameter {match['name']} has the type {match['type']!r}; "
            f"there are {', '.join(TYPES)} and choice(a, b)"
        )
    return Parameter(match["name"], match["type"], choices, match["default"], match["help"])


def _suggested(name: str) -> Parameter:
    if name in ("top_count", "top_percent"):
        return Parameter("top", "top", default="none")
    if name == "dataset":
        return Parameter(name, name, default="none")
    return Parameter(name, name if name in ("student", "teacher") else "any")


# -- values


def bind(store: Store, recipe: Recipe, given: Given) -> Bound:
    """Return the values of a recipe's parameters, checked against their types and the store.

    SelectionError for an unknown parameter, for a value of the wrong type, and if the store has several students or teachers
    and none is given. Every recipe also has the parameter `prompt`: the prompts whose reflections it uses (see
    `identities.find_prompts`).
    """
    given = {name: value for name, value in given.items() if value is not None}
    prompt = given.pop(PROMPT, None) if PROMPT not in recipe.declares else None
    as_if = identities.find_prompts(store, str(prompt)) if prompt is not None else ()
    for name in given:
        if name not in recipe.declares:
            has = ", ".join(sorted(recipe.declares)) or "none"
            raise SelectionError(
                f"recipe {recipe.name} has no parameter {name!r}{did_you_mean(name, recipe.declares)}; it has: {has}"
            )
    bound = Bound(said={PROMPT: "+".join(each.identity for each in as_if)} if as_if else {})
    ids: dict[str, str | None] = {}
    students = [each.name for each in recipe.parameters if each.type in ("student", "small-student")]
    learner = "student" if "student" in students or len(students) != 1 else students[0]
    for parameter in sorted(recipe.parameters, key=lambda parameter: parameter.type.startswith("teacher")):
        text = given.get(parameter.name, parameter.default)
        value: Any = None
        if text == "none" and parameter.default == "none":
            pass
        elif parameter.type in ("student", "small-student"):
            value, identity = _student(store, parameter, text)
            if parameter.name == learner:
                ids["student"] = identity
            else:  # a second student, such as an encoder
                bound.said[f"{parameter.name}_id"] = identity
        elif parameter.type.startswith("teacher"):
            value, ids["teacher"] = _teacher(store, parameter, text, bound.said)
            if value is not None and ids["teacher"] is not None:
                as_if += identities.not_in_use(store, identities.Identity(value, ids["teacher"]))
        elif parameter.type == "dataset":
            value = identities.find_dataset(store, str(text))
        else:
            value = _plain(recipe, parameter, text)
        _add(bound, parameter, value)
    return Bound(bound.said, bound.values, ids.get("student"), ids.get("teacher"), as_if)


def _add(bound: Bound, parameter: Parameter, value: Any) -> None:
    if parameter.type == "top":
        count, percent = value or (None, None)
        bound.values[f"{parameter.name}_count"] = count
        bound.values[f"{parameter.name}_percent"] = percent
        value = None if value is None else count if percent is None else f"{percent:g}%"
    else:
        bound.values[parameter.name] = value
    bound.said[parameter.name] = value


def _student(store: Store, parameter: Parameter, text: Any) -> tuple[str, str]:
    template = "none" if parameter.type == "small-student" else None
    found = identities.find_student(store, None if text is None else str(text), template=template)
    return found.name, found.identity


def _teacher(store: Store, parameter: Parameter, text: Any, said: Mapping[str, Any]) -> tuple[str | None, str | None]:
    if text is None and said.get("kind") == "origin":  # origins have no teacher
        return None, None
    if text == BEST and parameter.type == "teacher-or-best":
        return BEST, None
    found = identities.find_teacher(
        store, None if text is None else str(text), offer_best=parameter.type == "teacher-or-best"
    )
    return (found.name, found.identity) if found else (None, None)


def _plain(recipe: Recipe, parameter: Parameter, text: Any) -> Any:
    if text is None:
        raise SelectionError(
            f"recipe {recipe.name} needs {parameter.name}: give --param {parameter.name}=…"
            + (f" ({parameter.help})" if parameter.help else "")
        )
    match parameter.type:
        case "top":
            return parse_top(text)
        case "choice":
            if text not in parameter.choices:
                meant = did_you_mean(str(text), parameter.choices)
                listed = ", ".join(parameter.choices)
                raise SelectionError(f"{parameter.name} is {text!r}{meant}; it must be one of {listed}")
            return text
    return _typed(parameter.name, parameter.type, text)


def values_of(sql: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a query's parameters, converted from text to the types that its SQL declares as a recipe does."""
    declared = {match["name"]: match["type"] for match in _PARAMETER.finditer(sql)}
    return {name: _typed(name, declared.get(name, "any"), text) for name, text in given.items()}


def _typed(name: str, type: str, text: Any) -> Any:
    match type:
        case "number":
            return _number(name, text)
        case "any":
            return guess(text)
    return str(text)


def _number(name: str, text: Any) -> int | float:
    value = _as_number(text) if isinstance(text, str) and _NUMBER.fullmatch(text) else text
    if not isinstance(value, int | float):
        raise SelectionError(f"{name} is {text!r}, which is not a number")
    return value


def guess(text: Any) -> Any:
    """Return a number if the text looks like one, else the text."""
    return _as_number(text) if isinstance(text, str) and _PLAIN_NUMBER.fullmatch(text) else text


def _as_number(text: str) -> int | float | str:
    """Return a text as a number, or the text if the number is too large for SQL."""
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text) if len(text) <= 20 and int(text) in _INT64 else text  # SQL's integers have 64 bits
    return float(text) if math.isfinite(float(text)) else text


def parse_top(text: Any) -> tuple[int | None, float | None]:
    """Return a top as (count, None) or (None, percent); SelectionError unless it is a number above 0 or a share of up to 100%."""
    share = _SHARE.fullmatch(str(text).strip())
    if share and 0 < float(share["percent"]) <= 100:
        return None, float(share["percent"])
    if re.fullmatch(r"[0-9]{1,18}", str(text).strip()) and int(text) > 0:
        return int(text), None
    raise SelectionError(f"top is {text!r}; give a number like 500 or a share like 5%")
