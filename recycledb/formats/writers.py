"""Rows to files: Alpaca JSON, ShareGPT, JSON lines, Parquet and preference pairs.

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
from typing import IO, Any, NamedTuple, cast

import zstandard

from recycledb.errors import FormatError
from recycledb.files import writing
from recycledb.formats.arrow import write_parquet
from recycledb.formats.contexts import CONTEXT, context_column, llama_factory_row, message_row, sharegpt_turns
from recycledb.formats.pairs import PAIR, PAIR_FORMATS, pair_row
from recycledb.formats.values import flat, plain
from recycledb.suggestions import did_you_mean

OUT_FORMATS = ("alpaca", "sharegpt", "messages", "llamafactory", "alpaca_eval", "jsonl", "parquet", *PAIR_FORMATS)
TEXT_FIELDS = ("instruction", "input", "output")
PACKED = (".gz", ".zst")
GENERATOR, TEST_SET = "\0generator", "\0test_set"  # keys of the model and the test set that AlpacaEval's rows name
EXTRA = "\0extra"  # the key of a row's extra fields, a mapping: no column of a query has such a name

Rows = Iterable[Mapping[str, Any]]


class Hashes(NamedTuple):
    """The SHA-256 of what was written: of the rows in their format, and of the file, which differs if it is compressed."""

    content: str
    file: str


def write(path: Path, rows: Rows, format: str) -> str:
    """Write `rows` to `path` in `format` and return the SHA-256 of the file; see `write_hashed`."""
    return write_hashed(path, rows, format).file


def write_hashed(path: Path, rows: Rows, format: str) -> Hashes:
    """Write `rows` to `path` in `format` (see OUT_FORMATS) and return the SHA-256 of the bytes.

    A row has instruction, input and output; for a preference pair also its Pair. Its other columns are written by jsonl and parquet and
    omitted by the others; the fields of its mapping EXTRA are written by all, with the prefix `extra_` where the format has a
    column of that name. In sharegpt and messages the human's turn is the instruction and, on the lines after it, the input. Where
    a row's CONTEXT goes is in `contexts`.
    Raises WriteError if the file cannot be written and FormatError if a row lacks a text; the previous file is then unchanged.
    """
    if format not in OUT_FORMATS:
        raise FormatError(
            f"unknown format {format!r}{did_you_mean(format, OUT_FORMATS)}: one of {', '.join(OUT_FORMATS)}"
        )
    with writing(path) as file:
        hashing = _HashingFile(file)
        with _compressing(cast(IO[bytes], hashing), path) as stream:
            unpacked = _HashingFile(stream) if path.suffix.lower() in PACKED else hashing
            _WRITERS[format](cast(IO[bytes], unpacked), rows)
    return Hashes(unpacked.hash.hexdigest(), hashing.hash.hexdigest())


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


def _write_messages(stream: IO[bytes], rows: Rows) -> None:
    for number, row in enumerate(_whole(rows)):
        found = message_row(row)
        stream.write(_json_line(number, found | extra_fields(row, found)))


def _write_llama_factory(stream: IO[bytes], rows: Rows) -> None:
    for part in _json_list(rows, _llama_factory_layout):
        stream.write(part)


def _write_alpaca_eval(stream: IO[bytes], rows: Rows) -> None:
    for part in _json_list(rows, _alpaca_eval_layout):
        stream.write(part)


def _write_jsonl(stream: IO[bytes], rows: Rows) -> None:
    for number, row in enumerate(_whole(rows)):
        stream.write(_json_line(number, _full_row(row)))


def _write_parquet(stream: IO[bytes], rows: Rows) -> None:
    columns = list(TEXT_FIELDS)
    write_parquet(stream, columns, _as_tuples(rows, columns))


def _pair_writer(format: str) -> Callable[[IO[bytes], Rows], None]:
    def layout(row: Mapping[str, Any]) -> str:
        pair = pair_row(format, row)
        return _object_layout(pair | extra_fields(row, pair))

    def write_pairs(stream: IO[bytes], rows: Rows) -> None:
        for part in _json_list(rows, layout):
            stream.write(part)

    return write_pairs


def _as_tuples(rows: Rows, columns: list[str]) -> Iterator[list[Any]]:
    """Yield the rows' values in the order of `columns`, to which new names are added as they occur."""
    for number, row in enumerate(_whole(rows)):
        whole = _full_row(row)
        columns += [name for name in whole if name not in columns]
        values = [flat(whole.get(name)) for name in columns]
        for value in values:
            if isinstance(value, str) and not value.isascii():
                _encoded(number, value)
        yield values


_WRITERS: dict[str, Callable[[IO[bytes], Rows], None]] = {
    "alpaca": _write_alpaca,
    "sharegpt": _write_sharegpt,
    "messages": _write_messages,
    "llamafactory": _write_llama_factory,
    "alpaca_eval": _write_alpaca_eval,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
    **{format: _pair_writer(format) for format in PAIR_FORMATS},
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
    return _object_layout({name: row[name] for name in TEXT_FIELDS} | extra_fields(row, TEXT_FIELDS))


def _object_layout(fields: Mapping[str, Any]) -> str:
    lines = (f"{_quoted(name)}: {_quoted(value)}" for name, value in fields.items())
    return "{\n        " + ",\n        ".join(lines) + "\n    }"


def extra_fields(row: Mapping[str, Any], own: Iterable[str]) -> dict[str, Any]:
    """Return a row's extra fields, renamed where the format has a column of that name; FormatError if the new name is taken too."""
    extra = row.get(EXTRA) or {}
    taken = {*own}
    names = {name: f"extra_{name}" if name in taken else name for name in extra}
    for name, written in names.items():
        if written != name and (written in extra or written in taken):
            raise FormatError(f"the extra field {name!r} cannot be written: {name!r} and {written!r} are both taken")
    return {names[name]: plain(value) for name, value in extra.items()}


def _llama_factory_layout(row: Mapping[str, Any]) -> str:
    found = llama_factory_row(row)
    return _object_layout(found | extra_fields(row, found))


def _alpaca_eval_layout(row: Mapping[str, Any]) -> str:
    """Return a row as `alpaca_eval --model_outputs` reads it (tatsu-lab/alpaca_eval): it joins instruction and input by an empty line."""
    asked = "\n\n".join(text for text in (row["instruction"], row["input"]) if text)
    named = {"generator": row.get(GENERATOR), "dataset": row.get(TEST_SET)}
    found = {"instruction": asked, "output": row["output"]} | {key: value for key, value in named.items() if value}
    return _object_layout(found | extra_fields(row, found))


def _sharegpt_layout(row: Mapping[str, Any]) -> str:
    lines = (_quoted(turn) for turn in sharegpt_turns(row))
    extra = extra_fields(row, ("conversations",)).items()
    more = "".join(f",\n        {_quoted(name)}: {_quoted(value)}" for name, value in extra)
    return '{\n        "conversations": [\n            ' + ",\n            ".join(lines) + f"\n        ]{more}\n    }}"


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _full_row(row: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: row[name] for name in TEXT_FIELDS} | {
        name: plain(value)
        for name, value in row.items()
        if name not in (*TEXT_FIELDS, EXTRA, PAIR, CONTEXT, GENERATOR, TEST_SET)
    }
    own |= context_column(row)
    return own | extra_fields(row, own)


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
