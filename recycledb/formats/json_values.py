"""JSON text as a sequence of values: the elements of a list, or the lines, of a byte stream.

Invariant: memory is bounded by the longest row allowed. Lists are split into elements here and parsed one by one, since parsers of a
whole list reject all of it for one lone surrogate (DuckDB, orjson) or silently replace it by a question mark (yajl, hence ijson).
See `containers` for what is a bad row and what is a bad file.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from recycledb.errors import FormatError
from recycledb.formats.values import MAX_VALUES, Bad, row_too_large, too_many_values

BLOCK = 1 << 20
BOM = b"\xef\xbb\xbf"
MAX_MARKS = 2 * MAX_VALUES  # strings and brackets visited while searching for a row's end

_STRUCTURE = re.compile(rb'["{}\[\]]')
_SCALAR_END = re.compile(rb"[\s,\]}]")
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
QUOTE, BACKSLASH, BRACE, LIST_END, COMMA = b'"\\{],'


class TooManyValues(Exception):  # noqa: N818 - internal; the window raises FormatError with the file's name
    """A JSON value contains more values than a row may have."""


_NOT_JSON, _CUT_CHARACTER = "is not JSON", "a character is cut off"
NOT_UTF8 = "not UTF-8"  # how each reason about an encoding begins


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return why bytes are not UTF-8, and what to do."""
    if error.reason == "unexpected end of data":
        return f"{NOT_UTF8}: {_CUT_CHARACTER}"
    return (
        f"{NOT_UTF8} ({error.reason} at its byte {error.start}): name the file's encoding, as in `--encoding latin-1`, or convert it, "
        "as in `iconv -f latin1 -t utf8`"
    )


class Window:
    """The buffered part of a byte stream: `data` from `at` on is not yet consumed; `row` is the number of the row that begins there."""

    def __init__(self, stream: BinaryIO, path: Path, max_row: int) -> None:
        self._stream = stream
        self._path = path
        self.max_row = max_row
        self.row = 0
        self.data = stream.read(BLOCK).removeprefix(BOM)
        self.at = 0

    def grow(self) -> bool:
        """Drop the consumed part and read more; False at the end.

        The rest at least doubles, so that searching it again from its start takes linear time overall.
        """
        rest = self.data[self.at :]
        block = self._stream.read(max(BLOCK, min(len(rest), self.max_row - len(rest))))
        self.data, self.at = rest + block, 0
        return bool(block)

    def skip_space(self) -> int:
        """Skip to the next byte that is not white space and return it, or -1 at the end."""
        while (found := _NOT_SPACE.search(self.data, self.at)) is None:
            self.at = len(self.data)
            if not self.grow():
                return -1
        self.at = found.start()
        return self.data[self.at]

    def take(self, find_end: Any) -> bytes | None:
        """Consume and return the bytes up to `find_end(data, at)`; None if the stream ends before.

        Raises FormatError if there are more than a row may have.
        """
        try:
            while (end := find_end(self.data, self.at)) < 0 and len(self.data) - self.at <= self.max_row:
                if not self.grow():
                    return None
        except TooManyValues as error:
            raise FormatError(
                f"{self._path}: row {self.row} (counted from 0) has more than {MAX_MARKS:,} strings and brackets"
            ) from error
        if (len(self.data) if end < 0 else end) - self.at > self.max_row:
            raise row_too_large(self._path, self.row, self.max_row)
        taken = self.data[self.at : end]
        self.at = end
        return taken


def _string_end(data: bytes, at: int) -> int:
    """Return the end (after the quote) of the string whose content begins at `at`, or -1."""
    while (quote := data.find(b'"', at)) >= 0:
        at = quote + 1
        before = quote - 1
        while data[before] == BACKSLASH:
            before -= 1
        if (quote - before) % 2:  # an even number of backslashes escape each other, not the quote
            return at
    return -1


def _nested_end(data: bytes, at: int) -> int:
    """Return the end of the object or list that begins at `at`, or -1. TooManyValues if the search could take minutes."""
    depth = marks = 0
    while found := _STRUCTURE.search(data, at):
        at, mark = found.end(), found[0]
        marks += 1
        if marks > MAX_MARKS:
            raise TooManyValues
        if mark == b'"':
            at = _string_end(data, at)
            if at < 0:
                return -1
        elif mark in b"{[":
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                return at
    return -1


