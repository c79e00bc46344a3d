"""A request to stop: the first lets requests in flight finish, the second ends the run at once.

Invariant: asking for a stop takes no lock, so a signal handler may do it at any moment.
"""

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

CANCEL_AGAIN_S = 0.5


class Stop(threading.Event):
    """An event that counts how often it was asked for; `set` is the same as asking once, from another thread."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = (
            0  # how often, by a signal handler: Event.set could wait there for a lock that this very thread holds
        )
        self.watched = (
            False  # whether somebody ends the run when it is asked for a second time, so that none need raise
        )

    def is_set(self) -> bool:
        """Say whether a stop was asked for."""
        return self.asked > 0 or super().is_set()


def at_once(stop: threading.Event) -> bool:
    """Say whether what is under way is not to be waited for."""
    return isinstance(stop, Stop) and stop.asked > 1


@contextmanager
def watched(stop: threading.Event) -> Iterator[None]:
    """Promise to look at `at_once` all the time."""
    if not isinstance(stop, Stop):
        yield
        return
    stop.watched = True
    try:
        yield
    finally:
        stop.watched = False


async def cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: a library may swallow a cancellation that meets a time-out of its own."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
