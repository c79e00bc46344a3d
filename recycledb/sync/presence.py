"""This process at work on a store: its worker, its heartbeat, and the leases that it holds.

Invariant: from `with` to its end the worker is on record as living, and what it has leased is renewed three times in a lease's time. A
heartbeat also reads the schema: where another process has upgraded the store, this run is asked to stop, since its rows would not fit.
"""

import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from recycledb.errors import StoreError
from recycledb.store import HEARTBEAT_S, Store, leases
from recycledb.store.leases import LEASE_S, Held, Lease
from recycledb.store.living import Running
from recycledb.store.migrate import HEAD
from recycledb.store.workers import beat, end_dead, end_worker, note_doing, running, start_worker, succeed


class Presence:
    """One run's worker; use it in a `with` block."""

    def __init__(self, store: Store, stop: threading.Event, lease_s: float = LEASE_S) -> None:
        self.store, self.stop, self.lease_s = store, stop, lease_s
        self.worker = ""
        self.outdated = ""  # why the run was asked to stop
        self._held: set[Lease] = set()  # as far as this process knows
        self._lock = threading.Lock()  # of `worker` and `_held`; never waited for while the store's is held
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self.worker = start_worker(self.store, "planning")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        if error is None:
            end_worker(self.store, self.worker)
            return
        with suppress(StoreError):  # the first error is reported; other processes will notice that this one has ended
            end_worker(self.store, self.worker)

    # -- leases

    def take(self, wanted: Sequence[Lease]) -> list[Lease]:
        """Take those of these leases that are free, also of this worker; return them."""
        wanted = [lease for lease in wanted if lease not in self._held]
        if not wanted:
            return []
        taken = self.store.transact(
            lambda conn: leases.take(conn, self.worker, wanted, self.store.backend.now(conn), self.lease_s),
            locked=False,
        )
        with self._lock:
            self._held.update(taken)
        return taken

    def give(self, taken: Sequence[Lease]) -> None:
        """Give leases back."""
        if not taken:
            return
        with self._lock:
            self._held.difference_update(taken)
        self.store.transact(lambda conn: leases.give(conn, self.worker, taken), locked=False)

    def holds(self, lease: Lease) -> bool:
        """Return whether it held a lease at the last heartbeat. It never waits: it is asked on an event loop too."""
        return lease in self._held

    # -- others

    def others(self) -> list[Running]:
        """Return the other workers that are alive; those that are not are recorded as ended, and what they had leased is free."""
        end_dead(self.store)
        found = self.store.ask(lambda conn: running(self.store, conn))
        return [each for each in found if each.worker_id != self.worker]

    def held_by_others(self) -> list[Held]:
        """Return the leases that other workers hold."""
        found = self.store.ask(lambda conn: leases.held(conn, self.store.backend.now(conn)))
        return [each for each in found if each.worker_id != self.worker]

    # -- its worker

    def doing(self, what: str) -> None:
        """Record what it does."""
        note_doing(self.store, self.worker, what)

    def let_go(self) -> None:
        """Let requests without a reply count as lost, so that they may be sent again."""
        with self._lock:
            self.worker = succeed(self.store, self.worker)

    def _keep_beating(self) -> None:
        while not self._done.wait(min(HEARTBEAT_S, self.lease_s / 3)):
            with suppress(StoreError):  # the next use of the store reports it; the next heartbeat may succeed
                self._beat()

    def _beat(self) -> None:
        with self._lock:
            before = set(self._held)
            found = beat(self.store, self.worker, self.lease_s)
            self._held -= before - found.held  # others have taken them: this process was suspended
        if found.revision != HEAD and not self.outdated:
            self.outdated = (
                f"another process has upgraded the store to schema {found.revision} (this recycledb: {HEAD}); "
                "`pip install --upgrade recycledb`, then run sync again"
            )
            self.stop.set()
