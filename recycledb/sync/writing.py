"""Writing while questions are under way: replies first, then claims, then everything else; by a thread, or by the loop itself.

Invariant: replies that were handed over go before everything else that waits, however busy the event loop is.
Once the store has refused a write, every later one is refused unheard, so nothing new is claimed or asked; the replies
that still arrive are kept for one last try.
This module refuses to know what a reply or a claim is: it calls what it is given.
"""

import asyncio
import heapq
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# Replies that may wait before the event loop commits them itself rather than take more off the wire. The loop stands still meanwhile, which
# lets a writer at work finish at once: beside a busy loop, a thread waits for Python's lock far longer than a commit takes.
WAITING_MOST = 3
SWITCH_S = 0.0002  # Python's default of 5 ms lets a busy event loop hold up the thread that commits
SLOW_S = 0.03  # commits that take longer (a slow disk) are left to the thread, so that the loop goes on


class Urgency(IntEnum):
    """In which order jobs are done; replies go before all of them."""

    BEAT = 0
    CLAIM = 1
    READ = 2


class Writer(Generic[T]):
    """A thread that commits groups of `T` by `commit`, and runs other jobs between them.

    `committed` and `refused` are called in the event loop of the task that made this object.
    """

    def __init__(
        self,
        commit: Callable[[list[T]], None],
        committed: Callable[[list[T]], None],
        refused: Callable[[list[T], Exception], None],
    ) -> None:
        self._commit, self._committed, self._refused = commit, committed, refused
        self._loop = asyncio.get_running_loop()
        self._news = threading.Condition()
        self._replies: deque[T] = deque()
        self._jobs: list[tuple[int, int, Callable[[], Any], asyncio.Future[Any]]] = []
        self._order = itertools.count()
        self._closing = False
        self._committing = threading.Lock()
        self._commit_s = 0.0  # how long a commit takes, as a running mean
        self.error: Exception | None = None  # what the store said when it refused
        self.unsaved: list[T] = []
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    def put(self, reply: T) -> None:
        """Hand over a reply; it is committed with whatever else has arrived by then, at once if that is much."""
        with self._news:
            self._replies.append(reply)
            self._news.notify()
            many = len(self._replies) > WAITING_MOST
        if many and self._commit_s < SLOW_S:
            self._commit_waiting()

    async def run(self, urgency: Urgency, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a job between replies and return its result; what it raises is raised here."""
        future: asyncio.Future[Any] = self._loop.create_future()
        with self._news:
            job = (int(urgency), next(self._order), lambda: function(*arguments), future)
            heapq.heappush(self._jobs, job)
            self._news.notify()
        return await future

    async def close(self) -> None:
        """Commit what was handed over, drop jobs not begun, and end the thread."""
        with self._news:
            self._closing = True
            self._news.notify()
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while True:
            with self._news:
                while not (self._replies or self._jobs or self._closing):
                    self._news.wait()
                waiting = bool(self._replies)
                job = None if waiting or self._closing else heapq.heappop(self._jobs)
            if waiting:
                self._commit_waiting()
            elif job:
                self._do(job[2], job[3])
            else:
                break
        if self.unsaved:  # paid for, and the disk may have room again
            self._try_again()

    def _commit_waiting(self) -> None:
        """Commit every reply that waits; in whichever thread."""
        with self._committing:
            with self._news:
                group = list(self._replies)
                self._replies.clear()
            if group:
                self._commit_group(group)

    def _commit_group(self, group: list[T]) -> None:
        if self.error is None:
            started = time.monotonic()
            try:
                self._commit(group)
            except Exception as error:  # whatever it was, the replies must not be dropped
                self.error = error
            self._commit_s += (time.monotonic() - started - self._commit_s) / 8
        if self.error is None:
            self._tell(self._committed, group)
        else:
            self.unsaved += group
            self._tell(self._refused, group, self.error)

    def _do(self, function: Callable[[], Any], future: "asyncio.Future[Any]") -> None:
        try:
            if self.error is not None:
                raise self.error
            result = function()
        except Exception as error:  # handed to whoever waits for the job
            self.error = self.error or error
            self._tell(_fail, future, error)
        else:
            self._tell(_resolve, future, result)

    def _try_again(self) -> None:
        try:
            self._commit(self.unsaved)
        except Exception:  # the first error is the one that is told
            return
        self._tell(self._committed, self.unsaved)
        self.unsaved = []

    def _tell(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)


def _resolve(future: "asyncio.Future[Any]", result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


@contextmanager
def quick_switches() -> Iterator[None]:
    """Let threads take turns more often than Python's default, as long as there is a thread that commits."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
