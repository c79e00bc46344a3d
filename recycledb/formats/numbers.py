"""Files with one row for each position of a dataset: published numbers, or the answers of a model to a test set.

Rows are numbers or texts, or objects with the number or text in one field; objects may also repeat the sample's texts, which are then
compared with the store's.

Invariant: rows belong to samples by position only, so a row of another shape is an error for the whole file; no row is skipped.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recycledb.errors import FormatError
from recycledb.formats.containers import Source
from recycledb.formats.values import Bad
from recycledb.suggestions import did_you_mean

NUMBER_FIELDS = ("value", "score", "rating", "number")
ANSWER_FIELDS = ("output", "answer", "response", "text", "completion")
_NONE = ("", "nan", "null", "none", "na")  # how CSV files say that there is no number


class Numbered(NamedTuple):
    """The row at a position: its number, None for none, and the texts of the sample that it repeats."""

    position: int
    value: float | None
    texts: dict[str, str]


class Answered(NamedTuple):
    """The row at a position: a model's answer, and the texts of the sample that it repeats."""

    position: int
    answer: str
    texts: dict[str, str]


def read_numbers(path: Path, field: str | None = None) -> Iterator[Numbered]:
    """Yield the numbers in a file: a JSON list, JSON lines, CSV, TSV or Parquet; `field` is the one that holds them.

    NaN, infinities and null are None. Raises FormatError, also while iterating.
    """
    for position, row in _rows(path):
        if isinstance(row, dict):
            name = _field(path, row, field, NUMBER_FIELDS)
            yield Numbered(
                position, _number(path, position, row[name]), _texts(row, ("instruction", "input", "output"))
            )
        else:
            yield Numbered(position, _number(path, position, row), {})


def read_answers(path: Path, field: str | None = None) -> Iterator[Answered]:
    """Yield the answers in a file like those of `read_numbers`. Raises FormatError, also while iterating."""
    for position, row in _rows(path):
        answer, texts = row, {}
        if isinstance(row, dict):
            answer, texts = row[_field(path, row, field, ANSWER_FIELDS)], _texts(row, ("instruction", "input"))
        if not isinstance(answer, str):
            raise FormatError(f"{path}: row {position} (counted from 0): {answer!r:.40} is not a text")
        yield Answered(position, answer, texts)


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    for position, row in enumerate(Source(path)):
        if isinstance(row, Bad):
            raise FormatError(f"{path}: row {position} (counted from 0): {row.reason}")
        yield position, row


def _field(path: Path, row: dict[str, Any], field: str | None, known: Sequence[str]) -> str:
    if field is not None:
        if field not in row:
            raise FormatError(f"{path} has no field {field!r}{did_you_mean(field, row)}; it has {', '.join(row)}")
        return field
    found = [name for name in known if name in row]
    if not found:
        raise FormatError(
            f"{path} has none of the fields {', '.join(known)}, only {', '.join(row)}; name one with --field"
        )
    return found[0]


def _texts(row: dict[str, Any], names: Sequence[str]) -> dict[str, str]:
    return {name: row[name] for name in names if isinstance(row.get(name), str)}


def _number(path: Path, position: int, value: Any) -> float | None:
    if isinstance(value, str) and value.strip().lower() in _NONE:
        return None
    try:
        number = None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None and value is not None:
        raise FormatError(f"{path}: row {position} (counted from 0): {value!r:.40} is not a number")
    return number if number is not None and math.isfinite(number) else None