def _scalar_end(data: bytes, at: int) -> int:
    found = _SCALAR_END.search(data, at)
    return found.start() if found else -1


def value_end(data: bytes, at: int) -> int:
    """Return the end of the JSON value that begins at `at`, or -1 if `data` ends before that is certain."""
    if data[at] in b"{[":
        return _nested_end(data, at)
    return _string_end(data, at + 1) if data[at] == QUOTE else _scalar_end(data, at)


def _line_end(data: bytes, at: int) -> int:
    return data.find(b"\n", at) + 1 or -1


def list_values(path: Path, window: Window) -> Iterator[Any]:
    """Yield the elements of the JSON list that a file is."""
    window.skip_space()
    yield from elements(path, window)
    if window.skip_space() >= 0:
        raise FormatError(f"{path} is not valid JSON: it continues after the end of its list ({window.row} elements)")


def elements(path: Path, window: Window) -> Iterator[Any]:
    """Yield the elements of the JSON list that begins here, and consume it; `window.row` counts them."""
    window.at += 1  # the opening bracket
    window.row = position = 0
    mark = window.skip_space()
    while mark != LIST_END or position:  # a bracket after a comma is a syntax error
        if mark < 0:
            raise FormatError(f"{path} is truncated: its JSON list has no end after {position} elements")
        value = simple_object(window)
        yield _element(path, window, position) if value is None else value
        position += 1
        window.row = position
        mark = window.skip_space()
        if mark == LIST_END:
            break
        if mark != COMMA:
            raise _not_separated(path, position, mark)
        window.at += 1
        mark = window.skip_space()
    window.at += 1


def simple_object(window: Window) -> Any:
    """Return the object that ends at the next closing brace, or None.

    That brace is a guess, but if the bytes up to it parse, they are the complete object, since they begin with a brace. Most
    rows are like that, and it saves the search for their end, which takes three times as long as parsing.
    """
    end = window.data.find(b"}", window.at, window.at + min(BLOCK, window.max_row)) + 1  # `take` handles longer ones
    if not end or window.data[window.at] != BRACE:
        return None
    try:
        value = orjson.loads(window.data[window.at : end])
    except orjson.JSONDecodeError:
        return None
    window.at = end
    return value


def _element(path: Path, window: Window, position: int) -> Any:
    text = window.take(value_end)
    if text is None:
        raise FormatError(f"{path} is truncated: its JSON list ends within element {position} (counted from 0)")
    try:
        return parse(text)
    except ValueError as error:
        raise FormatError(f"{path} is not valid JSON: element {position} (counted from 0): {error}") from error


def _not_separated(path: Path, position: int, mark: int) -> FormatError:
    if mark < 0:
        return FormatError(f"{path} is truncated: its JSON list has no end after {position} elements")
    return FormatError(f"{path} is not valid JSON: no comma between elements {position - 1} and {position} (from 0)")


def line_values(path: Path, window: Window) -> Iterator[Any]:
    """Yield the value of each line that is not blank."""
    number, good = 0, False  # window.row counts rows, without blank lines
    while (line := window.take(_line_end)) is not None:
        number += 1
        if not line.isspace():
            value = _parse_line(line, number)
            good = good or not isinstance(value, Bad)
            yield value
            window.row += 1
    last = window.data[window.at :]
    if not last or last.isspace():
        return
    value = _parse_line(last, number + 1)
    if isinstance(value, Bad) and good and value.reason.endswith((_NOT_JSON, _CUT_CHARACTER)):
        raise FormatError(f"{path} is truncated: its last line ({number + 1}) is not complete and has no newline")
    yield value


def _parse_line(line: bytes, number: int) -> Any:
    try:
        return parse(line)
    except ValueError:
        return Bad(f"line {number} {_NOT_JSON}")


def parse(text: bytes) -> Any:
    """Return the JSON value in `text`, or `Bad` if it is not UTF-8, is nested too deeply or has too many values.

    Raises ValueError if it is not JSON. What orjson rejects is tried with the standard library: lone surrogates (which
    `reading` reports), NaN, control characters.
    """
    if too_many_values(text):
        return Bad(f"more than {MAX_VALUES:,} values")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text.decode(), strict=False)
    except UnicodeDecodeError as error:
        return Bad(not_utf8(error))
    except RecursionError:
        return Bad("nested too deeply")
