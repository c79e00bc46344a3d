"""Taking turns: either connections that may write are open, or sandboxes, for databases that cannot have both in one process.

Invariant: while one sort is open, a thread that wants the other waits, for WAIT_S seconds at most; then it goes on, and the database
answers it. A thread that has one open already never waits, since it would wait for itself.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

WAIT_S = 60.0


class Turns:
    """The turns of one database."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = {False: 0, True: 0}  # connections that may write, sandboxes
        self._threads: Counter[int] = Counter()

    @contextmanager
    def take(self, *, sandboxed: bool) -> Iterator[None]:
        """Wait until none of the other sort is open, and count as open during the block."""
        thread = threading.get_ident()
        with self._changed:
            if not self._threads[thread]:
                self._changed.wait_for(lambda: not self._open[not sandboxed], WAIT_S)
            self._open[sandboxed] += 1
            self._threads[thread] += 1
        try:
            yield
        finally:
            with self._changed:
                self._open[sandboxed] -= 1
                self._threads[thread] -= 1
                if not self._threads[thread]:
                    del self._threads[thread]
                self._changed.notify_all()
