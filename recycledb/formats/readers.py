"""Files to samples: Alpaca, ShareGPT and OpenAI messages, row by row.

Invariant: a row keeps its position in the source, counting rejected rows, so that other files matched by position
(published statistics) still match. Texts are unchanged: nothing is stripped, normalised or repaired, except input
placeholders, which become the empty input that they mean and are kept in `extra`.
This module stores nothing and guesses nothing: a row that lacks a text is rejected with a reason.

| format | a row |
|---|---|
| alpaca | `{"instruction", "input", "output"}`; input may be missing or null |
| sharegpt | `{"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}` |
| messages | `{"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}, …]}` |

In a conversation, the first human turn that is followed by a model's turn is the instruction, and the model's turn is the
output. A system turn before them goes to `extra["system"]`; other turns are dropped, and `cut` counts the conversations
that had some.
"""

import base64
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recycledb.errors import FormatError
from recycledb.formats.containers import Source
from recycledb.formats.values import MAX_ROW, Bad
from recycledb.schema import Texts
from recycledb.suggestions import did_you_mean

FORMATS = ("auto", "alpaca", "sharegpt", "messages")
SNIFFED_ROWS = 1000
MAX_DEPTH = 64  # of the extra fields; enough for any metadata, and far below Python's recursion limit

_TURNS_FIELD = {"sharegpt": "conversations", "messages": "messages"}
_HUMAN = {"human", "user"}
_MODEL = {"gpt", "assistant", "chatgpt", "bard", "bing", "model", "bot"}
_SYSTEM = {"system", "developer"}

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


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source, good (`texts`) or bad (`reason`).

    `position` counts from 0, rejected rows included. `extra` holds the row's other fields as JSON values;
    `extra["original_input"]` is the placeholder that was replaced by the empty input.
    """

    position: int
    texts: Texts | None
    extra: dict[str, Any]
    reason: str | None


@dataclass
class Reading:
    """A file being read: iterate over its rows; the counters and `sha256` are final after the iteration.

    Iterating raises FormatError for errors found only later: a truncated file, or one without a single good row. So store
    the rows in one transaction.
    """

    path: Path
    format: str
    container: str
    compression: str
    source: Source = field(repr=False)
    rows: int = 0
    rejected: int = 0
    cut: int = 0
    sha256: str = ""

    def __iter__(self) -> Iterator[Row]:
        self.rows = self.rejected = self.cut = 0
        first_reason = ""
        for position, value in enumerate(self.source):
            row, longer = _row(position, value, self.format)
            self.rows += 1
            self.rejected += row.texts is None
            self.cut += longer
            first_reason = first_reason or row.reason or ""
            yield row
        if self.rows == self.rejected:
            raise FormatError(f"{self.path} has no usable row among {self.rows} (the first: {first_reason})")
        self.sha256 = self.source.sha256


def read(path: Path, format: str = "auto", max_row: int = MAX_ROW) -> Reading:
    """Open `path` for reading samples; see FORMATS. Container (JSON, JSON lines, Parquet) and compression are detected.

    Raises FormatError if there is no such file, it is not data, or no row of it has the format's fields. A row of more than
    `max_row` bytes of uncompressed text is an error too, here or while iterating.
    """
    if format not in FORMATS:
        raise FormatError(f"unknown format {format!r}{did_you_mean(format, FORMATS)}: one of {', '.join(FORMATS)}")
    source = Source(path, max_row)
    return Reading(path, _resolved(source, format), source.container, source.compression, source)


def is_placeholder(text: str) -> bool:
    """Return whether an input is a placeholder for no input: `<noinput>`, `No input.`, `N/A`, `<none>` and similar."""
    return len(text) <= 64 and _PLACEHOLDER.fullmatch(text.strip(_WRAPPING)) is not None


# --- which format ---------------------------------------------------------------------------------


def _resolved(source: Source, wanted: str) -> str:
    """Return the format of the first row that has one; it must be `wanted`, unless that is auto."""
    fields: list[str] = []
    first_bad = ""
    count = 0
    for count, value in enumerate(source, 1):
        found = [name for name in FORMATS[1:] if wanted in ("auto", name) and _fits(value, name)]
        if found:
            return found[0]
        if isinstance(value, dict):
            fields = fields or list(value)
        first_bad = first_bad or (value.reason if isinstance(value, Bad) else "")
        if count >= SNIFFED_ROWS:
            break
    raise _unknown(source, wanted, count, fields, first_bad)


def _fits(value: Any, format: str) -> bool:
    if not isinstance(value, dict):
        return False
    if format == "alpaca":
        return "instruction" in value and "output" in value
    return isinstance(value.get(_TURNS_FIELD[format]), list)


def _unknown(source: Source, wanted: str, count: int, fields: list[str], first_bad: str) -> FormatError:
    path = source.path
    if count == 0:
        return FormatError(f"{path} holds no rows")
    if source.container == "jsonl" and not fields:
        return FormatError(
            f"{path} is not JSON: neither a list nor one object per line, or truncated ({first_bad or 'no object'})"
        )
    want = "instruction and output, conversations, or messages"
    if wanted != "auto":
        want = "instruction and output" if wanted == "alpaca" else _TURNS_FIELD[wanted]
    seen = ", ".join(repr(name[:40]) for name in fields[:8]) or "none, the rows are not objects"
    return FormatError(f"{path} has an unknown format: expected the fields {want}; found {seen}")


# --- rows -----------------------------------------------------------------------------------------


class _Unusable(Exception):  # noqa: N818 - internal: it ends the reading of a bad row
    """A row that cannot be a sample; the message is the reason."""


def _row(position: int, value: Any, format: str) -> tuple[Row, bool]:
    """Return the row, and whether it is a conversation of which turns were dropped."""
    try:
        if isinstance(value, Bad):
            raise _Unusable(value.reason)
        if not isinstance(value, dict):
            raise _Unusable(f"not an object but {_kind(value)}")
        texts, extra, longer = _READERS[format](value)
        return Row(position, texts, _plain_fields(extra), None), longer
    except _Unusable as error:
        return Row(position, None, {}, str(error)), False


def _alpaca(row: dict[str, Any]) -> tuple[Texts, dict[str, Any], bool]:
    extra = {name: value for name, value in row.items() if name not in Texts._fields}
    given = "" if row.get("input") is None else _sound(row["input"], "'input'")
    if given and is_placeholder(given):
        extra["original_input"], given = given, ""
    instruction, output = (_sound(row.get(name), f"'{name}'") for name in ("instruction", "output"))
    return Texts(instruction, given, output), extra, False


def _conversation(row: dict[str, Any], turns_field: str) -> tuple[Texts, dict[str, Any], bool]:
    extra = {name: value for name, value in row.items() if name != turns_field}
    turns = row.get(turns_field)
    if not isinstance(turns, list):
        raise _Unusable(f"no list in '{turns_field}'")
    first = _first_pair(turns, turns_field)
    used = 2
    if first and _role(turns[0]) in _SYSTEM:
        extra["system"] = _turn_text(turns, 0, turns_field)
        used = 3
    question, answer = (_turn_text(turns, index, turns_field) for index in (first, first + 1))
    return Texts(question, "", answer), extra, len(turns) > used


def _first_pair(turns: list[Any], turns_field: str) -> int:
    roles = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise _Unusable(f"turn {index + 1} of '{turns_field}' is not an object but {_kind(turn)}")
        roles.append(_role(turn))
        if index and roles[-1] in _MODEL and roles[-2] in _HUMAN:
            return index - 1
    raise _Unusable(f"no human turn followed by a model's turn in '{turns_field}'")


def _role(turn: dict[str, Any]) -> str:
    role = turn.get("from", turn.get("role"))
    return role.lower() if isinstance(role, str) else ""


def _turn_text(turns: list[Any], index: int, turns_field: str) -> str:
    turn, where = turns[index], f"turn {index + 1} of '{turns_field}'"
    content = turn.get("value", turn.get("content"))
    if not isinstance(content, list):
        return _sound(content, where)
    parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not parts or None in parts:
        raise _Unusable(f"a part that is not text in {where}")
    return "".join(_sound(part, where) for part in parts)


_READERS: dict[str, Callable[[dict[str, Any]], tuple[Texts, dict[str, Any], bool]]] = {
    "alpaca": _alpaca,
    "sharegpt": lambda row: _conversation(row, "conversations"),
    "messages": lambda row: _conversation(row, "messages"),
}


# --- values ---------------------------------------------------------------------------------------


def _sound(value: Any, where: str) -> str:
    """Return `value` if it is text that every store can hold; raise _Unusable if not."""
    if value is None:
        raise _Unusable(f"no text in {where}")
    if not isinstance(value, str):
        raise _Unusable(f"no text in {where} but {_kind(value)}")
    if "\0" in value:
        raise _Unusable(f"NUL in {where}")
    _require_no_surrogate(value, where)
    return value


def _require_no_surrogate(text: str, where: str) -> None:
    try:
        _ = text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise _Unusable(f"lone surrogate in {where}") from None


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _plain_fields(fields: dict[str, Any]) -> dict[str, Any]:
    for name in fields:
        _require_no_surrogate(name, "the name of a field")
    return {name: _plain(value, f"'{name}'") for name, value in fields.items()}


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """Return `value` as plain JSON: NaN and infinities are null, bytes are base64, times and decimals are text."""
    if isinstance(value, str):
        _require_no_surrogate(value, where)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= MAX_DEPTH:
        raise _Unusable(f"nested too deeply in {where}")
    if isinstance(value, dict):
        return {_plain(str(name), where): _plain(inner, where, depth + 1) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, where, depth + 1) for inner in value]
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
