"""A sync where an event loop runs already, as in a notebook: in a thread of its own, with an event loop of its own.

Invariant: the caller gets what a plain call gives: the outcome or the error, its listener called in its own thread or loop, and an
orderly stop on Ctrl-C (a notebook's interrupt) or on cancellation. The thread never outlives an orderly stop by more than what is in
flight.
"""

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from types import FrameType
from typing import TypeVar

from recycledb.sync.progress import Listener, Progress
from recycledb.sync.stop import Stop

T = TypeVar("T")

LOOK_S = 0.1  # how often the waiting thread looks for progress and for Ctrl-C


def in_loop() -> bool:
    """Return whether an event loop runs in this thread, so that asyncio.run would fail."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Relay:
    """A listener that keeps the latest progress of each step, until `deliver` is called in the thread that wants to hear it."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._latest: dict[tuple[str, str], Progress] = {}
        self._lock = threading.Lock()

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            self._latest[progress.step, progress.who] = replace(progress)

    def deliver(self) -> None:
        """Call the listener with what is new."""
        with self._lock:
            latest, self._latest = list(self._latest.values()), {}
        for progress in latest:
            self._listener(progress)


def run_apart(work: Callable[[Listener], T], stop: Stop, listener: Listener) -> T:
    """Run `work`, given a listener, in another thread; return its result, or raise its error. Blocks this thread.

    The first Ctrl-C requests an orderly stop, as in the command; the second one ends what can be ended at once.
    """
    relay = Relay(listener)
    done = _start(lambda: work(relay))
    with _interrupts(stop):
        told = False
        while not _wait(done, LOOK_S):
            relay.deliver()
            if stop.asked and not told:
                told = True
                print(
                    "recycledb: stopping: finishing in-flight requests; interrupt again to abort now", file=sys.stderr
                )
    relay.deliver()
    return done.result()


async def run_async(work: Callable[[Listener], T], stop: Stop, listener: Listener) -> T:
    """Run `work` in another thread and await it; the listener is called in this event loop.

    Cancelling the task requests an orderly stop and ends it when the thread has ended; cancelling it again waits for nothing in
    flight, as a second Ctrl-C.
    """
    relay = Relay(listener)
    done = asyncio.wrap_future(_start(lambda: work(relay)))
    cancelled: asyncio.CancelledError | None = None
    while not done.done():
        try:
            await asyncio.wait([done], timeout=LOOK_S)
        except asyncio.CancelledError as error:
            cancelled = error
            stop.asked += 1
        relay.deliver()
    if cancelled is not None:
        done.exception()  # else asyncio logs that nobody has looked at it
        raise cancelled
    return done.result()


def _start(work: Callable[[], T]) -> "Future[T]":
    """Start `work` in a thread, with this context's variables."""
    done: Future[T] = Future()
    context = copy_context()

    def run() -> None:
        try:
            done.set_result(context.run(work))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="sync").start()
    return done


def _wait(done: "Future[T]", seconds: float) -> bool:
    try:
        done.exception(seconds)
    except TimeoutError:
        return done.done()
    return True


@contextmanager
def _interrupts(stop: Stop) -> Iterator[None]:
    """Turn Ctrl-C into requests to stop; asyncio's own handler would only cancel the task that waits here."""

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked += 1
        if stop.asked > 2 or (stop.asked == 2 and not stop.watched):
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
