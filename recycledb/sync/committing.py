"""Commit replies as they arrive, and keep those that arrive while a server is away.

Invariant: each group of replies is committed, or its caller is told why not, in the order in which they arrived. The event loop waits for
a commit, never for a server that is away: requests in flight would time out meanwhile, although their answers have arrived.
"""

import asyncio
from collections.abc import Callable, Sequence

from recycledb.errors import AwayError
from recycledb.store import Store
from recycledb.sync.replies import Arrived, store_replies

Done = Callable[[Exception | None], None]


class Commits:
    """The commits of one run, made on its event loop."""

    def __init__(self, store: Store, *, locked: bool) -> None:
        """Commit into `store`; `locked` where the store has a budget, see `add_replies`."""
        self.store, self.locked = store, locked
        self._waiting: list[tuple[Sequence[Arrived], Done]] = []  # for the server
        self._task: asyncio.Task[None] | None = None

    def add(self, arrived: Sequence[Arrived], done: Done) -> None:
        """Commit replies and call `done` with the error, if there is one: now, or once the server is there again."""
        if self._task is None:
            try:
                store_replies(self.store, arrived, wait=False, locked=self.locked)
            except AwayError:
                self._task = asyncio.get_running_loop().create_task(self._wait())
            except Exception as error:  # of any kind: the replies must not be dropped
                done(error)
                return
            else:
                done(None)
                return
        self._waiting.append((arrived, done))

    async def settle(self) -> None:
        """Wait until nothing waits for the server any more."""
        if self._task is not None:
            await self._task

    async def _wait(self) -> None:
        """Commit what waits, in a thread that waits for the server."""
        while groups := self._waiting:
            self._waiting = []
            every = [each for arrived, _ in groups for each in arrived]
            error: Exception | None = None
            try:
                await asyncio.to_thread(store_replies, self.store, every, locked=self.locked)
            except Exception as caught:
                error = caught
            for _, done in groups:
                done(error)
        self._task = None
