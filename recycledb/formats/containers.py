"""Files as sequences of JSON values: JSON lists, JSON lines and Parquet, each plain, gzipped or in zstd.

Invariant: memory is bounded by the longest row allowed (`max_row` bytes of uncompressed text), not by the file, whatever its
compression ratio; and a file truncated anywhere but between two JSON lines is an error, never a shorter sequence. Container
and compression are detected from the file's bytes, not from its name.
What the values mean is up to `reading` (samples) and `scores` (statistics).

Limits: a longer row is an error that gives its number. A row has at most MAX_VALUES values and 1,000 levels of nesting, else it
is `Bad` (or, in a list, an error: searching for its end could take minutes). A zstd window is at most ZSTD_WINDOW, and a
compressed Parquet file decompresses, on disk, to at most UNPACKED_SHARE times its size (or UNPACKED_FREE).
For Parquet, `max_row` limits the resulting rows; the pages and dictionaries that pyarrow decompresses for them are limited by
pyarrow alone (2 GiB of text for each column and batch).

JSON lists are split into elements here and parsed one by one, since parsers of a whole list reject all of it for one lone
surrogate (DuckDB, orjson) or silently replace it by a question mark (yajl, hence ijson).

Syntax errors: in a list they are an error for the file, since it is not known where the elements after it begin. In JSON
lines each line is independent, so a line that is not JSON is a `Bad` value and the rest is read; but if the last line is
not JSON *and* lacks its newline, the file was truncated while being written or copied, and that is an error. Blank lines are
ignored.
"""

import gzip
import hashlib
import io
import json
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import zstandard

from recycledb.errors import FormatError
from recycledb.formats.parquet import batch_values
from recycledb.formats.values import MAX_ROW, MAX_VALUES, Bad, row_too_large, too_many_values
from recycledb.formats.zstd import ZSTD_WINDOW, WindowTooLarge, ZstdFile

BLOCK = 1 << 20
HEAD = 1 << 12
PARQUET_ROWS = 256
MAX_MARKS = 2 * MAX_VALUES  # strings and brackets visited while searching for a row's end
UNPACKED_FREE = 1 << 30
UNPACKED_SHARE = 64  # Parquet is compressed inside already; a file that compresses further than this is not data

_SPACE = b" \t\r\n"
_STRUCTURE = re.compile(rb'["{}\[\]]')
_SCALAR_END = re.compile(rb"[\s,\]]")
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_QUOTE, _BACKSLASH, _BRACE, _LIST_END, _COMMA = b'"\\{],'

_GZIP, _ZSTD, _PARQUET, _BOM = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"\xef\xbb\xbf"
_FOREIGN = {  # first bytes of files that are mistaken for data, and the error message
    b"PK\x03\x04": "is a ZIP archive: unpack it first",
    b"BZh": "is compressed by bzip2: unpack it, or use gzip or zstd",
    b"\xfd7zXZ\x00": "is compressed by xz: unpack it, or use gzip or zstd",
    b"ARROW1": "is an Arrow file: save it as Parquet",
    b"SQLite format 3\x00": "is a SQLite database",
    b"version https://git-lfs": "is a Git LFS pointer, not the data: run `git lfs pull`",
    b"<": "is HTML or XML, perhaps the web page about the file instead of the file",
}
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"[\x00", b"{\x00", b"\x00[", b"\x00{", b"\x00\x00")


class TooManyValues(Exception):  # noqa: N818 - internal; the window raises FormatError with the file's name
    """A JSON value contains more values than a row may have."""


