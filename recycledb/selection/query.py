"""Run read-only SQL in the store's own dialect, and write the result as a table, JSON, CSV or Parquet.

Invariant: a statement runs in the backend's sandbox, so it cannot change anything; rows are streamed; Ctrl-C and the timeout stop the
statement itself, not only the waiting for it. SQL is not translated between dialects.
"""

import csv
import io
import json
import shutil
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, cast

from recycledb.errors import QueryError
from recycledb.files import writing, writing_text
from recycledb.formats.arrow import write_parquet
from recycledb.formats.values import flat, plain
from recycledb.store import Meaning, Row, Sandbox, Store, TimeLimit
from recycledb.store.statement import parameters_in, statements_in
from recycledb.suggestions import did_you_mean
from recycledb.terminal import json_visible, visible, visible_line

FORMATS = ("table", "json", "jsonl", "csv", "parquet")
STOP_S = 3.0  # how long a stopped statement may take to end
TABLE_ROWS = 1_000  # a table's column widths need its rows in memory; use another format for more


@dataclass(frozen=True)
class Result:
    """A statement's columns, with unique names, and its rows, streamed."""

    columns: list[str]
    rows: Iterator[Row]


class Running:
    """A query that another thread may stop."""

    def __init__(self) -> None:
        self.is_stopped = False
        self._interrupt: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def stop(self) -> None:
        """Stop the query and wait until it has ended, for STOP_S seconds at most."""
        self.is_stopped = True
        end = time.monotonic() + STOP_S
        while time.monotonic() < end:
            with self._lock:  # which keeps the connection open meanwhile
                if self._interrupt is not None:
                    self._interrupt()
            if self._ended.wait(0.02):  # an interrupt before the statement starts has no effect, so repeat it
                return

    @contextmanager
    def statement(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Run a block that `interrupt` stops; QueryError if it was stopped. Several may run one after the other."""
        with self._lock:
            self._interrupt = interrupt
            self._ended.clear()
        try:
            if self.is_stopped:
                raise QueryError(_STOPPED)
            yield
        except QueryError as error:
            if self.is_stopped:
                raise QueryError(_STOPPED) from error
            raise
        finally:
            with self._lock:
                self._interrupt = None
            self._ended.set()


_STOPPED = "the query was cancelled"


@contextmanager
def query(
    store: Store,
    sql: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    timeout_s: float | None = None,
    allow_external: bool = False,
    as_if: Sequence[Meaning] = (),
    running: Running | None = None,
) -> Iterator[Result]:
    """Run one read-only statement (with `allow_external`, after ATTACH statements) and open its result.

    `as_if` overrides current names, as in `Store.sandbox`; `running` lets another thread stop the statement. QueryError if the statement
    would write or access other files, is invalid, was stopped, or takes longer than `timeout_s` seconds, reading the rows included.
    """
    given = dict(parameters or {})
    statements = statements_in(sql) if allow_external else [sql]
    if not statements:
        raise QueryError("the query is empty")
    with (
        store.sandbox(allow_external=allow_external, as_if=as_if, limit=TimeLimit(timeout_s)) as sandbox,
        (running or Running()).statement(sandbox.interrupt),
    ):
        sandbox.require_reader()
        for statement in statements[:-1]:
            list(_run(sandbox, statement, given)[1])
        columns, rows = _run(sandbox, statements[-1], given)
        yield Result(_unique(columns), rows)


def _run(sandbox: Sandbox, sql: str, given: dict[str, Any]) -> tuple[list[str], Iterator[Row]]:
    try:
        return sandbox.execute(sql, given)
    except QueryError as error:
        missing = [name for name in parameters_in(sql) if name not in given]
        if missing and ("binding" in str(error) or "syntax error" in str(error) or "arameter" in str(error)):
            raise QueryError(f"no value for :{missing[0]}; give --param {missing[0]}=…") from error
        raise


def _unique(columns: Sequence[str]) -> list[str]:
    """Return the names, with _2, _3 … appended to repeated ones, so that each can be a key."""
    taken = set(columns)  # a column may already be called a_2
    seen: set[str] = set()
    names = []
    for column in columns:
        name = column
        if column in seen:
            name = next(each for i in range(2, len(taken) + 2) if (each := f"{column}_{i}") not in taken)
        seen.add(column)
        taken.add(name)
        names.append(name)
    return names


# -- writing


def write_result(result: Result, format: str, output: Path | None, stdout: IO[str], *, width: int | None = None) -> int:
    """Write a result to a file, completely or not at all, or stream it to `stdout`; return the number of rows.

    A table fits into `width`, the terminal's; without it a table is as wide as its texts.
    """
    if format not in FORMATS:
        raise QueryError(f"unknown format {format!r}{did_you_mean(format, FORMATS)}: one of {', '.join(FORMATS)}")
    if format == "parquet":
        if output is None:
            raise QueryError("Parquet cannot be written to stdout; give -o FILE.parquet")
        with writing(output) as stream:
            return write_parquet(stream, result.columns, result.rows)
    if output is None:
        return _write_text(result, format, stdout, width)
    with writing_text(output) as file:
        return _write_text(result, format, file, None)


def format_of(output: Path | None) -> str:
    """Return the format of a file name's suffix; table without one."""
    suffix = output.suffix.lower().lstrip(".") if output else ""
    return suffix if suffix in FORMATS else "table"


class _Shown(io.TextIOBase):
    """A terminal to which JSON or CSV is written with control characters escaped. The JSON has the same values."""

    def __init__(self, terminal: IO[str], escape: Callable[[str], str]) -> None:
        self._terminal = terminal
        self._escape = escape

    def write(self, text: str, /) -> int:
        self._terminal.write(self._escape(text))
        return len(text)


def shown_on(stdout: IO[str], format: str) -> IO[str]:
    """Return the stream for `write_result`: `stdout`, wrapped to escape control characters if it is a terminal."""
    if not stdout.isatty() or format == "table":  # whose cells are escaped anyway
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
            return _each(result, lambda row: writer.writerow([flat(value) for value in row]))
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
    return json.dumps({column: plain(value) for column, value in zip(columns, row, strict=True)}, ensure_ascii=False)


# -- a table


def _write_table(result: Result, file: IO[str], width: int | None) -> int:
    rows = list(islice(result.rows, TABLE_ROWS))
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(_width(cell) for cell in column) if column else 0
        for column in zip(*chain([[_cell(name) for name in result.columns]], cells), strict=True)
    ]
    widths = _fitted(widths, width)
    numeric = [all(isinstance(row[i], int | float | Decimal | None) for row in rows) for i in range(len(widths))]
    for line in ([_cell(name) for name in result.columns], ["─" * each for each in widths], *cells):
        file.write("  ".join(map(_padded, line, widths, numeric)).rstrip() + "\n")
    rest = sum(1 for _ in result.rows) if len(rows) == TABLE_ROWS else 0
    if rest:
        file.write(f"… and {rest} more rows: write all of them with --format jsonl or -o FILE\n")
    return len(rows) + rest


def _cell(value: Any) -> str:
    """Return a value on one line, with control characters escaped."""
    if value is None:
        return ""
    return visible_line((f"{value:.6g}" if isinstance(value, float) else str(flat(value))).replace("\n", "⏎"))


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
