"""Shapes of rows: which fields of a row are a sample's texts, found by the names of the fields or given by the user.

Invariant: a shape is found once for a file, from its first row that has one, and holds for all of its rows. Names that are looked for are
listed here; nothing is derived from the contents of texts. docs/formats.md is the table of shapes for users.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recycledb.errors import FormatError
from recycledb.formats.checks import Unusable, kind, plain_fields, sound
from recycledb.formats.trees import FLAT_FIELDS, best_path
from recycledb.formats.turns import MODEL, SYSTEM, USER, Found, How, Message, Tally, samples_of
from recycledb.schema import Texts
from recycledb.suggestions import did_you_mean

FIELDS = ("instruction", "input", "output", "system", "history", "messages")  # what --map gives names for

# Pairs of names that mean a question and its answer, in order; letters' case does not matter.
_PAIRS = (
    ("instruction", "output"), ("instruction", "response"), ("instruction", "completion"), ("instruction", "answer"),
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "output"), ("prompt", "answer"),
    ("question", "answer"), ("question", "response"), ("question", "output"),
    ("query", "response"), ("query", "answer"), ("problem", "solution"),
    ("input", "output"), ("input", "response"), ("inputs", "targets"),
)  # fmt: skip
_INPUTS = {"instruction": ("input", "context"), "question": ("context",)}
_SYSTEMS = ("system", "system_prompt")
_CONVERSATIONS = {"sharegpt": ("conversations", "conversation"), "lima": ("conversations",), "messages": ("messages",)}
_MEDIA = {
    "image": "an image", "images": "an image", "audio": "a sound", "audios": "a sound", "video": "a video", "videos": "a video",
}  # fmt: skip

_WRAPPING = " \t\r\n\"'`“”‘’<>[](){}\\/.,;:!*_-"
_PLACEHOLDER = re.compile(
    r"(there is |there's )?no[\s_-]*(additional |further |other |specific )?inpute?s?"
    r"( (text|data|field))?( (is|was))?"
    r"( (required|needed|necessary|provided|given|available|specified|supplied|applicable))?"
    r"|n\s?/\s?a|n\.a"
    r"|none( (required|needed|necessary|provided|given|available|specified))?"
    r"|not (applicable|required|needed|provided|available)",
    re.IGNORECASE,
)


def is_placeholder(text: str) -> bool:
    """Return whether an input is a placeholder for no input: `<noinput>`, `No input.`, `N/A`, `<none>` and similar."""
    return len(text) <= 64 and _PLACEHOLDER.fullmatch(text.strip(_WRAPPING)) is not None


@dataclass(frozen=True)
class Shape:
    """The shape of a file's rows: its name, and the file's fields by FIELDS; `guessed` if these are not the shape's own names."""

    name: str
    fields: Mapping[str, str] = field(default_factory=dict)
    guessed: bool = False


# --- which shape ---------------------------------------------------------------------------------


def shape_of(row: Any, how: How) -> Shape | None:
    """Return the shape of a row, None if it has none of those that `how` allows."""
    if not isinstance(row, dict):
        return None
    if how.mapping:
        needed = [key for name, key in how.mapping.items() if name in ("instruction", "output", "messages")]
        return Shape("fields", dict(how.mapping)) if all(key in row for key in needed) else None
    for name, find in _FINDERS.items():
        if how.format in ("auto", name) and (found := find(row)) is not None:
            return found
    return None


def is_row(row: dict[str, Any]) -> bool:
    """Return whether an object has the shape of a row."""
    return shape_of(row, How()) is not None


def _alpaca(row: dict[str, Any]) -> Shape | None:
    return Shape("alpaca", _alpaca_fields(row)) if "instruction" in row and "output" in row else None


def _alpaca_fields(row: Mapping[str, Any]) -> dict[str, str]:
    before = "context" if isinstance(row.get("context"), list) and "history" not in row else "history"
    fields = {"instruction": "instruction", "input": "input", "output": "output", "history": before}
    return fields | ({"system": found} if (found := _named(row, _SYSTEMS)) else {})


def _conversation(name: str) -> Callable[[dict[str, Any]], Shape | None]:
    def find(row: dict[str, Any]) -> Shape | None:
        for each in _CONVERSATIONS[name]:
            turns = row.get(each)
            if isinstance(turns, list) and (name == "lima") == (bool(turns) and all(isinstance(t, str) for t in turns)):
                system = _named(row, _SYSTEMS)
                return Shape(name, {"messages": each, **({"system": system} if system else {})}, each == "conversation")
        return None

    return find


