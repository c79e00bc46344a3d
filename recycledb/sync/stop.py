"""Stop requests: the first lets requests in flight finish, the second ends the run at once.

Invariant: requesting a stop takes no lock, so a signal handler may do it at any time.
"""

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

CANCEL_AGAIN_S = 0.5


class Stop(threading.Event):
    """An event that counts how often a stop was requested; another thread requests one with `set`."""

    def __init__(self) -> None:
        super().__init__()
        # Counted by the signal handler, where Event.set could deadlock on a lock that the interrupted thread holds.
        self.asked = 0
        self.watched = False  # whether the run checks `at_once`, so that the handler need not raise KeyboardInterrupt

    def is_set(self) -> bool:
        """Return whether a stop was requested."""
        return self.asked > 0 or super().is_set()


def at_once(stop: threading.Event) -> bool:
    """Return whether the run is to end without waiting for requests in flight."""
    return isinstance(stop, Stop) and stop.asked > 1


@contextmanager
def watched(stop: threading.Event) -> Iterator[None]:
    """Mark that the caller checks `at_once` regularly within this block."""
    if not isinstance(stop, Stop):
        yield
        return
    stop.watched = True
    try:
        yield
    finally:
        stop.watched = False


async def cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: a library may swallow a cancellation that coincides with its own timeout."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
