"""Blocking calls that a stop can interrupt.

Invariant: `call` returns what the function returned, or raises what it raised, or raises Stopped; after a stop it waits no longer than
`grace_s`. An abandoned call continues in its own thread, and its result is discarded.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")

CHECK_S = 0.05


class Stopped(Exception):  # noqa: N818 - not an error
    """Raised instead of a result, after a stop."""


def call(function: Callable[[], T], stop: threading.Event, *, grace_s: float = 0.0) -> T:
    """Return what `function` returns; after a stop, wait up to `grace_s` for it, then raise Stopped.

    With `grace_s` 0 nothing is started after a stop.
    """
    done: Future[T] = Future()

    def work() -> None:
        try:
            result = function()
        except BaseException as error:  # re-raised by `done.result()`
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
    """Wait for this long; Stopped at a stop."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stop.is_set():  # polled, since `Event.wait` holds a lock that a signal handler cannot acquire
            raise Stopped
        time.sleep(min(left, CHECK_S))