def _dolly(row: dict[str, Any]) -> Shape | None:
    fields = {"instruction": "instruction", "input": "context", "output": "response"}
    return Shape("dolly", fields) if all(key in row for key in fields.values()) else None


def _instances(row: dict[str, Any]) -> Shape | None:
    return Shape("self-instruct") if "instruction" in row and isinstance(row.get("instances"), list) else None


def _oasst(row: dict[str, Any]) -> Shape | None:
    if isinstance(row.get("prompt"), dict) and "text" in row["prompt"]:
        return Shape("oasst", {"messages": "prompt"})
    return Shape("oasst-messages") if all(name in row for name in FLAT_FIELDS) else None


def _pair(row: dict[str, Any]) -> Shape | None:
    lower = {name.lower(): name for name in reversed(row)}
    for question, answer in _PAIRS:
        if question in lower and answer in lower:
            fields = {"instruction": lower[question], "output": lower[answer]}
            given = next((lower[name] for name in _INPUTS.get(question, ()) if name in lower), None)
            system = next((lower[name] for name in _SYSTEMS if name in lower), None)
            more = {"input": given, "system": system, "history": lower.get("history")}
            return Shape("fields", fields | {name: key for name, key in more.items() if key is not None}, True)
    return None


def _named(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in row), None)


_FINDERS: dict[str, Callable[[dict[str, Any]], Shape | None]] = {
    "alpaca": _alpaca,
    "lima": _conversation("lima"),
    "sharegpt": _conversation("sharegpt"),
    "messages": _conversation("messages"),
    "self-instruct": _instances,
    "oasst": _oasst,
    "dolly": _dolly,
    "fields": _pair,
}
SHAPES = tuple(_FINDERS)


