"""Read-only SQL in the store's own dialect: run, watch, and write as a table, JSON, CSV or Parquet.

Invariant: a statement runs in the backend's sandbox, so it can change nothing; rows are handed on as they come, and Ctrl-C or the
timeout stops the statement, not only the waiting for it.
This module refuses to translate SQL between dialects.
"""

import csv
import io
import json
import math
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from recycledb.errors import QueryError
from recycledb.files import writing, writing_text
from recycledb.store import Row, Sandbox, Store
from recycledb.store.statement import parameters_in, statements_in
from recycledb.terminal import json_visible, visible, visible_line

FORMATS = ("table", "json", "jsonl", "csv", "parquet")
TABLE_ROWS = 1_000  # a table's widths need its rows in memory; for more there are the other formats
BATCH_ROWS = 1_000
_T = TypeVar("_T")


@dataclass(frozen=True)
class Result:
    """A statement's columns, made unique, and its rows, which come as they are computed."""

    columns: list[str]
    rows: Iterator[Row]


@contextmanager
def query(
    store: Store,
    sql: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    timeout_s: float | None = None,
    allow_external: bool = False,
) -> Iterator[Result]:
    """Run one reading statement (with `allow_external`, ATTACHes before it) and open its result.

    QueryError where the statement would write or reach other files, is wrong, or takes longer than `timeout_s` seconds,
    the reading of the rows included.
    """
    given = dict(parameters or {})
    statements = statements_in(sql) if allow_external else [sql]
    if not statements:
        raise QueryError("the query is empty")
    with store.backend.sandbox(allow_external=allow_external) as sandbox:
        watch = _Watch(sandbox, timeout_s)
        try:
            for statement in statements[:-1]:
                list(_run(watch, sandbox, statement, given)[1])
            columns, rows = _run(watch, sandbox, statements[-1], given)
            yield Result(_unique(columns), _watched(watch, rows))
        finally:
            watch.close()


def _run(watch: "_Watch", sandbox: Sandbox, sql: str, given: dict[str, Any]) -> tuple[list[str], Iterator[Row]]:
    try:
        return watch.call(lambda: sandbox.execute(sql, given))
    except QueryError as error:
        missing = [name for name in parameters_in(sql) if name not in given]
        if missing and ("binding" in str(error) or "syntax error" in str(error) or "arameter" in str(error)):
            raise QueryError(f"no value for :{missing[0]}; give --param {missing[0]}=…") from error
        raise


class _Watch:
    """Runs calls in a thread of its own, so that the caller's thread hears Ctrl-C and the clock."""

    def __init__(self, sandbox: Sandbox, timeout_s: float | None) -> None:
        self._sandbox = sandbox
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="query")

    def call(self, work: Callable[[], _T]) -> _T:
        """Return what `work` returns; stop the statement and raise when time is up or the user interrupts."""
        future: Future[_T] = self._thread.submit(work)
        try:
            return future.result(None if self._deadline is None else max(0.0, self._deadline - time.monotonic()))
        except TimeoutError as error:
            self._stop(future)
            raise QueryError(f"stopped after {self._timeout_s:g} s (--timeout)") from error
        except BaseException:
            self._stop(future)
            raise

    def _stop(self, future: "Future[Any]") -> None:
        while not future.done():  # an interrupt that comes before the statement starts is forgotten: say it again
            self._sandbox.interrupt()
            time.sleep(0.01)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True)


def _watched(watch: _Watch, rows: Iterator[Row]) -> Iterator[Row]:
    while batch := watch.call(lambda: list(islice(rows, BATCH_ROWS))):
        yield from batch


def _unique(columns: Sequence[str]) -> list[str]:
    """Return the names with _2, _3 … behind those that stood before, so that each can be a key."""
    seen: dict[str, int] = {}
    names = []
    for column in columns:
        seen[column] = seen.get(column, 0) + 1
        names.append(column if seen[column] == 1 else f"{column}_{seen[column]}")
    return names


# -- writing


def write_result(result: Result, format: str, output: Path | None, stdout: IO[str], *, width: int | None = None) -> int:
    """Write a result to a file, whole or not at all, or to `stdout` as it comes; return the number of rows.

    `width` is the terminal's, within which a table is kept; without it a table is as wide as its texts.
    """
    if format not in FORMATS:
        raise QueryError(f"unknown format {format!r}: one of {', '.join(FORMATS)}")
    if format == "parquet":
        if output is None:
            raise QueryError("Parquet is not for a terminal; give -o FILE.parquet")
        with writing(output) as stream:
            return _write_parquet(result, stream)
    if output is None:
        return _write_text(result, format, stdout, width)
    with writing_text(output) as file:
        return _write_text(result, format, file, None)


def format_of(output: Path | None) -> str:
    """Return the format that a file's name asks for; table where there is none."""
    suffix = output.suffix.lower().lstrip(".") if output else ""
    return suffix if suffix in FORMATS else "table"


class _Shown(io.TextIOBase):
    """A terminal that gets JSON or CSV with what it would obey escaped: JSON of the same values, CSV for people to read."""

    def __init__(self, terminal: IO[str], escape: Callable[[str], str]) -> None:
        self._terminal = terminal
        self._escape = escape

    def write(self, text: str, /) -> int:
        self._terminal.write(self._escape(text))
        return len(text)


