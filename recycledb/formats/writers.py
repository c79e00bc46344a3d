"""Rows to files: Alpaca JSON, ShareGPT, JSON lines and Parquet.

Invariant: the same rows give the same bytes, and a file is written completely or not at all (see `recycledb.files`). Rows
are streamed. A name that ends in .gz or .zst is compressed (the hash is then of the compressed bytes).
This module does not choose or order rows.
"""

import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from recycledb.errors import FormatError
from recycledb.files import writing
from recycledb.formats.arrow import write_parquet
from recycledb.formats.values import flat, plain
from recycledb.suggestions import did_you_mean

OUT_FORMATS = ("alpaca", "sharegpt", "jsonl", "parquet")
TEXT_FIELDS = ("instruction", "input", "output")

Rows = Iterable[Mapping[str, Any]]


def write(path: Path, rows: Rows, format: str) -> str:
    """Write `rows` to `path` in `format` (see OUT_FORMATS) and return the SHA-256 of the bytes.

    A row has instruction, input and output. Its other columns are written by jsonl and parquet and omitted by alpaca and
    sharegpt, where the human's turn is the instruction and, on the lines after it, the input.
    Raises WriteError if the file cannot be written and FormatError if a row lacks a text; the previous file is then unchanged.
    """
    if format not in OUT_FORMATS:
        raise FormatError(
            f"unknown format {format!r}{did_you_mean(format, OUT_FORMATS)}: one of {', '.join(OUT_FORMATS)}"
        )
    with writing(path) as file:
        hashing = _HashingFile(file)
        with _compressing(cast(IO[bytes], hashing), path) as stream:
            _WRITERS[format](stream, rows)
    return hashing.hash.hexdigest()


def dumps_alpaca(rows: Rows) -> bytes:
    """Return the bytes that `write` writes to an Alpaca file."""
    return b"".join(_json_list(rows, _alpaca_layout))


# --- formats --------------------------------------------------------------------------------------


def _write_alpaca(stream: IO[bytes], rows: Rows) -> None:
    for part in _json_list(rows, _alpaca_layout):
        stream.write(part)


def _write_sharegpt(stream: IO[bytes], rows: Rows) -> None:
    for part in _json_list(rows, _sharegpt_layout):
        stream.write(part)


def _write_jsonl(stream: IO[bytes], rows: Rows) -> None:
    for number, row in enumerate(_whole(rows)):
        stream.write(_json_line(number, _full_row(row)))


def _write_parquet(stream: IO[bytes], rows: Rows) -> None:
    columns = list(TEXT_FIELDS)
    write_parquet(stream, columns, _as_tuples(rows, columns))


def _as_tuples(rows: Rows, columns: list[str]) -> Iterator[list[Any]]:
    """Yield the rows' values in the order of `columns`, to which new names are added as they occur."""
    for number, row in enumerate(_whole(rows)):
        columns += [name for name in row if name not in columns]
        values = [flat(row.get(name)) for name in columns]
        for value in values:
            if isinstance(value, str) and not value.isascii():
                _encoded(number, value)
        yield values


_WRITERS: dict[str, Callable[[IO[bytes], Rows], None]] = {
    "alpaca": _write_alpaca,
    "sharegpt": _write_sharegpt,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
}


# --- rows -----------------------------------------------------------------------------------------


def _whole(rows: Rows) -> Iterator[Mapping[str, Any]]:
    """Yield the rows; FormatError if one lacks one of its three texts."""
    for number, row in enumerate(rows):
        for name in TEXT_FIELDS:
            if not isinstance(row.get(name), str):
                raise FormatError(f"row {number} has no text in '{name}' and cannot be written")
        yield row


def _alpaca_layout(row: Mapping[str, Any]) -> str:
    """Return a row as `json.dump(indent=4)` writes it within a list, in about two thirds of the time."""
    fields = (f'"{name}": {_quoted(row[name])}' for name in TEXT_FIELDS)
    return "{\n        " + ",\n        ".join(fields) + "\n    }"


def _sharegpt_layout(row: Mapping[str, Any]) -> str:
    asked = "\n".join(text for text in (row["instruction"], row["input"]) if text)
    turns = (("human", asked), ("gpt", row["output"]))
    lines = (f'{{"from": "{role}", "value": {_quoted(text)}}}' for role, text in turns)
    return '{\n        "conversations": [\n            ' + ",\n            ".join(lines) + "\n        ]\n    }"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _full_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in TEXT_FIELDS} | {
        name: plain(value) for name, value in row.items() if name not in TEXT_FIELDS
    }


def _json_list(rows: Rows, layout: Callable[[Mapping[str, Any]], str]) -> Iterator[bytes]:
    """Yield the parts of a JSON list, indented by four spaces as the published files are."""
    before = "[\n    "
    for number, row in enumerate(_whole(rows)):
        yield _encoded(number, before + layout(row))
        before = ",\n    "
    yield b"\n]\n" if before.startswith(",") else b"[]\n"


def _json_line(number: int, row: Mapping[str, Any]) -> bytes:
    return _encoded(number, json.dumps(row, ensure_ascii=False) + "\n")


def _encoded(number: int, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"row {number} has a lone surrogate and cannot be written") from error


# --- files ----------------------------------------------------------------------------------------


class _HashingFile(io.RawIOBase):
    """A file that hashes the bytes written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.hash.update(data)
        return len(data)


@contextmanager
def _compressing(file: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    if path.suffix.lower() == ".gz":
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:  # no name, no time: equal bytes
            yield cast(IO[bytes], packed)
    elif path.suffix.lower() == ".zst":
        with zstandard.ZstdCompressor(write_checksum=True).stream_writer(file, closefd=False) as packed:
            yield packed
    else:
        yield file