def mapping_of(text: str) -> dict[str, str]:
    """Return the mapping that `--map` gives: `instruction=prompt,output=completion`. FormatError if it cannot be used."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, separator, key = (piece.strip() for piece in part.partition("="))
        if not (name and separator and key):
            raise FormatError(f"--map {text}: give NAME=FIELD,NAME=FIELD, as in instruction=prompt,output=completion")
        if name not in FIELDS:
            raise FormatError(f"--map {text}: {name!r} is not one of {', '.join(FIELDS)}{did_you_mean(name, FIELDS)}")
        if name in found:
            raise FormatError(f"--map {text}: {name} is given twice")
        found[name] = key
    if "messages" not in found and not {"instruction", "output"} <= found.keys():
        raise FormatError(f"--map {text}: give instruction and output, or messages for a list of turns")
    return found


def unknown_field(path: Any, mapping: Mapping[str, str], names: Sequence[str]) -> FormatError:
    """Return the error for a mapping of which no row has all fields; `names` are those that there are."""
    there = ", ".join(repr(name[:40]) for name in names[:12]) or "none, the rows are not objects"
    for key in mapping.values():
        if key not in names:
            return FormatError(f"{path} has no field {key!r}{did_you_mean(key, names)}; its fields are {there}")
    return FormatError(f"{path} has no row with all of the fields that --map names; its fields are {there}")


# --- one row -------------------------------------------------------------------------------------


def samples_in(row: Any, shape: Shape, how: How, tally: Tally) -> list[Found]:
    """Return the samples in a row, at least one; Unusable with the reason if there is none."""
    if not isinstance(row, dict):
        raise Unusable(f"not an object but {kind(row)}")
    for name, what in _MEDIA.items():
        if row.get(name):
            raise Unusable(f"{what} in '{name}': recycledb reads text only")
    if shape.name == "self-instruct":
        found, used = _of_instances(row), {"instruction", "instances"}
    elif shape.name == "oasst":
        found, used = samples_of(best_path(row.get("prompt")), "prompt", how, tally), {"prompt"}
    elif "messages" in shape.fields:
        found, used = _of_conversation(row, shape, how, tally)
    else:
        found, used = _of_fields(row, shape, how, tally)
    rest = plain_fields({name: value for name, value in row.items() if name not in used})
    return [Found(texts, {**rest, **extra}) for texts, extra in found]


def _of_instances(row: dict[str, Any]) -> list[Found]:
    instruction, instances = sound(row.get("instruction"), "'instruction'"), row.get("instances")
    if not isinstance(instances, list) or not instances:
        raise Unusable("no list in 'instances'" if not isinstance(instances, list) else "no instance in 'instances'")
    found = []
    for number, each in enumerate(instances, 1):
        if not isinstance(each, dict):
            raise Unusable(f"instance {number} is not an object but {kind(each)}")
        given, extra = _input(each.get("input"), f"'input' of instance {number}")
        found.append(
            Found(Texts(instruction, given, sound(each.get("output"), f"'output' of instance {number}")), extra)
        )
    return found


def _of_conversation(row: dict[str, Any], shape: Shape, how: How, tally: Tally) -> tuple[list[Found], set[str]]:
    name = shape.fields["messages"]
    turns = row.get(name)
    if not isinstance(turns, list):
        raise Unusable(f"no list in '{name}'")
    system = _system(row, shape)
    used = {name, *([shape.fields["system"]] if system and how.context == "keep" else [])}
    return samples_of(turns, name, how, tally, system), used


def _of_fields(row: dict[str, Any], shape: Shape, how: How, tally: Tally) -> tuple[list[Found], set[str]]:
    fields = shape.fields
    asked, answered = row.get(fields["instruction"]), row.get(fields["output"])
    if isinstance(asked, list):
        turns = asked + (answered if isinstance(answered, list) else [{"role": MODEL, "content": answered}])
        last = How(how.format, how.mapping, "last" if how.turns == "first" else how.turns, how.context)
        return samples_of(turns, fields["instruction"], last, tally, _system(row, shape)), set(fields.values())
    used = {fields[name] for name in ("instruction", "input", "output") if name in fields}
    given, extra = _input(row.get(fields["input"]), f"'{fields['input']}'") if "input" in fields else ("", {})
    texts = Texts(sound(asked, f"'{fields['instruction']}'"), given, sound(answered, f"'{fields['output']}'"))
    before, origins = _before(row, shape)
    if not before:
        return [Found(texts, extra)], used
    if how.context == "drop":
        systems = sum(message.role == SYSTEM for message in before)
        tally.note(systems, len(before) - systems, 0)
        return [Found(texts, extra)], used
    used |= origins
    found = samples_of(
        [{"role": each.role, "content": each.text} for each in before] + _own_turns(texts),
        fields.get("history", "history"),
        How(turns="all" if how.turns == "all" else "last", context=how.context),
        tally,
    )
    whole = found.pop()
    return [*found, Found(Texts(*texts, whole.texts.context), extra)], used


def _own_turns(texts: Texts) -> list[dict[str, str]]:
    return [{"role": USER, "content": texts.instruction}, {"role": MODEL, "content": texts.output}]


def _input(value: Any, where: str) -> tuple[str, dict[str, Any]]:
    """Return an input and what is kept beside it: the placeholder that it was."""
    given = "" if value is None else sound(value, where)
    return ("", {"original_input": given}) if given and is_placeholder(given) else (given, {})


def _system(row: Mapping[str, Any], shape: Shape) -> Message | None:
    """Return the system prompt in a field of its own; a field of another type is metadata and kept as such."""
    name = shape.fields.get("system")
    value = row.get(name) if name else None
    return Message(SYSTEM, value, f"'{name}'") if isinstance(value, str) and value else None


def _before(row: Mapping[str, Any], shape: Shape) -> tuple[list[Message], set[str]]:
    """Return the system prompt and the history of a row as messages, and the fields that they are in.

    A history is pairs of texts, as LLaMA-Factory has it, or messages; a list of another sort is metadata.
    """
    system = _system(row, shape)
    found, used = ([system], {shape.fields["system"]}) if system else ([], set())
    name = shape.fields.get("history", "")
    before = row.get(name)
    if not isinstance(before, list) or not before:
        return found, used
    if all(isinstance(each, dict) and each.get("role") in (SYSTEM, USER, MODEL) for each in before):
        turns = [(each["role"], each.get("content"), f"message {i} of '{name}'") for i, each in enumerate(before, 1)]
    elif all(isinstance(pair, list) and len(pair) == 2 for pair in before):
        turns = [
            (role, text, f"pair {i} of '{name}'")
            for i, pair in enumerate(before, 1)
            for role, text in zip((USER, MODEL), pair, strict=True)
        ]
    else:
        return found, used
    return [*found, *(Message(*turn) for turn in turns)], used | {name}