def shown_on(stdout: IO[str], format: str) -> IO[str]:
    """Return what `write_result` may write to: `stdout` itself, but a terminal only by way of what makes texts harmless."""
    if not stdout.isatty() or format == "table":  # whose cells are made so anyway
        return stdout
    return cast(IO[str], _Shown(stdout, json_visible if format in ("json", "jsonl") else visible))


def _write_text(result: Result, format: str, file: IO[str], width: int | None) -> int:
    match format:
        case "json":
            return _write_json(result, file)
        case "jsonl":
            return _each(result, lambda row: file.write(_json(result.columns, row) + "\n"))
        case "csv":
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(result.columns)
            return _each(result, lambda row: writer.writerow([_plain(value) for value in row]))
    return _write_table(result, file, width)


def _each(result: Result, write: Callable[[Row], object]) -> int:
    count = 0
    for count, row in enumerate(result.rows, 1):  # noqa: B007 — its last value is the number of rows
        write(row)
    return count


def _write_json(result: Result, file: IO[str]) -> int:
    before = "[\n"
    count = 0
    for row in result.rows:
        file.write(before + _json(result.columns, row))
        before = ",\n"
        count += 1
    file.write("\n]\n" if count else "[]\n")
    return count


def _json(columns: Sequence[str], row: Row) -> str:
    return json.dumps({column: _plain(value) for column, value in zip(columns, row, strict=True)}, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """Return a database's value as JSON has it: no NaN, no infinity; bytes in hexadecimal; the rest as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _write_parquet(result: Result, stream: IO[bytes]) -> int:
    """Write Parquet; a column's type is that of all its values, so the result is held in memory, in Arrow's form."""
    import pyarrow.parquet as pq

    table = to_arrow(result)
    pq.write_table(table, stream, compression="zstd")
    return int(table.num_rows)


def to_arrow(result: Result) -> Any:
    """Return the rows as a `pyarrow.Table`; a column of mixed types becomes text."""
    import pyarrow as pa

    pieces: list[list[Any]] = [[] for _ in result.columns]
    while batch := list(islice(result.rows, 65_536)):
        for column, values in zip(pieces, zip(*batch, strict=True), strict=True):
            column.append(_array([_arrow_value(value) for value in values], pa))
    return pa.table([_joined(column, pa) for column in pieces], names=result.columns)


def _arrow_value(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bytes | list | dict) else _plain(value)


def _array(values: list[Any], pa: Any) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # a number here, a text there: SQLite has no column types
        return pa.array([None if value is None else str(value) for value in values])


def _joined(chunks: list[Any], pa: Any) -> Any:
    types = {chunk.type for chunk in chunks if not pa.types.is_null(chunk.type)}
    if not types:
        return pa.nulls(sum(len(chunk) for chunk in chunks))
    if len(types) == 1:
        kind = types.pop()
    elif types == {pa.int64(), pa.float64()}:
        kind = pa.float64()
    else:
        kind = pa.string()
    return pa.chunked_array([chunk.cast(kind) for chunk in chunks], type=kind)


# -- a table for people


def _write_table(result: Result, file: IO[str], width: int | None) -> int:
    rows = list(islice(result.rows, TABLE_ROWS))
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(_width(cell) for cell in column) if column else 0
        for column in zip(*chain([[_cell(name) for name in result.columns]], cells), strict=True)
    ]
    widths = _fitted(widths, width)
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(widths))]
    for line in ([_cell(name) for name in result.columns], ["─" * each for each in widths], *cells):
        file.write("  ".join(map(_padded, line, widths, numeric)).rstrip() + "\n")
    rest = sum(1 for _ in result.rows) if len(rows) == TABLE_ROWS else 0
    if rest:
        file.write(f"… and {rest} more rows: --format jsonl, or -o FILE, writes them all\n")
    return len(rows) + rest


def _cell(value: Any) -> str:
    """Return a value on one line, without anything that a terminal would obey."""
    if value is None:
        return ""
    return visible_line((f"{value:.6g}" if isinstance(value, float) else str(_plain(value))).replace("\n", "⏎"))


def _width(text: str) -> int:
    return sum(
        2 if unicodedata.east_asian_width(character) in "WF" else 0 if unicodedata.combining(character) else 1
        for character in text
    )


def _fitted(widths: list[int], width: int | None) -> list[int]:
    """Narrow the widest columns until the table fits."""
    if width is None or not widths:
        return widths
    room = width - 2 * (len(widths) - 1)
    limit = min(max(widths), max(6, room))
    while limit > 6 and sum(min(each, limit) for each in widths) > room:
        limit -= 1
    return [min(each, limit) for each in widths]


def _padded(cell: str, width: int, right: bool) -> str:
    if _width(cell) > width:
        cell = cell[:width]
        while _width(cell) > width - 1:
            cell = cell[:-1]
        cell += "…"
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space


def terminal_width() -> int:
    """Return the terminal's width in characters."""
    return shutil.get_terminal_size().columns
