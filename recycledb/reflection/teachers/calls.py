"""Calls that block, made so that a stop is seen while they do.

Invariant: `call` returns what the function returned, or raises what it raised, or raises Stopped; it never waits on after a stop longer
than it was told to. What was not waited for goes on in a thread of its own, and nobody hears of it.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")

CHECK_S = 0.05


class Stopped(Exception):  # noqa: N818 - nothing is wrong
    """Raised in place of a result that a stop left no time for."""


def call(function: Callable[[], T], stop: threading.Event, *, grace_s: float = 0.0) -> T:
    """Return what `function` returns; after a stop, wait `grace_s` more for it, then raise Stopped.

    Without a grace, nothing is begun after a stop.
    """
    done: Future[T] = Future()

    def work() -> None:
        try:
            result = function()
        except BaseException as error:  # whatever it was, it is raised to whoever waits
            done.set_exception(error)
        else:
            done.set_result(result)

    if stop.is_set() and not grace_s:
        raise Stopped
    threading.Thread(target=work, name="call", daemon=True).start()
    until: float | None = None
    while not wait([done], timeout=CHECK_S).done:
        if stop.is_set():
            until = until or time.monotonic() + grace_s
            if time.monotonic() >= until:
                raise Stopped
    return done.result()


def pause(seconds: float, stop: threading.Event) -> None:
    """Wait so long; Stopped at a stop."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stop.is_set():  # asked again and again: `Event.wait` has a lock that a signal handler could not take
            raise Stopped
        time.sleep(min(left, CHECK_S))