class Source:
    """A file as a sequence of JSON values (or `Bad`); each iteration reads it anew.

    `container` is json, jsonl or parquet, `compression` is none, gzip or zstd. `sha256` is the hash of the file's
    bytes as stored, known after a complete iteration.
    Raises FormatError at once for errors in the first bytes, and while iterating for the rest.
    """

    def __init__(self, path: Path, max_row: int = MAX_ROW) -> None:
        self.path = path
        self.max_row = max_row
        self.sha256 = ""
        _require_file(path)
        with _as_format_errors(path):
            self.compression = _compression_of(_head_of(path))
            with path.open("rb") as file:
                head = _decompressed(io.BufferedReader(_HashingFile(file)), self.compression).read(HEAD)
        self.container = _container_of(path, head)

    def __iter__(self) -> Iterator[Any]:
        with _as_format_errors(self.path), self.path.open("rb") as file:
            hashing = _HashingFile(file)
            stream = _decompressed(io.BufferedReader(hashing, BLOCK), self.compression)
            if self.container == "parquet":
                yield from self._parquet_rows(stream)
            elif self.container == "json":
                yield from _list_values(self.path, _Window(stream, self.path, self.max_row))
            else:
                yield from _line_values(self.path, _Window(stream, self.path, self.max_row))
            while hashing.read(BLOCK):
                pass
            self.sha256 = hashing.hash.hexdigest()

    def _parquet_rows(self, stream: BinaryIO) -> Iterator[Any]:
        if self.compression == "none":
            yield from _parquet_values(self.path, self.path, self.max_row)
            return
        # Reading Parquet starts at its end, and compressed streams cannot seek.
        with tempfile.TemporaryFile() as unpacked:
            most = max(UNPACKED_FREE, UNPACKED_SHARE * self.path.stat().st_size)
            while block := stream.read(BLOCK):
                if unpacked.tell() + len(block) > most:
                    raise FormatError(
                        f"{self.path} decompresses to over {most >> 20} MiB: decompress it first if that is intended"
                    )
                unpacked.write(block)
            yield from _parquet_values(self.path, unpacked, self.max_row)


# --- bytes ----------------------------------------------------------------------------------------


