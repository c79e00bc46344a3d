"""Run SQL that may take arbitrarily long in a separate thread, so that Ctrl-C and a time limit can stop it.

Invariant: when a call returns or raises, its statement has ended. The exception is a statement that does not react to an interrupt (one
endless call of a function: databases check for interrupts between rows). It is left running in its daemon thread, which does not keep
the process from exiting, and its connection is never closed, since closing would wait for the statement.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from itertools import islice
from queue import SimpleQueue
from typing import Any, TypeVar

from sqlalchemy import Engine, event

from recycledb.errors import QueryError
from recycledb.store.backend import Row, Sandbox

BATCH_ROWS = 1_000
STOP_S = 3.0  # how long a statement may take to end after an interrupt
_T = TypeVar("_T")


class TimeLimit:
    """A deadline for statements, if any; several connections may share it. The time begins with the first statement."""

    def __init__(self, timeout_s: float | None = None) -> None:
        if timeout_s is not None and not timeout_s > 0:
            raise QueryError(f"invalid time limit {timeout_s:g}: give a number of seconds above 0, as in --timeout 60")
        self._timeout_s = timeout_s
        self._end = math.inf if timeout_s is None else None

    def left_s(self) -> float | None:
        """Return how many seconds are left; None if there is no deadline."""
        if self._end is None:  # waiting for a connection does not count
            self._end = time.monotonic() + (self._timeout_s or 0.0)
        left = max(0.0, self._end - time.monotonic())
        return left if left < threading.TIMEOUT_MAX else None

    def passed(self) -> QueryError:
        """Return the error to raise when the time limit has passed."""
        return QueryError(f"stopped after {self._timeout_s:g} s (--timeout)")


class Watch:
    """Runs calls one after another in its thread; `interrupt` stops the running one."""

    def __init__(self, interrupt: Callable[[], None], limit: TimeLimit) -> None:
        self.has_let_go = False  # of a call that cannot be stopped
        self._interrupt = interrupt
        self._limit = limit
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="statement", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, work = call
            try:
                future.set_result(work())
            except BaseException as error:  # re-raised in the caller's thread
                future.set_exception(error)

    def call(self, work: Callable[[], _T]) -> _T:
        """Run `work` and return its result; on a timeout or an interrupt by the user, stop it and raise."""
        future: Future[_T] = Future()
        self._calls.put((future, work))
        try:
            return future.result(self._limit.left_s())
        except TimeoutError as error:
            if future.done():  # finished just now, or `work` itself raised TimeoutError
                return future.result()
            self._stop(future.done)
            raise self._limit.passed() from error
        except BaseException:
            self._stop(future.done)
            raise

    def close(self) -> None:
        """End the thread, and stop the call that it is still running."""
        self._calls.put(None)
        if not self.has_let_go:
            self._thread.join(0.05)  # the usual case: nothing is running
            self._stop(lambda: not self._thread.is_alive())

    def _stop(self, is_done: Callable[[], bool]) -> None:
        end = time.monotonic() + STOP_S
        try:
            while not is_done():  # an interrupt before the statement starts has no effect, so repeat it
                if time.monotonic() > end:
                    self.has_let_go = True
                    return
                self._interrupt()
                time.sleep(0.01)
        except BaseException:  # another Ctrl-C while waiting: do not wait any longer
            self.has_let_go = not is_done()
            raise


class WatchedSandbox:
    """A sandbox in which Ctrl-C and a time limit stop statements, also while their rows are read."""

    def __init__(self, sandbox: Sandbox, watch: Watch) -> None:
        self.views = sandbox.views
        self._sandbox = sandbox
        self._watch = watch

    def execute(self, sql: str, parameters: dict[str, Any] | None = None) -> tuple[list[str], Iterator[Row]]:
        """Run one statement; return the column names and an iterator of row tuples."""
        _require_texts(sql, parameters)
        columns, rows = self._watch.call(lambda: self._sandbox.execute(sql, parameters))
        return columns, self._rows(rows)

    def require_reader(self) -> None:
        """Raise QueryError if what a user's statement may read is not limited."""
        self._watch.call(self._sandbox.require_reader)

    def columns(self, select: str, parameters: dict[str, Any] | None = None) -> list[str]:
        """Return the columns of a SELECT, as a subquery has them, without reading its rows."""
        _require_texts(select, parameters)
        return self._watch.call(lambda: self._sandbox.columns(select, parameters))

    def _rows(self, rows: Iterator[Row]) -> Iterator[Row]:
        while batch := self._watch.call(lambda: list(islice(rows, BATCH_ROWS))):
            yield from batch

    def interrupt(self) -> None:
        """Stop the running statement, from another thread."""
        self._sandbox.interrupt()

    def leave(self) -> None:
        """Never close the connection: its statement cannot be stopped."""
        self._sandbox.leave()


def _require_texts(sql: str, parameters: dict[str, Any] | None) -> None:
    _require_text("the SQL", sql)
    if "\0" in sql:
        raise QueryError(f"the SQL contains a NUL character, at {sql.index(chr(0))}; databases ignore what follows it")
    for name, value in (parameters or {}).items():
        if isinstance(value, str):
            _require_text(f"the value of parameter {name}", value)


def _require_text(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # arguments that are not UTF-8 arrive as lone surrogates
        raise QueryError(f"{what} is not valid UTF-8 ({text[error.start]!r} at {error.start})") from error


@contextmanager
def watched(sandbox: Sandbox, limit: TimeLimit) -> Iterator[WatchedSandbox]:
    """Wrap a sandbox so that its statements can be stopped; a statement still running at the end is stopped."""
    watch = Watch(sandbox.interrupt, limit)
    try:
        yield WatchedSandbox(sandbox, watch)
    finally:
        try:
            watch.close()
        finally:
            if watch.has_let_go:
                sandbox.leave()


def stoppable(engine: Engine, work: Callable[[], _T]) -> _T:
    """Run `work`, which reads through `engine` only, and return its result; Ctrl-C stops its running statement, which ends it."""
    connections: list[Any] = []

    def opened(connection: Any, record: object) -> None:
        connections.append(connection)

    def closed(connection: Any, record: object) -> None:
        connections[:] = [each for each in connections if each is not connection]

    def interrupt() -> None:
        for connection in list(connections):
            with suppress(Exception):  # the driver's own error if the connection was closed just now
                connection.interrupt()

    event.listen(engine, "connect", opened)
    event.listen(engine, "close", closed)
    watch = Watch(interrupt, TimeLimit())
    try:
        return watch.call(work)
    finally:
        watch.close()
        event.remove(engine, "connect", opened)
        event.remove(engine, "close", closed)
