"""The newest snapshot of a store: read in the background, and again when the store has changed."""

import threading
import time
from collections.abc import Collection

from recycledb.errors import RecycledbError
from recycledb.store import Store
from recycledb.view.columns import Snapshot, labelled, version
from recycledb.view.kept import Kept, pack, unpack
from recycledb.view.reading import read

SHARE = 0.02  # of the time may be spent on reading the columns again


class Columns:
    """The newest snapshot of a store, read by a thread of its own."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.kept = Kept(store, "columns")
        self.error: str | None = None
        self.progress = "beginning"
        self._snapshot: Snapshot | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._next = 0.0  # when the store is to be looked at again
        self._labels: list[tuple[str, str, Collection[str]]] = []  # that a snapshot being read may lack

    @property
    def is_reading(self) -> bool:
        """Whether a newer snapshot is being read."""
        return self._thread is not None

    def get(self, wait_s: float = 0.0) -> Snapshot | None:
        """Return the newest snapshot, None while the first is being read; read another if that is due and the store has changed.

        Waits up to `wait_s` seconds for the first one, and never for another.
        """
        with self._lock:
            if self._thread is None and time.monotonic() >= self._next:
                self._thread = threading.Thread(target=self._work, name="columns", daemon=True)
                self._thread.start()
            thread = self._thread
        if thread is not None and self._snapshot is None:
            thread.join(wait_s)
        return self._snapshot

    def label(self, group: str, label: str, samples: Collection[str]) -> None:
        """Say which samples have a label that this process has just stored, so that lists need not wait for the next snapshot."""
        with self._lock:
            if self._thread is not None:
                self._labels.append((group, label, samples))
            if self._snapshot is not None:
                self._snapshot = labelled(self._snapshot, group, label, samples)

    def _work(self) -> None:
        began = time.monotonic()
        last = self._snapshot
        try:
            if last is None or version(self.store) != last.version:  # not in a request: statistics are counted
                found = (self._kept() if last is None else None) or read(self.store, self._tell)
                with self._lock:
                    for each in self._labels:
                        found = labelled(found, *each)
                    self._snapshot = found
                if (
                    found.state is not None and version(self.store) == found.version
                ):  # it is valid no longer if rows were added
                    self.kept.save(found.state, pack(found))
            self.error = None
        except RecycledbError as error:
            self.error = str(error)
        finally:
            with self._lock:
                ended = time.monotonic()
                self._next, self._thread = ended + (ended - began) / SHARE, None
                self._labels = []

    def _kept(self) -> Snapshot | None:
        """Return what was read when the pages were open before, if the store is still the same."""
        at = version(self.store)
        found = self.kept.load()
        return None if found is None else unpack(found, at)

    def _tell(self, text: str) -> None:
        self.progress = text
