"""Files as sequences of JSON values: JSON lists, JSON lines, CSV, TSV and Parquet, each plain, gzipped or in zstd.

Invariant: memory is bounded by the longest row allowed (`max_row` bytes of uncompressed text), not by the file, whatever its
compression ratio; and a file truncated anywhere but between two lines is an error, never a shorter sequence. Container
and compression are detected from the file's bytes; only CSV and TSV are known by the file's name, since any text could be one.
What the values mean is up to `readers` (samples) and `scores` (statistics).

Limits: a longer row is an error that gives its number. A row has at most MAX_VALUES values and 1,000 levels of nesting, else it
is `Bad` (or, in a list, an error: searching for its end could take minutes). A zstd window is at most ZSTD_WINDOW, and a
compressed Parquet file decompresses, on disk, to at most UNPACKED_SHARE times its size (or UNPACKED_FREE).
For Parquet, `max_row` limits the resulting rows; the pages and dictionaries that pyarrow decompresses for them are limited by
pyarrow alone (2 GiB of text for each column and batch).

Syntax errors: in a list they are an error for the file, since it is not known where the elements after it begin. In JSON
lines each line is independent, so a line that is not JSON is a `Bad` value and the rest is read; but if the last line is
not JSON *and* lacks its newline, the file was truncated while being written or copied, and that is an error. Blank lines are
ignored. A JSON object over several lines is a row, or holds the one list of rows (`json_objects`).
"""

import gzip
import hashlib
import io
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from recycledb.errors import FormatError
from recycledb.formats.delimited import container_named, delimited_rows
from recycledb.formats.encodings import Utf8File, known_encoding, marked_encoding
from recycledb.formats.json_objects import OBJECTS, IsRow, arrangement, object_values, rows_under
from recycledb.formats.json_values import BLOCK, BOM, Window, line_values, list_values
from recycledb.formats.parquet import batch_values
from recycledb.formats.values import MAX_ROW, row_too_large
from recycledb.formats.zstd import ZSTD_WINDOW, WindowTooLarge, ZstdFile

HEAD = 1 << 12
PARQUET_ROWS = 256
UNPACKED_FREE = 1 << 30
UNPACKED_SHARE = 64  # Parquet is compressed inside already; a file that compresses further than this is not data

_SPACE = b" \t\r\n"

_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_FOREIGN = {  # first bytes of files that are mistaken for data, and the error message
    b"PK\x03\x04": "is a ZIP archive: unpack it first",
    b"BZh": "is compressed by bzip2: unpack it, or use gzip or zstd",
    b"\xfd7zXZ\x00": "is compressed by xz: unpack it, or use gzip or zstd",
    b"ARROW1": "is an Arrow file: save it as Parquet",
    b"SQLite format 3\x00": "is a SQLite database",
    b"version https://git-lfs": "is a Git LFS pointer, not the data: run `git lfs pull`",
    b"<": "is HTML or XML, perhaps the web page about the file instead of the file",
}
_WIDE = (b"[\x00", b"{\x00", b"\x00[", b"\x00{", b"\x00\x00")


class Source:
    """A file as a sequence of JSON values (or `Bad`); each iteration reads it anew.

    `container` is json, jsonl, objects, csv, tsv or parquet, `compression` is none, gzip or zstd, `encoding` is None for UTF-8.
    `rows_key` is the key of the list of rows, if the file is one JSON object with such a list; only objects that `is_row` rejects are
    looked into. `sha256` is the hash of the file's bytes as stored, known after a complete iteration.
    Raises FormatError at once for errors in the first bytes, and while iterating for the rest.
    """

    def __init__(
        self, path: Path, max_row: int = MAX_ROW, *, encoding: str | None = None, is_row: IsRow = lambda _: True
    ) -> None:
        self.path = path
        self.max_row = max_row
        self.sha256 = ""
        self.encoding = known_encoding(encoding)
        self.rows_key: str | None = None
        _require_file(path)
        with _as_format_errors(path):
            self.compression = _compression_of(_head_of(path))
            with path.open("rb") as file:
                head = _decompressed(file, self.compression).read(HEAD)
            self.encoding = self.encoding or marked_encoding(head)
            if self.encoding is not None and not head.startswith(_PARQUET):
                with path.open("rb") as file:
                    head = self._text(file).read(HEAD)
            self.container = _container_of(path, head)
            if self.container == "jsonl" and head.removeprefix(BOM).lstrip(_SPACE).startswith(b"{"):
                with path.open("rb") as first, path.open("rb") as second:
                    windows = (Window(self._text(file), path, max_row) for file in (first, second))
                    self.container, self.rows_key = arrangement(path, windows.__next__, is_row)

    def __iter__(self) -> Iterator[Any]:
        with _as_format_errors(self.path), self.path.open("rb") as file:
            hashing = _HashingFile(file)
            raw = io.BufferedReader(hashing, BLOCK)
            if self.container == "parquet":
                yield from self._parquet_rows(_decompressed(raw, self.compression))
            else:
                yield from self._text_rows(self._text(raw))
            while hashing.read(BLOCK):
                pass
            self.sha256 = hashing.hash.hexdigest()

    def _text(self, raw: BinaryIO) -> BinaryIO:
        stream = _decompressed(raw, self.compression)
        return stream if self.encoding is None else io.BufferedReader(Utf8File(stream, self.encoding, self.path), BLOCK)

    def _text_rows(self, stream: BinaryIO) -> Iterator[Any]:
        if self.container in ("csv", "tsv"):
            yield from delimited_rows(self.path, stream, self.container, self.max_row)
            return
        window = Window(stream, self.path, self.max_row)
        if self.rows_key is not None:
            yield from rows_under(self.path, window, self.rows_key)
        elif self.container == "json":
            yield from list_values(self.path, window)
        else:
            yield from (object_values if self.container == OBJECTS else line_values)(self.path, window)

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
    """Return json, jsonl, csv, tsv or parquet, or raise FormatError with what the file is instead."""
    if head.startswith(_PARQUET):
        return "parquet"
    named = container_named(path)
    for magic, what in _FOREIGN.items():
        if head.startswith(magic) and not (named and magic == b"<"):
            raise FormatError(f"{path} {what}")
    text = head.removeprefix(BOM).lstrip(_SPACE)
    if text.startswith(_WIDE) and b"\x00" in head:
        raise FormatError(
            f"{path} is not UTF-8 but UTF-16 or UTF-32 without a byte order mark: name it, as in `--encoding utf-16-le`, or convert it, "
            "as in `iconv -f UTF-16LE -t UTF-8`"
        )
    if not text and len(head) < HEAD:
        raise FormatError(f"{path} is empty")
    if text.startswith((b"[", b"{")):
        return "json" if text.startswith(b"[") else "jsonl"
    if _is_binary(head):
        raise FormatError(
            f"{path} is binary, but not Parquet: give JSON, JSON lines, CSV, TSV or Parquet (plain, gzip or zstd)"
        )
    return named or "jsonl"


def _is_binary(head: bytes) -> bool:
    return any(byte < 0x20 and byte not in b"\t\n\v\f\r\x1b" for byte in head)


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
