"""CSV and TSV files as rows: objects whose names are the header's.

Invariant: a file is CSV or TSV because its name says so, since any text could be; fields are texts, and an empty field is an empty text.
Quotes follow RFC 4180. A quote that is never closed is an error for the file, so that a truncated file is not read as a shorter one;
a line with another number of fields than the header is a `Bad` row.
"""

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from recycledb.errors import FormatError
from recycledb.formats.json_values import not_utf8
from recycledb.formats.values import Bad, row_too_large

PACKED = {".gz", ".gzip", ".zst", ".zstd"}
_SEPARATORS = {".csv": ",;\t|", ".tsv": "\t", ".tab": "\t"}
_ESCAPED = "surrogateescape"  # bytes that are not UTF-8, so that only their row is bad


def container_named(path: Path) -> str | None:
    """Return csv or tsv if the file's name says so, whatever its compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in _SEPARATORS:
        return None
    return "csv" if suffixes[-1] == ".csv" else "tsv"


def delimited_rows(path: Path, stream: BinaryIO, container: str, max_row: int) -> Iterator[Any]:
    """Yield the rows after the header."""
    csv.field_size_limit(min(max_row, sys.maxsize))
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors=_ESCAPED, newline="")
    lines = _lines(path, text, max_row)
    first = next(lines, "")
    separators = _SEPARATORS[f".{container}"]
    separator = max(separators, key=first.count)
    reader = csv.reader(_with(first, lines), delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _not_delimited(path, reader.line_num, error, max_row) from error
        if row is None:
            return
        if header is None:
            header = _checked_header(path, row)
        elif row:  # an empty list is a blank line
            yield _row(header, row, reader.line_num)


def _lines(path: Path, text: io.TextIOWrapper, max_row: int) -> Iterator[str]:
    while line := text.readline(max_row + 1):
        if len(line) > max_row:
            raise row_too_large(path, 0, max_row)
        yield line


def _with(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _checked_header(path: Path, names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FormatError(f"{path} has two columns called {twice[0][:40]!r} in its first line: rename one")
    return names


def _row(header: list[str], row: list[str], line: int) -> Any:
    if len(row) != len(header):
        return Bad(f"line {line} has {len(row)} fields, and the header {len(header)}")
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        return _wrong_bytes(row)
    return dict(zip(header, row, strict=True))


def _wrong_bytes(row: list[str]) -> Bad:
    try:
        ",".join(row).encode(errors=_ESCAPED).decode()
    except UnicodeDecodeError as error:
        return Bad(not_utf8(error))
    return Bad("lone surrogate")


def _not_delimited(path: Path, line: int, error: csv.Error, max_row: int) -> FormatError:
    reason = str(error)
    if "field larger" in reason:
        return row_too_large(path, line, max_row)
    if "end of data" in reason:
        return FormatError(
            f"{path} is truncated, or a quote is never closed: its last row begins at or before line {line}"
        )
    return FormatError(f"{path}: line {line} is not valid CSV ({reason}): within quotes, a quote is written twice")
