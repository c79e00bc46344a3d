"""Files to samples, row by row: which shape a file has, and its samples with their positions.

Invariant: samples are numbered in the order of the source, and a rejected row takes one number too; so where a row is one sample, as in
most shapes, a sample's position is its row's number, and other files matched by position (published statistics) still match.
Texts are unchanged: nothing is stripped, normalised or repaired, except input placeholders, which become the empty input that they mean
and are kept in `extra`. This module stores nothing: a row that lacks a text is rejected with a reason, and what was guessed or left out
is said.
Shapes are in `shapes`, conversations in `turns`; docs/formats.md is the table for users.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recycledb.errors import FormatError
from recycledb.formats.checks import Unusable
from recycledb.formats.containers import Source
from recycledb.formats.json_objects import OBJECTS
from recycledb.formats.json_values import NOT_UTF8
from recycledb.formats.shapes import SHAPES, Shape, is_row, samples_in, shape_of, unknown_field
from recycledb.formats.trees import trees
from recycledb.formats.turns import CONTEXTS, TURNS, How, Tally
from recycledb.formats.values import MAX_ROW, Bad
from recycledb.schema import Texts
from recycledb.suggestions import did_you_mean

FORMATS = ("auto", *SHAPES)
SNIFFED_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """A sample of a source (`texts`), or a rejected row (`reason`).

    `position` counts from 0, rejected rows included; `number` is the row's number in the source, from 0. `extra` holds the row's other
    fields as JSON values; `extra["original_input"]` is the placeholder that was replaced by the empty input.
    """

    position: int
    texts: Texts | None
    extra: dict[str, Any]
    reason: str | None
    number: int = 0


@dataclass
class Reading:
    """A file being read: iterate over its samples; the counters and `sha256` are final after the iteration.

    `rows` counts the source's rows, `places` the positions, `contexts` the samples with a context. Iterating raises FormatError for errors
    found only later: a truncated file, or one without a single good row. So store the rows in one transaction.
    """

    path: Path
    shape: Shape
    how: How
    source: Source = field(repr=False)
    rows: int = 0
    places: int = 0
    rejected: int = 0
    contexts: int = 0
    sha256: str = ""
    tally: Tally = field(default_factory=Tally)

    @property
    def format(self) -> str:
        """The name of the file's shape."""
        return self.shape.name

    @property
    def container(self) -> str:
        """json, jsonl, objects, csv, tsv or parquet."""
        return self.source.container

    @property
    def compression(self) -> str:
        """none, gzip or zstd."""
        return self.source.compression

    @property
    def cut(self) -> int:
        """The number of conversations of which turns were left out."""
        return self.tally.cut

    @property
    def notes(self) -> list[str]:
        """What was found out about the file rather than told, one clause each."""
        notes = []
        if self.source.rows_key is not None:
            notes.append(f"the rows are the list in {self.source.rows_key!r}")
        if self.source.encoding is not None and self.how.encoding is None:
            notes.append(f"the text is {self.source.encoding.upper()}, by its byte order mark")
        if self.shape.guessed or self.shape.name == "dolly":
            notes.append(
                ", ".join(f"{name} is {key!r}" for name, key in self.shape.fields.items()) + " (else use --map)"
            )
        return notes

    def __iter__(self) -> Iterator[Row]:
        self.rows = self.places = self.rejected = self.contexts = 0
        self.tally = Tally()
        first_reason = ""
        values = iter(self.source)
        for number, value in enumerate(trees(values) if self.shape.name == "oasst-messages" else values):
            self.rows += 1
            for row in self._samples(number, value):
                self.places += 1
                self.rejected += row.texts is None
                self.contexts += row.texts is not None and row.texts.context is not None
                first_reason = first_reason or row.reason or ""
                yield row
        if self.places == self.rejected:
            raise FormatError(f"{self.path} has no usable row among {self.rows} (the first: {first_reason})")
        self.sha256 = self.source.sha256

    def _samples(self, number: int, value: Any) -> list[Row]:
        shape = _TREE if self.shape.name == "oasst-messages" else self.shape
        try:
            if isinstance(value, Bad):
                raise Unusable(value.reason)
            found = samples_in(value, shape, self.how, self.tally)
        except Unusable as error:
            return [Row(self.places, None, {}, str(error), number)]
        return [Row(self.places + i, each.texts, each.extra, None, number) for i, each in enumerate(found)]


_TREE = Shape("oasst", {"messages": "prompt"})


def read(path: Path, format: str = "auto", max_row: int = MAX_ROW, how: How | None = None) -> Reading:
    """Open `path` for reading samples; `how` has all options, of which `format` (see FORMATS) and `max_row` can be given alone.

    Container (JSON, JSON lines, CSV, TSV, Parquet) and compression are detected. Raises FormatError if there is no such file, it is not
    data, or no row of it has the format's fields. A row of more than `max_row` bytes of uncompressed text is an error too, here or while
    iterating.
    """
    how = how or How(format, max_row=max_row)
    for name, value, known in (
        ("format", how.format, FORMATS),
        ("turns", how.turns, TURNS),
        ("context", how.context, CONTEXTS),
    ):
        if value not in known:
            raise FormatError(f"unknown {name} {value!r}{did_you_mean(value, known)}: one of {', '.join(known)}")
    source = Source(path, how.max_row, encoding=how.encoding, is_row=is_row)
    return Reading(path, _resolved(source, how), how, source)


def _resolved(source: Source, how: How) -> Shape:
    """Return the shape of the first row that has one; all fields that are mapped must occur by then, or in the first thousand rows."""
    fields: dict[str, None] = {}
    first_bad = ""
    shape: Shape | None = None
    count = 0
    for count, value in enumerate(source, 1):
        shape = shape or shape_of(value, how)
        fields.update(dict.fromkeys(value) if isinstance(value, dict) else ())
        if shape is not None and all(key in fields for key in how.mapping.values()):
            return shape
        first_bad = first_bad or (value.reason if isinstance(value, Bad) else "")
        if count >= SNIFFED_ROWS:
            break
    raise _unknown(source, how, count, list(fields), first_bad)


def _unknown(source: Source, how: How, count: int, fields: list[str], first_bad: str) -> FormatError:
    path = source.path
    if count == 0:
        return FormatError(f"{path} holds no rows")
    if first_bad.startswith(NOT_UTF8) and not fields:
        return FormatError(f"{path} is {first_bad}")
    if source.container in ("jsonl", OBJECTS) and not fields:
        return FormatError(
            f"{path} is not JSON: neither a list nor one object per line, or truncated ({first_bad or 'no object'}); "
            "CSV and TSV are known by their names"
        )
    if how.mapping:
        return unknown_field(path, how.mapping, fields)
    known = "instruction and output, conversations, messages, or others in docs/formats.md"
    want = _WANT.get(how.format, known)
    seen = ", ".join(repr(name[:40]) for name in fields[:8]) or "none, the rows are not objects"
    one = "is one JSON object, and no list of rows in it: " if source.container == OBJECTS and count == 1 else ""
    remedy = (
        "; name them, as in --map instruction=FIELD,output=FIELD" if fields and how.format in ("auto", "fields") else ""
    )
    return FormatError(f"{path} {one or 'has an unknown format: '}expected the fields {want}; found {seen}{remedy}")


_WANT = {
    "alpaca": "instruction and output",
    "sharegpt": "conversations",
    "lima": "conversations, a list of texts",
    "messages": "messages",
    "self-instruct": "instruction and instances",
    "oasst": "prompt with replies, or message_id and parent_id",
    "dolly": "instruction, context and response",
    "fields": "of a question and its answer, such as prompt and completion",
}
