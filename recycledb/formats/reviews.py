"""Published logs of pairwise reviews: two models' answers to each question of a test set, and a judge's review of them in both orders.

The format is that of the evaluation of AlpaGasus, Cherry_LLM and Superfiltering (`…_reviews_gpt4.json`): an object with a list of rows, or
the list alone. A row has the question (under a name that depends on the test set), `Answer1`, `Answer2`, `review` (Answer1 shown first),
`review_reverse` (Answer2 shown first), and `scores` and `scores_reverse`: what the judge's script read, as text.

Invariant: a row of another shape is an error for the whole file. Scores are parsed as JSON, never evaluated.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from recycledb.errors import FormatError
from recycledb.formats.containers import Source
from recycledb.formats.values import Bad

QUESTION_FIELDS = ("text", "prompt", "instruction", "Instruction", "conversations", "question")
ANSWER_FIELDS = ("Answer1", "Answer2")
REVIEW_FIELDS = ("review", "review_reverse")
SCORE_FIELDS = ("scores", "scores_reverse")

_NAME = re.compile(r"(?P<name>.+?)(_wrap)?_reviews?(_.*)?")

Scores = tuple[float, float]


class Reviewed(NamedTuple):
    """The row at a position. Of each pair, the first is about the first answer shown first, the second about the second one shown first."""

    position: int
    question: str
    answers: tuple[str, str]
    reviews: tuple[str | None, str | None]
    scores: tuple[Scores | None, Scores | None]  # as the file has them, in the order shown


class ReviewLog(NamedTuple):
    """The rows of a log, and the SHA-256 of its file."""

    rows: tuple[Reviewed, ...]
    sha256: str


def read_reviews(path: Path) -> ReviewLog:
    """Read a log. Raises FormatError for a file that is none."""
    source = Source(path, is_row=lambda value: isinstance(value, dict) and "Answer1" in value)
    rows = tuple(_rows(path, source))
    if not rows:
        raise FormatError(f"{path} has no reviews")
    if not any(text for row in rows for text in row.reviews):
        raise FormatError(
            f"{path} has answers but no reviews: give the file that the judge's script wrote, such as {path.stem}_reviews_gpt4.json"
        )
    return ReviewLog(rows, source.sha256)


def test_set_of(path: Path) -> str:
    """Return the name of the test set in a log's file name: vicuna of vicuna_wrap_reviews_gpt4.json."""
    stem = path.name.split(".json")[0]
    found = _NAME.fullmatch(stem)
    return found["name"] if found else stem


def _rows(path: Path, source: Source) -> Iterator[Reviewed]:
    for position, row in enumerate(source):
        if isinstance(row, Bad):
            raise FormatError(f"{path}: row {position} (counted from 0): {row.reason}")
        if not isinstance(row, dict):
            raise _misshapen(path, position, f"is {row!r:.40}, not an object")
        first, second = (_text(path, position, row, name) for name in ANSWER_FIELDS)
        reviews = [_text_or_none(path, position, row, name) for name in REVIEW_FIELDS]
        scores = [_scores(row.get(name)) for name in SCORE_FIELDS]
        yield Reviewed(
            position, _question(path, position, row), (first, second), (reviews[0], reviews[1]), (scores[0], scores[1])
        )


def _question(path: Path, position: int, row: dict[str, Any]) -> str:
    for name in QUESTION_FIELDS:
        if name in row:
            value = row[name]
            if isinstance(value, list) and value:  # LIMA's conversations: the first turn is the question
                value = value[0]
            if not isinstance(value, str) or not value.strip():
                raise _misshapen(path, position, f"has {value!r:.40} in {name!r}, which is no question")
            return value
    raise _misshapen(path, position, f"has no question: none of {', '.join(QUESTION_FIELDS)}, only {', '.join(row)}")


def _text(path: Path, position: int, row: dict[str, Any], name: str) -> str:
    if name not in row:
        raise _misshapen(path, position, f"has no {name!r}, only {', '.join(row)}")
    if not isinstance(row[name], str):
        raise _misshapen(path, position, f"has {row[name]!r:.40} in {name!r}, which is not a text")
    return str(row[name])


def _text_or_none(path: Path, position: int, row: dict[str, Any], name: str) -> str | None:
    return None if row.get(name) is None else _text(path, position, row, name)


def _scores(value: Any) -> Scores | None:
    """Return two scores, which the published script writes as the text of a list."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(each) in (int, float) for each in value):
        return None
    return float(value[0]), float(value[1])


def _misshapen(path: Path, position: int, what: str) -> FormatError:
    return FormatError(f"{path} is not a log of pairwise reviews: row {position} (counted from 0) {what}")
