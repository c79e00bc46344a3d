"""The one thread that writes while questions are under way: replies first, then claims, then everything else.

Invariant: replies that were handed over go before everything else that waits, however busy the event loop is.
Once the store has refused a write, every later one is refused unheard, so nothing new is claimed or asked; the replies
that still arrive are kept for one last try.
This module refuses to know what a reply or a claim is: it calls what it is given.
"""

import asyncio
import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# Replies of one transaction, at most. Each row gives the interpreter's lock away and waits for it again, so a large group keeps those that
# arrive meanwhile waiting; a kill loses the group under way and what waits behind it.
GROUP = 16


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
        self.error: Exception | None = None  # what the store said when it refused
        self.unsaved: list[T] = []
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    def put(self, reply: T) -> None:
        """Hand over a reply; it is committed with whatever else has arrived by then."""
        with self._news:
            self._replies.append(reply)
            self._news.notify()

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
                group = [self._replies.popleft() for _ in range(min(GROUP, len(self._replies)))]
                job = None if group or self._closing else heapq.heappop(self._jobs)
            if group:
                self._commit_group(group)
            elif job:
                self._do(job[2], job[3])
            else:
                break
        if self.unsaved:  # paid for, and the disk may have room again
            self._try_again()

    def _commit_group(self, group: list[T]) -> None:
        if self.error is None:
            try:
                self._commit(group)
            except Exception as error:  # whatever it was, the replies must not be dropped
                self.error = error
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