class _HashingFile(io.RawIOBase):
    """A file that hashes the bytes read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        self.hash.update(block)
        return len(block)


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise FormatError(f"{path} is a directory: name the files in it, e.g. {path}/*.json")
    if not path.exists():
        raise FormatError(f"{path} does not exist")
    if not path.is_file():
        raise FormatError(f"{path} is not a regular file: save its content to a file first, since it is read twice")


@contextmanager
def _as_format_errors(path: Path) -> Iterator[None]:
    """Turn errors of decompressors and the system into FormatError."""
    try:
        yield
    except WindowTooLarge as error:
        raise FormatError(
            f"{path} needs a zstd window of over {ZSTD_WINDOW >> 20} MiB: decompress it first, with `zstd -d --long=31`"
        ) from error
    except EOFError as error:
        raise FormatError(
            f"{path} is truncated: its compressed data ends too early; copy or download it again"
        ) from error
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise FormatError(f"{path} is damaged ({error}): copy or download it again") from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from error


def _head_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def _compression_of(head: bytes) -> str:
    if head.startswith(_GZIP):
        return "gzip"
    skippable = head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    return "zstd" if head.startswith(_ZSTD) or skippable else "none"


def _decompressed(file: BinaryIO, compression: str) -> BinaryIO:
    if compression == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=file), BLOCK)
    return io.BufferedReader(ZstdFile(file), BLOCK) if compression == "zstd" else file


def _container_of(path: Path, head: bytes) -> str:
    """Return json, jsonl or parquet, or raise FormatError with what the file is instead."""
    if head.startswith(_PARQUET):
        return "parquet"
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise FormatError(f"{path} {what}")
    text = head.removeprefix(_BOM).lstrip(_SPACE)
    if text.startswith(_WIDE) and b"\x00" in head:
        raise FormatError(f"{path} is not UTF-8 but UTF-16 or UTF-32: convert it, e.g. with `iconv -f UTF-16 -t UTF-8`")
    if not text and len(head) < HEAD:
        raise FormatError(f"{path} is empty")
    if not text.startswith((b"[", b"{")) and _is_binary(head):
        raise FormatError(f"{path} is binary, but not Parquet: give JSON, JSON lines or Parquet (plain, gzip or zstd)")
    return "json" if text.startswith(b"[") else "jsonl"


def _is_binary(head: bytes) -> bool:
    return any(byte < 0x20 and byte not in b"\t\n\v\f\r\x1b" for byte in head)


# --- JSON -----------------------------------------------------------------------------------------


class _Window:
    """The buffered part of a byte stream: `data` from `at` on is not yet consumed; `row` is the number of the row that begins there."""

    def __init__(self, stream: BinaryIO, path: Path, max_row: int) -> None:
        self._stream = stream
        self._path = path
        self.max_row = max_row
        self.row = 0
        self.data = stream.read(BLOCK).removeprefix(_BOM)
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
        while data[before] == _BACKSLASH:
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


def _value_end(data: bytes, at: int) -> int:
    """Return the end of the JSON value that begins at `at`, or -1 if `data` ends before that is certain."""
    if data[at] in b"{[":
        return _nested_end(data, at)
    return _string_end(data, at + 1) if data[at] == _QUOTE else _scalar_end(data, at)


def _line_end(data: bytes, at: int) -> int:
    return data.find(b"\n", at) + 1 or -1


def _list_values(path: Path, window: _Window) -> Iterator[Any]:
    window.skip_space()
    window.at += 1  # the opening bracket, by which the container was detected
    position = 0
    mark = window.skip_space()
    while mark != _LIST_END or position:  # a bracket after a comma is a syntax error
        if mark < 0:
            raise FormatError(f"{path} is truncated: its JSON list has no end after {position} elements")
        value = _simple_object(window)
        yield _element(path, window, position) if value is None else value
        position += 1
        window.row = position
        mark = window.skip_space()
        if mark == _LIST_END:
            break
        if mark != _COMMA:
            raise _not_separated(path, position, mark)
        window.at += 1
        mark = window.skip_space()
    window.at += 1
    if window.skip_space() >= 0:
        raise FormatError(f"{path} is not valid JSON: it continues after the end of its list ({position} elements)")


def _simple_object(window: _Window) -> Any:
    """Return the object that ends at the next closing brace, or None.

    That brace is a guess, but if the bytes up to it parse, they are the complete object, since they begin with a brace. Most
    rows are like that, and it saves the search for their end, which takes three times as long as parsing.
    """
    end = window.data.find(b"}", window.at, window.at + min(BLOCK, window.max_row)) + 1  # `take` handles longer ones
    if not end or window.data[window.at] != _BRACE:
        return None
    try:
        value = orjson.loads(window.data[window.at : end])
    except orjson.JSONDecodeError:
        return None
    window.at = end
    return value


def _element(path: Path, window: _Window, position: int) -> Any:
    text = window.take(_value_end)
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


def _line_values(path: Path, window: _Window) -> Iterator[Any]:
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
    if isinstance(value, Bad) and good:
        raise FormatError(f"{path} is truncated: its last line ({number + 1}) is not complete and has no newline")
    yield value


def _parse_line(line: bytes, number: int) -> Any:
    try:
        return parse(line)
    except ValueError:
        return Bad(f"line {number} is not JSON")


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
        return Bad(f"not UTF-8 ({error.reason} at its byte {error.start})")
    except RecursionError:
        return Bad("nested too deeply")


# --- Parquet --------------------------------------------------------------------------------------


def _parquet_values(path: Path, file: Path | BinaryIO, max_row: int) -> Iterator[Any]:
    import pyarrow as pa  # imported late, since JSON does not need it
    import pyarrow.parquet as pq

    try:
        # Buffered, without read-ahead: else a whole row group, often the whole file, is in memory.
        with pq.ParquetFile(file, buffer_size=BLOCK, pre_buffer=False, page_checksum_verification=True) as table:
            first = 0
            for batch in table.iter_batches(batch_size=PARQUET_ROWS, use_threads=False):
                _require_small_rows(path, first, batch, max_row)
                yield from batch_values(batch)
                first += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # UnicodeDecodeError: a damaged column name
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(
            f"{path} is a truncated or damaged Parquet file ({reason}): copy or download it again"
        ) from error


def _require_small_rows(path: Path, first: int, batch: Any, max_row: int) -> None:
    """Raise FormatError if a row of a batch is too large, before it is converted to Python objects."""
    if batch.nbytes <= max_row:
        return
    for index in range(batch.num_rows):
        if batch.slice(index, 1).nbytes > max_row:
            raise row_too_large(path, first + index, max_row)
